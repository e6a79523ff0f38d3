"""The system calls of a guest's process: of Python, wasmtime and its threads, and no others.

Tighter than what containers otherwise have: nothing is executed, no process is made, no memory becomes executable, and
of sockets there are those of TCP and UDP. What is not listed is EPERM, ``clone3`` is ENOSYS, so that a C library falls
back to ``clone``, whose flags a filter can read.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from typing import Final

_ENOSYS, _EPERM = 38, 1
_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020000 | 0x80
_PROT_EXEC = 0x4
_AF_INET, _AF_INET6 = 2, 10
_SOCK_TYPE_MASK, _SOCK_STREAM, _SOCK_DGRAM = 0xF, 1, 2
_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA = 15, 16, 0x53564D41
# Terminals say whether they are some and how large they are; descriptors may be asked what they hold and not to block.
_TCGETS, _TCGETS2, _TIOCGWINSZ, _FIONREAD, _FIONBIO, _FIOCLEX = 0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5451
# What a descriptor is; no leases, which others who open the file would wait for, no signals, no larger pipes.
_DUPFD, _GETFD, _SETFD, _GETFL, _SETFL, _DUPFD_CLOEXEC, _ADD_SEALS, _GET_SEALS = 0, 1, 2, 3, 4, 1030, 1033, 1034
# What there are packages of wasmtime for.
_ARCHITECTURES: Final = {"x86_64": "X86_64", "aarch64": "AARCH64"}

_MEMORY = "brk madvise membarrier memfd_create mremap munmap"
_FILES = """
close close_range copy_file_range dup dup2 dup3 faccessat faccessat2 fadvise64 fallocate fdatasync fstat fstatfs fsync
ftruncate getcwd getdents64 linkat lseek mkdirat newfstatat open openat openat2 pread64 preadv preadv2 pwrite64
pwritev pwritev2 read readlink readlinkat readv renameat renameat2 stat lstat access statfs statx symlinkat
sync_file_range unlinkat utimensat write writev
"""
_EVENTS = """
epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd2 pipe2 poll ppoll pselect6 select timerfd_create
timerfd_gettime timerfd_settime
"""
_SOCKETS = """
accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg sendto
setsockopt shutdown
"""
_TIME = "clock_getres clock_gettime clock_nanosleep gettimeofday nanosleep setitimer time times"
_PROCESS = """
exit exit_group futex futex_waitv get_robust_list getcpu getegid geteuid getgid getgroups getpgid getpgrp getpid getppid
getrandom getresgid getresuid getrlimit getrusage getsid gettid getuid restart_syscall rseq rt_sigaction rt_sigpending
rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigtimedwait sched_getaffinity sched_yield set_robust_list sigaltstack
sysinfo tgkill umask uname
"""
_REAPER = "close exit exit_group futex restart_syscall rt_sigprocmask rt_sigreturn rt_sigtimedwait wait4 write"


def _allow(names: Iterable[str], *conditions: Mapping[str, int | str]) -> dict[str, object]:
    rule: dict[str, object] = {"names": list(names), "action": "SCMP_ACT_ALLOW"}
    if conditions:
        rule["args"] = list(conditions)
    return rule


def _argument(index: int, value: int, mask: int | None = None) -> Mapping[str, int | str]:
    if mask is None:
        return {"index": index, "value": value, "valueTwo": 0, "op": "SCMP_CMP_EQ"}
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


def _memory() -> dict[str, object]:
    """Memory, but none that could be executed."""
    return _allow(["mmap", "mprotect"], _argument(2, 0, _PROT_EXEC))


def guest_profile(*, more: bool = False, machine: str | None = None) -> dict[str, object]:
    """The filter of a guest (OCI ``linux.seccomp``). With ``more`` another one can be put on top of it."""
    name = machine or platform.machine()
    words = (_MEMORY, _FILES, _EVENTS, _SOCKETS, _TIME, _PROCESS)
    rules = [_allow([call for group in words for call in group.split()])]
    if more:
        rules.append(_allow(["seccomp"]))
    rules.append(_memory())
    rules += [
        _allow(["clone"], _argument(0, _CLONE_THREAD, _CLONE_THREAD | _CLONE_NEW)),
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
    ]
    rules += [
        _allow(["socket"], _argument(0, family), _argument(1, kind, _SOCK_TYPE_MASK))
        for family in (_AF_INET, _AF_INET6)
        for kind in (_SOCK_STREAM, _SOCK_DGRAM)
    ]
    rules += [
        _allow(["ioctl"], _argument(1, order))
        for order in (_TCGETS, _TCGETS2, _TIOCGWINSZ, _FIONREAD, _FIONBIO, _FIOCLEX)
    ]
    rules += [
        _allow(["fcntl"], _argument(1, order))
        for order in (_DUPFD, _GETFD, _SETFD, _GETFL, _SETFL, _DUPFD_CLOEXEC, _ADD_SEALS, _GET_SEALS)
    ]
    rules += [_allow(["prctl"], _argument(0, option)) for option in (_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA)]
    # Only of itself, and only asked: the second-last argument would be a new limit.
    rules.append(_allow(["prlimit64"], _argument(0, 0), _argument(2, 0)))
    return _profile(rules, name)


def reaper_profile(machine: str | None = None) -> dict[str, object]:
    """The filter of a pod's init, which does nothing but wait for its children."""
    name = machine or platform.machine()
    return _profile([_allow([*_REAPER.split(), *_MEMORY.split()]), _memory()], name)


def _profile(rules: list[dict[str, object]], machine: str) -> dict[str, object]:
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "architectures": [f"SCMP_ARCH_{_ARCHITECTURES[machine]}"],
        "syscalls": rules,
    }
