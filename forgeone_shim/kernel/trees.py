"""Mount trees that are attached nowhere yet, and the root that a process ends up with (mount_setattr(2), Linux 5.12).

A tree is a descriptor: made with everything it is to have before anybody sees it, and gone when it is closed.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Final

from forgeone_shim.kernel import syscalls
from forgeone_shim.kernel.mounts import StrPath

RDONLY: Final = 0x01
NOSUID: Final = 0x02
NODEV: Final = 0x04
NOEXEC: Final = 0x08
NOATIME: Final = 0x10
NODIRATIME: Final = 0x80
#: The bits that say when times of access are kept: cleared where one of them is set, and relatime without any.
ATIME: Final = 0x70
_IDMAP = 0x100000

PROPAGATION: Final[Mapping[str, int]] = {"rprivate": 1 << 18, "rslave": 1 << 19, "rshared": 1 << 20}

_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_CLOEXEC, _F_EMPTY_PATH, _T_EMPTY_PATH = 1, 4, 0x40
_SET_STRING, _CMD_CREATE = 1, 6
_MS_REC, _MNT_DETACH = 16384, 2


class _Attributes(ctypes.Structure):
    """``struct mount_attr``."""

    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns", ctypes.c_uint64),
    )


def change(
    tree: int,
    attributes: int,
    *,
    clear: int = 0,
    below: bool = False,
    propagation: str = "",
    userns: int | None = None,
) -> None:
    """Give a mount these attributes, take others, and set its propagation; ``below``: with all that is mounted below.

    ``userns`` (a descriptor) has the owners of its files shown as that user namespace maps them. Raises OSError.
    """
    idmap = 0 if userns is None else _IDMAP
    changed = _Attributes(
        attributes | idmap,
        clear,
        PROPAGATION[propagation] if propagation else 0,
        userns or 0,
    )
    at = _AT_EMPTY_PATH | (_AT_RECURSIVE if below else 0)
    syscalls.syscall(syscalls.MOUNT_SETATTR, tree, b"", at, ctypes.byref(changed), ctypes.sizeof(changed))


def tmpfs(options: Mapping[str, str], attributes: int) -> int:
    """A new tmpfs with ``options`` (tmpfs(5)); the caller closes it. Raises OSError."""
    return new("tmpfs", options, attributes)


def new(kind: str, options: Mapping[str, str], attributes: int) -> int:
    """A new file system of that type; the caller closes it. Raises OSError."""
    context = syscalls.syscall(syscalls.FSOPEN, kind.encode(), _CLOEXEC)
    try:
        for key, value in options.items():
            syscalls.syscall(syscalls.FSCONFIG, context, _SET_STRING, key.encode(), value.encode(), 0)
        syscalls.syscall(syscalls.FSCONFIG, context, _CMD_CREATE, None, None, 0)
        return syscalls.syscall(syscalls.FSMOUNT, context, _CLOEXEC, attributes)
    finally:
        os.close(context)


def attach(tree: int, target: int) -> None:
    """Mount a tree on what a descriptor is of, which needs no path. Raises OSError."""
    flags = _F_EMPTY_PATH | _T_EMPTY_PATH
    syscalls.syscall(syscalls.MOVE_MOUNT, tree, b"", target, b"", flags)


def keep_to_itself() -> None:
    """Nothing mounted or unmounted by this mount namespace is seen by others, or the other way. Raises OSError."""
    private = _MS_REC | PROPAGATION["rprivate"]
    syscalls.syscall(syscalls.number("mount"), None, b"/", None, private, None)


def stage(tree: int, at: StrPath) -> None:
    """Mount a tree on the path ``at`` and make it the working directory, before :func:`become_root`. Raises OSError."""
    syscalls.syscall(syscalls.MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(at), _F_EMPTY_PATH, path=at)
    os.fchdir(tree)


def become_root() -> None:
    """Make the mount that is the working directory the root of this mount namespace, and let go of all others.

    The namespace keeps to itself, and this process is alone in it. Raises OSError.
    """
    # The old root ends up on top of the new one, and goes (pivot_root(2), ``pivot_root(".", ".")``).
    syscalls.syscall(syscalls.number("pivot_root"), b".", b".")
    syscalls.syscall(syscalls.number("umount2"), b".", _MNT_DETACH)
    os.chdir("/")
