"""Pods kept to network rules, with real packets: on a pretended host of each test's own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from engines.base import PortMapping
from forgeone_shim.contract.model import NetworkRule, Peer, PortRange
from forgeone_shim.errors import InternalError, NotFound
from forgeone_shim.kernel import namespaces
from forgeone_shim.kernel.netlink import NETLINK_NETFILTER, Netlink, NetlinkError
from forgeone_shim.network import enforcement as room
from forgeone_shim.network import ruleset
from forgeone_shim.network.enforcement import Enforcement, Restraint
from forgeone_shim.network.policy import Local, packed
from forgeone_shim.network.ruleset import TABLE
from tests.e2e.network_lab import (
    HOST_IP,
    OUTSIDE_IP,
    OUTSIDE_IP6,
    Lab,
    Pod,
    answers,
    ask,
    in_parallel,
    ip,
    is_silent,
    nft,
)
from tests.e2e.test_pod_network import on_a_host

pytestmark = pytest.mark.root

IP_FREEBIND, IPV6_FREEBIND = 15, 78
NOTHING = NetworkRule(egress=(), ingress=(), node=False)
DB = Peer(pod="shop/db", protocol="tcp", ports=(PortRange(80, 89),))


class Node:
    """The pods of one pretended host and what keeps them to their rules."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.retries: list[Callable[[], None]] = []
        self.enforcement = Enforcement(self._retry)
        self.tampered: list[str] = []
        self.enforcement.report_to(self.tampered.append)

    def _retry(self, _name: str, job: Callable[[], None]) -> None:
        self.retries.append(job)

    def pod(self, name: str, rule: NetworkRule | None = None, *ports: PortMapping) -> Pod:
        """A pod ``shop/NAME`` that answers on ports 80 and 90, and on UDP port 53."""
        pod = self.lab.pod(name, *ports)
        for port in (80, 90):
            self.lab.serve(pod.netns, port)
        self.lab.serve(pod.netns, 53, udp=True)
        self.enforcement.admit(self.restraint(pod, rule))
        return pod

    def restraint(self, pod: Pod, rule: NetworkRule | None = None) -> Restraint:
        local = Local(namespace="shop", name=pod.name, addresses=packed(pod.attachment.ips))
        return Restraint(sandbox_id=pod.name, netns=pod.netns, pod=local, resolvers=(OUTSIDE_IP,), rule=rule)

    def refused(self, name: str) -> tuple[int, int]:
        """Packets, out and in."""
        drops = self.enforcement.drops(name)
        assert drops is not None
        return drops.egress.packets, drops.ingress.packets


def on_a_node(test: Callable[[Node], None]) -> Callable[[Path], None]:
    def run(lab: Lab) -> None:
        node = Node(lab)
        try:
            test(node)
        finally:
            node.enforcement.close()
            for job in node.retries:
                job()

    run.__name__ = test.__name__
    return on_a_host(run)


def outside(node: Node, *ports: int) -> str:
    """A machine beside the node that knows the way to its pods, and answers on these ports."""
    netns = node.lab.outside()
    namespaces.run_in(netns, lambda: ip("route", "add", "10.97.0.0/24", "via", HOST_IP))
    for port in ports:
        node.lab.serve(netns, port)
    return netns


def table(pod: Pod) -> str:
    return namespaces.run_in(pod.netns, lambda: nft("list", "table", "inet", TABLE))


def are_silent(*asked: tuple[str | None, str, int]) -> bool:
    """Whether nobody answers any of them (from, address, port), all asked at once."""
    return all(in_parallel([partial(is_silent, *one) for one in asked]))


def hear_nothing(*ends: socket.socket) -> None:
    """None of them, all listened to at once, hears anything."""

    def listen(end: socket.socket) -> None:
        with pytest.raises(TimeoutError):
            end.recv(16)

    in_parallel([partial(listen, end) for end in ends])


def is_refused(netns: str, address: str, port: int, *, udp: bool = False) -> bool:
    """Told at once, and not left to wait."""
    with contextlib.suppress(TimeoutError):
        try:
            ask(netns, address, port, udp=udp, seconds=0.4)
        except (ConnectionRefusedError, PermissionError):
            return True
    return False


