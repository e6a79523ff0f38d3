"""Pods on a network: who reaches whom, and that nothing is left of them. Each test has a host of its own."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest

from engines.base import PortMapping, PortProtocol
from forgeone_shim.errors import FailedPrecondition, ForgeError, InternalError, NotFound, ResourceExhausted
from forgeone_shim.kernel import namespaces
from forgeone_shim.network import bridge, shaping
from forgeone_shim.network.bandwidth import Limits
from forgeone_shim.network.pod import PodNetwork
from forgeone_shim.state.store import StateStore
from tests.e2e.network_lab import (
    CONFIG,
    HOST_IP,
    HOST_IP6,
    OUTSIDE_IP,
    OUTSIDE_IP6,
    Lab,
    answers,
    ask,
    in_parallel,
    ip,
    is_silent,
    nft,
    no_mount_left,
    run_as_host,
)

pytestmark = pytest.mark.root

STEPS = ("plug", "shape", "configure_pod")
LIMITS = Limits(ingress=8_000_000, egress=4_000_000)


def on_a_host(test: Callable[[Lab], None]) -> Callable[[Path], None]:
    """Run a test on a host of its own, and prove that it leaves no mount."""

    @wraps(test)
    def run(tmp_path: Path) -> None:
        def body() -> None:
            with Lab(tmp_path) as lab:
                test(lab)

        with no_mount_left(tmp_path):
            run_as_host(body)

    # pytest asks for the arguments of what is run, not of what is wrapped.
    del run.__wrapped__
    return run


@on_a_host
def test_pods_reach_each_other_under_their_own_addresses(lab: Lab) -> None:
    one, other = lab.pod("one"), lab.pod("other")
    lab.serve(other.netns, 80)
    assert ask(one.netns, other.ipv4, 80) == one.ipv4
    assert ask(one.netns, other.ipv6, 80) == one.ipv6


@on_a_host
def test_the_host_reaches_a_pod_and_a_pod_its_host(lab: Lab) -> None:
    pod = lab.pod("one")
    lab.serve(pod.netns, 80)
    lab.serve(None, 7000)
    assert ask(None, pod.ipv4, 80) == "10.97.0.1"
    assert ask(None, pod.ipv6, 80) == "fd97:0:0:1::1"
    assert ask(pod.netns, "10.97.0.1", 7000) == pod.ipv4
    assert ask(pod.netns, "fd97:0:0:1::1", 7000) == pod.ipv6


@on_a_host
def test_a_pod_reaches_itself_through_loopback(lab: Lab) -> None:
    pod = lab.pod("one")
    lab.serve(pod.netns, 80)
    assert ask(pod.netns, "127.0.0.1", 80) == "127.0.0.1"
    assert ask(pod.netns, "::1", 80) == "::1"


@on_a_host
def test_what_leaves_the_pod_range_has_the_hosts_address(lab: Lab) -> None:
    outside = lab.outside()
    pod = lab.pod("one")
    lab.serve(outside, 80)
    assert ask(pod.netns, OUTSIDE_IP, 80) == HOST_IP
    assert ask(pod.netns, OUTSIDE_IP6, 80) == HOST_IP6


@on_a_host
def test_nothing_is_masqueraded_when_switched_off(lab: Lab) -> None:
    outside = lab.outside()
    lab.network = PodNetwork(replace(CONFIG, masquerade=False), lab.store)
    pod = lab.pod("one")
    lab.serve(outside, 80)
    namespaces.run_in(outside, lambda: ip("route", "add", "10.97.0.0/24", "via", HOST_IP))
    assert ask(pod.netns, OUTSIDE_IP, 80) == pod.ipv4


@on_a_host
def test_a_host_port_answers_on_every_address_of_the_host(lab: Lab) -> None:
    outside = lab.outside()
    pod = lab.pod("one", PortMapping(80, 8080))
    lab.serve(pod.netns, 80)
    assert ask(outside, HOST_IP, 8080) == OUTSIDE_IP
    assert ask(outside, HOST_IP6, 8080) == OUTSIDE_IP6
    assert answers(None, "127.0.0.1", 8080)
    assert answers(None, HOST_IP, 8080)
    assert answers(None, HOST_IP6, 8080)
    assert is_silent(None, "127.0.0.1", 80)


@on_a_host
def test_a_host_port_forwards_udp(lab: Lab) -> None:
    outside = lab.outside()
    pod = lab.pod("one", PortMapping(53, 5353, PortProtocol.UDP))
    lab.serve(pod.netns, 53, udp=True)
    assert ask(outside, HOST_IP, 5353, udp=True) == OUTSIDE_IP
    assert answers(None, "127.0.0.1", 5353, udp=True)
    assert is_silent(outside, HOST_IP, 5353)


@on_a_host
def test_pods_use_host_ports_of_other_pods_and_their_own(lab: Lab) -> None:
    lab.outside()
    pod, other = lab.pod("one", PortMapping(80, 8080)), lab.pod("other")
    lab.serve(pod.netns, 80)
    for address in (HOST_IP, HOST_IP6, "10.97.0.1", "fd97:0:0:1::1"):
        assert answers(pod.netns, address, 8080), address
        assert answers(other.netns, address, 8080), address


@on_a_host
def test_a_host_port_on_one_address_answers_there_only(lab: Lab) -> None:
    outside = lab.outside()
    local = lab.pod("local", PortMapping(80, 8080, host_ip="127.0.0.1"))
    public = lab.pod("public", PortMapping(80, 8080, host_ip=HOST_IP))
    lab.serve(local.netns, 80)
    lab.serve(public.netns, 81)
    assert answers(None, "127.0.0.1", 8080)
    assert is_silent(outside, HOST_IP, 8080)
    lab.serve(public.netns, 80)
    assert answers(outside, HOST_IP, 8080)
    assert is_silent(outside, HOST_IP6, 8080)


@on_a_host
def test_an_sctp_host_port_of_one_address_is_in_the_kernels_map(lab: Lab) -> None:
    # By the map alone: not every kernel that tests run on has SCTP sockets to ask with.
    pod = lab.pod("one", PortMapping(38412, 36412, PortProtocol.SCTP, HOST_IP))
    listed = nft("list", "map", "inet", CONFIG.table, "at4")
    assert f"sctp . {HOST_IP} . 36412 : {pod.ipv4} . 38412" in listed
    lab.network.detach("one")
    assert "36412" not in nft("list", "map", "inet", CONFIG.table, "at4")


@on_a_host
def test_the_hosts_loopback_is_closed_to_neighbours_and_pods(lab: Lab) -> None:
    outside = lab.outside()
    pod = lab.pod("one", PortMapping(80, 8080, host_ip="127.0.0.1"))
    lab.serve(pod.netns, 80)
    lab.serve(None, 7000)

    def aim_at_loopback(device: str, via: str) -> None:
        ip("link", "set", "lo", "down")
        Path(f"/proc/sys/net/ipv4/conf/{device}/route_localnet").write_text("1")
        ip("route", "add", "127.0.0.0/8", "via", via, "dev", device)

    namespaces.run_in(outside, lambda: aim_at_loopback("up0", HOST_IP))
    namespaces.run_in(pod.netns, lambda: aim_at_loopback("eth0", "10.97.0.1"))
    for netns in (outside, pod.netns):
        assert is_silent(netns, "127.0.0.1", 8080)
        assert is_silent(netns, "127.0.0.1", 7000)


@on_a_host
def test_a_known_udp_flow_follows_its_host_port_to_a_new_pod(lab: Lab) -> None:
    outside = lab.outside()
    client = namespaces.run_in(outside, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with client:
        client.settimeout(3)
        client.connect((HOST_IP, 5353))
        for name in ("first", "second"):
            pod = lab.pod(name, PortMapping(53, 5353, PortProtocol.UDP))
            lab.serve(pod.netns, 53, udp=True)
            client.send(b"?")
            assert client.recv(64).decode() == OUTSIDE_IP
            lab.network.detach(name)


@on_a_host
def test_a_taken_host_port_is_refused_and_free_again_after_detach(lab: Lab) -> None:
    lab.pod("one", PortMapping(80, 8080))
    netns = lab.pin("other")
    for clash in (PortMapping(81, 8080), PortMapping(80, 8080, host_ip="127.0.0.1")):
        with pytest.raises(FailedPrecondition, match=r"8080/tcp is taken by sandbox one"):
            lab.network.attach("other", netns, [clash])
    lab.network.attach("other", netns, [PortMapping(80, 8080, PortProtocol.UDP)])
    lab.network.detach("one")
    third = lab.pod("third", PortMapping(80, 8080))
    lab.serve(third.netns, 80)
    assert answers(None, "127.0.0.1", 8080)


@on_a_host
def test_attaching_again_gives_the_same_attachment(lab: Lab) -> None:
    pod = lab.pod("one", PortMapping(80, 8080))
    assert lab.network.attach("one", pod.netns, [PortMapping(80, 8080)]) == pod.attachment
    again = PodNetwork(CONFIG, StateStore(lab.database))
    assert again.attach("one", pod.netns, [PortMapping(80, 8080)]) == pod.attachment
    assert again.attachment("one") == pod.attachment
    assert again.attachment("other") is None


@on_a_host
def test_a_pod_whose_link_was_deleted_is_attached_anew(lab: Lab) -> None:
    pod = lab.pod("one")
    ip("link", "delete", lab.links()[0])
    lab.network.attach("one", pod.netns, [])
    assert len(lab.links()) == 1


@on_a_host
def test_parallel_attaches_in_two_processes_stores_get_unique_addresses(lab: Lab) -> None:
    networks = [lab.network, PodNetwork(CONFIG, StateStore(lab.database))]
    pods = [(f"pod{n}", lab.pin(f"pod{n}")) for n in range(24)]
    calls = [partial(networks[n % 2].attach, name, netns, []) for n, (name, netns) in enumerate(pods)]
    attached = in_parallel(calls)
    assert len({address for attachment in attached for address in attachment.ips}) == 48
    in_parallel([partial(networks[n % 2].detach, name) for n, (name, _) in enumerate(pods)])
    for network in networks:
        network.settle()
    assert lab.nothing_left()


@on_a_host
def test_one_pod_attached_by_many_at_once_is_attached_once(lab: Lab) -> None:
    netns = lab.pin("one")
    attached = in_parallel([partial(lab.network.attach, "one", netns, [])] * 8)
    assert len(set(attached)) == 1
    assert len(lab.links()) == 1


@on_a_host
def test_a_full_network_says_so_and_has_room_again_after_a_detach(lab: Lab) -> None:
    lab.network = PodNetwork(replace(CONFIG, ipv4="10.97.0.0/29"), lab.store)
    pods = [lab.pod(f"pod{n}") for n in range(5)]
    netns = lab.pin("late")
    with pytest.raises(ResourceExhausted, match="all 5 pod addresses"):
        lab.network.attach("late", netns, [PortMapping(80, 8080)])
    lab.network.detach("pod3")
    lab.network.settle()
    assert lab.network.attach("late", netns, [PortMapping(80, 8080)]).ips[0] == pods[3].ipv4


@on_a_host
def test_detach_leaves_nothing_and_is_no_error_twice(lab: Lab) -> None:
    pods = [
        lab.pod(f"pod{n}", PortMapping(80, 8080 + n), PortMapping(53, 5353 + n, PortProtocol.UDP)) for n in range(5)
    ]
    assert lab.elements() == 20
    for pod in pods:
        lab.network.detach(pod.name)
        lab.network.detach(pod.name)
    assert lab.network.settle(10)
    assert lab.nothing_left()
    lab.network.detach("never seen")
    assert "eth0" not in namespaces.run_in(pods[0].netns, lambda: ip("link"))


@on_a_host
def test_detach_works_when_the_namespace_is_gone(lab: Lab) -> None:
    pod = lab.pod("one", PortMapping(80, 8080))
    namespaces.unpin(Path(pod.netns).parent)
    lab.network.detach("one")
    lab.network.settle()
    assert lab.nothing_left()


@on_a_host
def test_a_missing_namespace_leaves_nothing(lab: Lab) -> None:
    with pytest.raises(NotFound):
        lab.network.attach("one", lab.directory / "nowhere", [PortMapping(80, 8080)])
    assert lab.nothing_left()


def test_a_failure_in_any_step_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def body() -> None:
        with Lab(tmp_path) as lab:
            for place in ("before", "after"):
                for step in (*STEPS, "publish"):
                    with monkeypatch.context() as patch:
                        _break(patch, step, place, OSError(5, "broken"))
                        with pytest.raises(InternalError, match="broken"):
                            lab.network.attach(
                                "one", lab.pin(f"{step}-{place}"), [PortMapping(80, 8080)], limits=LIMITS
                            )
                    assert lab.nothing_left(), (step, place)

    with no_mount_left(tmp_path):
        run_as_host(body)


def test_a_process_killed_in_any_step_leaves_nothing_after_reconcile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body() -> None:
        with Lab(tmp_path) as lab:
            for place in ("before", "after"):
                for step in (*STEPS, "publish"):
                    with monkeypatch.context() as patch:
                        _break(patch, step, place, KeyboardInterrupt())
                        patch.setattr(PodNetwork, "_abandon", lambda *_: None)
                        with pytest.raises(KeyboardInterrupt):
                            lab.network.attach(
                                "one", lab.pin(f"{step}-{place}"), [PortMapping(80, 8080)], limits=LIMITS
                            )
                    assert lab.documents()
                    after = PodNetwork(CONFIG, StateStore(lab.database))
                    assert after.reconcile({"one"}) == ()
                    assert lab.documents(), "a known sandbox keeps what it has"
                    assert after.reconcile(set()) == ()
                    assert lab.nothing_left(), (step, place)

    with no_mount_left(tmp_path):
        run_as_host(body)


def test_a_process_killed_while_detaching_leaves_nothing_after_reconcile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body() -> None:
        with Lab(tmp_path) as lab:
            for place in ("before", "after"):
                lab.pod(f"pod-{place}", PortMapping(80, 8080))
                with monkeypatch.context() as patch:
                    _break(patch, "unplug", place, KeyboardInterrupt())
                    patch.setattr(PodNetwork, "_reap_later", lambda *_: None)
                    lab.network.detach(f"pod-{place}")
                    with pytest.raises(KeyboardInterrupt):
                        lab.network.reconcile({f"pod-{place}"})
                assert lab.documents()
                after = PodNetwork(CONFIG, StateStore(lab.database))
                assert after.reconcile({f"pod-{place}"}.copy) == ()
                assert lab.nothing_left(), place

    with no_mount_left(tmp_path):
        run_as_host(body)


def _break(patch: pytest.MonkeyPatch, step: str, place: str, error: BaseException) -> None:
    """Make a step fail before it does anything or after it did all."""
    owner: Any = {"publish": PodNetwork, "shape": shaping}.get(step, bridge)
    name = "_publish" if step == "publish" else step
    real = getattr(owner, name)

    def broken(*args: Any, **kwargs: Any) -> None:
        if place == "after":
            real(*args, **kwargs)
        raise error

    patch.setattr(owner, name, broken)


@on_a_host
def test_a_link_that_cannot_be_deleted_keeps_its_address_until_it_is(lab: Lab) -> None:
    pod = lab.pod("one")
    with pytest.MonkeyPatch.context() as patch:
        _break(patch, "unplug", "before", OSError(16, "busy"))
        lab.network.detach("one")
        lab.network.settle()
        assert lab.network.reconcile({"one"}) == ("one",)
    assert ("network.lease", pod.ipv4) in lab.documents()
    assert lab.network.reconcile({"one"}) == ()
    assert lab.nothing_left()


@on_a_host
def test_one_link_that_cannot_be_deleted_does_not_hold_up_others_and_is_tried_again(lab: Lab) -> None:
    pods = [lab.pod(f"pod{n}") for n in range(4)]
    stuck = lab.links()[2]
    real = bridge.unplug

    def refuse(names: Sequence[str]) -> None:
        if stuck in names:
            raise OSError(16, "busy")
        real(names)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bridge, "unplug", refuse)
        for pod in pods:
            lab.network.detach(pod.name)
        lab.network.settle()
        assert lab.links() == [stuck]
    assert lab.network.status() == (True, "", "")
    lab.network.settle()
    assert lab.nothing_left()


@on_a_host
def test_host_ports_work_where_the_host_checks_reverse_paths(lab: Lab) -> None:
    for which in ("all", "default"):
        Path(f"/proc/sys/net/ipv4/conf/{which}/rp_filter").write_text("1")
    outside = lab.outside()
    pod, other = lab.pod("one", PortMapping(80, 8080)), lab.pod("other")
    lab.serve(pod.netns, 80)
    for netns, address in ((None, "127.0.0.1"), (None, HOST_IP), (outside, HOST_IP), (pod.netns, HOST_IP)):
        assert answers(netns, address, 8080), address
    assert answers(other.netns, HOST_IP, 8080)


@on_a_host
def test_prepare_repairs_what_someone_removed(lab: Lab) -> None:
    pod = lab.pod("one", PortMapping(80, 8080))
    lab.serve(pod.netns, 80)
    nft("flush", "ruleset")
    assert is_silent(None, "127.0.0.1", 8080)
    assert lab.network.status() == (True, "", "")
    assert answers(None, "127.0.0.1", 8080)
    ip("address", "flush", "dev", CONFIG.bridge)
    ip("link", "set", CONFIG.bridge, "down")
    lab.network.prepare()
    assert answers(None, "127.0.0.1", 8080)
    assert ask(None, pod.ipv6, 80) == "fd97:0:0:1::1"


@on_a_host
def test_an_attach_makes_a_deleted_bridge_again(lab: Lab) -> None:
    lab.pod("one")
    ip("link", "delete", CONFIG.bridge)
    other = lab.pod("other")
    lab.serve(other.netns, 80)
    assert answers(None, other.ipv4, 80)


@on_a_host
def test_a_foreign_device_with_the_bridges_name_is_refused(lab: Lab) -> None:
    ip("link", "add", CONFIG.bridge, "type", "veth")
    ready, reason, message = lab.network.status()
    assert (ready, reason) == (False, "NetworkPluginNotReady")
    assert "not a bridge" in message
    with pytest.raises(FailedPrecondition, match="not a bridge"):
        lab.pod("one")
    assert not lab.documents()


@on_a_host
def test_a_host_without_ipv6_has_ipv4_pods_and_says_so(lab: Lab) -> None:
    Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    one, other = lab.pod("one", PortMapping(80, 8080)), lab.pod("other")
    assert one.attachment.ips == (one.ipv4,)
    lab.serve(one.netns, 80)
    assert ask(other.netns, one.ipv4, 80) == other.ipv4
    assert lab.network.status() == (True, "", "IPv6 is disabled on this host: pods get IPv4 addresses only")


@on_a_host
def test_a_pod_that_switched_ipv6_off_gets_ipv4_only(lab: Lab) -> None:
    netns = lab.pin("one", {"net.ipv6.conf.default.disable_ipv6": "1"})
    attachment = lab.network.attach("one", netns, [PortMapping(80, 8080)])
    assert len(attachment.ips) == 1
    lab.network.detach("one")
    lab.network.settle()
    assert lab.nothing_left()


@on_a_host
def test_a_pods_addresses_work_at_once_and_router_advertisements_are_ignored(lab: Lab) -> None:
    pod = lab.pod("one")

    def look() -> tuple[str, str]:
        return ip("-6", "address", "show", "dev", "eth0"), Path("/proc/sys/net/ipv6/conf/eth0/accept_ra").read_text()

    shown, accept_ra = namespaces.run_in(pod.netns, look)
    assert "tentative" not in shown
    assert accept_ra.strip() == "0"


@on_a_host
def test_links_have_the_default_routes_mtu_unless_another_is_set(lab: Lab) -> None:
    lab.outside()
    ip("link", "set", "out0", "mtu", "1400")
    ip("route", "add", "default", "via", OUTSIDE_IP)
    pod = lab.pod("one")
    assert "mtu 1400" in namespaces.run_in(pod.netns, lambda: ip("link", "show", "eth0"))
    lab.network = PodNetwork(replace(CONFIG, mtu=1450), lab.store)
    other = lab.pod("other")
    assert "mtu 1450" in namespaces.run_in(other.netns, lambda: ip("link", "show", "eth0"))


@on_a_host
def test_two_networks_share_a_host(lab: Lab) -> None:
    second = replace(
        CONFIG, bridge="tbr1", table="test_pods2", link_prefix="tq", ipv4="10.98.0.0/24", ipv6="fd98:0:0:1::/64"
    )
    with Lab(lab.directory / "second", second) as other:
        one, two = lab.pod("one", PortMapping(80, 8080)), other.pod("two", PortMapping(80, 8081))
        lab.serve(one.netns, 80)
        other.serve(two.netns, 80)
        assert answers(None, "127.0.0.1", 8080)
        assert answers(None, "127.0.0.1", 8081)
        other.network.detach("two")
        other.network.teardown()
        assert answers(None, "127.0.0.1", 8080)


@on_a_host
def test_teardown_refuses_while_pods_are_attached(lab: Lab) -> None:
    lab.pod("one")
    with pytest.raises(FailedPrecondition):
        lab.network.teardown()
    lab.network.detach("one")
    lab.network.teardown()
    assert CONFIG.bridge not in ip("link")
    assert CONFIG.table not in nft("list", "tables")


@on_a_host
def test_an_interface_keeps_taking_router_advertisements_on_a_forwarding_host(lab: Lab) -> None:
    lab.outside()
    lab.network.prepare()
    assert Path("/proc/sys/net/ipv6/conf/all/forwarding").read_text().strip() == "1"
    assert Path("/proc/sys/net/ipv6/conf/out0/accept_ra").read_text().strip() == "2"


@on_a_host
def test_a_host_without_nft_says_what_to_install(lab: Lab) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/nonexistent")
        ready, _, message = lab.network.status()
        assert not ready
        assert "apt-get install nftables" in message
        with pytest.raises(ForgeError):
            lab.network.attach("one", lab.pin("one"), [])
    assert not lab.documents()


@on_a_host
def test_a_pod_receives_and_sends_no_faster_than_it_may(lab: Lab) -> None:
    slow, other = lab.pod("slow", limits=LIMITS), lab.pod("other")
    shown = subprocess.run(["tc", "qdisc", "show"], check=True, capture_output=True, text=True).stdout
    assert "rate 8Mbit" in shown
    assert "rate 4Mbit" in shown
    # In bytes a second; on a busy machine what has come before is read, and counted, late.
    assert 0.3e6 < _rate(other.netns, slow.netns, slow.ipv4) < 1.5e6
    assert 0.15e6 < _rate(slow.netns, other.netns, other.ipv6) < 0.75e6
    # A pod without limits beside it has none.
    third = lab.pod("third")
    assert _rate(third.netns, other.netns, other.ipv4) > 5e6
    lab.network.detach("slow")
    assert lab.network.settle(10)
    assert len(lab.links()) == 2
    assert "rate" not in subprocess.run(["tc", "qdisc", "show"], check=True, capture_output=True, text=True).stdout


def _rate(sender: str, receiver: str, address: str) -> float:
    """Bytes a second that arrive, measured for a second after the first burst."""
    listener = namespaces.run_in(
        receiver, lambda: socket.create_server(("::", 81), family=socket.AF_INET6, dualstack_ipv6=True)
    )
    with listener:
        source = namespaces.run_in(sender, lambda: socket.create_connection((address, 81), 5))
        sink, _ = listener.accept()
    with source, sink:
        source.setblocking(False)
        sink.setblocking(False)
        poll = select.poll()
        poll.register(source, select.POLLOUT)
        poll.register(sink, select.POLLIN)
        begun, got, chunk = time.monotonic(), 0, bytes(1 << 16)
        counted = begun + 0.3
        while (now := time.monotonic()) < begun + 1.3:
            for fd, _ in poll.poll(100):
                if fd == source.fileno():
                    with contextlib.suppress(BlockingIOError):
                        source.send(chunk)
                else:
                    size = len(sink.recv(1 << 20))
                    got += size if now > counted else 0
        return got


@on_a_host
def test_attach_and_detach_take_milliseconds(lab: Lab) -> None:
    pods = [(f"pod{n}", lab.pin(f"pod{n}")) for n in range(20)]
    lab.network.prepare()
    attached: list[float] = []
    detached: list[float] = []
    for name, netns in pods:
        start = time.perf_counter()
        lab.network.attach(name, netns, [PortMapping(80, 8000 + len(attached))])
        attached.append(time.perf_counter() - start)
    for name, _ in pods:
        start = time.perf_counter()
        lab.network.detach(name)
        detached.append(time.perf_counter() - start)
    # Generous: the machine may be busy.
    assert sorted(attached)[10] < 0.05
    assert sorted(detached)[10] < 0.05


def test_the_real_host_is_untouched() -> None:
    assert (
        CONFIG.table not in subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    )
    assert CONFIG.bridge not in [name for _, name in socket.if_nameindex()]
