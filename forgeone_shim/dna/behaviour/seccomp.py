"""A filter of system calls (OCI runtime spec, ``linux.seccomp``) that lets through what a baseline has. Pure."""

from __future__ import annotations

from typing import Any, Final

from forgeone_shim.dna.behaviour.baseline import Baseline
from forgeone_shim.dna.behaviour.names import FOREIGN, UNKNOWN
from forgeone_shim.errors import FailedPrecondition

_ENOSYS: Final = 38
_NATIVE: Final = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
_FOREIGN: Final = {"x86_64": "SCMP_ARCH_X86", "aarch64": "SCMP_ARCH_ARM"}
_RUNTIME = (
    "brk capset chdir close close_range dup2 dup3 execve exit exit_group fchown fcntl fstat futex getdents64 getpid "
    "ioctl lseek mmap munmap newfstatat openat poll ppoll prctl pselect6 read restart_syscall rt_sigaction "
    "rt_sigprocmask rt_sigreturn seccomp select setgid setgroups setresgid setresuid setsid setuid statx umask write"
)
#: What crun does itself once the filter is in force, before the container's first instruction or that of a command
#: which is executed in it (strace says so; a few more for versions to come); and what a kernel makes a process do that
#: never asked: the return of a signal, a call that is taken up again.
RUNTIME: Final = frozenset(_RUNTIME.split())


def export(baseline: Baseline) -> dict[str, Any]:
    """The filter, as JSON would have it. What it does not let through fails as a call that does not exist.

    :raises FailedPrecondition: it cannot be one: calls without names, or a WebAssembly guest's.
    """
    if baseline.engine == "wasm":
        raise FailedPrecondition(
            "guests of the wasm engine have a filter of its own, and no other can be given to them"
        )
    if baseline.machine not in _NATIVE:
        raise FailedPrecondition(f"the baseline is of {baseline.machine}, whose name in filters is not known here")
    nameless = [one.name for one in baseline.system if one.name == UNKNOWN or "#" in one.name]
    if nameless:
        raise FailedPrecondition(
            f"the baseline has calls that have no name here: {', '.join(nameless)}", fix="install a newer libseccomp2"
        )
    own = {one.name for one in baseline.system if not one.name.startswith(FOREIGN)}
    foreign = {one.name.removeprefix(FOREIGN) for one in baseline.system if one.name.startswith(FOREIGN)}
    architectures = [_NATIVE[baseline.machine]]
    if foreign:
        architectures.append(_FOREIGN[baseline.machine])
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        # A C library that finds a call missing takes the one that it replaced, and only then.
        "defaultErrnoRet": _ENOSYS,
        "architectures": architectures,
        "syscalls": [{"names": sorted(own | foreign | RUNTIME), "action": "SCMP_ACT_ALLOW"}],
    }
