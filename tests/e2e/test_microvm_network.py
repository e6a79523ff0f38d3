"""A pod's packets and its machine: a guest of another network namespace answers behind a tap in its place."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from engines.base import PortMapping
from engines.microvm.network import connect, pod_interface, redirect, tap
from engines.microvm.wire.messages import Interface
from forgeone_shim.errors import FailedPrecondition, NotFound
from forgeone_shim.kernel import taps
from forgeone_shim.kernel.namespaces import run_in
from forgeone_shim.metrics.network import interfaces
from tests.e2e.network_lab import HOST_IP, HOST_IP6, OUTSIDE_IP, Lab, answers, ask, ip, is_silent, run_as_host

pytestmark = pytest.mark.root

T = TypeVar("T")

_PORT, _HOST_PORT, _FRAME = 8080, 18080, 1 << 17


@pytest.fixture(autouse=True)
def needs_taps() -> None:
    if not Path("/dev/net/tun").exists():
        pytest.skip("this kernel has no taps (CONFIG_TUN)")


class Guest:
    """A kernel behind the tap ``fd``, as a virtual machine's would be: the namespace ``netns`` and a wire between."""

    def __init__(self, fd: int, netns: str) -> None:
        self.netns = netns
        self._fds = (fd, run_in(netns, lambda: taps.make("eth0")))
        self._stop, self._stopped = os.pipe()
        self._wire = threading.Thread(target=self._carry, daemon=True)
        self._wire.start()

    def _carry(self) -> None:
        others = {self._fds[0]: self._fds[1], self._fds[1]: self._fds[0]}
        poll = select.poll()
        for fd in (*self._fds, self._stop):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._stop:
                    return
                with contextlib.suppress(OSError):
                    os.write(others[fd], os.read(fd, _FRAME))

    def become(self, found: Interface) -> None:
        """What an agent does with its interface."""

        def configure() -> None:
            ip("link", "set", "eth0", "address", found.mac.hex(":"), "mtu", str(found.mtu), "up")
            for address in found.addresses:
                ip("address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
            for route in found.routes:
                version = "-6" if ":" in route.destination else "-4"
                via = ["via", route.gateway] if route.gateway else []
                ip(version, "route", "add", route.destination, *via, "dev", "eth0")
            for one in found.neighbours:
                ip("neighbour", "add", one.address, "lladdr", one.mac.hex(":"), "dev", "eth0", "nud", "permanent")

        run_in(self.netns, configure)

    def close(self) -> None:
        """The machine ends."""
        os.write(self._stopped, b"!")
        self._wire.join()
        for fd in (*self._fds, self._stop, self._stopped):
            os.close(fd)


@contextlib.contextmanager
def guest_of(lab: Lab, netns: str, *, routed: bool = False) -> Iterator[Guest]:
    guest = Guest(tap(netns), lab.pin("guest"))
    try:
        found = connect(netns, routed=routed)
        assert found is not None
        guest.become(found)
        yield guest
    finally:
        guest.close()


def on_a_host(tmp_path: Path, function: Callable[[Lab], T]) -> T:
    def run() -> T:
        with Lab(tmp_path) as lab:
            return function(lab)

    return run_as_host(run)


@pytest.mark.parametrize("routed", [False, True])
def test_whoever_talks_to_the_pod_talks_to_its_machine(tmp_path: Path, routed: bool) -> None:
    def story(lab: Lab) -> None:
        outside = lab.outside()
        pod = lab.pod("a", PortMapping(_PORT, _HOST_PORT))
        other = lab.pod("b")
        lab.serve(outside, 9999)
        lab.serve(other.netns, 9999)
        assert not answers(None, pod.ipv4, _PORT)
        with guest_of(lab, pod.netns, routed=routed) as guest:
            for udp in (False, True):
                lab.serve(guest.netns, _PORT, udp=udp)
            assert ask(other.netns, pod.ipv4, _PORT) == other.ipv4
            assert ask(other.netns, pod.ipv6, _PORT) == other.ipv6
            assert answers(None, pod.ipv4, _PORT, udp=True)
            assert answers(outside, "192.0.2.1", _HOST_PORT)
            assert answers(outside, "2001:db8::1", _HOST_PORT)
            assert ask(guest.netns, other.ipv4, 9999) == pod.ipv4
            assert ask(guest.netns, other.ipv6, 9999) == pod.ipv6
            assert answers(guest.netns, OUTSIDE_IP, 9999)
            [eth0] = interfaces(pod.netns, [])
            assert eth0.name == "eth0"
            assert min(eth0.rx_packets, eth0.tx_packets) > 10
        assert is_silent(None, pod.ipv4, _PORT)

    on_a_host(tmp_path, story)


@pytest.mark.parametrize("routed", [False, True])
def test_much_passes_whole(tmp_path: Path, routed: bool) -> None:
    def story(lab: Lab) -> None:
        pod = lab.pod("a")
        with guest_of(lab, pod.netns, routed=routed) as guest:
            listen = "import socket,sys;s=socket.create_server(('0.0.0.0',7000));print(flush=True);c=s.accept()[0]\n"
            listen += "n=0\nwhile d:=c.recv(1<<20):n+=len(d)\nprint(n)"
            spawn = lambda: subprocess.Popen(["python3", "-c", listen], stdout=subprocess.PIPE)  # noqa: E731
            with run_in(guest.netns, spawn) as server:
                assert server.stdout is not None
                server.stdout.readline()
                send = f"import socket;s=socket.create_connection(('{pod.ipv4}',7000));s.sendall(bytes(8<<20))"
                subprocess.run(["python3", "-c", send], check=True, timeout=20)
                assert int(server.stdout.read()) == 8 << 20

    on_a_host(tmp_path, story)


def test_a_machine_is_made_once_and_leaves_nothing(tmp_path: Path) -> None:
    def story(lab: Lab) -> None:
        pod = lab.pod("a")
        with pytest.raises(FailedPrecondition, match="machine of the pod has gone"):
            redirect(pod.netns)
        fd = tap(pod.netns)
        with pytest.raises(FailedPrecondition, match="a machine already"):
            tap(pod.netns)
        redirect(pod.netns)
        with pytest.raises(FailedPrecondition, match="filtered already"):
            redirect(pod.netns)
        os.close(fd)
        names = run_in(pod.netns, lambda: ip("-o", "link"))
        assert taps.NAME not in names

    on_a_host(tmp_path, story)


def test_a_redirection_that_fails_half_way_is_undone(tmp_path: Path) -> None:
    def story(lab: Lab) -> None:
        pod = lab.pod("a")
        run_in(pod.netns, lambda: subprocess.run(["tc", "qdisc", "add", "dev", "eth0", "ingress"], check=True))
        fd = tap(pod.netns)
        with pytest.raises(FailedPrecondition, match="eth0 receives is filtered already"):
            redirect(pod.netns)
        listed = run_in(pod.netns, lambda: subprocess.check_output(["tc", "qdisc", "show"], text=True))
        assert f"ingress ffff: dev {taps.NAME}" not in listed
        assert "ingress ffff: dev eth0" in listed
        os.close(fd)

    on_a_host(tmp_path, story)


@pytest.mark.parametrize("versions", [(4, 6), (6,)])
@pytest.mark.parametrize("routed", [False, True])
def test_a_machine_is_alone_on_its_link_with_a_gateway_that_is_nobodys(
    tmp_path: Path, routed: bool, versions: tuple[int, ...]
) -> None:
    """As Calico leaves a pod: addresses of no network, and gateways that are the link's alone."""

    def story(lab: Lab) -> None:
        netns = lab.pin("pod")
        ip("link", "add", "away", "type", "veth", "peer", "name", "eth0", "netns", netns)
        Path("/proc/sys/net/ipv6/conf/away/accept_dad").write_text("0")
        ip("link", "set", "away", "address", "ee:ee:ee:ee:ee:ee", "up")
        for switch in ("forwarding", "proxy_arp"):
            Path(f"/proc/sys/net/ipv4/conf/away/{switch}").write_text("1")
        Path("/proc/sys/net/ipv4/neigh/away/proxy_delay").write_text("0")
        lab.outside()
        ip("route", "add", "default", "via", OUTSIDE_IP)

        def attach() -> None:
            ip("link", "set", "eth0", "up")
            if 4 in versions:
                ip("address", "add", "10.1.2.3/32", "dev", "eth0")
                ip("route", "add", "169.254.1.1", "dev", "eth0", "scope", "link")
                ip("route", "add", "default", "via", "169.254.1.1")
            ip("address", "add", "fd01::3/128", "dev", "eth0", "nodad")
            ip("-6", "route", "add", "default", "via", "fe80::ecee:eeff:feee:eeee", "dev", "eth0")

        run_in(netns, attach)
        ip("route", "add", "10.1.2.3", "dev", "away", "src", HOST_IP)
        ip("-6", "route", "add", "fd01::3", "dev", "away", "src", HOST_IP6)
        lab.serve(None, 9999)
        with guest_of(lab, netns, routed=routed) as guest:
            lab.serve(guest.netns, _PORT)
            for version, inside, outside in ((4, "10.1.2.3", HOST_IP), (6, "fd01::3", HOST_IP6)):
                if version in versions:
                    assert answers(None, inside, _PORT)
                    assert ask(guest.netns, outside, 9999) == inside

    on_a_host(tmp_path, story)


def test_where_everybody_is_beyond_a_gateway_it_is_so_for_the_machine(tmp_path: Path) -> None:
    """As the CNI plugin ``ptp`` leaves a pod: the networks of its addresses are not on its link."""

    def story(lab: Lab) -> None:
        netns = lab.pin("pod")

        def attach() -> None:
            ip("link", "add", "eth0", "type", "veth", "peer", "name", "away")
            ip("link", "set", "eth0", "up")
            for version, address, network, gateway in (
                ("-4", "10.9.0.5", "10.9.0.0/24", "10.9.0.1"),
                ("-6", "fd09::5", "fd09::/64", "fd09::1"),
            ):
                more = ["nodad"] if version == "-6" else []
                ip("address", "add", f"{address}/{network.split('/')[1]}", "dev", "eth0", *more)
                ip(version, "route", "del", network, "dev", "eth0")
                ip(version, "route", "add", gateway, "dev", "eth0", "src", address)
                ip(version, "route", "add", network, "via", gateway, "dev", "eth0", "src", address)

        run_in(netns, attach)
        told = pod_interface(netns)
        assert told is not None
        assert set(told.addresses) == {"10.9.0.5/32", "fd09::5/128"}
        ways = {one.destination: one.gateway for one in told.routes}
        assert ways["10.9.0.0/24"] == "10.9.0.1"
        assert ways["fd09::/64"] == "fd09::1"

    on_a_host(tmp_path, story)


def test_a_pod_that_has_gone_is_not_found(tmp_path: Path) -> None:
    for function in (tap, pod_interface, redirect):
        with pytest.raises(NotFound):
            function(str(tmp_path / "net"))
