"""Tiles: a log's tree and entries as files of at most 256 hashes or entries. https://c2sp.org/tlog-tiles"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from forgeone_shim.audit import merkle
from forgeone_shim.audit.entry import MAX_ENTRY
from forgeone_shim.audit.merkle import HASH_SIZE, Frontier
from forgeone_shim.errors import FailedPrecondition

WIDTH: Final = 256
HEIGHT: Final = 8
CHECKPOINT: Final = "checkpoint"
TREE: Final = "tile"
ENTRIES: Final = "entries"


def path(level: int | str, number: int, width: int = WIDTH) -> str:
    """Where a tile is, below the log's directory. ``level`` of entries: :data:`ENTRIES`."""
    parts = [f"{number % 1000:03d}"]
    while number >= 1000:
        number //= 1000
        parts.append(f"x{number % 1000:03d}")
    whole = "/".join((TREE, str(level), *reversed(parts)))
    return whole if width == WIDTH else f"{whole}.p/{width}"


def levels(size: int) -> Iterator[tuple[int, int, int]]:
    """Level, number and width of the last tile of each level that is not whole, of a tree of that size."""
    level = 0
    while size:
        number, width = divmod(size, WIDTH)
        if width:
            yield level, number, width
        size, level = number, level + 1


def hashes(data: bytes, width: int, what: str) -> list[bytes]:
    """A tile's hashes. :raises FailedPrecondition: it has not so many."""
    if len(data) != width * HASH_SIZE:
        raise FailedPrecondition(f"{what} has {len(data)} bytes, not {width * HASH_SIZE}")
    return [data[at : at + HASH_SIZE] for at in range(0, len(data), HASH_SIZE)]


def bundle(entries: Sequence[bytes]) -> bytes:
    """Entries as a bundle has them."""
    for entry in entries:
        if len(entry) > MAX_ENTRY:
            raise ValueError(f"an entry has {len(entry)} bytes, more than {MAX_ENTRY}")
    return b"".join(part for entry in entries for part in (len(entry).to_bytes(2, "big"), entry))


def unbundle(data: bytes, width: int, what: str) -> list[bytes]:
    """A bundle's entries. :raises FailedPrecondition: it has not so many, or they end elsewhere."""
    found: list[bytes] = []
    at = 0
    while at < len(data) and len(found) <= width:
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end > len(data) or at + 2 > len(data):
            raise FailedPrecondition(f"{what} is cut off in entry {len(found)}")
        found.append(data[at + 2 : end])
        at = end
    if len(found) != width:
        raise FailedPrecondition(f"{what} has {'more' if len(found) > width else len(found)} entries, not {width}")
    return found


@dataclass(slots=True)
class Edge:
    """A tree's right edge: of each level the hashes of the tile that is not whole yet."""

    tiles: list[list[bytes]] = field(default_factory=list)
    frontier: Frontier = field(default_factory=Frontier)

    @classmethod
    def read(cls, size: int, tile: Callable[[int, int, int], list[bytes]]) -> Edge:
        """That of a tree of this size; ``tile`` gives a tile's hashes by level, number and width."""
        found: dict[int, list[bytes]] = {level: tile(level, number, width) for level, number, width in levels(size)}
        tiles = [found.get(level, []) for level in range(max(found, default=-1) + 1)]
        subtrees = ((level * HEIGHT, each) for level in reversed(range(len(tiles))) for each in tiles[level])
        return cls(tiles, Frontier(subtrees))

    def add(self, leaf: bytes) -> list[tuple[int, int, list[bytes]]]:
        """Add an entry's hash; the tiles that are whole by that, by level and number."""
        self.frontier.push(leaf)
        whole: list[tuple[int, int, list[bytes]]] = []
        level, each = 0, leaf
        while True:
            if level == len(self.tiles):
                self.tiles.append([])
            tile = self.tiles[level]
            tile.append(each)
            if len(tile) < WIDTH:
                return whole
            number = (self.frontier.size >> (level + 1) * HEIGHT) - 1
            self.tiles[level] = []
            whole.append((level, number, tile))
            level, each = level + 1, merkle.fold(tile)
