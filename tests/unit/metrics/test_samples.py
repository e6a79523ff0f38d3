"""cAdvisor's metrics from the text of the kernel's files."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from cri.translate import metrics
from engines.base import ContainerSpec, Resources
from forgeone_shim.metrics.network import Interface, parse
from forgeone_shim.metrics.samples import (
    Sample,
    of_interfaces,
    of_layer,
    of_limits,
    of_processes,
    of_spec,
    of_trust,
    of_usage,
    of_v1,
    of_v2,
    page_sizes,
)
from forgeone_shim.metrics.usage import Pressure, Read, Stall, Usage
from forgeone_shim.runtime.views import FilesystemUsage

SECOND = 10**9
V1 = ("cpu", "cpuacct", "memory", "blkio", "pids", "hugetlb")


def files(texts: dict[str, str]) -> Read:
    return lambda name: texts.get(name, "")


def plain(found: object) -> dict[str, int]:
    return {one.name: one.value for one in found if not one.labels}  # type: ignore[attr-defined]


def labelled(found: object) -> set[tuple[str, int, tuple[str, ...]]]:
    return {(one.name, one.value, one.labels) for one in found if one.labels}  # type: ignore[attr-defined]


def test_v1() -> None:
    read = {name: files({}) for name in V1}
    read["cpu"] = files({"cpu.stat": f"nr_periods 9\nnr_throttled 4\nthrottled_time {3 * SECOND}\n"})
    read["cpuacct"] = files({"cpuacct.usage_user": f"{2 * SECOND}\n", "cpuacct.usage_sys": f"{SECOND}\n"})
    read["memory"] = files(
        {
            "memory.stat": "pgfault 1\npgmajfault 0\ntotal_cache 5\ntotal_mapped_file 6\ntotal_pgfault 7\n"
            "total_pgmajfault 8\n",
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            "memory.kmem.usage_in_bytes": "11\n",
            "memory.max_usage_in_bytes": "12\n",
            "memory.failcnt": "13\n",
        }
    )
    read["pids"] = files({"pids.current": "3\n", "pids.max": "max\n"})
    read["hugetlb"] = files({"hugetlb.2MB.usage_in_bytes": "14\n", "hugetlb.2MB.max_usage_in_bytes": "15\n"})
    read["blkio"] = files(
        {
            "blkio.throttle.io_service_bytes_recursive": "999:7 Read 20\n999:7 Write 30\n999:7 Sync 1\nTotal 51\n",
            "blkio.throttle.io_serviced_recursive": "999:7 Read 2\n999:7 Write 3\nTotal 5\n",
        }
    )
    found = list(of_v1(read, ["2MB"]))
    assert plain(found) == {
        "container_cpu_user_seconds_total": 2,
        "container_cpu_system_seconds_total": 1,
        "container_cpu_cfs_periods_total": 9,
        "container_cpu_cfs_throttled_periods_total": 4,
        "container_cpu_cfs_throttled_seconds_total": 3,
        "container_memory_cache": 5,
        "container_memory_mapped_file": 6,
        "container_memory_kernel_usage": 11,
        "container_memory_max_usage_bytes": 12,
        "container_memory_failcnt": 13,
        "container_oom_events_total": 2,
        "container_threads": 3,
        "container_threads_max": 0,
    }
    device = ("999:7", "999", "7")
    assert labelled(found) == {
        ("container_memory_failures_total", 1, ("pgfault", "container")),
        ("container_memory_failures_total", 0, ("pgmajfault", "container")),
        ("container_memory_failures_total", 7, ("pgfault", "hierarchy")),
        ("container_memory_failures_total", 8, ("pgmajfault", "hierarchy")),
        ("container_hugetlb_usage_bytes", 14, ("2MB",)),
        ("container_hugetlb_max_usage_bytes", 15, ("2MB",)),
        ("container_blkio_device_usage_total", 20, (*device, "Read")),
        ("container_blkio_device_usage_total", 30, (*device, "Write")),
        ("container_blkio_device_usage_total", 1, (*device, "Sync")),
        ("container_fs_reads_bytes_total", 20, ("999:7",)),
        ("container_fs_writes_bytes_total", 30, ("999:7",)),
        ("container_fs_reads_total", 2, ("999:7",)),
        ("container_fs_writes_total", 3, ("999:7",)),
    }


def test_v2() -> None:
    read = files(
        {
            "cpu.stat": "usage_usec 9\nuser_usec 2000000\nsystem_usec 1000000\nnr_periods 9\nnr_throttled 4\n"
            "throttled_usec 3000000\n",
            "memory.stat": "file 5\nfile_mapped 6\nkernel 11\npgfault 7\npgmajfault 8\n",
            "memory.events": "low 0\nhigh 0\nmax 13\noom 1\noom_kill 2\n",
            "memory.peak": "12\n",
            "pids.current": "3\n",
            "pids.max": "100\n",
            "io.stat": "999:7 rbytes=20 wbytes=30 rios=2 wios=3 dbytes=0 dios=0\n999:8 \n",
            "hugetlb.1GB.current": "0\n",
        }
    )
    found = list(of_v2(read, ["1GB", "2MB"]))
    assert plain(found) == {
        "container_cpu_user_seconds_total": 2,
        "container_cpu_system_seconds_total": 1,
        "container_cpu_cfs_periods_total": 9,
        "container_cpu_cfs_throttled_periods_total": 4,
        "container_cpu_cfs_throttled_seconds_total": 3,
        "container_memory_cache": 5,
        "container_memory_mapped_file": 6,
        "container_memory_kernel_usage": 11,
        "container_memory_max_usage_bytes": 12,
        "container_memory_failcnt": 13,
        "container_oom_events_total": 2,
        "container_threads": 3,
        "container_threads_max": 100,
    }
    assert ("container_hugetlb_usage_bytes", 0, ("1GB",)) in labelled(found)
    assert ("container_fs_writes_total", 3, ("999:7",)) in labelled(found)
    assert ("container_blkio_device_usage_total", 20, ("999:7", "999", "7", "Read")) in labelled(found)


def test_nothing_is_made_up_for_a_cgroup_that_is_gone() -> None:
    assert list(of_v2(files({}), ["2MB"])) == []
    assert list(of_v1({name: files({}) for name in V1}, ["2MB"])) == []
    assert list(of_usage(Usage(at=1))) == []


def test_pressure_is_waiting_and_stalled() -> None:
    stall = Stall(Pressure(0, 0, 0, 5 * SECOND), Pressure(0, 0, 0, 2 * SECOND))
    assert plain(of_usage(Usage(at=1, io_stall=stall, cpu=4 * SECOND))) == {
        "container_cpu_usage_seconds_total": 4,
        "container_pressure_io_waiting_seconds_total": 5,
        "container_pressure_io_stalled_seconds_total": 2,
    }


def test_only_limits_that_are_set_are_told() -> None:
    unset = plain(of_spec(ContainerSpec(name="a", image="b"), started_at=3 * SECOND, now=9 * SECOND))
    assert unset == {"container_last_seen": 9, "container_start_time_seconds": 3}
    limits = Resources(
        cpu_period=1, cpu_quota=2, cpu_shares=3, memory_limit=4, memory_swap_limit=5, unified={"memory.low": "6"}
    )
    found = plain(of_spec(ContainerSpec(name="a", image="b", resources=limits), started_at=0, now=0))
    assert {name.removeprefix("container_spec_"): value for name, value in found.items() if "spec" in name} == {
        "cpu_period": 1,
        "cpu_quota": 2,
        "cpu_shares": 3,
        "memory_limit_bytes": 4,
        "memory_swap_limit_bytes": 5,
        "memory_reservation_limit_bytes": 6,
    }
    free = Resources(cpu_quota=-1, memory_limit=-1)
    assert len(plain(of_spec(ContainerSpec(name="a", image="b", resources=free), started_at=0, now=0))) == 2


def test_descriptors_of_processes_are_counted() -> None:
    before = plain(of_processes([os.getpid()]))
    with socket.socket(), socket.socket(), open(os.devnull):
        after = plain(of_processes([os.getpid()]))
    assert after["container_sockets"] - before["container_sockets"] == 2
    assert after["container_file_descriptors"] - before["container_file_descriptors"] == 3
    assert plain(of_processes([2**22 + 5])) == {
        "container_processes": 1,
        "container_file_descriptors": 0,
        "container_sockets": 0,
    }


@pytest.mark.parametrize(("soft", "values"), [("1024", [1024]), ("unlimited", [])])
def test_the_limit_of_open_files(soft: str, values: list[int]) -> None:
    text = f"Limit  Soft Limit  Hard Limit  Units\nMax open files            {soft}      1048576      files \n"
    assert [one.value for one in of_limits(text)] == values


def test_the_writable_layer_and_its_filesystem(tmp_path: Path) -> None:
    found = list(of_layer(FilesystemUsage(str(tmp_path), 7, 2, 1), "/dev/x"))
    assert found[0] == Sample("container_fs_usage_bytes", 7, ("/dev/x",))
    assert {one.name for one in found[1:]} == {
        "container_fs_limit_bytes",
        "container_fs_inodes_total",
        "container_fs_inodes_free",
    }
    assert len(list(of_layer(FilesystemUsage(str(tmp_path / "gone"), 7, 2, 1), ""))) == 1


def test_sizes_of_huge_pages_are_spelled_as_cgroups_do(tmp_path: Path) -> None:
    for size in (64, 2048, 1048576):
        (tmp_path / f"hugepages-{size}kB").mkdir()
    assert sorted(page_sizes(str(tmp_path))) == ["1GB", "2MB", "64KB"]
    assert page_sizes(str(tmp_path / "none")) == []


NET_DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo: 900 9 0 0 0 0 0 0 900 9 0 0 0 0 0 0
  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0
eth0:1:99 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0
"""