@on_a_node
def test_a_pod_with_an_empty_rule_talks_to_itself_alone(node: Node) -> None:
    world = outside(node, 80)
    node.lab.serve(None, 7000)
    closed, other = node.pod("closed", NOTHING), node.pod("other")
    for address in ("127.0.0.1", "::1", closed.ipv4, closed.ipv6):
        assert answers(closed.netns, address, 80), address
    for address in (other.ipv4, other.ipv6, OUTSIDE_IP, OUTSIDE_IP6):
        assert is_refused(closed.netns, address, 80), address
    assert is_refused(closed.netns, "10.97.0.1", 7000)
    assert is_refused(closed.netns, other.ipv4, 53, udp=True)
    assert are_silent(
        *((netns, closed.ipv4, 80) for netns in (other.netns, world, None)), (other.netns, closed.ipv6, 80)
    )
    out, came = node.refused("closed")
    assert out >= 6
    assert came >= 4


@on_a_node
def test_a_pod_talks_to_its_peers_and_hears_from_them_on_their_ports_alone(node: Node) -> None:
    outside(node, 80, 90)
    db = node.pod("db", NetworkRule(ingress=(Peer(pod="shop/app", protocol="tcp", ports=(PortRange(80, 80),)),)))
    app = node.pod("app", NetworkRule(egress=(DB, Peer(cidr=f"{OUTSIDE_IP6}/128", protocol="tcp"))))
    other = node.pod("other")
    for address in (db.ipv4, db.ipv6):
        assert answers(app.netns, address, 80), address
        assert is_refused(app.netns, address, 90), address
        assert is_refused(app.netns, address, 53, udp=True), address
    assert are_silent((other.netns, db.ipv4, 80), (other.netns, db.ipv6, 80))
    assert answers(app.netns, OUTSIDE_IP6, 90)
    assert is_refused(app.netns, OUTSIDE_IP, 90)
    # Neither restricts what its own rule does not speak of.
    assert answers(db.netns, other.ipv4, 80)
    assert answers(other.netns, app.ipv4, 80)


@on_a_node
def test_who_may_talk_to_somebody_may_ask_name_servers(node: Node) -> None:
    node.lab.serve(outside(node, 53), 53, udp=True)
    pod = node.pod("asks", NetworkRule(egress=(DB,)))
    mute = node.pod("mute", NetworkRule(egress=(DB,), dns=False))
    assert answers(pod.netns, OUTSIDE_IP, 53, udp=True)
    assert answers(pod.netns, OUTSIDE_IP, 53)
    assert is_refused(mute.netns, OUTSIDE_IP, 53)


@on_a_node
def test_the_node_and_its_host_ports_get_in_unless_they_are_denied(node: Node) -> None:
    world = outside(node)
    open_ = node.pod("open", NetworkRule(ingress=()), PortMapping(80, 8080))
    closed = node.pod("closed", NOTHING, PortMapping(80, 8081))
    partly = node.pod("partly", NetworkRule(ingress=(Peer(cidr=f"{OUTSIDE_IP}/32"),)), PortMapping(80, 8082))
    for address in (open_.ipv4, open_.ipv6):
        assert answers(None, address, 80), address
    assert answers(world, partly.ipv4, 80)
    assert answers(None, "127.0.0.1", 8080)
    assert are_silent((world, open_.ipv4, 80), (None, closed.ipv4, 80), (world, HOST_IP, 8080), (world, HOST_IP, 8081))
    # Whoever comes by a host port comes under his own address.
    assert ask(world, HOST_IP, 8082) == OUTSIDE_IP


@on_a_node
def test_rules_follow_the_pods_that_they_name(node: Node) -> None:
    app = node.pod("app", NetworkRule(egress=(Peer(pod="shop/db"), Peer(pod="shop/c*"))))
    everybody = node.pod("all", NetworkRule(egress=(Peer(pod="shop/*"),)))
    db = node.pod("db")
    assert answers(app.netns, db.ipv4, 80)
    assert answers(everybody.netns, db.ipv6, 80)
    node.enforcement.forget("db")
    for pod in (app, everybody):
        assert is_refused(pod.netns, db.ipv4, 80)
        assert is_refused(pod.netns, db.ipv6, 80)
    counted = node.refused("app")[0]
    assert counted >= 2
    node.enforcement.admit(node.restraint(db))
    assert answers(app.netns, db.ipv4, 80)
    # The rules that count packets stayed where they were.
    assert node.refused("app")[0] >= counted


