"""What a log's owner finds at its start, and puts right before it goes on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from forgeone_shim.audit import keys, snapshot
from forgeone_shim.audit.keys import NodeKey
from forgeone_shim.audit.ledger import Damage, Ledger, Mark
from forgeone_shim.audit.note import Verifier
from forgeone_shim.audit.snapshot import Damaged, Snapshot
from forgeone_shim.errors import FailedPrecondition


def recover(directory: Path, key: NodeKey, mark: Mark | None) -> tuple[Snapshot | None, str]:
    """The log, or why it is not trusted."""

    def verifiers(origin: str) -> list[Verifier]:
        return [keys.verifier(origin, one.public) for one in (key.current, key.next) if one is not None]

    try:
        found = snapshot.read(directory, verifiers)
        snapshot.check_mark(found, mark)
    except Damaged as error:
        return None, str(error)
    return found, ""


def set_aside(directory: Path, reason: str, ledger: Ledger) -> None:
    """Move a log that is not trusted out of the way, as it is, and remember why."""
    kept = directory.with_name(f"{directory.name}.damaged-{time.time_ns() // 1_000_000}")
    with contextlib.suppress(FileNotFoundError):
        directory.rename(kept)
    ledger.report(Damage(reason, str(kept)))
    ledger.begin()


def finish_rotation(key: NodeKey, found: Snapshot | None) -> None:
    """A rotation that was cut off counts if the log tells of it."""
    if key.next is None:
        return
    if found is not None and keys.verifier(found.origin, key.next.public) in found.signed.signers:
        key.adopt()
    else:
        key.drop_next()


def plain(name: str) -> str:
    """A node's name as far as it can be in that of a key."""
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in name) or "node"


def take(path: Path) -> int:
    """The lock of a log. :raises FailedPrecondition: another process has it."""
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise FailedPrecondition(f"{path} is held by another process", fix="stop it") from None
    return fd
