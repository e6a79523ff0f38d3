from __future__ import annotations

from dataclasses import replace

import pytest

from forgeone_shim.config.model import NetworkConfig
from forgeone_shim.errors import InvalidInput
from forgeone_shim.network.plan import LINK_NAME_MAX, mac_address, plan_layout

CONFIG = NetworkConfig()


def test_the_default_configuration_is_a_layout() -> None:
    layout = plan_layout(CONFIG)
    assert [str(address) for address in layout.gateway.all] == ["10.88.0.1/16", "fd88:0:0:1::1/64"]
    assert layout.capacity == 65536 - 3


def test_a_slot_has_the_same_place_in_both_ranges() -> None:
    addresses = plan_layout(CONFIG).addresses(258)
    assert [str(address.ip) for address in addresses.all] == ["10.88.1.2", "fd88:0:0:1::102"]


def test_the_smaller_range_bounds_the_pods() -> None:
    assert plan_layout(replace(CONFIG, ipv6="fd88::/125")).capacity == 6
    assert plan_layout(replace(CONFIG, ipv4="10.0.0.0/30")).capacity == 1
    assert plan_layout(replace(CONFIG, ipv4="10.0.0.0/29", ipv6="")).capacity == 5


def test_the_last_slot_is_not_the_broadcast_address() -> None:
    layout = plan_layout(replace(CONFIG, ipv4="10.0.0.0/29"))
    assert str(layout.addresses(layout.first_slot + layout.capacity - 1).ipv4.ip) == "10.0.0.6"


def test_without_ipv6_there_are_ipv4_addresses_only() -> None:
    assert len(plan_layout(CONFIG).without_ipv6().addresses(5).all) == 1
    assert plan_layout(replace(CONFIG, ipv6="")).ipv6 is None


def test_a_link_name_fits_the_kernel_and_differs_by_sandbox() -> None:
    for prefix in ("f", "fo", "forgexx"):
        layout = plan_layout(replace(CONFIG, link_prefix=prefix))
        names = {layout.link_name(f"sandbox-{n}") for n in range(1000)}
        assert len(names) == 1000
        assert all(len(name) <= LINK_NAME_MAX and name.startswith(prefix) for name in names)


def test_a_mac_follows_the_address() -> None:
    assert mac_address(plan_layout(CONFIG).addresses(258).ipv4) == "0a:58:0a:58:01:02"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("ipv4", "10.0.0.1/24"),
        ("ipv4", "10.0.0.0/31"),
        ("ipv4", "10.0.0.0/7"),
        ("ipv4", "127.0.0.0/16"),
        ("ipv4", "224.0.0.0/16"),
        ("ipv4", "fd00::/64"),
        ("ipv6", "10.0.0.0/24"),
        ("ipv6", "fe80::/64"),
        ("ipv6", "fd00::/127"),
        ("ipv6", "fd00::/32"),
    ],
)
def test_a_range_no_pod_can_live_in_is_named(setting: str, value: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        plan_layout(replace(CONFIG, **{setting: value}))  # type: ignore[arg-type]
    assert raised.value.field == f"network.{setting}"
