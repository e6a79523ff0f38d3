"""What the plugins work out before they touch anything."""

from __future__ import annotations

from ipaddress import ip_interface
from typing import Any

import pytest

from forgeone_shim.deadline import NEVER
from forgeone_shim.kernel import traffic
from forgeone_shim.network.cni.plugin import CniError, Command, Invocation
from forgeone_shim.network.cni.wellknown import bridge, find, masquerade, portmap, result, rules
from forgeone_shim.network.cni.wellknown.conf import Network, chain_name
from forgeone_shim.network.cni.wellknown.portmap import Port, Portmap
from forgeone_shim.network.cni.wellknown.result import Interface, Ip, Result, Route

ABOUT = Network("pods", "1.0.0", {})
V4, V6 = ip_interface("10.1.0.2/16"), ip_interface("fd00:1::2/64")


def test_names_of_chains_are_those_of_the_programs() -> None:
    # As Debian's bridge and portmap named them.
    container = f"a-{'0' * 60}"
    assert chain_name("", "lab-net", container) == "CNI-5ea6b6dc68bc20542d6b5e90"
    assert chain_name("DN-", "lab-net", container) == "CNI-DN-5ea6b6dc68bc20542d6b5"


def ports(*found: Port, **more: Any) -> Portmap:
    settings = {"snat": True, "mark_bit": 13, "mark_chain": "", **more}
    return Portmap(ABOUT, found, **settings)


def lines(conf: Portmap, address: Any) -> list[str]:
    return [
        line
        for line in rules.ensure("nat", portmap.plan(conf, "id", address), {}).splitlines()
        if "CNI-DN" in line and not line.startswith("-N")
    ]


def test_a_port_is_marked_and_led_to_the_container() -> None:
    chain = chain_name("DN-", "pods", "id")
    assert lines(ports(Port("tcp", 8080, 80)), V4) == [
        f"-A {chain} -s 10.1.0.0/16 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
        f"-A {chain} -s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
        f"-A {chain} -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.1.0.2:80",
        '-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \\"pods\\" id: \\"id\\""'
        f" -m multiport --dports 8080 -j {chain}",
    ]


def test_an_ipv6_port_has_no_loopback_rule_and_its_target_in_brackets() -> None:
    found = lines(ports(Port("udp", 53, 5353)), V6)
    assert len(found) == 3
    assert found[1].endswith("--to-destination [fd00:1::2]:5353")


def test_a_port_of_an_address_of_the_other_version_leads_nowhere() -> None:
    assert len(lines(ports(Port("tcp", 80, 80, "192.0.2.1")), V6)) == 1
    assert " -d 192.0.2.1/32 " in lines(ports(Port("tcp", 80, 80, "192.0.2.1")), V4)[0]
    assert " -d " not in lines(ports(Port("tcp", 80, 80, "0.0.0.0")), V4)[0]


def test_without_snat_nothing_is_marked() -> None:
    script = rules.ensure("nat", portmap.plan(ports(Port("tcp", 80, 80), snat=False), "id", V4), {})
    assert "MARK" not in script
    assert "MASQ" not in script


def test_somebody_elses_mark_chain_is_not_made() -> None:
    script = rules.ensure("nat", portmap.plan(ports(Port("tcp", 80, 80), mark_chain="KUBE-MARK-MASQ"), "id", V4), {})
    assert "-j KUBE-MARK-MASQ" in script
    assert "-N KUBE-MARK-MASQ" not in script
    assert "CNI-HOSTPORT-MASQ" not in script


def test_sixteen_ports_need_two_rules_to_the_chain() -> None:
    found = [line for line in lines(ports(*(Port("tcp", 9000 + n, 80) for n in range(16))), V4) if "multiport" in line]
    assert [line.count(",") for line in found] == [14, 0]


def test_a_container_has_the_first_address_of_each_version_that_is_its_own() -> None:
    before = Result(
        interfaces=(Interface("cni0"), Interface("eth0", sandbox="/ns")),
        ips=(Ip(ip_interface("10.9.9.9/8"), interface=0), Ip(V6, interface=1), Ip(V4), Ip(ip_interface("10.1.0.9/16"))),
    )
    assert portmap.container_addresses(before, "eth0") == [V4, V6]


