"""Containers whose pod has a kernel of its own: asked once a pod, and never taken for the host's."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.base import Features, Handle, Measured, Measurement
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.kernel.cgroups import CgroupHost, Driver, Mode
from forgeone_shim.lifecycle.machine import State
from forgeone_shim.metrics import guests
from forgeone_shim.metrics.guests import Guests
from forgeone_shim.metrics.meter import Meter
from forgeone_shim.runtime.views import ContainerView, FilesystemUsage
from tests.unit.metrics.test_meter import container, sandbox

FILES = {
    "cpu.stat": "usage_usec 7\nuser_usec 5\nsystem_usec 2\n",
    "memory.current": "4096\n",
    "memory.stat": "anon 1024\ninactive_file 1000\npgfault 3\n",
    "pids.current": "4\n",
    "io.stat": "8:0 rbytes=512 wbytes=0 rios=1 wios=0\n",
}


class Engine:
    """Tells of every container that it is asked for but ``gone``."""

    def __init__(self, *, own_kernel: bool = True) -> None:
        self.own_kernel, self.asked = own_kernel, list[tuple[str, ...]]()
        self.meet: threading.Barrier | None = None
        self.fault = False
        self.silent, self.waited = set[str](), list[float]()

    def features(self) -> Features:
        return Features(own_kernel=self.own_kernel)

    def measured(self, handles: Sequence[Handle], deadline: Deadline) -> Measurement:
        assert deadline.remaining(None) is not None
        if self.fault:
            raise FailedPrecondition("silent")
        if handles[0].sandbox_id in self.silent:
            self.waited.append(round(deadline.remaining(None) or 0.0, 2))
            time.sleep(deadline.remaining(None) or 0.0)
            return Measurement(cgroup="/machine", containers={})
        if deadline.passed:
            return Measurement(cgroup="/machine", containers={})
        if self.meet is not None:
            self.meet.wait(5)
        self.asked.append(tuple(one.container_id for one in handles))
        told = Measured(files=FILES, processes=2, layer_bytes=99, layer_inodes=9)
        known = {one.container_id: told for one in handles if one.container_id != "gone"}
        return Measurement(cgroup="/machine", containers=known)


def handle(view: ContainerView) -> Handle:
    return Handle(container_id=view.id, sandbox_id=view.sandbox_id, bundle="", exits="")


def within(id_: str, pod: str, engine: str = "vm") -> ContainerView:
    return replace(container(id_, pod, "/pod/x"), engine=engine)


@pytest.fixture
def host(tmp_path: Path) -> CgroupHost:
    for name, usec in (("machine", 500), ("pod", 900), ("pod/x", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpu.stat").write_text(f"usage_usec {usec}\n")
        (tmp_path / name / "cgroup.procs").write_text("1\n")
    return CgroupHost(mode=Mode.V2, driver=Driver.CGROUPFS, unified=str(tmp_path))


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def meter(host: CgroupHost, engine: Engine) -> Any:
    engines: Any = {"vm": engine, "native": Engine(own_kernel=False)}
    asking = Guests(engines, handle)
    meter = Meter(host, lambda _: FilesystemUsage("/root", 1, 1, 1), measured=asking)
    yield meter
    meter.close()
    asking.close()


def test_a_container_is_measured_by_its_own_kernel(meter: Meter, engine: Engine) -> None:
    reading = meter.container(within("a", "p"))
    assert (reading.usage.cpu, reading.usage.memory, reading.usage.working_set) == (7000, 4096, 3096)
    assert (reading.layer.used_bytes, reading.layer.used_inodes, reading.layer.mountpoint) == (99, 9, "/root")
    assert engine.asked == [("a",)]


def test_all_of_a_pod_are_asked_for_at_once_and_pods_side_by_side(meter: Meter, engine: Engine) -> None:
    engine.meet = threading.Barrier(2)
    views = [within("a", "p"), within("b", "q"), within("c", "p"), within("n", "r", "native")]
    readings = meter.containers(views)
    assert sorted(engine.asked) == [("a", "c"), ("b",)]
    assert [one.usage.cpu for one in readings] == [7000, 7000, 7000, 1000]


def test_one_that_has_ended_or_is_not_told_of_uses_nothing_known(meter: Meter, engine: Engine) -> None:
    ended = replace(within("e", "p"), state=State.TERMINATED)
    gone = meter.containers([within("gone", "p"), within("a", "p")])[0]
    assert (gone.usage.cpu, gone.usage.memory, gone.layer.used_bytes) == (None, None, 1)
    assert meter.container(ended).layer.used_bytes == 1
    assert engine.asked == [("gone", "a")]


def test_a_pod_that_does_not_answer_is_no_error_and_still_has_its_own_cgroup(meter: Meter, engine: Engine) -> None:
    engine.fault = True
    pod = sandbox("p", "/pod", "/pod")
    [reading] = meter.pods([pod], [pod], [within("a", "p")])
    assert reading.usage.cpu == 900_000
    assert (reading.processes, reading.containers[0].usage.cpu) == (0, None)


def test_one_that_was_silent_is_not_waited_for_each_time(
    meter: Meter, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guests, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(guests, "_FAIR_SECONDS", 0.04)
    monkeypatch.setattr(guests, "REST_SECONDS", 0.2)
    engine.silent = {"p"}
    views = [within("a", "p"), within("b", "q")]

    def asked() -> list[int | None]:
        return [one.usage.cpu for one in meter.containers(views)]

    assert asked() == [None, 7000]
    assert asked() == [None, 7000]
    [first, second] = engine.waited
    assert first > 0.02
    assert second == 0
    engine.silent = set()
    time.sleep(0.2)
    assert asked() == [7000, 7000]


def test_all_together_have_a_time_and_who_was_never_silent_is_asked_first(
    meter: Meter, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("ANSWER_SECONDS", 0.05), ("ALL_SECONDS", 0.15), ("_FAIR_SECONDS", 0), ("REST_SECONDS", 0)):
        monkeypatch.setattr(guests, name, seconds)
    engine.silent = {f"p{number}" for number in range(20)}
    views = [within(f"c{number}", f"p{number}") for number in range(21)]
    began = time.monotonic()
    meter.containers(views)
    assert time.monotonic() - began < 1
    assert meter.containers(views)[20].usage.cpu == 7000


def test_a_pod_in_a_cgroup_it_shares_is_what_its_machine_takes_of_the_host(meter: Meter) -> None:
    pod = sandbox("p", "", "/pod")
    [reading] = meter.pods([pod], [pod], [within("a", "p"), within("b", "p")])
    assert (reading.usage.cpu, reading.processes) == (500_000, 4)


def test_metrics_are_the_guests_and_its_devices_are_not_looked_up_here(meter: Meter) -> None:
    pod = sandbox("p", "/pod", "/pod")
    [read] = meter.samples([pod], [within("a", "p"), within("gone", "p")])
    by_id = {view.id: {one.name: one for one in found} for view, _, found in read.containers}
    assert by_id["a"]["container_memory_rss"].value == 1024
    assert by_id["a"]["container_threads"].value == 4
    assert by_id["a"]["container_processes"].value == 2
    assert by_id["a"]["container_fs_usage_bytes"].value == 99
    assert by_id["a"]["container_blkio_device_usage_total"].labels[:3] == ("8:0", "8", "0")
    assert "container_memory_rss" not in by_id["gone"]
    assert "container_last_seen" in by_id["gone"]
