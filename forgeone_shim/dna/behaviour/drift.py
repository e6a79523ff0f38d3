"""How what a container does differs from what is usual for its image. Pure.

Drift is a call that the baseline does not have: that is certain, and cannot come of more or less load. Shares and
order say more to people, and decide nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from forgeone_shim.dna.behaviour.baseline import Baseline
from forgeone_shim.dna.behaviour.names import FOREIGN, UNKNOWN
from forgeone_shim.dna.behaviour.profile import Profile, Seen

ORDINARY: Final = 0.1
GRAVE: Final = 0.5
"""What a call that is new takes of the trust in a container: all of it but this share remains, for each."""

_GRAVE = (
    "acct add_key bpf chroot delete_module execveat finit_module fsconfig fsmount fsopen fspick init_module "
    "io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie memfd_create memfd_secret mknod "
    "mknodat modify_ldt mount mount_setattr move_mount move_pages name_to_handle_at open_by_handle_at open_tree "
    "open_tree_attr perf_event_open personality pidfd_getfd pivot_root process_madvise process_vm_readv "
    "process_vm_writev ptrace quotactl quotactl_fd reboot request_key setns settimeofday swapoff swapon sysfs syslog "
    "umount umount2 unshare userfaultfd vhangup"
)
#: Calls that give, take or get around what keeps containers apart, load code, or look into other processes.
GRAVE_CALLS: Final = frozenset(_GRAVE.split())


_ENTERING = (
    "access capset chdir close close_range execve fchown fstatfs getegid geteuid getgid getuid ioctl lseek mmap "
    "munmap newfstatat openat prctl read rt_sigaction rt_sigprocmask seccomp setgroups setns setresgid setresuid "
    "setsid statx umask write"
)
_ENTERING_WASM = (
    "capset chdir close_range exit_group getrusage landlock_add_rule landlock_create_ruleset landlock_restrict_self "
    "openat seccomp setgroups setns setresgid setresuid sigaltstack"
)
#: By engine, what the runtime does in a container on the way to a command that is executed there: as seen of crun 1.8,
#: which on cgroup v2 is in the container's group before it is in its namespaces, and of guests. What is grave of it is
#: of no use to others: a filter keeps it from guests, and RuntimeDefault from all that lack CAP_SYS_ADMIN.
ENTERING: Final = MappingProxyType({"native": frozenset(_ENTERING.split()), "wasm": frozenset(_ENTERING_WASM.split())})
_NONE: Final[frozenset[str]] = frozenset()


#: What a kernel makes a process do that never asked, as it happens: the return from a signal's handler, a call that is
#: taken up again after one.
UNASKED: Final = frozenset(
    {"rt_sigreturn", "restart_syscall", f"{FOREIGN}rt_sigreturn", f"{FOREIGN}sigreturn", f"{FOREIGN}restart_syscall"}
)


def excused(engine: str, *, executed: bool) -> frozenset[str]:
    """What is no drift of a container, in which a command was ``executed`` or not."""
    return UNASKED | ENTERING.get(engine, _NONE) if executed else UNASKED


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """``system`` and ``host`` are calls that the baseline does not have, in their order; ``missing`` system calls that
    only it has.

    :param amount: 0 (no drift) to 1, as the trust score takes it.
    :param shares: by how much the shares of system calls differ, 0 (alike) to 1 (nothing in common).
    :param order: how many of the calls that both have are in the same order, 0 to 1.
    """

    system: tuple[str, ...] = ()
    host: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    amount: float = 0.0
    shares: float = 0.0
    order: float = 1.0

    def __bool__(self) -> bool:
        return bool(self.system or self.host)

    @property
    def names(self) -> tuple[str, ...]:
        """All that is new."""
        return (*self.system, *self.host)


def drift(baseline: Baseline, seen: Profile) -> Drift:
    """What ``seen`` has that the baseline has not, and how else they differ."""
    system, host = new(baseline.system, seen.system), new(baseline.host, seen.host)
    return Drift(
        system=system,
        host=host,
        missing=new(seen.system, baseline.system),
        amount=amount((*system, *host)),
        shares=_shares(baseline.system, seen.system),
        order=_order(baseline.system, seen.system),
    )


def new(known: Iterable[Seen], seen: Iterable[Seen]) -> tuple[str, ...]:
    """The names that only ``seen`` has."""
    names = {one.name for one in known}
    return tuple(one.name for one in seen if one.name not in names)


def amount(names: Collection[str]) -> float:
    """How much of the trust in a container is lost with so many calls that are new."""
    left = 1.0
    for name in names:
        left *= 1.0 - (GRAVE if _grave(name) else ORDINARY)
    return round(1.0 - left, 4)


def _grave(name: str) -> bool:
    return name in GRAVE_CALLS or name == UNKNOWN or name.startswith(FOREIGN)


def _shares(one: Sequence[Seen], other: Sequence[Seen]) -> float:
    """Half the sum of the differences (total variation)."""
    first, second = {it.name: it.count for it in one}, {it.name: it.count for it in other}
    whole, rest = sum(first.values()), sum(second.values())
    if not whole or not rest:
        return float(bool(whole) != bool(rest))
    differ = (abs(first.get(name, 0) / whole - second.get(name, 0) / rest) for name in {*first, *second})
    return round(sum(differ) / 2, 4)


def _order(one: Sequence[Seen], other: Sequence[Seen]) -> float:
    """The longest run of calls, not all of them neighbours, that is in both, beside all that is in both."""
    places = {it.name: place for place, it in enumerate(one)}
    common = [places[it.name] for it in other if it.name in places]
    ends: list[int] = []
    for place in common:
        at = bisect_left(ends, place)
        ends[at : at + 1] = [place]
    return round(len(ends) / len(common), 4) if common else 1.0