def test_masquerading_spares_the_network_and_multicast() -> None:
    chain = chain_name("", "pods", "id")
    comment = '-m comment --comment "name: \\"pods\\" id: \\"id\\""'
    assert rules.ensure("nat", masquerade.plan("pods", "id", [V4]), {}).splitlines()[1:-1] == [
        f"-N {chain}",
        f"-A {chain} -d 10.1.0.0/16 {comment} -j ACCEPT",
        f"-A {chain} ! -d 224.0.0.0/4 {comment} -j MASQUERADE",
        f"-A POSTROUTING -s 10.1.0.2/32 {comment} -j {chain}",
    ]


def test_default_routes_are_added_where_there_are_none() -> None:
    config = {"name": "pods", "cniVersion": "1.0.0", "type": "bridge", "isDefaultGateway": True}
    conf = bridge.read(config)
    gateway4, gateway6 = ip_interface("10.1.0.1/16").ip, ip_interface("fd00:1::1/64").ip
    leased = Result(
        ips=(Ip(V6, gateway6), Ip(V4, gateway4)),
        routes=(Route(ip_interface("0.0.0.0/0"), ip_interface("10.1.0.9").ip),),
    )
    planned = bridge.plan_result(conf, leased)
    assert [str(route.destination) for route in planned.routes] == ["0.0.0.0/0", "::/0"]
    assert planned.routes[1].gateway == gateway6
    assert [ip.interface for ip in planned.ips] == [2, 2]
    assert [str(address) for address in bridge.plan_gateways(conf, planned.ips)] == ["10.1.0.1/16", "fd00:1::1/64"]


def test_a_result_is_written_as_its_version_has_it() -> None:
    told = Result((Interface("eth0", "02:00:00:00:00:01", "/ns"),), (Ip(V4, None, 0),), (), {"domain": "x"})
    assert (
        result.render(told, "0.3.1")["ips"]
        == result.render(told, "0.4.0")["ips"]
        == [{"version": "4", "interface": 0, "address": "10.1.0.2/16"}]
    )
    assert result.render(told, "1.0.0") == {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/ns"}],
        "ips": [{"interface": 0, "address": "10.1.0.2/16"}],
        "dns": {"domain": "x"},
    }


@pytest.mark.parametrize("before", [1, {}, {"cniVersion": "0.4.0"}, {"cniVersion": "1.0.0", "ips": [{"address": "x"}]}])
def test_a_previous_result_that_is_none_is_refused(before: Any) -> None:
    config = {"name": "pods", "cniVersion": "1.0.0", "type": "portmap", "prevResult": before}
    plugin = find("portmap", config)
    assert plugin is not None
    with pytest.raises(CniError, match="could not parse prevResult"):
        plugin(Invocation(command=Command.ADD, config=config, container_id="x", netns="/ns", ifname="eth0"), NEVER)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"container_id": ""}, 3),
        ({"container_id": "../x"}, 4),
        ({"ifname": "a/b"}, 4),
        ({"ifname": ""}, 4),
        ({"netns": ""}, 4),
    ],
)
def test_arguments_that_lead_astray_are_refused(change: dict[str, str], code: int) -> None:
    config = {"name": "pods", "cniVersion": "1.0.0", "type": "loopback"}
    plugin = find("loopback", config)
    assert plugin is not None
    arguments = {"container_id": "x", "netns": "/ns", "ifname": "eth0", **change}
    with pytest.raises(CniError) as refused:
        plugin(Invocation(command=Command.ADD, config=config, **arguments), NEVER)  # type: ignore[arg-type]
    assert refused.value.code == code


def test_a_bucket_is_what_the_program_makes_of_bits() -> None:
    ticks = 15.625
    assert traffic.plan_bucket(8_000_000, 8_000_000, ticks) == traffic.Bucket(1_000_000, 1_025_000, 15_625_000)
    assert traffic.plan_bucket(7, 8_000, ticks) is None
    assert traffic.plan_bucket(8_000, 7, ticks) is None


@pytest.mark.parametrize(("machine", "wrapped"), [("x86_64", True), ("aarch64", False)])
def test_a_burst_beyond_32_bits_wraps_around_where_the_program_does(
    machine: str, wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic.platform, "machine", lambda: machine)
    bucket = traffic.plan_bucket(1_000_000, 2**32 - 1, 15.625)
    assert (bucket is not None) is wrapped
    assert bucket is None or bucket.buffer < 2**32
