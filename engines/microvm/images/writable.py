"""Writable layers on disk: sparse files with an empty ext4, one for each container that has one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, InternalError, ResourceExhausted, syscall_error
from forgeone_shim.kernel.spawn import find_program, run

PROGRAM: Final = "mkfs.ext4"
# Nothing on it outlives its machine, so that a journal would only cost.
_OPTIONS: Final = ("-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard")


def make(path: Path, size: int, deadline: Deadline) -> int:
    """A new file of ``size`` bytes; its descriptor, the caller's to close. On any error there is none.

    :raises FailedPrecondition: there is no program to make it with.
    :raises ResourceExhausted: the disk is full.
    """
    program = find_program(PROGRAM)
    if program is None:
        raise FailedPrecondition(f"{PROGRAM} is not installed", fix="apt-get install e2fsprogs")
    with contextlib.ExitStack() as undo:
        undo.callback(remove, path)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            undo.callback(os.close, fd)
            os.ftruncate(fd, size)
        except OSError as error:
            raise syscall_error("make", path, error) from error
        done = run(program, [program, *_OPTIONS, str(path)], deadline)
        if done.code != 0:
            if "No space left" in done.text:
                raise ResourceExhausted(f"no writable layer can be made: {done.text}")
            raise InternalError(f"{PROGRAM} ended with {done.code}: {done.text}")
        undo.pop_all()
    return fd


def remove(path: Path) -> None:
    """Remove it; none is no error."""
    path.unlink(missing_ok=True)
