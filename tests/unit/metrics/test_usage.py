"""A container's usage from the text of its cgroup files."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgeone_shim.kernel.cgroups import CgroupHost, Driver, Mode
from forgeone_shim.metrics.usage import (
    Pressure,
    Read,
    Stall,
    Usage,
    from_v1,
    from_v2,
    number,
    of_cgroup,
    reader,
    stall,
    table,
    text,
    total,
)

ID = "ab" * 32
PSI = "some avg10=1.50 avg60=0.50 avg300=0.10 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n"


def files(**texts: str) -> Read:
    return lambda name: texts.get(name.replace(".", "_"), "")


def test_a_v2_cgroup() -> None:
    read = files(
        cpu_stat="usage_usec 12\nuser_usec 10\n",
        memory_stat="anon 40\nfile 60\ninactive_file 30\npgfault 5\npgmajfault 1\n",
        memory_current="100\n",
        memory_max="500\n",
        memory_swap_current="7\n",
        memory_swap_max="max\n",
        io_pressure=PSI,
    )
    assert from_v2(9, read) == Usage(
        at=9,
        cpu=12_000,
        memory=100,
        working_set=70,
        available=430,
        rss=40,
        page_faults=5,
        major_page_faults=1,
        swap=7,
        io_stall=Stall(Pressure(1.5, 0.5, 0.1, 7000), Pressure(0.0, 0.0, 0.0, 3000)),
    )


def test_a_v1_cgroup() -> None:
    memory = files(
        memory_stat="total_rss 40\ntotal_inactive_file 130\ntotal_pgfault 5\ntotal_pgmajfault 1\ntotal_swap 8\n",
        memory_usage_in_bytes="100\n",
        memory_limit_in_bytes="500\n",
        memory_memsw_usage_in_bytes="108\n",
        memory_memsw_limit_in_bytes="600\n",
    )
    assert from_v1(9, files(cpuacct_usage="33\n"), memory, files()) == Usage(
        at=9,
        cpu=33,
        memory=100,
        working_set=0,
        available=500,
        rss=40,
        page_faults=5,
        major_page_faults=1,
        swap=8,
        swap_available=92,
    )


def test_no_limit_leaves_nothing_to_tell() -> None:
    read = files(memory_usage_in_bytes="1", memory_limit_in_bytes="9223372036854771712")
    assert from_v1(1, files(), read, files()).available is None
    assert from_v2(1, files(memory_current="1", memory_max="max")).available is None


def test_a_cgroup_that_is_gone_is_an_empty_reading() -> None:
    assert from_v2(4, files()) == Usage(at=4)
    assert from_v1(4, files(), files(), files()) == Usage(at=4)


def test_a_hybrid_host_reads_v1_and_pressure_from_v2(tmp_path: Path) -> None:
    for controller in ("cpuacct", "memory", "unified"):
        (tmp_path / controller / "pods" / ID).mkdir(parents=True)
    (tmp_path / "cpuacct" / "pods" / ID / "cpuacct.usage").write_text("12\n")
    (tmp_path / "unified" / "pods" / ID / "cpu.pressure").write_text(PSI)
    host = CgroupHost(
        mode=Mode.HYBRID,
        driver=Driver.CGROUPFS,
        v1={name: f"{tmp_path}/{name}" for name in ("cpuacct", "memory")},
        unified=f"{tmp_path}/unified",
    )
    usage = of_cgroup(host, f"/pods/{ID}")
    assert usage.cpu == 12
    assert usage.cpu_stall == Stall(Pressure(1.5, 0.5, 0.1, 7000), Pressure(0.0, 0.0, 0.0, 3000))
    assert of_cgroup(host, "/pods/gone").cpu is None


def test_a_container_in_a_scope_of_systemds_on_v2(tmp_path: Path) -> None:
    group = tmp_path / "kubepods.slice" / f"forgeone-{ID}.scope" / "container"
    group.mkdir(parents=True)
    (group / "cpu.stat").write_text("usage_usec 3\n")
    host = CgroupHost(mode=Mode.V2, driver=Driver.SYSTEMD, unified=str(tmp_path))
    assert of_cgroup(host, f"kubepods.slice:forgeone:{ID}").cpu == 3000


def test_a_v1_host_without_v2_has_no_pressure() -> None:
    host = CgroupHost(mode=Mode.V1, driver=Driver.CGROUPFS, v1={"memory": "/nonexistent"})
    assert of_cgroup(host, "/x").io_stall is None
    assert reader(host, "", "/x")("cpu.pressure") == ""


def test_what_several_use_together_adds_up_where_it_is_known() -> None:
    parts = [Usage(at=1, cpu=5, memory=7, available=3), Usage(at=2, cpu=6), Usage(at=3)]
    assert total(9, parts) == Usage(at=9, cpu=11, memory=7)
    assert total(9, []) == Usage(at=9)


def test_a_long_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "long").write_text("x" * 200_000)
    assert len(text(str(tmp_path / "long"))) == 200_000
    assert text(str(tmp_path / "missing")) == ""
    assert text(str(tmp_path)) == ""


@pytest.mark.parametrize(("content", "value"), [("5\n", 5), ("max\n", None), ("", None), ("-1", None), ("5 6", None)])
def test_a_file_of_one_number(content: str, value: int | None) -> None:
    assert number(content) == value


def test_a_table_skips_what_is_no_number() -> None:
    assert table("a 1\nb x\nc\nd 2 3\ne 4") == {"a": 1, "e": 4}


def test_pressure_without_its_second_line() -> None:
    found = stall("some avg10=1.00 avg60=2.00 avg300=3.00 total=4\n")
    assert found == Stall(Pressure(1, 2, 3, 4000), Pressure(0, 0, 0, 0))
    assert stall("") is None
