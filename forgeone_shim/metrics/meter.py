"""What containers and pods use, read when asked."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

from engines.base import Measured, Measurement
from forgeone_shim.kernel.cgroups import CgroupHost, relative
from forgeone_shim.metrics import guests, network, samples
from forgeone_shim.metrics.layers import WritableLayers
from forgeone_shim.metrics.network import Interface
from forgeone_shim.metrics.rates import Rates
from forgeone_shim.metrics.samples import Sample
from forgeone_shim.metrics.usage import Usage, of_cgroup, of_files, remembering, text, total
from forgeone_shim.runtime.views import ContainerView, FilesystemUsage, SandboxView

# A v1 host may lack one of them; every container is in all that there are.
_PROCESS_CONTROLLERS: Final = ("pids", "memory", "cpu", "devices", "freezer")


@dataclass(frozen=True, slots=True)
class ContainerReading:
    """One container."""

    view: ContainerView
    usage: Usage
    nano_cores: int | None
    layer: FilesystemUsage


@dataclass(frozen=True, slots=True)
class PodReading:
    """One pod with its containers that run."""

    view: SandboxView
    usage: Usage
    nano_cores: int | None
    processes: int
    interfaces: tuple[Interface, ...]
    containers: tuple[ContainerReading, ...]


@dataclass(frozen=True, slots=True)
class PodSamples:
    """One pod's metrics and those of its containers that run, read at ``at`` (ns since the epoch)."""

    view: SandboxView
    cgroup: str
    at: int
    pod: tuple[Sample, ...]
    containers: tuple[tuple[ContainerView, str, tuple[Sample, ...]], ...]


