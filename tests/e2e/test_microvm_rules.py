"""A machine kept to network rules by its host, whatever its own kernel sends: real packets, on a pretended host."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engines.base import PortMapping
from engines.microvm.network.plan import ROUTERS
from forgeone_shim.contract.model import NetworkRule, Peer, PortRange
from forgeone_shim.errors import InvalidInput
from forgeone_shim.kernel import namespaces
from tests.e2e.network_lab import OUTSIDE_IP, Pod, answers, ask, ip
from tests.e2e.test_microvm_network import Guest, guest_of
from tests.e2e.test_network_policy import Node, are_silent, is_refused, on_a_node, outside

pytestmark = pytest.mark.root

NOTHING = NetworkRule(egress=(), ingress=(), node=False)
_ICMPV6 = 58
DB = Peer(pod="shop/db", protocol="tcp", ports=(PortRange(80, 89),))


@pytest.fixture(autouse=True)
def needs_taps() -> None:
    if not Path("/dev/net/tun").exists():
        pytest.skip("this kernel has no taps (CONFIG_TUN)")


@contextlib.contextmanager
def machine(
    node: Node, name: str, rule: NetworkRule | None, *ports: PortMapping, routed: bool = True
) -> Iterator[tuple[Pod, Guest]]:
    """A pod ``shop/NAME`` with a machine that answers on ports 80 and 90."""
    pod = node.lab.pod(name, *ports)
    node.enforcement.admit(replace(node.restraint(pod, rule), machine=True))
    with guest_of(node.lab, pod.netns, routed=routed) as guest:
        for port in (80, 90):
            node.lab.serve(guest.netns, port)
        yield pod, guest


@on_a_node
def test_a_machine_with_an_empty_rule_talks_to_nobody(node: Node) -> None:
    world = outside(node, 80)
    other = node.pod("other")
    with machine(node, "closed", NOTHING) as (closed, guest):
        for address in (other.ipv4, other.ipv6, OUTSIDE_IP):
            assert is_refused(guest.netns, address, 80), address
        for address in (other.ipv4, other.ipv6):
            with pytest.raises(OSError, match=r"No route to host|Permission denied"):
                ask(guest.netns, address, 53, udp=True)
        assert are_silent(
            *((netns, closed.ipv4, 80) for netns in (other.netns, world, None)), (other.netns, closed.ipv6, 80)
        )
        out, came = node.refused("closed")
        assert out >= 4
        assert came >= 4


@on_a_node
def test_a_machine_talks_to_its_peers_and_hears_from_them_on_their_ports_alone(node: Node) -> None:
    db = node.pod("db")
    other = node.pod("other")
    rule = NetworkRule(egress=(DB,), ingress=(Peer(pod="shop/db", protocol="tcp", ports=(PortRange(80, 80),)),))
    with machine(node, "app", rule, PortMapping(80, 8080)) as (app, guest):
        for address in (db.ipv4, db.ipv6):
            assert ask(guest.netns, address, 80) in (app.ipv4, app.ipv6)
            assert is_refused(guest.netns, address, 90), address
        assert is_refused(guest.netns, other.ipv4, 80)
        assert answers(db.netns, app.ipv4, 80)
        assert answers(db.netns, app.ipv6, 80)
        # The node asks its pods how they are.
        assert answers(None, app.ipv4, 80)
        assert answers(None, "127.0.0.1", 8080)
        assert are_silent((db.netns, app.ipv4, 90), (other.netns, app.ipv4, 80), (other.netns, app.ipv6, 80))


@on_a_node
def test_a_machine_is_nobody_else_whatever_its_kernel_sends(node: Node) -> None:
    db, other = node.pod("db"), node.pod("other")
    with machine(node, "app", NetworkRule(egress=(Peer(pod="shop/db"),))) as (app, guest):
        before = node.refused("app")[0]
        for theirs, asked in ((f"{other.ipv4}/32", db.ipv4), (f"{other.ipv6}/128", db.ipv6)):
            more = ["nodad", "preferred_lft", "0"] if ":" in theirs else []
            namespaces.run_in(guest.netns, lambda: ip("address", "add", theirs, "dev", "eth0", *more))  # noqa: B023
            assert answers(guest.netns, asked, 80)
            with namespaces.run_in(guest.netns, lambda: _bound(theirs, 4000)) as forged:  # noqa: B023
                forged.sendto(b"as if from there", (asked, 53))
                forged.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    forged.recv(16)
        assert node.refused("app")[0] - before >= 2
        assert app.ipv4


@on_a_node
def test_what_a_machine_sends_under_anothers_address_is_not_told_to_that_other(node: Node) -> None:
    """A packet that cannot go on is sent back, by the host's kernel and past the rules for what is passed on."""
    db, other = node.pod("db"), node.pod("other")
    with machine(node, "app", NetworkRule(egress=(Peer(pod="shop/db"),))) as (app, guest):
        address = ("address", "add", f"{other.ipv6}/128", "dev", "eth0", "nodad", "preferred_lft", "0")
        namespaces.run_in(guest.netns, lambda: ip(*address))
        errors = namespaces.run_in(other.netns, lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, _ICMPV6))
        with errors, namespaces.run_in(guest.netns, lambda: _bound(other.ipv6, 4000)) as forged:
            forged.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
            forged.sendto(b"a secret", (db.ipv6, 53))
            errors.settimeout(0.3)
            with pytest.raises(TimeoutError):
                while b"a secret" not in errors.recv(2048):
                    pass
        assert answers(guest.netns, db.ipv6, 80)
        assert app.ipv6


