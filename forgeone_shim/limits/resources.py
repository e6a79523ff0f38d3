"""Limits: CRI's numbers as the OCI runtime spec has them, cut down to what this host can enforce."""

from __future__ import annotations

import re

from engines.base import Resources
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.kernel.host import Host, size_name
from forgeone_shim.limits import unified

_FIELD = "linux.resources"
_CPU_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*\Z")
_PAGE_SIZE = re.compile(r"(\d{1,12})([KMG]?)i?B\Z")
_KILOBYTES = {"": 1 / 1024, "K": 1, "M": 1 << 10, "G": 1 << 20}


def limits(resources: Resources, host: Host) -> dict[str, object]:
    """OCI ``linux.resources`` (without devices)."""
    found: dict[str, object] = {}
    cpu = _cpu(resources)
    if cpu:
        found["cpu"] = cpu
    memory = _memory(resources, host)
    if memory:
        found["memory"] = memory
    pages = [{"pageSize": size, "limit": limit} for size, limit in hugepages(resources, host).items()]
    if pages:
        found["hugepageLimits"] = pages
    if resources.pids_limit:
        found["pids"] = {"limit": resources.pids_limit}
    if resources.unified:
        found["unified"] = unified.check(resources, host.cgroups)
    return found


def _cpu(resources: Resources) -> dict[str, object]:
    if resources.cpu_period < 0 or resources.cpu_shares < 0:
        raise InvalidInput(f"{_FIELD}.cpu", "period and shares cannot be negative")
    numbers = {"period": resources.cpu_period, "quota": resources.cpu_quota, "shares": resources.cpu_shares}
    cpu: dict[str, object] = {key: value for key, value in numbers.items() if value}
    for key, text in (("cpus", resources.cpuset_cpus), ("mems", resources.cpuset_mems)):
        if text:
            if not _CPU_LIST.match(text):
                raise InvalidInput(f"{_FIELD}.cpuset_{key}", f"{text!r} is not a list such as 0-2,7")
            cpu[key] = text
    return cpu


def _memory(resources: Resources, host: Host) -> dict[str, object]:
    if resources.memory_limit < -1:
        raise InvalidInput(f"{_FIELD}.memory_limit_in_bytes", "cannot be negative, but for -1: no limit")
    memory: dict[str, object] = {}
    if resources.memory_limit:
        memory["limit"] = resources.memory_limit
    swap, field = resources.memory_swap_limit, f"{_FIELD}.memory_swap_limit_in_bytes"
    if swap < -1:
        raise InvalidInput(field, "cannot be negative, but for -1: no limit")
    if swap > 0 and resources.memory_limit <= 0:
        raise InvalidInput(field, "counts memory too, and needs a memory limit beside it")
    if 0 < swap < resources.memory_limit:
        raise InvalidInput(field, "is below the memory limit")
    if not swap and unified.SWAP not in resources.unified:
        # Without a swap limit of its own a container may not swap: memory+swap is then the memory limit. A kubelet that
        # lets containers swap says so with the key, and the field would take it back.
        swap = resources.memory_limit
    if swap and host.swap_limit:
        memory["swap"] = swap
    return memory


def hugepages(resources: Resources, host: Host) -> dict[str, int]:
    """Limits in bytes by page size, as the kernel names it; of two for one size the last counts.

    Without the hugetlb controller there is nothing to limit with, and all of them are left out.

    :raises InvalidInput: a size is none.
    :raises FailedPrecondition: pages of a size that this host does not have are asked for.
    """
    found: dict[str, int] = {}
    for given, limit in resources.hugepages:
        size = page_size(given)
        if size in host.hugepage_sizes:
            found[size] = limit
        elif limit and host.hugepage_sizes:
            have = ", ".join(sorted(host.hugepage_sizes))
            raise FailedPrecondition(
                f"{_FIELD}.hugepage_limits[{given}]: this host has no pages of that size, but {have}"
            )
    return found


def page_size(text: str) -> str:
    """``2048KB`` and ``2MB`` as the kernel's ``2MB``."""
    match = _PAGE_SIZE.match(text)
    kilobytes = int(match[1]) * _KILOBYTES[match[2]] if match else 0
    if kilobytes < 1 or kilobytes != int(kilobytes):
        raise InvalidInput(f"{_FIELD}.hugepage_limits", f"{text!r} is not a page size such as 2MB")
    return size_name(int(kilobytes))


def oom_score_adj(resources: Resources, host: Host) -> int:
    """The score asked for, as low as this host allows."""
    if not -1000 <= resources.oom_score_adj <= 1000:
        raise InvalidInput(f"{_FIELD}.oom_score_adj", f"{resources.oom_score_adj} is not in -1000..1000")
    return max(resources.oom_score_adj, host.lowest_oom_score_adj)
