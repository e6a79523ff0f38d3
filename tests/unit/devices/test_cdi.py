from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engines.base import NO_EDITS, ContainerSpec
from forgeone_shim.devices.cdi import Cdi, requested
from forgeone_shim.errors import FailedPrecondition, InvalidInput, NotFound

Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """``put("etc/a.json", one="A=1")``: a file of devices, each with one variable, and ``ALL=<path>`` for the file."""

    def write(name: str, kind: str = "vendor.com/net", **devices: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        content = {
            "cdiVersion": "0.6.0",
            "kind": kind,
            "containerEdits": {"env": [f"ALL={name}"]},
            "devices": [{"name": device, "containerEdits": {"env": [env]}} for device, env in devices.items()],
        }
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def cdi(tmp_path: Path) -> Cdi:
    return Cdi([str(tmp_path / "etc"), str(tmp_path / "run")])


def asking(*devices: str, **annotations: str) -> ContainerSpec:
    return ContainerSpec(
        name="c", cdi_devices=devices, annotations={f"cdi.k8s.io/{key}": value for key, value in annotations.items()}
    )


def test_names_come_from_the_list_and_from_annotations_and_each_counts_once() -> None:
    annotations = {"cdi.k8s.io/b": "v/c=1,v/c=2", "cdi.k8s.io/a": "v/c=3", "other": "v/c=4"}
    assert requested(("v/c=2", "v/c=2"), annotations) == ("v/c=2", "v/c=3", "v/c=1")


@pytest.mark.parametrize("value", ["", "v/c=1,", "c=1", "v/c", "v/c=1 ,v/c=2"])
def test_an_annotation_that_names_no_device_is_refused(value: str) -> None:
    with pytest.raises(InvalidInput, match=r"cdi\.k8s\.io/x"):
        requested((), {"cdi.k8s.io/x": value})


def test_a_container_without_devices_looks_at_no_file() -> None:
    assert Cdi(["/nonexistent\0"]).edits(asking()) is NO_EDITS


def test_the_edits_of_a_file_come_once_before_those_of_its_devices(put: Put, cdi: Cdi) -> None:
    put("etc/a.json", one="A=1", two="A=2")
    put("etc/b.json", kind="vendor.com/gpu", x="B=1")
    found = cdi.edits(asking("vendor.com/net=two", "vendor.com/gpu=x", "vendor.com/net=one"))
    assert found.env == ("ALL=etc/a.json", "A=2", "ALL=etc/b.json", "B=1", "A=1")


def test_a_later_directory_wins(put: Put, cdi: Cdi) -> None:
    put("etc/a.json", one="A=etc", two="B=etc")
    put("run/a.json", one="A=run")
    assert cdi.edits(asking("vendor.com/net=one")).env == ("ALL=run/a.json", "A=run")
    assert cdi.edits(asking("vendor.com/net=two")).env == ("ALL=etc/a.json", "B=etc")


def test_two_files_of_one_directory_that_describe_a_device_are_both_named(put: Put, cdi: Cdi) -> None:
    put("etc/a.json", one="A=1")
    put("etc/b.json", one="A=1", two="A=2")
    with pytest.raises(FailedPrecondition, match=r"etc/a\.json and in .*etc/b\.json"):
        cdi.edits(asking("vendor.com/net=one"))
    assert cdi.edits(asking("vendor.com/net=two")).env[-1] == "A=2"


def test_devices_that_nobody_describes_are_all_named(put: Put, cdi: Cdi) -> None:
    put("etc/a.json", one="A=1")
    with pytest.raises(NotFound) as caught:
        cdi.edits(asking("vendor.com/net=one", "vendor.com/net=nine", "other.com/x=1"))
    assert "'vendor.com/net=nine, other.com/x=1'" in str(caught.value)


def test_a_file_that_cannot_be_used_is_no_harm_to_others_and_the_reason_where_one_is_missed(
    put: Put, cdi: Cdi, tmp_path: Path
) -> None:
    put("etc/a.json", one="A=1")
    (tmp_path / "etc/bad.json").write_text("{")
    assert cdi.edits(asking("vendor.com/net=one")).env[-1] == "A=1"
    with pytest.raises(NotFound, match=r"bad\.json: is not JSON"):
        cdi.edits(asking("vendor.com/net=two"))
    assert [what.partition(": ")[0] for what in cdi.unusable()] == [str(tmp_path / "etc/bad.json")]


def test_files_are_seen_as_they_are_now(put: Put, cdi: Cdi, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        cdi.edits(asking("vendor.com/net=one"))
    path = put("run/a.json", one="A=1")
    assert cdi.edits(asking("vendor.com/net=one")).env[-1] == "A=1"
    for number in range(2, 9):  # of one size, and faster than the clock of file times
        put("run/a.json", one=f"A={number}")
        assert cdi.edits(asking("vendor.com/net=one")).env[-1] == f"A={number}"
    time.sleep(0.06)
    for _ in range(2):
        assert cdi.edits(asking("vendor.com/net=one")).env[-1] == "A=8"
    put("run/new.json", one="A=9").rename(path)
    assert cdi.edits(asking("vendor.com/net=one")).env[-1] == "A=9"
    path.unlink()
    with pytest.raises(NotFound):
        cdi.edits(asking("vendor.com/net=one"))


def test_a_file_that_did_not_change_is_not_parsed_again(put: Put, cdi: Cdi, monkeypatch: pytest.MonkeyPatch) -> None:
    put("etc/a.json", one="A=1")
    time.sleep(0.06)
    first = cdi.edits(asking("vendor.com/net=one"))
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read"))
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))
    assert cdi.edits(asking("vendor.com/net=one")) == first


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_everybody_can_write_is_not_trusted(put: Put, cdi: Cdi, what: str, tmp_path: Path) -> None:
    path = put("etc/a.json", one="A=1")
    (path if what == "file" else path.parent).chmod(0o777)
    with pytest.raises(NotFound, match="can be written by everybody"):
        cdi.edits(asking("vendor.com/net=one"))


@pytest.mark.root
@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_a_group_other_than_roots_can_write_is_not_trusted(put: Put, cdi: Cdi, what: str) -> None:
    path = put("etc/a.json", one="A=1")
    target = path if what == "file" else path.parent
    target.chmod(0o775)
    assert cdi.edits(asking("vendor.com/net=one")) != NO_EDITS
    os.chown(target, 0, 4242)
    with pytest.raises(NotFound, match="can be written by group 4242"):
        cdi.edits(asking("vendor.com/net=one"))


def test_a_fifo_among_the_files_holds_nobody_up(put: Put, cdi: Cdi, tmp_path: Path) -> None:
    put("etc/a.json", one="A=1")
    os.mkfifo(tmp_path / "etc/b.json")
    assert cdi.edits(asking("vendor.com/net=one")).env[-1] == "A=1"


def test_a_file_without_end_is_not_read_whole(cdi: Cdi, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/a.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(NotFound, match="is larger than"):
        cdi.edits(asking("vendor.com/net=one"))


def test_a_file_replaced_while_containers_are_created_is_always_one_or_the_other(put: Put, cdi: Cdi) -> None:
    path = put("etc/a.json", one="A=0")
    seen: list[str] = []

    def read() -> None:
        while not done.is_set():
            seen.append(cdi.edits(asking("vendor.com/net=one")).env[-1])

    done = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        for number in range(200):
            put("etc/.new", one=f"A={number}").rename(path)
        done.set()
        for reader in readers:
            reader.result()
    assert cdi.edits(asking("vendor.com/net=one")).env[-1] == "A=199"
    assert {value[:2] for value in seen} == {"A="}
