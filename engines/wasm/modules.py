"""Which module a container runs: found as a process rooted in it would, and never outside of it."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engines.base import ContainerPlan, ImagePlan, Mount
from forgeone_shim.errors import InvalidInput, syscall_error
from forgeone_shim.kernel.mounts import open_in_root

FIELD: Final = "command"
_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAGIC: Final = b"\0asm"
_HEAD: Final = 256
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EXDEV})


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an argument vector names: where to look, in this order; ``function`` is empty for the default entry."""

    candidates: tuple[str, ...]
    function: str


@dataclass(frozen=True, slots=True)
class Opened:
    """A module's file: ``fd`` is the caller's to close, ``path`` is absolute in the container.

    ``mounted``: it is not the image's, but in something that is mounted over it.
    """

    fd: int
    path: str
    mounted: bool = False


def wanted(args: Sequence[str], env: Sequence[str], cwd: str, module: str = "") -> Wanted:
    """``path#function``; a bare name is looked up in PATH, then where the process would start.

    :param module: where the module of an image that is nothing else lies: the path does not count then.
    :raises InvalidInput: there is no path, or one with a NUL.
    """
    path, _, function = (args[0] if args else "").partition("#")
    if module:
        return Wanted((_plain(module),), function)
    if not path or "\0" in path:
        raise InvalidInput(FIELD, f"{path!r} does not name a WebAssembly module", fix="for example /app.wasm")
    if "/" in path:
        return Wanted((_absolute(path, cwd),), function)
    variable = next((entry.partition("=")[2] for entry in env if entry.startswith("PATH=")), _DEFAULT_PATH)
    folders = [folder for folder in variable.split(":") if folder]
    return Wanted(tuple(dict.fromkeys(_absolute(f"{folder}/{path}", cwd) for folder in (*folders, cwd))), function)


def _absolute(path: str, cwd: str) -> str:
    # Not normalised: a `..` after a symlink leads where the kernel says.
    return path if path.startswith("/") else f"{cwd.rstrip('/')}/{path}"


def _plain(path: str) -> str:
    return "/" + posixpath.normpath(f"/{path}").lstrip("/")


def find(plan: ContainerPlan, choice: Wanted) -> Opened:
    """Open the first candidate that is a regular file, in the root file system or in what is mounted over it.

    :raises InvalidInput: none of them is there, or it is no module.
    """
    mounts = (*plan.pod_mounts, *plan.spec.mounts)
    for path in choice.candidates:
        root, inside = place(plan.rootfs, mounts, path)
        fd = _open(root, inside)
        if fd >= 0:
            if not is_wasm(fd):
                os.close(fd)
                raise InvalidInput(FIELD, f"{path!r} is no WebAssembly module", fix="see the pod's runtime handler")
            return Opened(fd, path, mounted=root != plan.rootfs)
    shown = choice.candidates[0] if len(choice.candidates) == 1 else plan.process.args[0].partition("#")[0]
    raise InvalidInput(FIELD, f"module {shown!r} not found in the container: No such file or directory")


def place(rootfs: str, mounts: Sequence[Mount], path: str) -> tuple[str, str]:
    """The host's directory (or file) that holds ``path``, and where in it."""
    plain = _plain(path)
    best: tuple[str, str] = ("", rootfs)
    for mount in mounts:
        at = _plain(mount.destination)
        inside = plain == at or plain.startswith(at.rstrip("/") + "/")
        if inside and len(at) >= len(best[0]):
            best = at, mount.source
    at, source = best
    return (source, plain[len(at) :].lstrip("/")) if at else (source, path.lstrip("/"))


def _open(root: str, inside: str) -> int:
    """-1: it is not there, or nothing that could be read as a module. Opening it first would wake up a device."""
    try:
        named = os.open(root, os.O_PATH | os.O_CLOEXEC) if not inside else open_in_root(root, inside, os.O_PATH)
    except OSError as error:
        if error.errno in _ABSENT:
            return -1
        raise syscall_error("open", f"{root}/{inside}", error) from error
    try:
        if not stat.S_ISREG(os.fstat(named).st_mode):
            return -1
        return os.open(f"/proc/self/fd/{named}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise syscall_error("open", f"{root}/{inside}", error) from error
    finally:
        os.close(named)


def in_layers(image: ImagePlan) -> int:
    """The module that containers of an image run where nothing else is asked for; -1: there is none.

    A symlink that leads from one layer into another is not followed: what cannot be found beforehand is found when a
    container is made.
    """
    try:
        choice = wanted(image.args, (), "/", image.module)
    except InvalidInput:
        return -1
    for path in choice.candidates:
        for layer in reversed(image.layers):
            try:
                os.close(open_in_root(layer, path.lstrip("/"), os.O_PATH | os.O_NOFOLLOW))
            except OSError:
                continue
            # Of a file that a higher layer has taken away there is a device there.
            fd = _open(layer, path.lstrip("/"))
            if fd >= 0:
                return fd
            break
    return -1


def open_below(root: str, choice: Wanted) -> Opened | None:
    """As :func:`find`, in what a process sees: ``root`` is its ``/proc/PID/root``. ``None``: there is none."""
    for path in choice.candidates:
        fd = _open(root, path.lstrip("/"))
        if fd >= 0:
            return Opened(fd, path, mounted=True)
    return None


def is_wasm(fd: int) -> bool:
    """Whether a file begins as a module or component does, or as the text of one."""
    head = os.pread(fd, _HEAD, 0)
    return head.startswith(_MAGIC) or head.lstrip().startswith((b"(", b";;"))
