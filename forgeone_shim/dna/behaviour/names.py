"""System calls by name. libseccomp knows those of every machine; what is newer than it is here."""

from __future__ import annotations

import ctypes
import functools
import platform
from typing import Final

from forgeone_shim.dna.behaviour.program import NUMBERS, OTHER

#: Calls with numbers that this machine does not have.
UNKNOWN: Final = "other"
#: In front of the name of a call that a 32-bit caller makes.
FOREIGN: Final = "32-bit:"
# SCMP_ARCH_NATIVE, and that of 32-bit callers (AUDIT_ARCH_I386, AUDIT_ARCH_ARM).
_NATIVE: Final = 0
_OTHERS: Final = {"x86_64": 0x40000003, "aarch64": 0x40000028}
# From 424 on a call has one number on every machine (asm-generic/unistd.h, Linux 6.18).
_FIRST: Final = 424
_FROM_424: Final = (
    "pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount fsopen fsconfig fsmount "
    "fspick pidfd_open clone3 close_range openat2 pidfd_getfd faccessat2 process_madvise epoll_pwait2 mount_setattr "
    "quotactl_fd landlock_create_ruleset landlock_add_rule landlock_restrict_self memfd_secret process_mrelease "
    "futex_waitv set_mempolicy_home_node cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue "
    "statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat listxattrat "
    "removexattrat open_tree_attr file_getattr file_setattr"
)
_COMMON: Final = tuple(_FROM_424.split())


@functools.cache
def name(slot: int) -> str:
    """The call that a slot counts (:mod:`~forgeone_shim.dna.behaviour.program`); ``#NUMBER`` where nobody knows it."""
    if slot == OTHER:
        return UNKNOWN
    foreign, number = divmod(slot, NUMBERS)
    machine = platform.machine()
    architecture = _OTHERS.get(machine, _NATIVE) if foreign else _NATIVE
    found = ""
    if _FIRST <= number < _FIRST + len(_COMMON):
        found = _COMMON[number - _FIRST]
    return (FOREIGN if foreign else "") + (found or _resolve(architecture, number) or f"#{number}")


def _resolve(architecture: int, number: int) -> str:
    library = _library()
    if library is None:
        return ""
    found = library.seccomp_syscall_resolve_num_arch(architecture, number)
    if not found:
        return ""
    try:
        return ctypes.string_at(found).decode("ascii", "replace")
    finally:
        _free(found)


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
        library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
        library.seccomp_syscall_resolve_num_arch.argtypes = [ctypes.c_uint32, ctypes.c_int]
    except (OSError, AttributeError):
        return None
    return library


def _free(pointer: int) -> None:
    libc = ctypes.CDLL(None)
    libc.free.argtypes = [ctypes.c_void_p]
    libc.free(pointer)