class Meter:
    """Thread-safe. Where a cgroup is gone its readings are empty, never an error."""

    def __init__(
        self,
        host: CgroupHost,
        measure_layer: Callable[[str], FilesystemUsage],
        more: Callable[[str], Iterable[Sample]] = lambda _: (),
        measured: Callable[[Iterable[ContainerView]], Mapping[str, Measurement]] = lambda _: {},
    ) -> None:
        """``more`` is what else there is to tell of a container, by its id.

        ``measured`` are, by their ids, the pods with a kernel of their own that these containers are in.
        """
        self._host, self._more, self._measured = host, more, measured
        self._layers = WritableLayers(measure_layer)
        self._rates = Rates()
        self._device = cache(_device)
        self._page_sizes = samples.page_sizes()

    def container(self, view: ContainerView) -> ContainerReading:
        """What one container uses."""
        return self.containers([view])[0]

    def containers(self, views: Collection[ContainerView]) -> list[ContainerReading]:
        """What each of these containers uses."""
        machines = self._measured(views)
        return [self._container(view, machines.get(view.sandbox_id)) for view in views]

    def _container(self, view: ContainerView, machine: Measurement | None) -> ContainerReading:
        layer = self._layers.usage(view.id)
        if machine is None:
            usage = of_cgroup(self._host, view.cgroup)
        else:
            told = machine.containers.get(view.id)
            usage = guests.usage(time.time_ns(), told)
            layer = _layer(layer, usage.at, told)
        return ContainerReading(view, usage, self._rates.nano_cores(view.id, usage.at, usage.cpu), layer)

    def pods(
        self, wanted: Iterable[SandboxView], sandboxes: Collection[SandboxView], containers: Collection[ContainerView]
    ) -> list[PodReading]:
        """What each pod ``wanted`` uses; the others tell which cgroups are one pod's alone."""
        own, of_pod, pods = _own_cgroups(sandboxes), _by_pod(containers), list(wanted)
        machines = self._measured([one for view in pods for one in of_pod.get(view.id, ())])
        return [
            self._pod(view, of_pod.get(view.id, ()), machines.get(view.id), is_own=view.cgroup in own) for view in pods
        ]

    def _pod(
        self, view: SandboxView, live: Sequence[ContainerView], machine: Measurement | None, *, is_own: bool
    ) -> PodReading:
        readings = tuple([self._container(one, machine) for one in live])
        if is_own:
            usage = of_cgroup(self._host, view.cgroup)
        elif machine is not None and machine.cgroup:
            usage = of_cgroup(self._host, machine.cgroup)
        else:
            usage = total(time.time_ns(), [reading.usage for reading in readings])
        return PodReading(
            view=view,
            usage=usage,
            nano_cores=self._rates.nano_cores(view.id, usage.at, usage.cpu),
            processes=sum(self._process_count(one, machine) for one in live),
            interfaces=self._interfaces(view, live if machine is None else ()),
            containers=readings,
        )

    def samples(self, sandboxes: Iterable[SandboxView], containers: Collection[ContainerView]) -> list[PodSamples]:
        """The metrics of these pods."""
        of_pod, machines = _by_pod(containers), self._measured(containers)
        found = []
        for view in sandboxes:
            live, machine = of_pod.get(view.id, ()), machines.get(view.id)
            found.append(
                PodSamples(
                    view=view,
                    cgroup=relative(view.cgroup),
                    at=time.time_ns(),
                    pod=tuple(samples.of_interfaces(self._interfaces(view, live if machine is None else ()))),
                    containers=tuple(
                        [(one, relative(one.cgroup), self._container_samples(one, machine)) for one in live]
                    ),
                )
            )
        return found

    def _container_samples(self, view: ContainerView, machine: Measurement | None) -> tuple[Sample, ...]:
        if machine is not None:
            return self._machine_samples(view, machine.containers.get(view.id))
        read, layer = remembering(self._host, view.cgroup), self._layers.usage(view.id)
        usage = of_files(self._host, read)
        return (
            *samples.of_spec(view.spec, started_at=view.started_at, now=usage.at),
            *samples.of_container(self._host, read, usage, self._page_sizes),
            *samples.of_processes(self._processes(view.cgroup)),
            *samples.of_layer(layer, self._device(layer.mountpoint)),
            *self._more(view.id),
        )

    def _machine_samples(self, view: ContainerView, told: Measured | None) -> tuple[Sample, ...]:
        usage = guests.usage(time.time_ns(), told)
        spec = samples.of_spec(view.spec, started_at=view.started_at, now=usage.at)
        if told is None:
            return (*spec, *self._more(view.id))
        device = self._device(self._layers.usage(view.id).mountpoint)
        return (
            *spec,
            *samples.of_usage(usage),
            # Its kernel's numbers of devices are not this host's.
            *samples.of_v2(guests.reader(told), (), str),
            *samples.of_measured(told, device),
            *self._more(view.id),
        )

    def _interfaces(self, view: SandboxView, live: Sequence[ContainerView]) -> tuple[Interface, ...]:
        """``live`` are containers with processes of this host, which may be in the pod's namespace."""
        return network.interfaces(view.netns, [one.pid for one in live]) if view.netns else ()

    def _process_count(self, view: ContainerView, machine: Measurement | None) -> int:
        if machine is None:
            return len(self._processes(view.cgroup))
        told = machine.containers.get(view.id)
        return 0 if told is None else told.processes

    def _processes(self, cgroup: str) -> list[int]:
        for controller in _PROCESS_CONTROLLERS:
            directory = self._host.directory(controller, cgroup)
            if directory is not None:
                return _members(directory)
        return []

    def forget(self, id_: str) -> None:
        """A pod or container is gone."""
        self._rates.forget(id_)
        self._layers.forget(id_)

    def close(self) -> None:
        """Measure no more."""
        self._layers.close()


def _own_cgroups(sandboxes: Iterable[SandboxView]) -> set[str]:
    # Where the caller named none it is the parent of many pods, and some callers name one for several.
    named = Counter(view.cgroup for view in sandboxes if view.spec.cgroup_parent)
    return {cgroup for cgroup, pods in named.items() if pods == 1}


def _by_pod(containers: Iterable[ContainerView]) -> Mapping[str, list[ContainerView]]:
    found: dict[str, list[ContainerView]] = {}
    for view in containers:
        if view.live:
            found.setdefault(view.sandbox_id, []).append(view)
    return found


def _layer(layer: FilesystemUsage, at: int, told: Measured | None) -> FilesystemUsage:
    """What a container has written inside its machine, which this host cannot look into."""
    if told is None:
        return layer
    return replace(layer, used_bytes=told.layer_bytes, used_inodes=told.layer_inodes, at=at)


def _members(directory: str) -> list[int]:
    """The processes in a cgroup and below it."""
    found = [int(pid) for pid in text(f"{directory}/cgroup.procs").split()]
    try:
        # A cgroup's directory has a link for each child beside its own two.
        if os.stat(directory).st_nlink > 2:  # noqa: PTH116
            with os.scandir(directory) as entries:
                below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
            for child in below:
                found += _members(child)
    except OSError:
        return found
    return found


def _device(path: str) -> str:
    """The block device that a path lies on, or its numbers where it lies on none."""
    try:
        number = Path(path).stat().st_dev
    except OSError:
        return ""
    return samples.block_device(f"{os.major(number)}:{os.minor(number)}")