@contextlib.contextmanager
def connection(client: Pod, server: Pod, address: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """An open one, its client's end first."""
    with namespaces.run_in(server.netns, lambda: socket.create_server((address, 85))) as listens:
        made = namespaces.run_in(client.netns, lambda: socket.create_connection((address, 85), 3))
        with made, listens.accept()[0] as served:
            for end in (made, served):
                end.settimeout(0.4)
            yield made, served


@on_a_node
def test_what_a_pod_may_do_no_more_ends_for_connections_that_are_open(node: Node) -> None:
    app, db = node.pod("app", NetworkRule(egress=(DB,))), node.pod("db")
    with connection(app, db, db.ipv4) as (client, served):
        client.sendall(b"one")
        assert served.recv(16) == b"one"
        node.enforcement.forget("db")
        client.sendall(b"two")
        hear_nothing(served)
        with pytest.raises(ConnectionResetError):
            client.recv(16)


def datagrams(pod: Pod, address: str, port: int) -> socket.socket:
    """A socket of the pod under that address, whosever it is: IPv6 lets everybody have it."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        made.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        made.bind((address, port))
        made.settimeout(0.4)
        return made

    return namespaces.run_in(pod.netns, make)


@on_a_node
def test_a_pod_is_not_its_own_accomplice_under_anothers_address(node: Node) -> None:
    app, other = node.pod("app", NetworkRule(egress=(DB,))), node.pod("other")
    assert answers(other.netns, app.ipv6, 80)
    with datagrams(other, other.ipv6, 4000) as hears, datagrams(app, other.ipv6, 4000) as forged:
        with datagrams(app, app.ipv6, 5000) as own:
            for address in (app.ipv6, "::1"):
                with contextlib.suppress(PermissionError):
                    forged.sendto(b"as if from there", (address, 5000))
            with contextlib.suppress(PermissionError):
                own.sendto(b"as if an answer", (other.ipv6, 4000))
        hear_nothing(hears)
    assert node.refused("app")[0] == 3


@on_a_node
def test_the_kernel_itself_sends_no_ipv4_under_anothers_address(node: Node) -> None:
    """Rules need not, therefore."""
    app, other = node.pod("app"), node.pod("other")
    with namespaces.run_in(app.netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as forged:
        forged.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        forged.bind((other.ipv4, 4000))
        for address in (app.ipv4, other.ipv4, "127.0.0.1"):
            with pytest.raises(OSError, match=r"unreachable|Invalid"):
                forged.sendto(b"?", (address, 5000))


@on_a_node
def test_a_pod_with_a_rule_is_nobody_else_to_its_peers(node: Node) -> None:
    app, db = node.pod("app", NetworkRule(egress=(Peer(pod="shop/db"),))), node.pod("db")
    assert answers(app.netns, db.ipv6, 80)
    with datagrams(db, db.ipv6, 4000) as hears:
        for address in (OUTSIDE_IP6, app.ipv6):
            with datagrams(app, address, 5000) as sends, contextlib.suppress(PermissionError):
                sends.sendto(address.encode(), (db.ipv6, 4000))
        assert hears.recv(64).decode() == app.ipv6


@on_a_node
def test_connections_from_before_a_rule_end_whoever_sends_first(node: Node) -> None:
    """Nobody had followed who began them: with the server's packet first, they would look as if it had."""
    app, db, other = node.pod("app"), node.pod("db"), node.pod("other")
    with connection(app, other, other.ipv4) as out, connection(other, db, db.ipv4) as into:
        with connection(app, app, "127.0.0.1") as inside:
            node.enforcement.enforce(node.restraint(app, NetworkRule(egress=())))
            node.enforcement.enforce(node.restraint(db, NetworkRule(ingress=(), node=False)))
            inside[1].sendall(b"own")
            assert inside[0].recv(16) == b"own"
        for _, served in (out, into):
            served.sendall(b"still there?")
        hear_nothing(out[0], into[0])
        for _, served in (out, into):
            with pytest.raises(ConnectionResetError):
                served.recv(16)
        out[0].sendall(b"yes")
        with pytest.raises(ConnectionResetError):
            out[0].recv(16)
    assert answers(db.netns, app.ipv4, 80)


@on_a_node
def test_rules_that_somebody_took_away_are_back_before_the_next_container_starts(node: Node) -> None:
    rule = NetworkRule(egress=(DB,), ingress=())
    app, other = node.pod("app", rule), node.pod("other")
    assert is_refused(app.netns, other.ipv4, 80)
    before, written = table(app), node.refused("app")
    tampers = (
        ("flush", "ruleset"),
        ("flush", "chain", "inet", TABLE, "egress"),
        ("insert", "rule", "inet", TABLE, "egress", "accept"),
        ("add", "element", "inet", TABLE, "pods0v4", f"{{ {other.ipv4} }}"),
        ("delete", "chain", "inet", TABLE, "forward"),
    )
    for tamper in tampers:
        namespaces.run_in(app.netns, partial(nft, *tamper))
        assert without_counters(table(app) if tamper[1] != "ruleset" else "") != without_counters(before)
        node.enforcement.enforce(node.restraint(app, rule))
        assert without_counters(table(app)) == without_counters(before), tamper
        node.enforcement.enforce(node.restraint(app, rule))
    assert node.tampered == ["app"] * len(tampers)
    assert is_refused(app.netns, other.ipv4, 80)
    assert written == (1, 0)


@on_a_node
def test_what_was_counted_goes_on_after_a_repair(node: Node) -> None:
    app, other = node.pod("app", NetworkRule(egress=())), node.pod("other")
    assert is_refused(app.netns, other.ipv4, 80)
    namespaces.run_in(app.netns, lambda: nft("flush", "chain", "inet", TABLE, "egress"))
    node.enforcement.enforce(node.restraint(app, NetworkRule(egress=())))
    assert is_refused(app.netns, other.ipv4, 80)
    assert node.refused("app") == (2, 0)


@on_a_node
def test_an_emptied_chain_is_closed(node: Node) -> None:
    app, other = node.pod("app", NetworkRule(egress=(Peer(),), ingress=(Peer(),))), node.pod("other")
    assert answers(app.netns, other.ipv4, 80)
    for chain in ("egress", "ingress"):
        namespaces.run_in(app.netns, partial(nft, "flush", "chain", "inet", TABLE, chain))
    assert are_silent((app.netns, other.ipv4, 80), (other.netns, app.ipv4, 80))


@on_a_node
def test_nothing_is_done_where_nothing_has_changed(node: Node) -> None:
    rule = NetworkRule(egress=(DB,), ingress=())
    app = node.pod("app", rule)

    def refuse(*_: object) -> list[NetlinkError]:
        raise AssertionError("the kernel was written to")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "transact", refuse)
        node.enforcement.enforce(node.restraint(app, rule))


