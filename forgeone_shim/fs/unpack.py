"""Unpacking a layer in a process of its own: the interpreter of the daemon only hands compressed bytes on.

A process a layer makes layers parallel, keeps hostile input away from the daemon's memory, and is undone by one kill.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from io import FileIO
from pathlib import Path
from typing import Protocol

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, ForgeError, InternalError, InvalidInput, Kind, ResourceExhausted
from forgeone_shim.fs import unpack_worker
from forgeone_shim.kernel.spawn import Child, spawn

_PIECE = 1 << 18
_PIPE_SIZE = 1 << 20
_ANSWER_MAX = 1 << 16


class Stream(Protocol):
    """A blob's bytes; reading blocks, and fails on its own when the sender stalls."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill some of the buffer; 0 at the end."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What the process found: hash of the archive, disk use (0: look for yourself), whether it hides all below it."""

    sha256: str
    size: int
    inodes: int
    opaque_root: bool


def unpack(
    workshop: int, stream: Stream, deadline: Deadline, on_bytes: Callable[[int], None] | None = None
) -> Unpacked:
    """Unpack ``stream`` into the empty directory ``workshop`` (a descriptor), as ``fs`` and maybe ``implied`` in it.

    What is made there when this raises a ForgeError is the caller's to remove; errors of the stream pass through.
    """
    with ExitStack() as stack:
        blob, blob_in = _pipe(stack)
        answer, answer_in = _pipe(stack)
        argv = [sys.executable, "-I", "-S", "-c", _boot()]
        files = {
            unpack_worker.BLOB: blob.fileno(),
            unpack_worker.ANSWER: answer_in.fileno(),
            unpack_worker.WORKSHOP: workshop,
        }
        try:
            child = stack.enter_context(spawn(argv[0], argv, files=files))
        except OSError as error:
            raise InternalError(f"start {argv[0]} to unpack a layer: {error.strerror}") from error
        # The child's ends stay with the child alone, so that each side sees when the other is gone.
        blob.close()
        answer_in.close()
        _grow(blob_in.fileno())
        os.set_blocking(blob_in.fileno(), False)
        _feed(stream, blob_in.fileno(), answer.fileno(), deadline, on_bytes)
        blob_in.close()
        return _parsed(_read_answer(answer.fileno(), deadline), child)


def _boot() -> str:
    """The program text; ``-S`` leaves out site-packages (and the time to scan it), so the few folders are named."""
    folders: dict[str, None] = {}
    for package in ("forgeone_shim", "isal", "zstandard"):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            folders[str(Path(spec.origin).resolve().parent.parent)] = None
    return f"import sys; sys.path[:0] = {list(folders)!r}; from {unpack_worker.__name__} import main; main()"


def _pipe(stack: ExitStack) -> tuple[FileIO, FileIO]:
    read, write = os.pipe2(os.O_CLOEXEC)
    return stack.enter_context(FileIO(read, "rb")), stack.enter_context(FileIO(write, "wb"))


def _grow(pipe: int) -> None:
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    except OSError:
        # Above the pipe quota of an unprivileged user; a pipe of the default size works too.
        return


def _feed(stream: Stream, pipe: int, answer: int, deadline: Deadline, on_bytes: Callable[[int], None] | None) -> None:
    """Hand on the stream until its end, or until the process answers early: then something is wrong."""
    poll = select.poll()
    poll.register(pipe, select.POLLOUT)
    poll.register(answer, select.POLLIN)
    buffer = memoryview(bytearray(_PIECE))
    while count := stream.readinto(buffer):
        deadline.check("while a layer was unpacked")
        if on_bytes is not None:
            on_bytes(count)
        rest = buffer[:count]
        while rest:
            try:
                rest = rest[os.write(pipe, rest) :]
            except BlockingIOError:
                ready = dict(poll.poll(_milliseconds(deadline)))
                if not ready:
                    raise DeadlineExceeded("deadline passed while a layer was unpacked") from None
                if answer in ready:
                    return
            except BrokenPipeError:
                return


def _read_answer(answer: int, deadline: Deadline) -> bytes:
    poll = select.poll()
    poll.register(answer, select.POLLIN)
    data = b""
    while len(data) < _ANSWER_MAX:
        if not poll.poll(_milliseconds(deadline)):
            raise DeadlineExceeded("deadline passed while a layer was unpacked")
        piece = os.read(answer, _ANSWER_MAX)
        if not piece:
            break
        data += piece
    return data


def _milliseconds(deadline: Deadline) -> int | None:
    left = deadline.remaining()
    return None if left is None else int(left * 1000 + 0.999)


def _parsed(answer: bytes, child: Child) -> Unpacked:
    head, *fields = answer.decode(errors="replace").split("\0")
    if head == unpack_worker.OK and len(fields) == 4:
        return Unpacked(fields[0], int(fields[1]), int(fields[2]), fields[3] == "1")
    if not fields:
        raise InternalError(f"the process that unpacks a layer ended with status {child.wait()} and no answer")
    raise _error(head, fields[0])


def _error(kind: str, message: str) -> ForgeError:
    if kind == Kind.INVALID:
        return InvalidInput("layer", message)
    if kind == Kind.EXHAUSTED:
        return ResourceExhausted(message)
    return InternalError(message)
