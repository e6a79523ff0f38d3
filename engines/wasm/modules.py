"""Which module a container runs: found as a process rooted in it would, and never outside of it."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engines.base import ContainerPlan, Mount
from forgeone_shim.errors import InvalidInput, syscall_error
from forgeone_shim.kernel.mounts import open_in_root

FIELD: Final = "command"
_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EXDEV})


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an argument vector names: where to look, in this order; ``function`` is empty for the default entry."""

    candidates: tuple[str, ...]
    function: str


@dataclass(frozen=True, slots=True)
class Opened:
    """A module's file: ``fd`` is the caller's to close, ``path`` is absolute in the container."""

    fd: int
    path: str


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

    :raises InvalidInput: none of them is there.
    """
    mounts = (*plan.pod_mounts, *plan.spec.mounts)
    for path in choice.candidates:
        root, inside = place(plan.rootfs, mounts, path)
        fd = _open(root, inside)
        if fd >= 0:
            return Opened(fd, path)
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
