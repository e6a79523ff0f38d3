from __future__ import annotations

from forgeone_shim.network.host import _default_device, _default_device_ipv6

_HEADER = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"


def _route(
    device: str, destination: str = "00000000", flags: str = "0003", metric: int = 0, mask: str = "00000000"
) -> str:
    return f"{device}\t{destination}\t0102A8C0\t{flags}\t0\t0\t{metric}\t{mask}\t0\t0\t0\n"


def test_the_default_route_with_the_lowest_metric_wins() -> None:
    table = (
        _HEADER + _route("wlan0", metric=600) + _route("eth0", metric=100) + _route("lan", "0000A8C0", mask="00FFFFFF")
    )
    assert _default_device(table) == "eth0"


def test_half_a_default_route_or_one_that_rejects_is_none() -> None:
    assert _default_device(_HEADER + _route("tun0", mask="00000080") + _route("*", flags="0201")) == ""
    assert _default_device("") == ""


def test_an_ipv6_default_route_counts_unless_it_rejects() -> None:
    zero = "0" * 32
    line = f"{zero} 00 {zero} 00 fe800000000000000000000000000001 {{}} 00000001 00000000 {{}} {{}}\n"
    table = line.format("ffffffff", "00200200", "lo") + line.format("00000400", "00000003", "eth1")
    assert _default_device_ipv6(table) == "eth1"
    assert _default_device_ipv6(line.format("ffffffff", "00200200", "lo")) == ""
