from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import DNSConfig
from forgeone_shim.errors import ForgeError, InvalidInput
from forgeone_shim.network.podfiles import (
    HOST_HOSTS,
    PodFiles,
    check_hostname,
    effective_hostname,
    plan_pod_files,
    render_hosts,
    render_resolv_conf,
    write_pod_files,
)


@pytest.mark.parametrize("name", ["a", "web-0", "a.b.c", "0", "x" * 63, "x" * 31 + "." + "y" * 32, "Upper"])
def test_host_names_by_rfc_1123_pass(name: str) -> None:
    assert check_hostname(name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "a_b", "a..b", ".a", "a.", "x" * 65, "a b", "a\n", "é", "x" * 64, "a\0"]
)
def test_other_host_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_hostname(name)


def test_the_hosts_name_stands_in_for_none_and_for_host_network_pods() -> None:
    assert effective_hostname("web", "node", host_network=False) == "web"
    assert effective_hostname("", "node_1", host_network=False) == "node_1"
    assert effective_hostname("web", "node", host_network=True) == "node"
    with pytest.raises(InvalidInput):
        effective_hostname("not a name", "node", host_network=True)


def test_hosts_names_loopback_and_the_pod() -> None:
    lines = render_hosts(["10.88.0.2", "fd88::2"], "web").splitlines()
    assert lines[0] == "127.0.0.1\tlocalhost"
    assert lines[-2:] == ["10.88.0.2\tweb", "fd88::2\tweb"]


def test_resolv_conf_has_what_was_asked_for() -> None:
    dns = DNSConfig(("10.96.0.10", "fd00::a"), ("default.svc.cluster.local", "lan", "."), ("ndots:5", "edns0"))
    assert render_resolv_conf(dns, "host") == (
        "search default.svc.cluster.local lan .\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5 edns0\n"
    )


@pytest.mark.parametrize("dns", [None, DNSConfig()])
def test_resolv_conf_is_the_hosts_when_nothing_was_asked_for(dns: DNSConfig | None) -> None:
    assert render_resolv_conf(dns, "nameserver 192.0.2.53\n") == "nameserver 192.0.2.53\n"


@pytest.mark.parametrize(
    ("dns", "field"),
    [
        (DNSConfig(servers=("10.0.0.1", "dns.example")), "servers[1]"),
        (DNSConfig(servers=("10.0.0.1\nnameserver 6.6.6.6",)), "servers[0]"),
        (DNSConfig(servers=("fe80::1%eth0\nx",)), "servers[0]"),
        (DNSConfig(searches=("ok", "not ok")), "searches[1]"),
        (DNSConfig(searches=("a\nnameserver 6.6.6.6",)), "searches[0]"),
        (DNSConfig(searches=("",)), "searches[0]"),
        (DNSConfig(options=("ndots:5\n",)), "options[0]"),
        (DNSConfig(options=("a b",)), "options[0]"),
    ],
)
def test_a_dns_value_that_cannot_be_used_is_named(dns: DNSConfig, field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        render_resolv_conf(dns, "")
    assert raised.value.field == f"dns_config.{field}"


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_no_value_adds_a_line(server: str, search: str, option: str) -> None:
    try:
        rendered = render_resolv_conf(DNSConfig((server,), (search,), (option,)), "")
    except ForgeError:
        return
    assert [line.split(" ")[0] for line in rendered.splitlines()] == ["search", "nameserver", "options"]


def test_a_host_network_pod_has_the_hosts_own_hosts_file() -> None:
    assert plan_pod_files("node", (), None, host_network=True).hosts == HOST_HOSTS.read_text()
    assert "10.88.0.2\tweb" in plan_pod_files("web", ("10.88.0.2",), None, host_network=False).hosts


def test_files_are_readable_for_everyone_and_rewritten_in_place(tmp_path: Path) -> None:
    write_pod_files(tmp_path, PodFiles("web\n", "hosts", "resolv"))
    inode = (tmp_path / "hosts").stat().st_ino
    write_pod_files(tmp_path, PodFiles("web\n", "h", "r"))
    assert (tmp_path / "hosts").read_text() == "h"
    assert (tmp_path / "hosts").stat().st_ino == inode
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o644}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hostname", "hosts", "resolv.conf"]


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    directory = tmp_path / "pod"
    directory.mkdir()
    (directory / "hosts").symlink_to(target)
    with pytest.raises(ForgeError):
        write_pod_files(directory, PodFiles("", "h", ""))
    assert target.read_text() == "precious"
