"""Addresses of ``host-local``: whose turn it is, and the files it is written to."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.deadline import NEVER
from forgeone_shim.network.cni.plugin import CniError, Command, Invocation
from forgeone_shim.network.cni.wellknown import find, leases
from forgeone_shim.network.cni.wellknown.ranges import RangeSet, read_alone


def range_set(*ranges: dict[str, str]) -> RangeSet:
    config = {"name": "pods", "cniVersion": "1.0.0", "ipam": {"type": "host-local", "ranges": [list(ranges)]}}
    return read_alone(config).sets[0]


@given(st.integers(27, 30), st.integers(0, 40), st.booleans())
def test_every_address_has_its_turn_once_after_the_last_one(prefix: int, last: int, two: bool) -> None:
    ranges = [{"subnet": f"10.0.0.0/{prefix}"}, {"subnet": "10.0.1.0/29", "gateway": "10.0.1.3"}][: 1 + two]
    whole = range_set(*ranges)
    reserved = ip_address("10.0.0.0") + last
    turns = [address for address, _ in whole.candidates(reserved)]
    expected = {
        ip_address(number)
        for item in whole.ranges
        for number in range(int(item.start), int(item.end) + 1)
        if ip_address(number) != item.gateway
    }
    # Round and round: the one where it began is not tried a second time.
    assert len(turns) == len(set(turns))
    assert set(turns) == expected
    if whole.range_of(reserved) is not None and reserved in expected:
        assert turns[-1] == reserved


def test_ipv6_goes_up_to_the_very_last_address() -> None:
    whole = range_set({"subnet": "fd00::/126"})
    assert [str(address) for address, _ in whole.candidates(None)] == ["fd00::2", "fd00::3"]
    assert [str(address) for address, _ in islice(range_set({"subnet": "fd00::/64"}).candidates(None), 2)] == [
        "fd00::2",
        "fd00::3",
    ]


def invocation(store: Path, command: Command, container: str, **ipam: Any) -> Invocation:
    section = {"type": "host-local", "dataDir": str(store), "subnet": "10.0.0.0/29", **ipam}
    config = {"name": "pods", "cniVersion": "1.0.0", "type": "host-local", "ipam": section}
    return Invocation(command=command, config=config, container_id=container, netns="/x", ifname="eth0")


def call(store: Path, command: Command, container: str, **ipam: Any) -> dict[str, Any]:
    asked = invocation(store, command, container, **ipam)
    plugin = find("host-local", asked.config)
    assert plugin is not None
    return plugin(asked, NEVER)


def test_a_lease_is_a_file_as_the_program_writes_it(tmp_path: Path) -> None:
    result = call(tmp_path, Command.ADD, "one")
    assert result == {
        "cniVersion": "1.0.0",
        "ips": [{"address": "10.0.0.2/29", "gateway": "10.0.0.1"}],
        "dns": {},
    }
    assert (tmp_path / "pods/10.0.0.2").read_bytes() == b"one\r\neth0"
    assert (tmp_path / "pods/last_reserved_ip.0").read_bytes() == b"10.0.0.2"
    call(tmp_path, Command.CHECK, "one")
    call(tmp_path, Command.DEL, "one")
    call(tmp_path, Command.DEL, "one")
    assert sorted(path.name for path in (tmp_path / "pods").iterdir()) == ["last_reserved_ip.0", "lock"]
    with pytest.raises(CniError, match="Failed to find address"):
        call(tmp_path, Command.CHECK, "one")


def test_leases_of_old_programs_are_given_back(tmp_path: Path) -> None:
    call(tmp_path, Command.ADD, "one")
    (tmp_path / "pods/10.0.0.2").write_text("one\n")
    with pytest.raises(CniError, match="duplicate allocation"):
        call(tmp_path, Command.ADD, "one")
    call(tmp_path, Command.DEL, "one")
    assert not (tmp_path / "pods/10.0.0.2").exists()


def test_an_address_whose_owner_died_before_it_was_written_is_free(tmp_path: Path) -> None:
    (tmp_path / "pods").mkdir()
    (tmp_path / "pods/10.0.0.2").touch()
    (tmp_path / "pods/10.0.0.3").symlink_to("10.0.0.2")
    assert call(tmp_path, Command.ADD, "one")["ips"][0]["address"] == "10.0.0.2/29"
    assert (tmp_path / "pods/10.0.0.2").read_bytes() == b"one\r\neth0"
    assert call(tmp_path, Command.ADD, "two")["ips"][0]["address"] == "10.0.0.4/29"


def test_a_range_set_without_addresses_gives_back_those_of_the_others(tmp_path: Path) -> None:
    full = {"ranges": [[{"subnet": "10.9.0.0/30", "rangeEnd": "10.9.0.2"}]]}
    call(tmp_path, Command.ADD, "one", **full)
    with pytest.raises(CniError, match="failed to allocate for range 1"):
        call(tmp_path, Command.ADD, "two", **full)
    assert {path.name for path in (tmp_path / "pods").iterdir()} == {
        "10.0.0.2",
        "10.9.0.2",
        "last_reserved_ip.0",
        "last_reserved_ip.1",
        "lock",
    }
    assert (tmp_path / "pods/10.0.0.2").read_bytes().startswith(b"one")


def test_a_lease_that_cannot_be_written_is_not_kept(tmp_path: Path) -> None:
    with leases.locked(str(tmp_path), "pods", NEVER) as held:
        (tmp_path / "pods/last_reserved_ip.0").mkdir()
        with pytest.raises(OSError, match="directory"):
            held.reserve(ip_address("10.0.0.2"), "one", "eth0", 0)
    assert not (tmp_path / "pods/10.0.0.2").exists()
