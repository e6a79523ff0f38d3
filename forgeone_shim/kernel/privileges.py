"""What a process may do, given up for good: capabilities(7), prctl(2), seccomp(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Collection
from typing import Final

from forgeone_shim.kernel.syscalls import number, syscall

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS = 1, 4, 8, 24, 28
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 2, 4
# SECBIT_NOROOT, SECBIT_NO_CAP_AMBIENT_RAISE, each with its lock: that a user is root means nothing any more.
_SECUREBITS = 0x1 | 0x2 | 0x40 | 0x80
# SECBIT_NO_SETUID_FIXUP and its lock.
_NO_SETUID_FIXUP = 0x4 | 0x8
_CAPABILITY_VERSION_3 = 0x20080522
_SECCOMP_SET_MODE_FILTER = 1
_INSTRUCTION: Final = 8
_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _prctl(option: int, *arguments: int) -> None:
    if _libc.prctl(option, *arguments, *[0] * (4 - len(arguments))) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def give_up_bounding() -> None:
    """Empty the bounding and the ambient set, and let a root user be no one special. Raises OSError."""
    _prctl(_PR_SET_SECUREBITS, _SECUREBITS)
    _drop_bounding()


def _drop_bounding() -> None:
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(64):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError as error:
            # One past the last that this kernel has.
            if error.errno != errno.EINVAL or capability == 0:
                raise
            return


def keep_capabilities(numbers: Collection[int]) -> None:
    """Leave this thread these capabilities and no others, for good, whatever users it becomes (no change of user gives
    or takes any). Raises OSError."""
    _prctl(_PR_SET_SECUREBITS, _SECUREBITS | _NO_SETUID_FIXUP)
    _drop_bounding()
    low, high = (sum(1 << one % 32 for one in set(numbers) if one // 32 == word) for word in (0, 1))
    # Twice effective, permitted, inheritable.
    sets = struct.pack("=6I", low, low, 0, high, high, 0)
    syscall(number("capset"), ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), sets)


def give_up_capabilities() -> None:
    """Empty the effective, permitted and inheritable sets of this thread. Raises OSError."""
    syscall(number("capset"), ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), bytes(24))


def become_with(uid: int, gid: int, capability: int) -> None:
    """Be that user and group, and nobody else's, with the one capability, which what is executed keeps. Raises OSError.

    No other can be had again by anything that is executed.
    """
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    for other in range(64):
        try:
            if other != capability:
                _prctl(_PR_CAPBSET_DROP, other)
        except OSError as error:
            # One past the last that this kernel has.
            if error.errno != errno.EINVAL or other == 0:
                raise
            break
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.setresuid(uid, uid, uid)
    low, high = (1 << capability) & 0xFFFFFFFF, (1 << capability) >> 32
    sets = struct.pack("=6I", low, low, low, high, high, high)
    syscall(number("capset"), ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), sets)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)


def no_new_privileges() -> None:
    """Nothing executed from now on may have more privileges than this process. Raises OSError."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def not_dumpable() -> None:
    """No core dump, and nobody of the same user may look into the process. Raises OSError."""
    _prctl(_PR_SET_DUMPABLE, 0)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the thread that forked it ends; a change of user or capabilities
    undoes it. Raises OSError."""
    _prctl(_PR_SET_PDEATHSIG, number)


def filter_system_calls(program: bytes, flags: int = 0) -> None:
    """Put a seccomp filter (classic BPF) on this thread, and on all it makes. Raises OSError."""
    loaded = _Program(len(program) // _INSTRUCTION, program)
    syscall(number("seccomp"), _SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(loaded))