def _bound(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.bind((address.partition("/")[0], port))
    return made


@on_a_node
def test_nobody_else_speaks_or_hears_where_a_machine_is_behind(node: Node) -> None:
    """A monitor that its guest has taken over may be in the pod's namespace: Firecracker is."""
    db = node.pod("db")
    with machine(node, "app", NetworkRule(egress=(DB,))) as (app, guest):
        for address in (db.ipv4, db.ipv6):
            with pytest.raises(PermissionError):
                ask(app.netns, address, 53, udp=True)
        here = ROUTERS[4]
        namespaces.run_in(db.netns, lambda: ip("route", "add", here, "via", app.ipv4))
        hears = namespaces.run_in(app.netns, lambda: _bound(here, 5353))
        with hears, namespaces.run_in(db.netns, lambda: _bound(db.ipv4, 4000)) as says:
            says.sendto(b"a word", (here, 5353))
            hears.settimeout(0.3)
            with pytest.raises(TimeoutError):
                hears.recv(16)
        assert answers(guest.netns, db.ipv4, 80)
        assert answers(guest.netns, db.ipv6, 80)


@on_a_node
def test_a_rule_that_comes_later_counts_for_connections_that_are_open(node: Node) -> None:
    db = node.pod("db")
    with machine(node, "app", NetworkRule(egress=(DB,))) as (app, guest):
        with namespaces.run_in(db.netns, lambda: socket.create_server((db.ipv4, 85))) as listens:
            made = namespaces.run_in(guest.netns, lambda: socket.create_connection((db.ipv4, 85), 3))
            with made, listens.accept()[0] as served:
                made.sendall(b"one")
                assert served.recv(16) == b"one"
                node.enforcement.enforce(replace(node.restraint(app, NOTHING), machine=True))
                made.sendall(b"two")
                made.settimeout(3)
                with pytest.raises(ConnectionResetError):
                    made.recv(16)
        node.enforcement.enforce(replace(node.restraint(app), machine=True))
        assert answers(guest.netns, db.ipv4, 80)
        assert answers(None, app.ipv4, 80)


@on_a_node
def test_a_rule_is_refused_for_a_machine_whose_packets_pass_none(node: Node) -> None:
    with machine(node, "app", None, routed=False) as (app, guest):
        assert answers(None, app.ipv4, 80)
        with pytest.raises(InvalidInput, match="no rule when the pod's machine was connected"):
            node.enforcement.enforce(replace(node.restraint(app, NOTHING), machine=True))
        assert guest.netns


@on_a_node
def test_a_machine_that_was_connected_as_one_without_its_rule_is_refused(node: Node) -> None:
    """A policy that is loosened for a moment, while the pod is made, leaves a table that no packet passes."""
    with machine(node, "app", NOTHING, routed=False) as (app, guest):
        assert answers(None, app.ipv4, 80)
        with pytest.raises(InvalidInput, match="no rule when the pod's machine was connected"):
            node.enforcement.enforce(replace(node.restraint(app, NOTHING), machine=True))
        node.enforcement.enforce(replace(node.restraint(app), machine=True))
        assert guest.netns


@on_a_node
def test_neighbours_find_the_pod_as_long_as_it_is_there(node: Node) -> None:
    """Their questions for the pod's address alone are this host's to answer: the machine would not understand them."""
    other = node.pod("other")
    with machine(node, "app", NetworkRule(egress=(DB,))) as (app, _):
        for address in (app.ipv4, app.ipv6):
            assert answers(other.netns, address, 80)
            _probe(other.netns, address)
            assert answers(other.netns, address, 80)


def _probe(netns: str, address: str) -> None:
    def ask_it() -> None:
        mac = ip("neighbour", "show", address).split("lladdr ")[1].split()[0]
        with subprocess.Popen(["ip", "monitor", "neighbour"], stdout=subprocess.PIPE, text=True) as watch:
            try:
                assert watch.stdout is not None
                ip("neighbour", "replace", address, "lladdr", mac, "dev", "eth0", "nud", "probe")
                for line in watch.stdout:
                    if line.startswith(address) and "PROBE" not in line:
                        assert "REACHABLE" in line
                        return
            finally:
                watch.kill()

    namespaces.run_in(netns, ask_it)
