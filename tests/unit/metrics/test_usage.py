"""A container's usage from the text of its cgroup files."""

from __future__ import annotations

import os

import pytest

from forgeone_shim.metrics.usage import (
    Pressure,
    Read,
    Stall,
    Usage,
    from_v1,
    from_v2,
    memberships,
    number,
    of_process,
    stall,
    table,
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
    assert from_v1(9, files(cpuacct_usage="33\n"), memory) == Usage(
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
    assert from_v1(1, files(), read).available is None
    assert from_v2(1, files(memory_current="1", memory_max="max")).available is None


def test_a_cgroup_that_is_gone_is_an_empty_reading() -> None:
    assert from_v2(4, files()) == Usage(at=4)
    assert from_v1(4, files(), files()) == Usage(at=4)


def test_memberships_of_a_hybrid_host() -> None:
    text = f"9:name=systemd:/\n4:memory:/pods/{ID}\n1:cpu,cpuacct:/pods/{ID}/inner\n0::/pods/x/{ID}\n"
    assert memberships(text, ID) == {
        "name=systemd": "",
        "memory": f"/pods/{ID}",
        "cpu": f"/pods/{ID}",
        "cpuacct": f"/pods/{ID}",
        "": f"/pods/x/{ID}",
    }


def test_a_process_below_its_containers_scope_counts_for_the_scope() -> None:
    text = f"0::/kubepods.slice/forgeone-{ID}.scope/init.scope\n"
    assert memberships(text, ID) == {"": f"/kubepods.slice/forgeone-{ID}.scope"}


def test_this_process_has_a_usage_on_a_v2_host_or_none() -> None:
    usage = of_process(os.getpid(), ID, {}, "/nonexistent")
    assert usage.at > 0
    assert usage.cpu is None


def test_a_process_that_is_gone_has_none() -> None:
    assert of_process(2**22 + 5, ID, {}, "/sys/fs/cgroup").cpu is None


@pytest.mark.parametrize(("text", "value"), [("5\n", 5), ("max\n", None), ("", None), ("-1", None), ("5 6", None)])
def test_a_file_of_one_number(text: str, value: int | None) -> None:
    assert number(text) == value


def test_a_table_skips_what_is_no_number() -> None:
    assert table("a 1\nb x\nc\nd 2 3\ne 4") == {"a": 1, "e": 4}


def test_pressure_without_its_second_line() -> None:
    found = stall("some avg10=1.00 avg60=2.00 avg300=3.00 total=4\n")
    assert found == Stall(Pressure(1, 2, 3, 4000), Pressure(0, 0, 0, 0))
    assert stall("") is None
