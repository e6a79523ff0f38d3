"""Landlock: a process gives up kinds of access to files, for good (landlock(7))."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from forgeone_shim.kernel.syscalls import LANDLOCK_ADD_RULE, LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF, syscall

EXECUTE: Final = 1 << 0
WRITE_FILE: Final = 1 << 1
READ_FILE: Final = 1 << 2
READ_DIR: Final = 1 << 3
REMOVE_DIR: Final = 1 << 4
REMOVE_FILE: Final = 1 << 5
MAKE_CHAR: Final = 1 << 6
MAKE_DIR: Final = 1 << 7
MAKE_REG: Final = 1 << 8
MAKE_SOCK: Final = 1 << 9
MAKE_FIFO: Final = 1 << 10
MAKE_BLOCK: Final = 1 << 11
MAKE_SYM: Final = 1 << 12
REFER: Final = 1 << 13
TRUNCATE: Final = 1 << 14
IOCTL_DEV: Final = 1 << 15

_ABSTRACT_UNIX_SOCKET, _SIGNAL = 1, 2
_VERSION, _PATH_BENEATH = 1, 1
# Which rights each version of the interface knows: REFER came with 2, TRUNCATE with 3, IOCTL_DEV with 5.
_FIRST = (1 << 13) - 1
_LATER = ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV))
_SCOPES_SINCE = 6


class _Ruleset(ctypes.Structure):
    """``struct landlock_ruleset_attr``."""

    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    """``struct landlock_path_beneath_attr``."""

    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def version() -> int:
    """The version of this kernel's interface; 0 where Landlock is missing or turned off."""
    try:
        return syscall(LANDLOCK_CREATE_RULESET, None, 0, _VERSION)
    except OSError:
        return 0


def rights(known: int) -> int:
    """All rights to files that version ``known`` of the interface can take away."""
    found = _FIRST
    for since, right in _LATER:
        if known >= since:
            found |= right
    return found


def restrict(known: int, beneath: int, allowed: int, *more: tuple[int, int]) -> None:
    """Leave this thread ``allowed`` of the rights beneath a directory (a descriptor) and none anywhere else.

    ``more`` are others, or files, each with what is left there besides.
    Where version ``known`` can, it may signal no process either that is not restricted with it. Needs
    ``no_new_privs``. Raises OSError.
    """
    handled = rights(known)
    scopes = _ABSTRACT_UNIX_SOCKET | _SIGNAL if known >= _SCOPES_SINCE else 0
    attr = _Ruleset(handled, 0, scopes)
    # An older kernel takes no more of the structure than it knows.
    size = ctypes.sizeof(attr) if scopes else 8
    ruleset = syscall(LANDLOCK_CREATE_RULESET, ctypes.byref(attr), size, 0)
    try:
        for where, left in ((beneath, allowed), *more):
            rule = _PathBeneath(left & handled, where)
            syscall(LANDLOCK_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
        syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
