"""New limits: a container's are given to the kernel and kept; a pod's are kept, as its cgroup is the kubelet's."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from engines.base import Resources
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, ForgeError
from forgeone_shim.lifecycle.machine import LIVE, State
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.records import SandboxRecord
from forgeone_shim.runtime.suggested import filled

# Files of cgroup v2 that have fields of their own too: the field that comes now takes the place of a key from before.
_FIELDS_OF: Final = MappingProxyType(
    {
        "memory.max": ("memory_limit",),
        "memory.swap.max": ("memory_swap_limit",),
        "cpu.max": ("cpu_quota", "cpu_period"),
        "cpu.weight": ("cpu_shares",),
        "cpuset.cpus": ("cpuset_cpus",),
        "cpuset.mems": ("cpuset_mems",),
    }
)


class Updates:
    """Every verb may be repeated; a refused one changes nothing."""

    def __init__(self, parts: Parts) -> None:
        self._p = parts

    def container(self, id_: str, asked: Resources, deadline: Deadline) -> None:
        """What ``asked`` sets replaces what the container had.

        :raises FailedPrecondition: it has ended, or the kernel refuses a limit.
        :raises Denied: its limits may not change, or not to these.
        """
        entry = self._p.containers.find(id_)
        # Keeps it from being cleaned up while its cgroup is written to.
        with entry.working(deadline):
            deadline.check("before the container was updated")
            record = entry.record
            if record.state is not State.BOOTED and record.state not in LIVE:
                raise FailedPrecondition(f"container {record.id[:13]} is {record.state}: its limits cannot change")
            before = record.effective_spec.resources
            after = merged(before, asked)
            self._p.guard.update(replace(record, resources=after), asked, deadline)
            engine, handle = self._p.engines[record.engine], self._p.handle(record)
            engine.update(handle, filled(after, record.suggested))
            try:
                entry.change(resources=after)
            except BaseException:
                with contextlib.suppress(ForgeError):
                    engine.update(handle, filled(before, record.suggested))
                raise

    def sandbox(self, id_: str, overhead: Resources | None, resources: Resources | None) -> None:
        """What is given replaces what the pod had; ``None`` leaves it.

        A kubelet writes the pod's cgroup itself before and after this call, so nothing else is done.

        :raises FailedPrecondition: it is not ready.
        :raises Denied: they may not change.
        """
        entry = self._p.sandboxes.find(id_)
        self._require_ready(entry.record)
        asked = resources or Resources()
        for container in self._p.containers.all():
            if container.record.sandbox_id == entry.record.id and container.record.state is not State.TERMINATED:
                self._p.guard.update(container.record, asked, Deadline())
        with entry.state:
            record = entry.record
            self._require_ready(record)
            entry.change(
                overhead=record.overhead if overhead is None else overhead,
                resources=record.resources if resources is None else resources,
            )

    @staticmethod
    def _require_ready(record: SandboxRecord) -> None:
        if record.state is not State.BOOTED:
            raise FailedPrecondition(f"sandbox {record.id[:13]} is not ready ({record.state})")


def merged(before: Resources, asked: Resources) -> Resources:
    """``before`` with all that ``asked`` sets.

    The OOM score stays: it is the process's own since its start. A container that could not swap cannot afterwards:
    a memory limit that comes alone takes the one on memory and swap with it.
    """
    own = {key for key, fields in _FIELDS_OF.items() if any(getattr(asked, field) for field in fields)}
    kept = {key: value for key, value in before.unified.items() if key not in own}
    swap = asked.memory_swap_limit or before.memory_swap_limit
    if asked.memory_limit and not asked.memory_swap_limit and before.memory_swap_limit == before.memory_limit:
        swap = 0
    return replace(
        before,
        cpu_period=asked.cpu_period or before.cpu_period,
        cpu_quota=asked.cpu_quota or before.cpu_quota,
        cpu_shares=asked.cpu_shares or before.cpu_shares,
        cpuset_cpus=asked.cpuset_cpus or before.cpuset_cpus,
        cpuset_mems=asked.cpuset_mems or before.cpuset_mems,
        memory_limit=asked.memory_limit or before.memory_limit,
        memory_swap_limit=swap,
        hugepages=tuple((dict(before.hugepages) | dict(asked.hugepages)).items()),
        unified={**kept, **asked.unified},
    )
