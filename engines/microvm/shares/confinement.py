"""What a file server gives up before it reads a byte of the guest's.

It has an empty root, and reaches nothing but what it was given descriptors of; a proc that shows no other user's
process, in which its descriptors have their names; a user that is its pod's alone; of capabilities those that make its
users' files theirs; of system calls those for files: none that makes a socket, a process or memory to execute code in,
or that executes a program. What other namespaces would hide is behind calls that it cannot make, so it only has its own
of mounts.

It is not told of its parent's death by a signal: the kernel forgets that with each change of the user that files are
made for (PR_SET_PDEATHSIG). The end of its connections tells it.
"""

from __future__ import annotations

import base64
import functools
import os
import platform
import resource
from typing import Final

from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.kernel import privileges, trees
from forgeone_shim.kernel.bpf import Compiler
from forgeone_shim.kernel.capabilities import KNOWN
from forgeone_shim.kernel.syscalls import number, syscall

_CLONE_NEWNS: Final = 0x00020000
# No devices are made (MKNOD), and file handles open nothing (DAC_READ_SEARCH).
_CAPABILITIES: Final = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID", "SETFCAP")
_OWN: Final = "self/fd"
_PROC: Final = {"hidepid": "invisible", "subset": "pid"}

_FILES: Final = """
chmod chown close copy_file_range fallocate fchmod fchmodat fchownat fdatasync fstat fstatfs fsync ftruncate getdents64
getxattr lchown link linkat listxattr lseek lstat mkdir mkdirat mknod mknodat newfstatat open openat pread64 preadv
preadv2 pwrite64 pwritev pwritev2 readlink readlinkat removexattr rename renameat renameat2 rmdir setfsgid setfsuid
setxattr stat statfs statx symlink symlinkat truncate unlink unlinkat utimensat
"""
_REST: Final = """
brk clock_gettime exit exit_group futex getegid geteuid getpid getrandom gettid gettimeofday madvise memfd_create mremap
munmap poll ppoll read recvfrom recvmsg restart_syscall rt_sigaction rt_sigprocmask rt_sigreturn sendmsg sendto tgkill
time write writev
"""
_PROT_EXEC: Final = 0x4
_FIONBIO: Final = 0x5421
# F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC.
_FCNTL: Final = (1, 2, 3, 1030)
_ARCHITECTURES: Final = {"x86_64": "X86_64", "aarch64": "AARCH64"}


def profile(machine: str) -> dict[str, object]:
    """Its system calls (OCI ``linux.seccomp``)."""
    rules: list[dict[str, object]] = [_allow([*_FILES.split(), *_REST.split()])]
    rules.append(_allow(["mmap", "mprotect"], index=2, mask=_PROT_EXEC, value=0))
    rules += [_allow(["fcntl"], index=1, mask=0xFFFFFFFF, value=command) for command in _FCNTL]
    rules.append(_allow(["ioctl"], index=1, mask=0xFFFFFFFF, value=_FIONBIO))
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": [f"SCMP_ARCH_{_ARCHITECTURES[machine]}"],
        "syscalls": rules,
    }


def _allow(names: list[str], *, index: int = 0, mask: int = 0, value: int = 0) -> dict[str, object]:
    rule: dict[str, object] = {"names": names, "action": "SCMP_ACT_ALLOW"}
    if mask:
        rule["args"] = [{"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}]
    return rule


@functools.cache
def program() -> bytes:
    """The filter, made once for this process and all that are forked from it.

    :raises FailedPrecondition: system calls cannot be filtered here.
    """
    made = Compiler().compile(profile(platform.machine()))
    if made is None:
        raise FailedPrecondition("system calls cannot be filtered", fix="install libseccomp2")
    return base64.b64decode(made)


def confine(uid: int, gid: int) -> tuple[int, int]:
    """Confine this process, which has one thread; its working directory is what names its descriptors.

    Returns a descriptor of an empty directory, and how many descriptors it may have.

    :raises FailedPrecondition: system calls cannot be filtered here.
    :raises OSError: a step failed. The process is of no use then.
    """
    calls = program()
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    proc = trees.new("proc", _PROC, trees.RDONLY | trees.NOSUID | trees.NODEV | trees.NOEXEC)
    own = os.open(_OWN, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
    os.close(proc)
    syscall(number("unshare"), _CLONE_NEWNS)
    trees.keep_to_itself()
    root = trees.tmpfs({"mode": "555", "size": "4k"}, trees.RDONLY | trees.NOSUID | trees.NODEV | trees.NOEXEC)
    trees.stage(root, "/")
    os.close(root)
    trees.become_root()
    empty = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchdir(own)
    os.close(own)
    # A mask of permissions is the guest's business, before it asks.
    os.umask(0)
    privileges.keep_capabilities([KNOWN.index(f"CAP_{name}") for name in _CAPABILITIES])
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    privileges.not_dumpable()
    privileges.no_new_privileges()
    privileges.filter_system_calls(calls)
    return empty, descriptors
