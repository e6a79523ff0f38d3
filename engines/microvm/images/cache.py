"""Images as erofs files, kept as long as the node has the image: ``DIRECTORY/<64 digits>.erofs``.

A file is made beside its name and renamed to it when it is whole, so that one with a name is complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from threading import Lock
from typing import Final
from weakref import WeakValueDictionary

import msgspec

from engines.microvm.images.order import Order
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidInput,
    ResourceExhausted,
    syscall_error,
)
from forgeone_shim.kernel.spawn import collect, find_program, spawn
from forgeone_shim.shim.programs import Program

PROGRAM: Final = "mkfs.erofs"
_HELPER: Final = "engines.microvm.images.pack"
_PACKAGES: Final = ("forgeone_shim", "engines", "msgspec")
_ID: Final = re.compile(r"(?:sha256:)?([0-9a-f]{64})\Z")
_NEW, _EMPTY, _LOCK, _SUFFIX = ".new-", ".empty", ".lock-", ".erofs"
_FILE: Final = re.compile(r"(?:\.new-|\.lock-)?([0-9a-f]{64})(?:\.erofs)?")
_SIZE_MAX: Final = 1 << 40
_SAID_MAX: Final = 4096
_NOBODY: Final = 65534


class Images:
    """Thread-safe; a second process may use the same directory. It is made by the first image."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # A lock on a file cannot be waited for with a deadline, and its holder is nearly always of this process.
        self._turns: WeakValueDictionary[str, Lock] = WeakValueDictionary()
        self._finding = Lock()

    def open(self, image_id: str, tree: str, deadline: Deadline) -> int:
        """A descriptor of the image's file, the caller's to close; made of ``tree``, its merged layers, if need be.

        :raises FailedPrecondition: there is no program to make it with.
        :raises ResourceExhausted: the disk is full.
        :raises DeadlineExceeded: it took too long.
        """
        path = self._directory / f"{_name(image_id)}{_SUFFIX}"
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            (self._directory / _EMPTY).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise syscall_error("mkdir", self._directory, error) from error
        with self._making(_name(image_id), deadline):
            with contextlib.suppress(FileNotFoundError):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            return self._made(path, tree, deadline)

    def _made(self, path: Path, tree: str, deadline: Deadline) -> int:
        draft = path.with_name(f"{_NEW}{path.name}")
        with contextlib.ExitStack() as undo:
            undo.callback(draft.unlink, missing_ok=True)
            try:
                # Of a daemon that was killed.
                draft.unlink(missing_ok=True)
                os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                os.chown(draft, _NOBODY, _NOBODY)
                self._pack(tree, draft, deadline)
                os.chown(draft, 0, 0)
                draft.chmod(0o400)
                fd = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
                undo.callback(os.close, fd)
                os.fdatasync(fd)
                draft.replace(path)
            except OSError as error:
                raise syscall_error("make", path, error) from error
            undo.pop_all()
        return fd

    def _pack(self, tree: str, draft: Path, deadline: Deadline) -> None:
        program = find_program(PROGRAM)
        if program is None:
            raise FailedPrecondition(f"{PROGRAM} is not installed", fix="apt-get install erofs-utils")
        order = Order(
            program=program,
            tree=tree,
            file=str(draft),
            empty=str(self._directory / _EMPTY),
            size_max=_SIZE_MAX,
            parent=os.getpid(),
        )
        argv = Program(_HELPER, _PACKAGES).command(msgspec.json.encode(order).decode())
        said, end = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                child = spawn(argv[0], argv, files={2: end}, env={"PATH": os.environ.get("PATH", "")})
            except OSError as error:
                raise InternalError(f"start {sys.executable}: {error.strerror}") from error
            finally:
                os.close(end)
            with child:
                output = collect([said], until=child.pidfd, deadline=deadline, limit=_SAID_MAX)
                deadline.check("while the image was packed for machines")
                code = child.wait()
        finally:
            os.close(said)
        if code != 0:
            raise _failure(output.data[said], code)

    @contextlib.contextmanager
    def _making(self, name: str, deadline: Deadline) -> Iterator[None]:
        """One at a time of each image: who comes second waits for the first, and then finds the file."""
        with self._finding:
            turn = self._turns.setdefault(name, Lock())
        left = deadline.remaining()
        if not turn.acquire(timeout=-1 if left is None else left):
            raise DeadlineExceeded("deadline passed while another packed the image")
        try:
            with self._locked(name, fcntl.LOCK_EX):
                deadline.check("while another packed the image")
                yield
        finally:
            turn.release()

    @contextlib.contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        """Nobody else makes the image, or forgets it. With ``LOCK_NB`` BlockingIOError says that somebody does."""
        path = self._directory / f"{_LOCK}{name}"
        with contextlib.ExitStack() as held:
            while True:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                with contextlib.ExitStack() as undo:
                    undo.callback(os.close, fd)
                    fcntl.flock(fd, how)
                    # Whoever had it before has removed it, and another may have a new one by now.
                    with contextlib.suppress(FileNotFoundError):
                        if os.path.samestat(os.fstat(fd), path.stat()):
                            held.push(undo.pop_all())
                            break
            held.callback(path.unlink, missing_ok=True)
            yield

    def retain(self, ids: Collection[str]) -> None:
        """Forget the files of other images. Machines that have one go on; one that is being made stays."""
        kept = {_name(one) for one in ids}
        try:
            found = list(self._directory.iterdir())
        except FileNotFoundError:
            return
        matches = [(path, _FILE.fullmatch(path.name)) for path in found]
        gone = [(path, match[1]) for path, match in matches if match is not None and match[1] not in kept]
        for name in {name for _, name in gone}:
            with contextlib.suppress(BlockingIOError), self._locked(name, fcntl.LOCK_EX | fcntl.LOCK_NB):
                for path in (one for one, whose in gone if whose == name):
                    path.unlink(missing_ok=True)


def _name(image_id: str) -> str:
    match = _ID.match(image_id)
    if match is None:
        raise InvalidInput("image_id", f"{image_id[:200]!r} is no digest")
    return match[1]


def _failure(said: bytes, code: int | None) -> Exception:
    words = "".join(c if c.isprintable() else " " for c in said.decode(errors="replace")).strip()
    if "No space left" in words:
        return ResourceExhausted(f"the image cannot be packed for machines: {words}")
    return InternalError(f"{PROGRAM} ended with {code}: {words or 'without a word'}")
