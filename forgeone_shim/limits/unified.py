"""Keys of cgroup v2 that a caller sets by their file's name (CRI ``LinuxContainerResources.unified``).

A key is a limit of the container's own cgroup and nothing else: it names no path, no file that controls the cgroup
itself or takes from other cgroups, no controller the host lacks, and does not say otherwise than a limit given in its
own field.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from engines.base import Resources
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.kernel.cgroups import CgroupHost, Mode

_FIELD = "linux.resources.unified"
_KEY = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_]+)+\Z")
# The only core files that limit something (Documentation/admin-guide/cgroup-v2.rst, Core Interface Files).
_CORE = frozenset({"cgroup.max.descendants", "cgroup.max.depth"})
# With these a cgroup takes processors away from its siblings, or (remote partitions, Linux 6.7) from the whole host.
_BEYOND = frozenset({"cpuset.cpus.exclusive", "cpuset.cpus.partition"})
SWAP = "memory.swap.max"


def check(resources: Resources, groups: CgroupHost) -> dict[str, str]:
    """The keys as they go into the OCI configuration.

    :raises InvalidInput: a key is no limit, or contradicts a limit given in its own field.
    :raises FailedPrecondition: this host has no cgroup v2, or not that controller.
    """
    if resources.unified and groups.mode is not Mode.V2:
        raise FailedPrecondition(
            "unified resources need cgroup v2, this host has " + groups.mode, fix="boot the host with cgroup v2"
        )
    for key, value in resources.unified.items():
        _check_key(key, value, groups.v2_controllers)
    _agree(resources)
    return dict(resources.unified)


def _check_key(key: str, value: str, controllers: frozenset[str]) -> None:
    field = f"{_FIELD}[{key}]"
    if not _KEY.match(key):
        raise InvalidInput(_FIELD, f"{key!r} is not a cgroup file such as memory.high")
    if not value.strip() or "\0" in value:
        raise InvalidInput(field, "is empty or holds a NUL")
    controller = key.partition(".")[0]
    if controller == "cgroup":
        if key not in _CORE:
            raise InvalidInput(field, f"is not a limit; of the cgroup itself known are {', '.join(sorted(_CORE))}")
    elif key in _BEYOND:
        raise InvalidInput(field, "takes processors away from others, and is no limit of the container's own")
    elif controller not in controllers:
        known = ", ".join(sorted(controllers)) or "none"
        raise FailedPrecondition(f"{field}: this host has no cgroup controller {controller!r}; it has {known}")


def _agree(resources: Resources) -> None:
    for key, wanted, field in _typed(resources):
        given = resources.unified.get(key)
        if given is not None and " ".join(given.split()) not in wanted:
            raise InvalidInput(
                f"{_FIELD}[{key}]", f"{given!r} contradicts linux.resources.{field}", fix="give one of them"
            )


def _typed(resources: Resources) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """File, what the limit's own field means for it (in each spelling), and that field."""
    limit, both = resources.memory_limit, resources.memory_swap_limit
    if limit:
        yield "memory.max", _amount(limit), "memory_limit_in_bytes"
    if both:
        yield SWAP, _amount(both if both < 0 else both - limit), "memory_swap_limit_in_bytes"
    if resources.cpu_quota or resources.cpu_period:
        quota = str(resources.cpu_quota) if resources.cpu_quota > 0 else "max"
        period = str(resources.cpu_period or 100_000)
        yield "cpu.max", (f"{quota} {period}", quota) if period == "100000" else (f"{quota} {period}",), "cpu_quota"
    if resources.cpuset_cpus:
        yield "cpuset.cpus", (resources.cpuset_cpus,), "cpuset_cpus"
    if resources.cpuset_mems:
        yield "cpuset.mems", (resources.cpuset_mems,), "cpuset_mems"
    if resources.cpu_shares:
        yield "cpu.weight", (), "cpu_shares"
    for size, pages in resources.hugepages:
        yield f"hugetlb.{size}.max", _amount(pages), f"hugepage_limits[{size}]"


def _amount(number: int) -> tuple[str, ...]:
    return ("max", "-1") if number < 0 else (str(number),)
