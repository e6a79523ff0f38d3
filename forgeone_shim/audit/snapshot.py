"""A log as it is at one moment, read from its files by anybody: what is in the tiles, and what was written ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

from forgeone_shim.audit import checkpoint, merkle, note, tiles, wal
from forgeone_shim.audit.checkpoint import Checkpoint, Signed
from forgeone_shim.audit.files import Files
from forgeone_shim.audit.ledger import Mark
from forgeone_shim.audit.merkle import Frontier
from forgeone_shim.audit.note import Verifier
from forgeone_shim.audit.tiles import HEIGHT, WIDTH, Edge
from forgeone_shim.audit.wal import Found, Group
from forgeone_shim.errors import FailedPrecondition, ForgeError, InvalidInput, NotFound

_ATTEMPTS: Final = 5
_CACHED: Final = 64
_TWICE: Final = "entries were written by two writers"


class Damaged(FailedPrecondition):
    """The log is not what its owner wrote, or not all of it."""


@dataclass(slots=True)
class Snapshot:
    """``settled`` is what the tiles hold, ``groups`` what was written ahead of them, ``signed`` the log with both.

    ``torn``: a group at the end is not whole. It was being written when its writer was killed, and nobody was told
    that it was durable; or somebody damaged it.
    """

    files: Files
    settled: Checkpoint
    edge: Edge
    groups: tuple[Group, ...]
    signed: Signed
    torn: bool
    _ahead: tuple[bytes, ...] = ()
    _first: int | None = None
    _edge: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)
    _cache: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._ahead = tuple(entry for group in self.groups for entry in group.entries)
        edge = Edge([list(tile) for tile in self.edge.tiles], self.edge.frontier.copy())
        for entry in self._ahead:
            for level, number, tile in edge.add(merkle.leaf(entry)):
                self._edge[level, number] = tile
        for level, number, _ in tiles.levels(self.size):
            self._edge[level, number] = edge.tiles[level]

    @property
    def origin(self) -> str:
        """The log's name."""
        return self.settled.origin

    @property
    def size(self) -> int:
        """Entries in the log."""
        return self.signed.checkpoint.size

    def bundle_or_ahead(self, number: int) -> Iterator[bytes]:
        """The entries of a bundle, as many as the log has."""
        low, settled = number * WIDTH, self.settled.size
        if low < settled:
            yield from self.bundle(number)
        yield from self._ahead[max(0, low - settled) : max(0, low + WIDTH - settled)]

    def entry(self, index: int) -> bytes:
        """One entry. :raises NotFound: there is none, or it was given up to keep the log small."""
        if not 0 <= index < self.size:
            raise NotFound("audit entry", str(index), where=f"a log of {self.size} entries")
        if index >= self.settled.size:
            return self._ahead[index - self.settled.size]
        number, at = divmod(index, WIDTH)
        if number < self.first // WIDTH:
            raise NotFound("audit entry", str(index), where=f"a log that keeps what is from {self.first} on")
        return self.bundle(number)[at]

    def bundle(self, number: int) -> list[bytes]:
        """The entries of a bundle that are in the tiles."""
        return self.files.bundle(number, min(WIDTH, self.settled.size - number * WIDTH))

    def entries(self, first: int) -> Iterator[bytes]:
        """Those from an index on."""
        for number in range(first // WIDTH, -(-self.size // WIDTH)):
            yield from islice(self.bundle_or_ahead(number), max(0, first - number * WIDTH), None)

    @property
    def first(self) -> int:
        """The oldest entry that is kept: the beginning of the bundles without a gap that the log ends with."""
        if self._first is None:
            self._first = self.oldest()
        return self._first

    def oldest(self) -> int:
        """The same as it is now: a log's writer may give up entries while others read it."""
        first = self.settled.size // WIDTH
        for number, _ in reversed(self.files.bundles()):
            if number == first - 1:
                first = number
        return first * WIDTH

    def tile(self, level: int, number: int) -> list[bytes]:
        """As many of a tile's hashes as the log has."""
        found = self._edge.get((level, number)) or self._cache.get((level, number))
        if found is None:
            found = self._cache[level, number] = self.files.tile(level, number)
            if len(self._cache) > _CACHED:
                del self._cache[next(iter(self._cache))]
        return found

    def subtree(self, height: int, place: int) -> bytes:
        """The root of a complete subtree (:data:`~forgeone_shim.audit.merkle.Subtrees`)."""
        level, rest = divmod(height, HEIGHT)
        number, at = divmod(place << rest, WIDTH)
        return merkle.fold(self.tile(level, number)[at : at + (1 << rest)])

    def root(self, size: int) -> bytes:
        """The root of the log when it had so many entries."""
        if size > self.size:
            raise InvalidInput("size", f"the log has {self.size} entries, not {size}")
        return merkle.root(size, self.subtree)


Keys = Callable[[str], Sequence[Verifier]]
"""Whose checkpoints count, by the name of the log."""


def read(directory: Path, keys: Keys) -> Snapshot | None:
    """The log of a directory, its right edge verified: all that further entries would build upon.

    :return: ``None`` where there is no log.
    :raises Damaged: it is not whole, or none of the keys signed it.
    """
    files, seen = Files(directory), ""
    for _ in range(_ATTEMPTS):
        before = _settled(files)
        try:
            return _read(files, before, wal.read(files.wal), keys)
        except (ForgeError, OSError) as error:
            # What its writer does meanwhile (writes groups, moves them into the tiles) looks like damage once.
            if str(error) == seen and _settled(files) == before:
                raise Damaged(seen) from error
            seen = str(error)
    raise Damaged("it changes faster than it can be read", fix="try again")


def _settled(files: Files) -> bytes | None:
    try:
        return files.checkpoint()
    except (ForgeError, OSError) as error:
        # It takes its name as a whole.
        raise Damaged(str(error)) from error


def _read(files: Files, settled_note: bytes | None, found: Found, keys: Keys) -> Snapshot | None:
    if settled_note is None:
        if not found.groups or found.groups[0].first:
            if found.groups or files.bundles():
                raise Damaged(f"{tiles.CHECKPOINT} is missing")
            return None
        origin = checkpoint.parse(note.text_of(found.groups[0].note, "the first group"), "the first group").origin
        settled = Checkpoint(origin, 0, merkle.EMPTY)
    else:
        settled = checkpoint.parse(note.text_of(settled_note, tiles.CHECKPOINT), tiles.CHECKPOINT)
    edge = Edge.read(settled.size, files.tile)
    if edge.frontier.root() != settled.root:
        raise Damaged(f"the tiles are not those that {tiles.CHECKPOINT} speaks of")
    _check_bundle(files, settled.size, edge)
    groups, torn = _ahead(found, settled, edge.frontier.copy())
    last = groups[-1].note if groups else settled_note
    if last is None:
        return None
    signed = checkpoint.open_signed(last, keys(settled.origin), "the newest checkpoint")
    return Snapshot(files, settled, edge, groups, signed, torn)


def _check_bundle(files: Files, size: int, edge: Edge) -> None:
    """The last entries in the tiles are those that were hashed."""
    number, width = divmod(size, WIDTH)
    if not width:
        return
    for at, entry in enumerate(files.bundle(number, width)):
        if merkle.leaf(entry) != edge.tiles[0][at]:
            raise Damaged(f"entry {number * WIDTH + at} is not the one that was logged")


def _ahead(found: Found, settled: Checkpoint, frontier: Frontier) -> tuple[tuple[Group, ...], bool]:
    """The groups after what is settled, each leading to what its checkpoint says, and whether a torn one follows."""
    groups: list[Group] = []
    size = settled.size
    for group in found.groups:
        if group.end <= settled.size:
            continue
        if group.first != size:
            raise Damaged(f"entries {size} to {group.first - 1} are missing" if group.first > size else _TWICE)
        for entry in group.entries:
            frontier.push(merkle.leaf(entry))
        size = group.end
        if checkpoint.parse(note.text_of(group.note, "a group"), "a group") != Checkpoint(
            settled.origin, size, frontier.root()
        ):
            raise Damaged(f"entries {group.first} to {size - 1} are not those that were signed")
        groups.append(group)
    beyond = [each.first for each in found.torn if each.first > size]
    if beyond:
        raise Damaged(f"entries {size} to {beyond[0] - 1} are missing")
    return tuple(groups), any(each.first == size for each in found.torn)


def check_mark(found: Snapshot | None, mark: Mark | None) -> None:
    """That the log is, or goes on from, what somebody was told of.

    :raises Damaged: it is shorter, or another one.
    """
    if mark is None:
        return
    if found is None:
        raise Damaged(f"it is gone: it had {mark.size} entries")
    if found.origin != mark.origin:
        raise Damaged(f"it is {found.origin}, and was {mark.origin}")
    if found.size < mark.size:
        raise Damaged(f"it has {found.size} entries, and had {mark.size}")
    if Mark.of(Checkpoint(mark.origin, mark.size, found.root(mark.size))) != mark:
        raise Damaged(f"its first {mark.size} entries are not those that it had")
