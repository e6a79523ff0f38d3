"""Compiled code on disk, each piece made once and verified once by a daemon, and kept as long as its image.

Below the directory: ``key``, with which code is sealed; ``code/KEY/``, with the ``code`` itself and its ``seal``;
``images/IMAGE/KEY``, an empty file for each piece that an image (its id's SHA-256) needs; ``empty``, the compile
helper's root directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

import structlog

from engines.wasm.aot import compiler, seals, target
from engines.wasm.aot.compiler import FIELD, Limits
from engines.wasm.aot.seals import Entry, Mark, Sealer
from engines.wasm.aot.target import Variant
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    ForgeError,
    InternalError,
    InvalidInput,
    Unavailable,
    syscall_error,
)

_NEW: Final = ".new-"
_CODE, _SEAL, _COPY = "code", "seal", "module"
_MODULE_MAX: Final = 256 << 20
_CODE_MAX: Final = 1 << 30
_FILES_KNOWN: Final = 4096
_INVALID_KNOWN: Final = 1024
# Of modules that came from no image, but from a volume: the last ones used are kept.
_LOOSE_MAX: Final = 32
_AT_A_TIME: Final = 4


class _Flight:
    """A compilation under way: who waits for it may leave, it goes on."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._done = False
        self.entry: Entry | None = None
        self.error: ForgeError = InternalError("the compilation ended without a result")

    def end(self) -> None:
        """It is over."""
        with self._changed:
            self._done = True
            self._changed.notify_all()

    def wait(self, deadline: Deadline) -> bool:
        """Whether it is over by then, or before nobody waits any more."""
        deadline.listen(self._wake)
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._done or deadline.passed, deadline.remaining())
                return self._done
        finally:
            deadline.ignore(self._wake)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class Cache:
    """One for each daemon; thread-safe. Nothing is made or read before the first call.

    ``compile_timeout`` in seconds and ``compile_memory`` in bytes bound one compilation. A few run at a time, so that a
    module that takes all of its time does not keep others from being compiled.
    """

    def __init__(self, directory: Path, *, compile_timeout: float, compile_memory: int) -> None:
        self._code, self._images, self._empty = (directory / name for name in ("code", "images", "empty"))
        self._sealer = Sealer(directory / "key")
        self._limits = Limits(compile_timeout, compile_memory, _CODE_MAX)
        self._lock = threading.Lock()
        self._places = threading.Semaphore(_AT_A_TIME)
        self._flights: dict[str, _Flight] = {}
        self._digests: OrderedDict[tuple[str, Mark], str] = OrderedDict()
        self._verified: dict[str, tuple[Mark, Entry]] = {}
        self._invalid: OrderedDict[str, InvalidInput] = OrderedDict()
        self._referred: set[tuple[str, str]] = set()
        self._made = False

    def entry(
        self, module: int, deadline: Deadline, *, variant: Variant = Variant.PLAIN, image_id: str = "", scope: str = ""
    ) -> Entry:
        """The compiled code of the module (or its text) in an open file, made now where there is none yet.

        What an image needs is kept as long as the image. ``scope`` stands for the file system of ``module`` where that
        is mounted anew for each container: within it, the same number and times are the same file.

        :raises InvalidInput: it is no module, or asks for what wasmtime lacks; told again without another try.
        :raises DeadlineExceeded: it is not compiled yet; that goes on, and a later call has it.
        :raises ResourceExhausted: it cannot be compiled within the limits.
        """
        digest = self._digest(module, scope, deadline)
        key = target.key(digest, variant)
        if image_id:
            self._refer(image_id, key)
        found = self._look(key, deadline)
        if found is not None:
            return found
        with self._lock:
            known = self._invalid.get(key)
            if known is not None:
                raise InvalidInput(known.field, known.reason)
            made = self._verified.get(key)
            if made is not None:
                return made[1]
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = self._start(module, key, digest, variant)
        if not flight.wait(deadline):
            raise DeadlineExceeded("the module is still being compiled", fix="ask again")
        if flight.entry is None:
            raise flight.error
        return flight.entry

    def open_verified(self, entry: Entry, deadline: Deadline = NEVER) -> int:
        """A descriptor of the code, which is what was sealed here; the caller closes it.

        :raises Unavailable: it is gone, or is not ours (any more): ask for the entry again.
        """
        with contextlib.ExitStack() as undo:
            fd = self._open(entry.key)
            if fd >= 0:
                undo.callback(os.close, fd)
                if self._entry_of(entry.key, fd, deadline) is not None:
                    undo.pop_all()
                    return fd
        raise Unavailable(f"compiled code {entry.key} was removed", fix="ask again: it will be made anew")

    def retain(self, image_ids: Collection[str]) -> frozenset[str]:
        """Forget what images other than these needed; returns the keys of what is left."""
        keep = {_image(one) for one in image_ids}
        with self._lock:
            self._referred = {(image, key) for image, key in self._referred if image in keep}
            needed: set[str] = set()
            unneeded: set[str] = set()
            images = list(_entries(self._images))
            for directory in images:
                (needed if directory.name in keep else unneeded).update(one.name for one in _entries(directory))
            others = [one for one in _entries(self._code) if one.name not in needed and not one.name.startswith(_NEW)]
            loose = sorted((one for one in others if one.name not in unneeded), key=_last_used, reverse=True)
            for directory in (*(one for one in others if one.name in unneeded), *loose[_LOOSE_MAX:]):
                self._verified.pop(directory.name, None)
                shutil.rmtree(directory, ignore_errors=True)
            # Last: until then it says whose the code was.
            for directory in images:
                if directory.name not in keep:
                    shutil.rmtree(directory, ignore_errors=True)
        return frozenset(one.name for one in _entries(self._code) if not one.name.startswith(_NEW))

    # What is known

    def _digest(self, module: int, scope: str, deadline: Deadline) -> str:
        mark = seals.mark(module)
        if not 0 < mark.size <= _MODULE_MAX:
            raise InvalidInput(FIELD, f"has {mark.size} bytes; 1 to {_MODULE_MAX} can be compiled")
        if scope:
            mark = Mark(0, mark.inode, mark.size, mark.modified, mark.changed)
        with self._lock:
            found = self._digests.get((scope, mark))
        if found is None:
            found = seals.digest(module, deadline)
            with self._lock:
                self._digests[scope, mark] = found
                if len(self._digests) > _FILES_KNOWN:
                    self._digests.popitem(last=False)
        return found

    def _look(self, key: str, deadline: Deadline) -> Entry | None:
        fd = self._open(key)
        if fd < 0:
            with self._lock:
                self._verified.pop(key, None)
            return None
        try:
            return self._entry_of(key, fd, deadline)
        finally:
            os.close(fd)

    def _open(self, key: str) -> int:
        """-1: it is not there."""
        path = self._code / key / _CODE
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return -1
        except OSError as error:
            raise syscall_error("open", path, error) from error

    def _entry_of(self, key: str, fd: int, deadline: Deadline) -> Entry | None:
        """What is known of the code in ``fd``; what is not ours is removed."""
        mark = seals.mark(fd)
        known = self._verified.get(key)
        if known is not None and known[0] == mark:
            return known[1]
        directory = self._code / key
        try:
            seal = (directory / _SEAL).read_bytes()
        except FileNotFoundError:
            seal = b""
        except OSError as error:
            raise syscall_error("read", directory / _SEAL, error) from error
        entry = self._sealer.verified(seal, fd, deadline)
        if entry is None or entry.key != key:
            structlog.get_logger("wasm").warning("compiled code is not what was sealed; made anew", key=key)
            with self._lock:
                self._verified.pop(key, None)
            shutil.rmtree(directory, ignore_errors=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(directory)
        with self._lock:
            self._verified[key] = mark, entry
        return entry

    def _refer(self, image_id: str, key: str) -> None:
        image = _image(image_id)
        if (image, key) in self._referred:
            return
        path = self._images / image / key
        with self._lock:
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.touch(mode=0o600)
            except OSError as error:
                raise syscall_error("create", path, error) from error
            self._referred.add((image, key))

    # Making what is not there

    def _start(self, module: int, key: str, digest: str, variant: Variant) -> _Flight:
        """Whoever asked may go away: the file is held open for the compilation."""
        flight = _Flight()
        try:
            held = os.dup(module)
        except OSError as error:
            raise syscall_error("dup", "a module", error) from error
        thread = threading.Thread(target=self._fly, args=(flight, held, key, digest, variant), daemon=True)
        try:
            thread.start()
        except RuntimeError:
            os.close(held)
            raise
        return flight

    def _fly(self, flight: _Flight, module: int, key: str, digest: str, variant: Variant) -> None:
        try:
            with self._places:
                flight.entry = self._make(module, key, digest, variant)
        except InvalidInput as error:
            flight.error = error
            with self._lock:
                self._invalid[key] = error
                if len(self._invalid) > _INVALID_KNOWN:
                    self._invalid.popitem(last=False)
        except ForgeError as error:
            flight.error = error
        except OSError as error:
            flight.error = syscall_error("compile into", self._code, error)
        finally:
            os.close(module)
            with self._lock:
                del self._flights[key]
            flight.end()

    def _make(self, module: int, key: str, digest: str, variant: Variant) -> Entry:
        """From a copy, for somebody else may write to the module: what is sealed is what was compiled."""
        self._prepare()
        with self._staging() as new, contextlib.ExitStack() as files:
            copy, code = (_new_file(new / name, files) for name in (_COPY, _CODE))
            (new / _COPY).unlink()
            at = 0
            while at <= _MODULE_MAX and (sent := os.sendfile(copy, module, at, _MODULE_MAX)):
                at += sent
            if seals.digest(copy, NEVER) != digest:
                raise FailedPrecondition("the module was changed while it was read")
            made = compiler.compile_module(copy, code, variant, self._empty, self._limits)
            entry = Entry(
                key=key,
                digest=digest,
                kind=made.kind,
                variant=variant,
                size=os.fstat(code).st_size,
                exports=made.exports,
                imports=made.imports,
            )
            (new / _SEAL).write_bytes(self._sealer.seal(entry, code, NEVER))
            self._publish(new, key)
            with self._lock:
                self._verified[key] = seals.mark(code), entry
        return entry

    def _publish(self, new: Path, key: str) -> None:
        """Another daemon may have made the same meanwhile."""
        try:
            new.rename(self._code / key)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        shutil.rmtree(self._code / key, ignore_errors=True)
        new.rename(self._code / key)

    @contextlib.contextmanager
    def _staging(self) -> Iterator[Path]:
        """A directory that goes unless it was renamed; its lock says that somebody is at work in it."""
        with _locked(self._code):
            new = Path(tempfile.mkdtemp(prefix=_NEW, dir=self._code))
            lock = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)
            os.close(lock)

    def _prepare(self) -> None:
        if self._made:
            return
        for directory, mode in ((self._code, 0o700), (self._images, 0o700), (self._empty, 0o555)):
            directory.mkdir(mode=mode, parents=True, exist_ok=True)
        with _locked(self._code):
            for left in self._code.glob(f"{_NEW}*"):
                _remove_unlocked(left)
        self._made = True


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """For a moment: whoever makes a directory in it, or looks for left ones, is alone."""
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _new_file(path: Path, files: contextlib.ExitStack) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    files.callback(os.close, fd)
    return fd


def _remove_unlocked(directory: Path) -> None:
    """What a daemon left that was killed; one that lives holds the lock."""
    with contextlib.suppress(OSError):
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        finally:
            os.close(lock)


def _image(image_id: str) -> str:
    return hashlib.sha256(image_id.encode()).hexdigest()


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _last_used(directory: Path) -> float:
    try:
        return directory.stat().st_mtime
    except OSError:
        return 0.0
