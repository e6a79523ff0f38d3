"""Seccomp profiles: the default one, and which of all a container gets.

The default is an allow-list in the spirit of the one that container engines share: what ordinary programs need, plus
what a capability that the container holds anyway makes harmless; everything else is EPERM (and ``clone3`` ENOSYS, so
that a C library falls back to ``clone``, whose flags a filter can read).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterable, Mapping

from engines.base import Profile, ProfileType
from forgeone_shim.kernel.profiles import local_profile

_ENOSYS = 38
_AF_ALG, _AF_VSOCK = 38, 40
# CLONE_NEWNS|NEWCGROUP|NEWUTS|NEWIPC|NEWUSER|NEWPID|NEWNET
_CLONE_NEW = 0x7E020000
# PER_LINUX, PER_LINUX32, UNAME26, PER_LINUX32|UNAME26, and "only ask"
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

_ALWAYS = """
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32
clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create
epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2
execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir
fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork
fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex
futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area
getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32
getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid
getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr
getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents
io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount
listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lsm_get_self_attr lsm_list_modules
lsm_set_self_attr lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir
mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open
mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget
msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat
openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll
ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev
pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv
recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat
renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max
sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile
sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsgid32
setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32
setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32
setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn
socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync
sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64
timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat
uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
"""

_BY_CAPABILITY = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr "
    "move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 "
    "unshare",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}

_BY_MACHINE = {
    "x86_64": (("X86_64", "X86", "X32"), "arch_prctl modify_ldt"),
    "aarch64": (
        ("AARCH64", "ARM"),
        "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    ),
    "riscv64": (("RISCV64",), "riscv_flush_icache riscv_hwprobe"),
    "ppc64le": (("PPC64LE",), "sync_file_range2 swapcontext"),
    "s390x": (("S390X", "S390"), "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
}


def _allow(names: Iterable[str], *conditions: Mapping[str, object]) -> dict[str, object]:
    rule: dict[str, object] = {"names": list(names), "action": "SCMP_ACT_ALLOW"}
    if conditions:
        rule["args"] = list(conditions)
    return rule


def _argument(index: int, operator: str, value: int, value_two: int = 0) -> dict[str, object]:
    return {"index": index, "value": value, "valueTwo": value_two, "op": f"SCMP_CMP_{operator}"}


def default_profile(capabilities: Collection[str], machine: str | None = None) -> dict[str, object]:
    """RuntimeDefault for a container whose bounding set is ``capabilities`` (OCI ``linux.seccomp``)."""
    name = machine or platform.machine()
    architectures, extra = _BY_MACHINE.get(name, ((), ""))
    conditional = {call for held in capabilities for call in _BY_CAPABILITY.get(held, "").split()}
    rules = [_allow(sorted({*_ALWAYS.split(), *extra.split(), *conditional}))]
    # Three ranges leave out AF_ALG and AF_VSOCK: rules of one call are alternatives, so "not this and not that" in
    # one rule would be read as "not this or not that".
    rules += [
        _allow(["socket"], condition)
        for condition in (
            _argument(0, "LT", _AF_ALG),
            _argument(0, "EQ", _AF_ALG + 1),
            _argument(0, "GT", _AF_VSOCK),
        )
    ]
    rules += [_allow(["personality"], _argument(0, "EQ", value)) for value in _PERSONALITIES]
    if "CAP_SYS_ADMIN" not in capabilities:
        flags = 1 if name == "s390x" else 0
        rules.append(_allow(["clone"], _argument(flags, "MASKED_EQ", _CLONE_NEW)))
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": [f"SCMP_ARCH_{architecture}" for architecture in architectures],
        "syscalls": rules,
    }


def choose(
    profile: Profile | None,
    capabilities: Collection[str],
    root: str,
    runtime_default: Callable[[Collection[str]], dict[str, object]] = default_profile,
) -> dict[str, object] | None:
    """The filter for a container's profile; ``None`` is no filter, which is also what an absent profile means (CRI)."""
    if profile is None or profile.type is ProfileType.UNCONFINED:
        return None
    if profile.type is ProfileType.RUNTIME_DEFAULT:
        return runtime_default(capabilities)
    return local_profile(root, profile.localhost_ref)
