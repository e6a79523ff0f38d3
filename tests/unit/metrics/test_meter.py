"""Rates, cached layers, and pods put together from their containers."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from engines.base import ContainerSpec, SandboxSpec, User
from forgeone_shim.kernel.cgroups import CgroupHost, Driver, Mode
from forgeone_shim.lifecycle.machine import State
from forgeone_shim.metrics import layers
from forgeone_shim.metrics.layers import WritableLayers
from forgeone_shim.metrics.meter import Meter
from forgeone_shim.metrics.network import interfaces
from forgeone_shim.metrics.rates import SPAN, Rates
from forgeone_shim.runtime.views import ContainerView, FilesystemUsage, SandboxView


def sandbox(id_: str, parent: str, cgroup: str) -> SandboxView:
    spec = SandboxSpec(name=id_, uid=id_, namespace="n", cgroup_parent=parent)
    return SandboxView(id=id_, spec=spec, created_at=1, state=State.BOOTED, ips=(), handler="", netns="", cgroup=cgroup)


def container(id_: str, pod: str, cgroup: str) -> ContainerView:
    return ContainerView(
        id=id_,
        sandbox_id=pod,
        spec=ContainerSpec(name=id_, image="i"),
        image_id="",
        image_ref="",
        user=User(),
        state=State.RUNNING,
        created_at=1,
        started_at=1,
        finished_at=0,
        exit_code=0,
        reason="",
        message="",
        log_path="",
        stop_signal="",
        bundle="",
        pid=0,
        cgroup=cgroup,
    )


@pytest.fixture
def host(tmp_path: Path) -> CgroupHost:
    for name, usec, pids in (("pod", 50, ""), ("pod/a", 10, "1\n2\n"), ("pod/b", 20, "3\n"), ("pod/b/inner", 5, "4\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpu.stat").write_text(f"usage_usec {usec}\n")
        (tmp_path / name / "cgroup.procs").write_text(pids)
    return CgroupHost(mode=Mode.V2, driver=Driver.CGROUPFS, unified=str(tmp_path))


def measured(_: str) -> FilesystemUsage:
    return FilesystemUsage("/", 1, 1, 1)


def test_a_pod_with_a_cgroup_of_its_own_is_read_from_it(host: CgroupHost) -> None:
    meter, own = Meter(host, measured), sandbox("p", "/pod", "/pod")
    running = [container("a", "p", "/pod/a"), container("b", "p", "/pod/b"), container("c", "other", "/x")]
    ended = replace(container("e", "p", "/pod/e"), state=State.TERMINATED)
    [reading] = meter.pods([own], [own], [*running, ended])
    assert reading.usage.cpu == 50_000
    assert [one.view.id for one in reading.containers] == ["a", "b"]
    assert [one.usage.cpu for one in reading.containers] == [10_000, 20_000]
    assert reading.processes == 4
    meter.close()


@pytest.mark.parametrize("parent", ["", "/pod"])
def test_a_pod_in_a_cgroup_it_shares_is_the_sum_of_its_containers(host: CgroupHost, parent: str) -> None:
    meter, one, other = Meter(host, measured), sandbox("p", parent, "/pod"), sandbox("q", parent, "/pod")
    running = [container("a", "p", "/pod/a"), container("b", "q", "/pod/b")]
    first, second = meter.pods([one, other], [one, other], running)
    assert (first.usage.cpu, second.usage.cpu) == (10_000, 20_000)
    meter.close()


def test_a_rate_needs_two_readings_a_while_apart() -> None:
    rates = Rates()
    assert rates.nano_cores("a", 0, None) is None
    assert rates.nano_cores("a", 0, 100) is None
    assert rates.nano_cores("a", SPAN // 2, 999) is None
    assert rates.nano_cores("a", 2 * SPAN, 100 + SPAN) == SPAN // 2
    assert rates.nano_cores("a", 2 * SPAN + 1, 10 * SPAN) == SPAN // 2
    assert rates.nano_cores("a", 4 * SPAN, 0) is None
    rates.forget("a")
    assert rates.nano_cores("a", 9 * SPAN, 1) is None


def test_a_layer_is_measured_once_while_fresh_beside_the_call_later_and_anew_when_stale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, calls, done = [100.0], [], threading.Event()
    monkeypatch.setattr(layers.time, "monotonic", lambda: now[0])

    def measure(id_: str) -> FilesystemUsage:
        calls.append(threading.current_thread().name)
        done.set()
        return FilesystemUsage("/", len(calls), 1, 1)

    cache = WritableLayers(measure)
    assert [cache.usage("a").used_bytes for _ in range(3)] == [1, 1, 1]
    now[0] += layers.FRESH + 1
    done.clear()
    assert cache.usage("a").used_bytes == 1
    assert done.wait(5)
    until = time.perf_counter() + 5
    while cache.usage("a").used_bytes != 2 and time.perf_counter() < until:
        pass
    now[0] += layers.STALE + 1
    assert cache.usage("a").used_bytes == 3
    assert calls[1].startswith("layers")
    assert calls[2] == threading.current_thread().name
    cache.forget("a")
    assert cache.usage("a").used_bytes == 4
    cache.close()


def test_interfaces_are_read_through_a_process_of_the_pod() -> None:
    if not os.path.exists("/proc/self/ns/net"):
        pytest.skip("no network namespaces")
    through = interfaces("/proc/self/ns/net", [2**22 + 5, os.getpid()])
    assert {one.name for one in through} == {name for name in os.listdir("/sys/class/net") if name != "lo"}
    assert interfaces("/nonexistent", [os.getpid()]) == ()
