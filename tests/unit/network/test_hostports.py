from __future__ import annotations

import pytest

from engines.base import PortMapping, PortProtocol
from forgeone_shim.errors import InvalidInput
from forgeone_shim.network.hostports import collide, elements, plan_host_ports


def test_a_mapping_without_a_host_port_asks_for_nothing() -> None:
    assert plan_host_ports([PortMapping(80, 0)]) == ()


def test_a_mapping_given_twice_counts_once() -> None:
    assert len(plan_host_ports([PortMapping(80, 8080), PortMapping(80, 8080)])) == 1


def test_one_port_of_two_protocols_or_two_addresses_is_no_conflict() -> None:
    asked = [
        PortMapping(80, 8080),
        PortMapping(80, 8080, PortProtocol.UDP),
        PortMapping(80, 8081, host_ip="127.0.0.1"),
        PortMapping(81, 8081, host_ip="127.0.0.2"),
        PortMapping(82, 8081, host_ip="::"),
    ]
    assert len(plan_host_ports(asked)) == 5


@pytest.mark.parametrize("host_ip", ["", "0.0.0.0", "127.0.0.1"])
def test_one_host_port_for_two_container_ports_is_refused(host_ip: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        plan_host_ports([PortMapping(80, 8080, host_ip="127.0.0.1"), PortMapping(81, 8080, host_ip=host_ip)])
    assert raised.value.field == "port_mappings[1]"


@pytest.mark.parametrize(
    ("mapping", "field"),
    [
        (PortMapping(0, 8080), "container_port"),
        (PortMapping(65536, 8080), "container_port"),
        (PortMapping(80, 65536), "host_port"),
        (PortMapping(80, -1), "host_port"),
        (PortMapping(80, 80, host_ip="localhost"), "host_ip"),
        (PortMapping(80, 80, host_ip="1.2.3"), "host_ip"),
        (PortMapping(80, 80, host_ip="fe80::1%eth0"), "host_ip"),
    ],
)
def test_a_mapping_that_cannot_be_used_is_named(mapping: PortMapping, field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        plan_host_ports([mapping])
    assert raised.value.field == f"port_mappings[0].{field}"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("", "", True),
        ("", "1.2.3.4", True),
        ("", "::", True),
        ("0.0.0.0", "1.2.3.4", True),
        ("0.0.0.0", "::", False),
        ("0.0.0.0", "fd00::1", False),
        ("::", "fd00::1", True),
        ("1.2.3.4", "1.2.3.4", True),
        ("1.2.3.4", "1.2.3.5", False),
    ],
)
def test_addresses_collide_as_two_binds_would(one: str, other: str, expected: bool) -> None:
    assert collide(one, other) is collide(other, one) is expected


def test_an_address_is_kept_in_its_shortest_form() -> None:
    (port,) = plan_host_ports([PortMapping(80, 80, host_ip="FD00:0:0:0::1")])
    assert port.host_ip == "fd00::1"


def test_map_entries_are_the_kernels_padded_concatenations() -> None:
    ports = plan_host_ports([PortMapping(80, 8080)])
    four, six = elements(ports, ["10.0.0.2", "fd00::5"])
    assert (four.map, four.key.hex(), four.value.hex()) == ("any4", "060000001f900000", "0a00000200500000")
    assert (six.map, six.key.hex()) == ("any6", "060000001f900000")
    assert six.value.hex() == "fd000000000000000000000000000005" + "00500000"


def test_a_host_address_is_part_of_the_key_and_decides_the_family() -> None:
    ports = plan_host_ports(
        [PortMapping(53, 5353, PortProtocol.UDP, "1.2.3.4"), PortMapping(1, 2, PortProtocol.SCTP, "::1")]
    )
    four, six = elements(ports, ["10.0.0.2", "fd00::5"])
    assert (four.map, four.key.hex()) == ("at4", "1100000001020304" + "14e90000")
    assert (six.map, six.key.hex()) == ("at6", "84000000" + "0" * 31 + "1" + "00020000")


def test_a_pod_without_ipv6_has_no_ipv6_entries() -> None:
    ports = plan_host_ports([PortMapping(80, 8080), PortMapping(80, 8081, host_ip="::1")])
    assert [element.map for element in elements(ports, ["10.0.0.2"])] == ["any4"]