@on_a_node
def test_another_process_takes_the_rules_over_with_what_they_counted(node: Node) -> None:
    rule = NetworkRule(egress=(DB,))
    app, db, other = node.pod("app", rule), node.pod("db"), node.pod("other")
    assert is_refused(app.netns, other.ipv4, 80)
    node.enforcement.close()
    assert is_refused(app.netns, other.ipv4, 80)
    later = Node(node.lab)
    for pod, its in ((app, rule), (db, None), (other, None)):
        later.enforcement.know(later.restraint(pod, its))
    later.enforcement.enforce(later.restraint(app, rule))
    assert answers(app.netns, db.ipv4, 80)
    assert later.refused("app") == (2, 0)
    later.enforcement.forget("db")
    assert is_refused(app.netns, db.ipv4, 80)
    later.enforcement.close()


@on_a_node
def test_a_tighter_rule_takes_the_place_of_the_first(node: Node) -> None:
    app, db = node.pod("app", NetworkRule(egress=(DB,))), node.pod("db")
    assert answers(app.netns, db.ipv4, 80)
    node.enforcement.enforce(node.restraint(app, NetworkRule(egress=())))
    assert is_refused(app.netns, db.ipv4, 80)


@on_a_node
def test_a_tighter_rule_forgets_who_had_begun(node: Node) -> None:
    """Answers would go out for as long as they were sent."""
    db = node.pod("db")
    app = node.pod("app", NetworkRule(egress=(), ingress=(Peer(pod="shop/db"),), node=False))
    assert answers(db.netns, app.ipv6, 80)
    with datagrams(app, app.ipv6, 4000) as serves, datagrams(db, db.ipv6, 4001) as asks:
        asks.sendto(b"?", (app.ipv6, 4000))
        assert serves.recv(16) == b"?"
        serves.sendto(b"answer", (db.ipv6, 4001))
        assert asks.recv(16) == b"answer"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(room.conntrack, "forget_all", fails)
            with pytest.raises(InternalError):
                node.enforcement.enforce(node.restraint(app, NOTHING))
        node.enforcement.enforce(node.restraint(app, NOTHING))
        with contextlib.suppress(PermissionError):
            serves.sendto(b"answer", (db.ipv6, 4001))
        hear_nothing(asks)


