"""Limits: CRI's numbers as the OCI runtime spec has them, cut down to what this host can enforce."""

from __future__ import annotations

import re

from engines.base import Resources
from engines.native.host import Host
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.kernel.cgroups import Mode

_FIELD = "linux.resources"
_CPU_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*\Z")
_UNIFIED_KEY = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_]+)+\Z")


def limits(resources: Resources, host: Host) -> dict[str, object]:
    """OCI ``linux.resources`` (without devices)."""
    found: dict[str, object] = {}
    cpu = _cpu(resources)
    if cpu:
        found["cpu"] = cpu
    memory = _memory(resources, host)
    if memory:
        found["memory"] = memory
    pages = [{"pageSize": size, "limit": limit} for size, limit in resources.hugepages if size in host.hugepage_sizes]
    if pages:
        found["hugepageLimits"] = pages
    if resources.unified:
        found["unified"] = _unified(resources, host)
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
    # Without a swap limit of its own a container may not swap: memory+swap is then the memory limit.
    swap = resources.memory_swap_limit or resources.memory_limit
    if swap and host.swap_limit:
        if 0 < swap < resources.memory_limit:
            raise InvalidInput(f"{_FIELD}.memory_swap_limit_in_bytes", "is below the memory limit")
        memory["swap"] = swap
    return memory


def _unified(resources: Resources, host: Host) -> dict[str, str]:
    if host.cgroups.mode is not Mode.V2:
        raise FailedPrecondition(
            "unified resources need cgroup v2, this host has " + host.cgroups.mode, fix="boot the host with cgroup v2"
        )
    for key, value in resources.unified.items():
        if not _UNIFIED_KEY.match(key) or "\0" in value:
            raise InvalidInput(f"{_FIELD}.unified", f"{key!r} is not a cgroup file such as memory.high")
    return dict(resources.unified)


def oom_score_adj(resources: Resources, host: Host) -> int:
    """The score asked for, as low as this host allows."""
    if not -1000 <= resources.oom_score_adj <= 1000:
        raise InvalidInput(f"{_FIELD}.oom_score_adj", f"{resources.oom_score_adj} is not in -1000..1000")
    return max(resources.oom_score_adj, host.lowest_oom_score_adj)
