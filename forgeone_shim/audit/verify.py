"""Looks at every byte of a log: whether it is what its node signed, and goes on from what it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from forgeone_shim.audit import checkpoint, entry, keys, merkle
from forgeone_shim.audit.checkpoint import Signed
from forgeone_shim.audit.note import Verifier
from forgeone_shim.audit.snapshot import Damaged, Snapshot
from forgeone_shim.audit.tiles import HEIGHT, WIDTH
from forgeone_shim.errors import FailedPrecondition, ForgeError

ROTATED: Final = f"{entry.TYPE_PREFIX}audit.key.rotated"
PRUNED: Final = f"{entry.TYPE_PREFIX}audit.pruned"


@dataclass(slots=True)
class Report:
    """``first`` is the oldest entry that is kept, ``entries`` how many were looked at, ``rotations`` old and new keys.

    ``pruned``: the log says that it gave up the entries before that one.
    """

    signed: Signed
    first: int
    entries: int = 0
    rotations: list[tuple[Verifier, Verifier]] = field(default_factory=list)
    pruned: int = 0


def verify(log: Snapshot, since: int = 0, progress: Callable[[int], None] = lambda _: None) -> Report:
    """All that the log has from entry ``since`` on, and the tree above all of it.

    :param progress: told how many entries were looked at, now and then.
    :raises Damaged: naming what is wrong with it.
    """
    report = Report(log.signed, log.first)
    check_tree(log)
    for number in range(max(since, report.first) // WIDTH, -(-log.size // WIDTH)):
        try:
            entries = check_bundle(log, number)
        except Damaged:
            # Its writer may have given it up meanwhile.
            if (number + 1) * WIDTH > log.oldest():
                raise
            report.first = (number + 1) * WIDTH
            continue
        for index, data in enumerate(entries, number * WIDTH):
            if index >= since:
                _read(log, index, data, report)
        progress(report.entries)
    if not since and report.first > report.pruned:
        raise Damaged(
            f"entries {report.pruned} to {report.first - 1} are missing: the log does not say it gave them up"
        )
    return report


def check_earlier(log: Snapshot, earlier: bytes, trusted: Sequence[Verifier]) -> Signed:
    """That the log goes on from a checkpoint that somebody kept.

    :raises Damaged: it does not. :raises ForgeError: it is no checkpoint of this log.
    """
    signed = checkpoint.open_signed(earlier, trusted, "the earlier checkpoint")
    before = signed.checkpoint
    if before.origin != log.origin:
        raise Damaged(f"the earlier checkpoint is of {before.origin}, and the log is {log.origin}")
    if before.size > log.size:
        raise Damaged(f"it had {before.size} entries, and has {log.size}")
    if log.root(before.size) != before.root:
        raise Damaged(f"its first {before.size} entries are not those that it had")
    return signed


def check_key(report: Report, pinned: Verifier) -> None:
    """That the key that signed the log is this one, or one that came to its place step by step.

    :raises Damaged: it is neither.
    """
    key = pinned
    for old, new in report.rotations:
        if old == key:
            key = new
    if key not in report.signed.signers:
        raise Damaged(f"{pinned} did not sign it, nor did a key that the log says took its place")


def check_tree(log: Snapshot) -> None:
    """That the tree above the hashes of entries leads to the root. :raises Damaged: naming the tile."""
    level = 1
    while whole := log.size >> (level + 1) * HEIGHT:
        for number in range(whole):
            _check_tile(log, level, number)
        level += 1


def check_bundle(log: Snapshot, number: int) -> list[bytes]:
    """The entries of a bundle, if they are those that were logged. :raises Damaged: naming the one that is not."""
    hashes = _tile(log, 0, number)
    if len(hashes) == WIDTH:
        _check_tile(log, 0, number)
    entries = list(_bundle(log, number))
    for at, data in enumerate(entries):
        if merkle.leaf(data) != hashes[at]:
            raise Damaged(f"entry {number * WIDTH + at} is not the one that was logged")
    return entries


def _check_tile(log: Snapshot, level: int, number: int) -> None:
    """A whole tile is what the level above has the root of."""
    above, at = divmod(number, WIDTH)
    if merkle.fold(_tile(log, level, number)) != _tile(log, level + 1, above)[at]:
        raise Damaged(f"tile {number} of level {level} is not the one that was signed")


def _read(log: Snapshot, index: int, data: bytes, report: Report) -> None:
    try:
        found = entry.decode(data)
        if found.id != str(index) or found.source != log.origin:
            raise FailedPrecondition(f"it is {found.id} of {found.source}")
        if found.type == ROTATED:
            report.rotations.append(keys.endorsed(_text(found.data, "note"), log.origin))
        elif found.type == PRUNED:
            report.pruned = max(report.pruned, _number(found.data, "before"))
    except ForgeError as error:
        raise Damaged(f"entry {index}: {error}") from error
    report.entries += 1


def _tile(log: Snapshot, level: int, number: int) -> list[bytes]:
    try:
        return log.tile(level, number)
    except (FailedPrecondition, OSError) as error:
        raise Damaged(str(error)) from error


def _bundle(log: Snapshot, number: int) -> Iterator[bytes]:
    """The entries of a bundle, in the tiles or ahead of them."""
    try:
        yield from log.bundle_or_ahead(number)
    except (FailedPrecondition, OSError) as error:
        raise Damaged(str(error)) from error


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str):
        raise FailedPrecondition(f"its {name} is no text")
    return value


def _number(data: dict[str, Any], name: str) -> int:
    value = data.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise FailedPrecondition(f"its {name} is no number")
    return value
