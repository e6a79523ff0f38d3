from __future__ import annotations

from dataclasses import replace

from forgeone_shim.config.model import NetworkConfig
from forgeone_shim.network.hostports import Element
from forgeone_shim.network.nftables import _by_map, render_table
from forgeone_shim.network.plan import plan_layout

LAYOUT = plan_layout(NetworkConfig(bridge="tbr0", table="pods", ipv4="10.9.0.0/24", ipv6="fd09::/64"))


def test_every_line_is_about_the_own_table() -> None:
    for line in render_table(LAYOUT).splitlines():
        assert " inet pods" in line
        assert "inet T" not in line


def test_rules_are_flushed_before_they_are_added_and_maps_are_not() -> None:
    lines = render_table(LAYOUT).splitlines()
    flush = lines.index("flush table inet pods")
    assert all(line.startswith("add rule") for line in lines[flush + 1 :])
    assert not any(line.startswith("add rule") for line in lines[:flush])
    assert not any(line.startswith(("delete", "flush map")) for line in lines)


def test_only_what_leaves_the_range_and_the_bridge_is_masqueraded() -> None:
    text = render_table(LAYOUT)
    assert 'ip saddr 10.9.0.0/24 oifname != "tbr0" ip daddr != { 10.9.0.0/24, 224.0.0.0/4 } masquerade' in text
    assert 'ip6 saddr fd09::/64 oifname != "tbr0" ip6 daddr != { fd09::/64, ff00::/8 } masquerade' in text
    assert "oifname !=" not in render_table(replace(LAYOUT, masquerade=False))


def test_a_network_without_ipv6_has_no_ipv6_maps() -> None:
    text = render_table(LAYOUT.without_ipv6())
    assert "any4" in text
    assert "any6" not in text
    assert "ipv6_addr" not in text


def test_entries_are_grouped_by_map_in_messages_that_fit() -> None:
    items = [Element("any4", bytes([n % 256]), b"") for n in range(300)] + [Element("at6", b"", b"")]
    groups = _by_map(items)
    assert [(group[0].map, len(group)) for group in groups] == [("any4", 256), ("any4", 44), ("at6", 1)]
