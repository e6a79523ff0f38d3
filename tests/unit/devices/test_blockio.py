"""Classes of block I/O: what a file says, and what it means on this host's devices."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import BlockIO, DeviceRate
from forgeone_shim.devices.blockio import Classes, Part, block_devices, parse, quantity, resolve
from forgeone_shim.errors import FailedPrecondition, InvalidInput

FILE = b"""
Classes:
  slow:
    - Weight: 80
    - Devices: ["/dev/sd[ab]"]
      ThrottleReadBps: 50M
      ThrottleWriteIOPS: 5k
      Weight: "50"
    - Devices: [/dev/sdb]
      ThrottleReadBps: 1Gi
  fast:
    - Weight: 400
"""


def numbers(pattern: str) -> Iterable[tuple[int, int]]:
    return {"/dev/sd[ab]": [(8, 0), (8, 16)], "/dev/sdb": [(8, 16)]}.get(pattern, [])


def test_a_file_of_goresctrl_s_form_is_understood() -> None:
    classes = parse("/x.yaml", FILE)
    assert set(classes) == {"slow", "fast"}
    assert classes["slow"][1] == Part(
        devices=("/dev/sd[ab]",), weight=50, rates={"read_bps": 50_000_000, "write_iops": 5000}
    )


def test_a_later_element_wins_for_a_device_of_both() -> None:
    assert resolve(parse("/x.yaml", FILE)["slow"], numbers) == BlockIO(
        weight=80,
        weights=(DeviceRate(8, 0, 50), DeviceRate(8, 16, 50)),
        read_bps=(DeviceRate(8, 0, 50_000_000), DeviceRate(8, 16, 1 << 30)),
        write_iops=(DeviceRate(8, 0, 5000), DeviceRate(8, 16, 5000)),
    )


def test_a_rate_of_nothing_takes_a_limit_away() -> None:
    parts = (Part(devices=("/dev/sd[ab]",), rates={"read_bps": 5}), Part(devices=("/dev/sdb",), rates={"read_bps": 0}))
    assert resolve(parts, numbers) == BlockIO(read_bps=(DeviceRate(8, 0, 5),))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("50M", 50_000_000),
        ("10k", 10_000),
        ("1.5Gi", 3 << 29),
        ("7", 7),
        ("2e3", 2000),
        ("0.5", 1),
        ("1.", 1),
        ("0", 0),
    ],
)
def test_a_quantity_is_kubernetes_s(text: str, number: int) -> None:
    assert quantity(text) == number


@pytest.mark.parametrize("text", ["", "M", "5 M", "5K", "5m", "-5", "5GiB", "0x5", "five", "5e999", "1e", "٣"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        quantity(text)


@given(st.text(max_size=24))
def test_any_text_is_a_quantity_or_not(text: str) -> None:
    try:
        assert quantity(text) >= 0
    except ValueError as error:
        assert "is not a quantity" in str(error)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[]", "/x.yaml"),
        ("Klasses: {}", "/x.yaml"),
        ("Classes: []", "Classes"),
        ("Classes: {a: 5}", "Classes.a"),
        ("Classes: {a: [5]}", r"Classes.a\[0\]"),
        ("Classes: {a: [{Weigth: 5}]}", r"Classes.a\[0\]"),
        ("Classes: {a: [{Weight: 5}]}", r"Classes.a\[0\].Weight"),
        ("Classes: {a: [{Weight: 1001}]}", r"Classes.a\[0\].Weight"),
        ("Classes: {a: [{Weight: true}]}", r"Classes.a\[0\].Weight"),
        ("Classes: {a: [{Weight: [1]}]}", r"Classes.a\[0\].Weight"),
        ("Classes: {a: [{ThrottleReadBps: 5}]}", "names no Devices"),
        ("Classes: {a: [{Devices: [sda]}]}", r"Classes.a\[0\].Devices"),
        ("Classes: {a: [{Devices: /dev/sda}]}", r"Classes.a\[0\].Devices"),
        ("Classes: {a: [{Devices: [/dev/../etc/x]}]}", "'..' or NUL"),
        ("Classes: {a: [{Devices: [/dev/sda], ThrottleReadBps: 1E99}]}", "ThrottleReadBps"),
        ("Classes: {a: [], a: []}", "there twice"),
        ("Classes: {a: [", "is not YAML"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_its_place(text: str, field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        parse("/x.yaml", text.encode())


def test_an_empty_file_has_no_classes() -> None:
    assert parse("/x.yaml", b"") == {}
    assert parse("/x.json", b'{"Classes": null}') == {}


def test_what_is_no_block_device_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "dangling").symlink_to("/nonexistent")
    assert block_devices(f"{tmp_path}/*") == []
    disk = next((path for path in Path("/dev").iterdir() if path.is_block_device()), None)
    if disk is not None:
        (tmp_path / "disk").symlink_to(disk)
        found = disk.stat().st_rdev
        assert block_devices(f"{tmp_path}/*") == [(os.major(found), os.minor(found))]


def test_a_changed_file_counts_at_once_and_a_bad_one_does_not(tmp_path: Path) -> None:
    file = tmp_path / "blockio.yaml"
    file.write_text("Classes: {a: [{Weight: 100}]}")
    classes = Classes(str(file), numbers)
    assert classes.find("a") == BlockIO(weight=100)
    file.write_text("Classes: {a: [{Weight: 1000}]}")
    assert classes.find("a") == BlockIO(weight=1000)
    file.write_text("Classes: {a: [{Weight: 1001}]}")
    assert classes.find("a") == BlockIO(weight=1000)
    file.unlink()
    assert classes.find("a") == BlockIO(weight=1000)
    file.write_text("Classes: {b: []}")
    with pytest.raises(FailedPrecondition, match="no block I/O class 'a'; it has b"):
        classes.find("a")


def test_without_a_file_nobody_has_a_class(tmp_path: Path) -> None:
    assert Classes("").find("") is None
    assert Classes(str(tmp_path / "none.yaml")).find("") is None
    with pytest.raises(FailedPrecondition, match="this node has none"):
        Classes("").find("a")
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        Classes(str(tmp_path / "none.yaml")).find("a")
    (tmp_path / "bad.yaml").write_text("Classes: 5")
    with pytest.raises(FailedPrecondition, match="is not a mapping"):
        Classes(str(tmp_path / "bad.yaml")).find("a")
