"""A log as files that any web server can serve, and anybody can verify. https://c2sp.org/tlog-tiles"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from forgeone_shim.audit import checkpoint, note, snapshot, tiles
from forgeone_shim.audit.files import Files
from forgeone_shim.audit.ledger import Mark
from forgeone_shim.audit.snapshot import Snapshot
from forgeone_shim.audit.tiles import CHECKPOINT, ENTRIES, HEIGHT, WIDTH
from forgeone_shim.errors import AlreadyExists, syscall_error

KEY: Final = "key"


def write(log: Snapshot, directory: Path) -> None:
    """All of it as it is now, and a file ``key`` of what it is verified with; what was written ahead is in tiles too.

    A directory that holds an earlier export of the same log is brought up to date.

    :raises AlreadyExists: it holds something else. :raises Damaged: the log does not go on from what was exported.
    :raises InternalError: it cannot be written.
    """
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        keys = "".join(f"{one}\n" for one in log.signed.signers).encode()
        if any(directory.iterdir()) and not (directory / KEY).is_file():
            raise AlreadyExists(f"{directory} holds something else", fix="choose an empty directory")
        files = Files(directory)
        # What was exported may be the only trace of what the log was, so it is not written over by anything else.
        _check_goes_on(log, files.checkpoint(), directory)
        for name, data in _tiles(log):
            files.write(name, data)
        files.write(KEY, keys)
        files.sync()
        # Last: what it speaks of is there.
        files.write(CHECKPOINT, log.signed.data)
        files.sync()
    except OSError as error:
        raise syscall_error("write", error.filename or directory, error) from None


def _check_goes_on(log: Snapshot, earlier: bytes | None, directory: Path) -> None:
    if earlier is None:
        return
    # Whoever signed it: the log is compared with it, and nothing is taken from it.
    what = f"the checkpoint in {directory}"
    before = checkpoint.parse(note.text_of(earlier, what), what)
    if before.origin != log.origin:
        raise AlreadyExists(f"{directory} holds the log {before.origin}", fix="choose an empty directory")
    snapshot.check_mark(log, Mark.of(before))


def _tiles(log: Snapshot) -> Iterator[tuple[str, bytes]]:
    for number in range(log.first // WIDTH, -(-log.size // WIDTH)):
        width = min(WIDTH, log.size - number * WIDTH)
        yield tiles.path(ENTRIES, number, width), tiles.bundle(list(log.bundle_or_ahead(number)))
        yield tiles.path(0, number, width), b"".join(log.tile(0, number))
    level = 1
    while log.size >> level * HEIGHT:
        hashes = log.size >> level * HEIGHT
        for number in range(-(-hashes // WIDTH)):
            width = min(WIDTH, hashes - number * WIDTH)
            yield tiles.path(level, number, width), b"".join(log.tile(level, number))
        level += 1
