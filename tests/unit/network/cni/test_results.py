"""Results of ADD between the versions of the specification, and what is read from them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import DNSConfig
from forgeone_shim.network.cni.plugin import VERSIONS
from forgeone_shim.network.cni.quantity import parse_quantity
from forgeone_shim.network.cni.results import BadResult, convert, prefer, read

FULL = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "cni0", "mac": "aa:bb:cc:dd:ee:ff", "mtu": 1500},
        {"name": "veth1"},
        {"name": "eth0", "mac": "0a:58:0a:00:00:02", "sandbox": "/ns/net", "pciID": "0000:00:1f.6"},
    ],
    "ips": [
        {"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 2},
        {"address": "fd00::2/64", "interface": 2},
    ],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1400, "priority": 7}],
    "dns": {"nameservers": ["10.0.0.10"], "search": ["cluster.local"], "domain": "x", "options": ["ndots:5"]},
}


def test_a_result_keeps_all_in_its_own_version() -> None:
    assert convert(FULL, "1.1.0") == FULL


def test_older_versions_lack_what_is_new_and_name_families() -> None:
    old = convert(FULL, "0.4.0")
    assert old["ips"][0] == {"version": "4", "address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 2}
    assert old["ips"][1]["version"] == "6"
    assert old["interfaces"][0] == {"name": "cni0", "mac": "aa:bb:cc:dd:ee:ff"}
    assert old["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}]
    assert "version" not in convert(FULL, "1.0.0")["ips"][0]


@pytest.mark.parametrize("version", VERSIONS)
def test_there_and_back_loses_nothing_that_both_know(version: str) -> None:
    once = convert(FULL, version)
    assert convert(convert(once, "1.1.0"), version) == once


def test_a_result_without_a_version_has_that_of_its_configuration() -> None:
    assert convert({"ips": []}, "0.4.0") == {"cniVersion": "0.4.0", "dns": {}}


def test_what_the_pod_got_is_what_its_interface_got() -> None:
    got = read(convert(FULL, "1.0.0"), "eth0")
    assert (got.ips, got.mac) == (("10.0.0.2", "fd00::2"), "0a:58:0a:00:00:02")
    assert got.dns == DNSConfig(("10.0.0.10",), ("cluster.local",), ("ndots:5",))
    on_the_host = {**FULL, "ips": [{"address": "10.0.0.1/24", "interface": 0}]}
    assert read(convert(on_the_host, "1.0.0"), "eth0").ips == ()


def test_addresses_of_no_interface_are_the_pods() -> None:
    got = read(convert({"ips": [{"address": "10.0.0.2/32", "interface": -1}], "dns": {}}, "1.0.0"), "eth0")
    assert (got.ips, got.mac, got.dns) == (("10.0.0.2",), "", None)


@pytest.mark.parametrize(
    "bad",
    [
        {"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24"}},
        {"ips": {}},
        {"ips": ["10.0.0.2/24"]},
        {"ips": [{"address": "10.0.0.2"}]},
        {"ips": [{"address": "10.0.0.300/24"}]},
        {"ips": [{"address": "10.0.0.2/24", "interface": 0}]},
        {"ips": [{"address": "10.0.0.2/24", "interface": "0"}]},
        {"ips": [{"address": "10.0.0.2/24", "gateway": "x"}]},
        {"interfaces": [{"mac": "x"}]},
        {"interfaces": [{"name": 7}]},
        {"interfaces": "eth0"},
        {"routes": [{"dst": "default"}]},
        {"routes": [{"dst": "0.0.0.0/0", "gw": "::x"}]},
        {"routes": [7]},
        {"dns": []},
        {"dns": {"nameservers": ["dns.example"]}},
        {"dns": {"search": [7]}},
    ],
)
def test_what_is_no_result_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(BadResult):
        convert(bad, "1.0.0")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from(["", "eth0", "10.0.0.2/24", "fd00::1", "1.0.0"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["address", "interface", "name", "dst", "gw", "search", "sandbox"]), inner)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["cniVersion", "ips", "interfaces", "routes", "dns"]), JSON))
def test_any_answer_is_a_result_or_refused(answer: dict[str, object]) -> None:
    try:
        result = convert(answer, "1.0.0")
    except BadResult:
        return
    assert convert(result, "1.0.0") == result
    read(result, "eth0")


def test_the_preferred_family_comes_first_and_the_rest_stays_in_order() -> None:
    ips = ("fd00::1", "10.0.0.1", "fd00::2", "10.0.0.2")
    assert prefer(ips, "ipv4") == ("10.0.0.1", "fd00::1", "fd00::2", "10.0.0.2")
    assert prefer(ips, "ipv6") == ips
    assert prefer(ips, "cni") == ips
    assert prefer(("10.0.0.1",), "ipv6") == ("10.0.0.1",)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        ("10M", 10_000_000),
        ("1.5Gi", 3 << 29),
        ("3e6", 3_000_000),
        ("3E6", 3_000_000),
        ("1E", 10**18),
        ("1Ei", 1 << 60),
        (".5k", 500),
        ("5.k", 5000),
        ("1500m", 2),
        ("1n", 1),
        ("-1500m", -2),
        ("+2Ki", 2048),
        ("12e-1", 2),
    ],
)
def test_quantities_are_what_kubernetes_takes_them_for(text: str, value: int) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "M", "1.2.3", "10MB", "1 M", "0x10", "1e", "--1", "1mi", "9" * 65, "\u0661"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        parse_quantity(text)
