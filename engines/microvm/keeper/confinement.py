"""What a keeper gives up before it hears a word of its guest: its monitor and its file server are there by then.

It stays root, for the files that it writes are root's. But it executes no program and makes no process, goes into no
namespace, mounts nothing, traces nobody, loads nothing into the kernel, and has no socket but unix ones.
"""

from __future__ import annotations

import base64
import functools
import platform
from typing import Final

from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.kernel import privileges
from forgeone_shim.kernel.bpf import Compiler
from forgeone_shim.kernel.capabilities import KNOWN

# Logs may lie in a directory of another user's; the monitor and the file server are other users' processes.
_CAPABILITIES: Final = ("DAC_OVERRIDE", "KILL")
_AF_UNIX: Final = 1
_EPERM: Final = 1
_ARCHITECTURES: Final = {"x86_64": "X86_64", "aarch64": "AARCH64"}
_DENIED: Final = """
acct add_key adjtimex bpf capset chroot clock_adjtime clock_settime clone clone3 create_module delete_module execve
execveat finit_module fork fsconfig fsmount fsopen fspick get_kernel_syms init_module io_uring_enter io_uring_register
io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mount mount_setattr
move_mount name_to_handle_at nfsservctl open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root
process_madvise process_vm_readv process_vm_writev ptrace quotactl quotactl_fd reboot request_key setdomainname setfsgid
setfsuid setgid setgroups sethostname setns setregid setresgid setresuid setreuid settimeofday setuid swapoff swapon
syslog umount umount2 unshare userfaultfd vfork vhangup
"""


def profile(machine: str) -> dict[str, object]:
    """Its system calls (OCI ``linux.seccomp``)."""
    network = {"index": 0, "value": _AF_UNIX, "op": "SCMP_CMP_NE"}
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": [f"SCMP_ARCH_{_ARCHITECTURES[machine]}"],
        "syscalls": [
            {"names": _DENIED.split(), "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM},
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM, "args": [network]},
        ],
    }


@functools.cache
def program() -> bytes:
    """The filter, made once for this process and all that are forked from it.

    :raises FailedPrecondition: system calls cannot be filtered here.
    """
    made = Compiler().compile(profile(platform.machine()))
    if made is None:
        raise FailedPrecondition("system calls cannot be filtered", fix="install libseccomp2")
    return base64.b64decode(made)


def confine() -> None:
    """Confine this process, which has one thread and is root.

    :raises FailedPrecondition: system calls cannot be filtered here.
    :raises OSError: a step failed.
    """
    calls = program()
    privileges.keep_capabilities([KNOWN.index(f"CAP_{name}") for name in _CAPABILITIES])
    privileges.no_new_privileges()
    privileges.filter_system_calls(calls)