def test_the_interfaces_of_a_pod() -> None:
    eth0, alias = parse(NET_DEV)
    assert eth0 == Interface("eth0", 1, 2, 3, 4, 5, 6, 7, 8)
    assert (alias.name, alias.rx_bytes) == ("eth0:1", 99)
    assert parse("") == ()
    assert {(one.name, one.value) for one in of_interfaces([eth0])} >= {
        ("container_network_receive_packets_dropped_total", 4),
        ("container_network_transmit_bytes_total", 5),
    }


def test_every_sample_has_a_descriptor_with_as_many_labels() -> None:
    known = {one.name: len(one.label_keys) - len(metrics.BASE) for one in metrics.descriptors()}
    stall = Stall(Pressure(0, 0, 0, 0), Pressure(0, 0, 0, 0))
    usage = Usage(at=1, cpu=1, memory=1, working_set=1, rss=1, swap=1, cpu_stall=stall, memory_stall=stall)
    limits = Resources(cpu_period=1, cpu_quota=2, cpu_shares=3, memory_limit=4, memory_swap_limit=5)
    everything = dict.fromkeys(("pids.max", "cpuacct.usage_user", "cpuacct.usage_sys"), "1\n")
    found = [
        *of_usage(usage),
        *of_v1({name: files(everything | {"memory.stat": "pgfault 1\n"}) for name in V1}, ["2MB"]),
        *of_v2(files({"io.stat": "1:2 rbytes=1 rios=2", "hugetlb.2MB.current": "1"}), ["2MB"]),
        *of_spec(ContainerSpec(name="a", image="b", resources=limits), started_at=0, now=0),
        *of_processes([os.getpid()]),
        *of_layer(FilesystemUsage("/", 1, 1, 1), "/dev/x"),
        *of_interfaces(parse(NET_DEV)),
        *of_trust(1, 256),
    ]
    assert len(known) == 58
    assert {one.name: len(one.labels) for one in found}.items() <= known.items()
