"""Linux system calls that Python's ``os`` lacks, by ctypes. Numbers are the ones every architecture since 2019 shares
(>= 424) or come from the table below."""

from __future__ import annotations

import ctypes
import os
import platform

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

# number on x86_64, number on aarch64 (and every other "generic" table)
_NUMBERS = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "setns": (308, 268),
    "unshare": (272, 97),
    "capset": (126, 91),
    "seccomp": (317, 277),
    "bpf": (321, 280),
    "fallocate": (285, 47),
    "fstatfs": (138, 44),
    "getdents64": (217, 61),
    "renameat2": (316, 276),
    "setfsgid": (123, 152),
    "setfsuid": (122, 151),
    "utimensat": (280, 88),
}
_COLUMN = 0 if platform.machine() == "x86_64" else 1

OPEN_TREE, MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT = 428, 429, 430, 431, 432
PIDFD_OPEN, PIDFD_SEND_SIGNAL, CLOSE_RANGE, OPENAT2, MOUNT_SETATTR = 434, 424, 436, 437, 442
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446


def number(name: str) -> int:
    """The number of an old system call on this machine."""
    return _NUMBERS[name][_COLUMN]


def syscall(nr: int, *args: object, path: object = None) -> int:
    """Make a system call; ``bytes`` and ``None`` pass as pointers, ints as longs. Raises OSError (naming ``path``)."""
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = int(_libc.syscall(ctypes.c_long(nr), *converted))
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), None if path is None else str(path))
    return result