@on_a_node
def test_a_pod_whose_rule_cannot_be_enforced_is_nobodys_peer(node: Node) -> None:
    app = node.pod("app", NetworkRule(egress=(Peer(pod="shop/db"),)))
    db = node.lab.pod("db")
    node.lab.serve(db.netns, 80)

    def refuse(*_: object) -> list[NetlinkError]:
        return [NetlinkError(22, "add table", "", 0)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "transact", refuse)
        with pytest.raises(InternalError, match="keep sandbox db to its network rule"):
            node.enforcement.admit(node.restraint(db, NOTHING))
    assert node.enforcement.drops("db") is None
    assert is_refused(app.netns, db.ipv4, 80)
    gone = replace(node.restraint(db, NOTHING), netns="/nowhere")
    with pytest.raises(NotFound):
        node.enforcement.admit(gone)


@on_a_node
def test_a_pod_does_not_leave_while_others_may_still_talk_to_its_addresses(node: Node) -> None:
    app, db = node.pod("app", NetworkRule(egress=(DB,))), node.pod("db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "transact", lambda *_: [NetlinkError(12, "change set", "", 0)])
        with pytest.raises(InternalError, match="take sandbox db out of network rules"):
            node.enforcement.forget("db")
    assert answers(app.netns, db.ipv4, 80)
    node.enforcement.forget("db")
    assert is_refused(app.netns, db.ipv4, 80)


def fails(*_: object) -> None:
    raise OSError(12, "no memory")


@on_a_node
def test_a_pod_that_others_cannot_be_told_of_is_theirs_later(node: Node) -> None:
    app = node.pod("app", NetworkRule(egress=(DB,)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "transact", lambda *_: [NetlinkError(12, "change set", "", 0)])
        db = node.pod("db")
    assert is_refused(app.netns, db.ipv4, 80)
    for job in node.retries:
        job()
    assert answers(app.netns, db.ipv4, 80)
    node.enforcement.forget("db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "node_addresses", fails)
        node.enforcement.admit(node.restraint(db))


@on_a_node
def test_pods_that_come_and_go_at_once_are_all_known(node: Node) -> None:
    pods = [node.lab.pod(f"p{number}") for number in range(8)]
    for pod in pods:
        node.lab.serve(pod.netns, 80)
    rule = NetworkRule(egress=(Peer(pod="shop/*"),), ingress=(Peer(pod="shop/*"),))
    in_parallel([partial(node.enforcement.admit, node.restraint(pod, rule)) for pod in pods])
    in_parallel([partial(node.enforcement.forget, pod.name) for pod in pods[4:]])
    for pod in pods[1:4]:
        assert answers(pods[0].netns, pod.ipv4, 80)
    for pod in pods[4:]:
        assert is_refused(pods[0].netns, pod.ipv4, 80)


@on_a_node
def test_a_large_rule_is_one_transaction(node: Node) -> None:
    cidrs = [Peer(cidr=f"172.{16 + number // 256}.{number % 256}.0/24", protocol="tcp") for number in range(500)]
    app = node.pod("app", NetworkRule(egress=(*cidrs, Peer(pod="shop/*")), dns=False))
    many = tuple(f"10.98.{number // 200}.{number % 200}" for number in range(3000))
    local = Local(namespace="shop", name="many", addresses=packed(many))
    node.enforcement.admit(Restraint(sandbox_id="many", netns="", pod=local))
    listed = table(app)
    assert listed.count("ip daddr 172.") == 500
    assert listed.count("10.98.") == 3000
    node.enforcement.forget("many")
    assert "10.98." not in table(app)


@on_a_node
def test_a_redirection_inside_the_pod_is_looked_behind(node: Node) -> None:
    """As a sidecar proxy has it: what comes in is redirected to it, and what the others send too."""
    app = node.pod("app", NetworkRule(egress=(DB,), ingress=(Peer(protocol="tcp", ports=(PortRange(90, 90),)),)))
    other = node.pod("other")

    def redirect() -> None:
        nft("add table ip sidecar; add chain ip sidecar in { type nat hook prerouting priority -100; }")
        nft("add rule ip sidecar in tcp dport { 80, 90 } redirect to :80")
        nft("add chain ip sidecar out { type nat hook output priority -100; }")
        nft("add rule ip sidecar out tcp dport 7 redirect to :80")

    namespaces.run_in(app.netns, redirect)
    assert answers(other.netns, app.ipv4, 90)
    assert is_silent(other.netns, app.ipv4, 80)
    assert answers(app.netns, other.ipv4, 7)


@on_a_node
def test_a_pod_sends_nothing_for_loopback_to_its_network(node: Node) -> None:
    app = node.pod("app", NetworkRule(egress=()))

    def by_eth0(address: str) -> socket.socket:
        client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        return client

    for address in ("127.0.0.1", "::1"):
        with namespaces.run_in(app.netns, partial(by_eth0, address)) as client, contextlib.suppress(OSError):
            client.sendto(b"?", (address, 53))
    assert node.refused("app")[0] >= 1


@on_a_node
def test_a_pod_does_not_pass_packets_on(node: Node) -> None:
    outside(node, 80)
    through, other = node.pod("through", NetworkRule(egress=())), node.pod("other")
    namespaces.run_in(through.netns, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
    namespaces.run_in(other.netns, lambda: ip("route", "replace", "192.0.2.0/24", "via", through.ipv4))
    assert is_silent(other.netns, OUTSIDE_IP, 80)
    namespaces.run_in(through.netns, lambda: nft("delete", "table", "inet", TABLE))
    assert answers(other.netns, OUTSIDE_IP, 80)


@on_a_node
def test_nothing_is_held_of_a_pod_that_left(node: Node) -> None:
    app = node.pod("app", NetworkRule(egress=(DB,)))
    node.enforcement.forget("app")
    node.enforcement.forget("app")
    assert not node.enforcement.holds("app")
    assert node.enforcement.drops("app") is None
    assert answers(app.netns, "127.0.0.1", 80)


@on_a_node
def test_a_pod_that_left_does_not_come_back_by_a_container_that_was_about_to_start(node: Node) -> None:
    rule = NetworkRule(egress=(DB,))
    app, db = node.pod("app", rule), node.pod("db")
    for pod, its in ((db, None), (app, rule)):
        node.enforcement.forget(pod.name)
        with pytest.raises(NotFound):
            node.enforcement.enforce(node.restraint(pod, its))
    later = node.pod("later", rule)
    assert is_refused(later.netns, db.ipv4, 80)


@on_a_node
def test_generations_are_counted_as_the_kernel_does(node: Node) -> None:
    app = node.pod("app", NetworkRule(egress=()))
    with namespaces.run_in(app.netns, lambda: Netlink(NETLINK_NETFILTER)) as netlink:
        before = ruleset.read_generation(netlink.ask(ruleset.ask_generation()))
        namespaces.run_in(app.netns, lambda: nft("add", "table", "inet", "another"))
        after = ruleset.read_generation(netlink.ask(ruleset.ask_generation()))
    assert before
    assert after == ruleset.next_generation(before)


@on_a_node
def test_only_root_of_the_host_changes_the_rules(node: Node) -> None:
    app = node.pod("app", NetworkRule(egress=()))
    flush = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "nft", "flush", "ruleset"]
    done = namespaces.run_in(app.netns, lambda: subprocess.run(flush, capture_output=True, check=False))
    assert done.returncode
    assert TABLE in table(app)


def without_counters(listed: str) -> str:
    return "\n".join(line for line in listed.splitlines() if "packets" not in line)
