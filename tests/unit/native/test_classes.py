"""Block I/O and RDT classes in the kernel's files. resctrl's are doubles: this needs a processor that has it."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from engines.base import BlockIO, DeviceRate
from engines.native import rdt
from engines.native.rdt import Resctrl, group_of
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.kernel.cgroups import CgroupHost, Driver, Mode
from forgeone_shim.limits import blockio
from forgeone_shim.limits.blockio import limit_io

LIMITS = BlockIO(
    weight=100,
    weights=(DeviceRate(8, 0, 1000),),
    read_bps=(DeviceRate(8, 0, 5), DeviceRate(8, 16, 6)),
    write_iops=(DeviceRate(8, 0, 7),),
)


def written(lines: list[blockio.Line], *files: str) -> list[tuple[str, str]]:
    """What goes where in a cgroup that has ``files``."""
    found = [next((one for one in line.files if one[0] in files), None) for line in lines]
    return [one for one in found if one is not None]


def test_v1_has_a_file_for_each_rate_and_a_line_for_each_device() -> None:
    files = ("blkio.throttle.read_bps_device", "blkio.throttle.write_iops_device", "blkio.bfq.weight")
    assert written(blockio.plan(LIMITS, v2=False), *files, "blkio.bfq.weight_device") == [
        ("blkio.bfq.weight", "100"),
        ("blkio.bfq.weight_device", "8:0 1000"),
        ("blkio.throttle.read_bps_device", "8:0 5"),
        ("blkio.throttle.read_bps_device", "8:16 6"),
        ("blkio.throttle.write_iops_device", "8:0 7"),
    ]


def test_v2_has_a_line_for_each_device_and_two_scales_of_weights() -> None:
    lines = blockio.plan(LIMITS, v2=True)
    rates = [("io.max", "8:0 rbps=5 wiops=7"), ("io.max", "8:16 rbps=6")]
    assert written(lines, "io.max", "io.bfq.weight", "io.weight") == [
        ("io.bfq.weight", "default 100"),
        ("io.bfq.weight", "8:0 1000"),
        *rates,
    ]
    assert written(lines, "io.max", "io.weight") == [("io.weight", "default 910"), ("io.weight", "8:0 10000"), *rates]


def host(unified: Path) -> CgroupHost:
    return CgroupHost(mode=Mode.V2, driver=Driver.CGROUPFS, unified=str(unified), v2_controllers=frozenset({"io"}))


def test_weights_need_not_be_there_but_rates_must(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="no cgroup of controller io"):
        limit_io(LIMITS, host(tmp_path), "/pod/c")
    directory = tmp_path / "pod" / "c"
    directory.mkdir(parents=True)
    limit_io(BlockIO(weight=100), host(tmp_path), "/pod/c")
    with pytest.raises(FailedPrecondition, match=r"has no io\.max"):
        limit_io(LIMITS, host(tmp_path), "/pod/c")
    (directory / "io.max").touch()
    limit_io(BlockIO(read_bps=(DeviceRate(8, 0, 5),)), host(tmp_path), "/pod/c")
    assert (directory / "io.max").read_text() == "8:0 rbps=5"


# RDT


@pytest.fixture
def resctrl(tmp_path: Path) -> Resctrl:
    for name in ("schemata", "tasks"):
        (tmp_path / name).touch()
    (tmp_path / "gold").mkdir()
    (tmp_path / "gold" / "tasks").touch()
    (tmp_path / "info").mkdir()
    (tmp_path / "info" / "tasks").touch()
    return Resctrl(tmp_path)


def test_a_class_is_a_group_that_exists(resctrl: Resctrl) -> None:
    assert resctrl.group("gold") == "gold"
    assert resctrl.group("") == resctrl.group("system/default") == ""
    with pytest.raises(FailedPrecondition, match="'silver' is not on this host"):
        resctrl.group("silver")


@pytest.mark.parametrize("name", ["..", ".", "info", "mon_groups", "a/b", "/etc", "a\n", "x" * 256])
def test_what_cannot_name_a_group_is_refused(resctrl: Resctrl, name: str) -> None:
    with pytest.raises(InvalidInput):
        resctrl.group(name)


def test_without_resctrl_nobody_has_a_class(tmp_path: Path) -> None:
    assert Resctrl(tmp_path).group("system/default") == ""
    with pytest.raises(FailedPrecondition, match="resctrl is not mounted"):
        Resctrl(tmp_path).group("gold")


def test_a_process_is_put_into_its_group_and_a_thread_only_for_a_while(resctrl: Resctrl, tmp_path: Path) -> None:
    # A plain file keeps what is not written over: no id is shorter.
    resctrl.place("gold", 1)
    assert (tmp_path / "gold" / "tasks").read_text() == "1"
    me = str(threading.get_native_id())
    with resctrl.entered("gold"):
        assert (tmp_path / "gold" / "tasks").read_text() == me
        assert (tmp_path / "tasks").read_text() == ""
    assert (tmp_path / "tasks").read_text() == me


def test_a_group_that_went_away_takes_no_new_container_and_hinders_no_exec(resctrl: Resctrl, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="'gone'"):
        resctrl.place("gone", 1)
    with resctrl.entered("gone"):
        assert not (tmp_path / "gone").exists()
    assert (tmp_path / "tasks").read_text() == ""


def test_a_thread_whose_own_group_has_gone_is_back_in_the_hosts(
    resctrl: Resctrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rdt, "_own_group", lambda _: "gone")
    with resctrl.entered("gold"):
        pass
    assert (tmp_path / "tasks").read_text() == str(threading.get_native_id())


def test_no_class_touches_nothing(tmp_path: Path) -> None:
    resctrl = Resctrl(tmp_path / "none")
    resctrl.place("", 1)
    with resctrl.entered(""):
        pass


def test_an_exec_finds_the_group_in_the_container_s_configuration() -> None:
    assert group_of(json.dumps({"linux": {"intelRdt": {"closID": "gold"}}}).encode()) == "gold"
    assert group_of(json.dumps({"linux": {}, "process": {"env": ['A="intelRdt"', "intelRdt"]}}).encode()) == ""
    assert group_of(b"{}") == ""
