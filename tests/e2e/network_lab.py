"""A pretended host: a network namespace of its own in which a test runs, with pods and an outside world around it.

Threads and programs started from the pretended host's thread live in its namespace, so nothing here touches the real
host's network.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from engines.base import PortMapping
from forgeone_shim.config.model import NetworkConfig
from forgeone_shim.kernel import namespaces
from forgeone_shim.kernel.syscalls import number, syscall
from forgeone_shim.network.bandwidth import UNLIMITED, Limits
from forgeone_shim.network.facts import Attachment
from forgeone_shim.network.pod import PodNetwork
from forgeone_shim.state.store import StateStore

T = TypeVar("T")

CONFIG = NetworkConfig(bridge="tbr0", table="test_pods", link_prefix="tp", ipv4="10.97.0.0/24", ipv6="fd97:0:0:1::/64")
HOST_IP, OUTSIDE_IP = "192.0.2.1", "192.0.2.99"
HOST_IP6, OUTSIDE_IP6 = "2001:db8::1", "2001:db8::99"
ANSWER_SECONDS = 3.0


def run_as_host(function: Callable[[], T]) -> T:
    """Run ``function`` in a thread whose network namespace is new and, afterwards, gone."""

    def enter() -> None:
        syscall(number("unshare"), namespaces.CLONE_NEWNET)
        namespaces.raise_loopback()

    with ThreadPoolExecutor(1, initializer=enter) as host:
        return host.submit(function).result()


def ip(*args: str) -> str:
    return subprocess.run(["ip", *args], check=True, capture_output=True, text=True).stdout


def nft(*args: str) -> str:
    return subprocess.run(["nft", *args], check=True, capture_output=True, text=True).stdout


class Lab:
    """The pretended host's pods. Everything it opened is closed by :meth:`close`."""

    def __init__(self, directory: Path, config: NetworkConfig = CONFIG) -> None:
        self.directory = directory
        self.database = directory / "forgeone.db"
        self.store = StateStore(self.database)
        self.config = config
        self.network = PodNetwork(config, self.store)
        self._undo = contextlib.ExitStack()
        self._undo.callback(self.store.close)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.network.settle()
        self._undo.close()

    def pin(self, name: str, sysctls: dict[str, str] | None = None) -> str:
        """A new network namespace; its path."""
        directory = self.directory / name
        namespaces.pin_namespaces(directory, ("net",), sysctls=sysctls)
        self._undo.callback(namespaces.unpin, directory)
        return str(directory / "net")

    def pod(self, name: str, *ports: PortMapping, limits: Limits = UNLIMITED) -> Pod:
        """A new pod, attached."""
        netns = self.pin(name)
        return Pod(name, netns, self.network.attach(name, netns, ports, limits=limits))

    def outside(self) -> str:
        """A machine beside the host; the path of its network namespace."""
        netns = self.pin("outside")
        ip("link", "add", "out0", "type", "veth", "peer", "name", "up0")
        ip("link", "set", "up0", "netns", self._netns_holder(netns))
        for address in (f"{HOST_IP}/24", f"{HOST_IP6}/64"):
            ip("address", "add", address, "dev", "out0", *(["nodad"] if ":" in address else []))
        ip("link", "set", "out0", "up")

        def configure() -> None:
            ip("link", "set", "up0", "up")
            ip("address", "add", f"{OUTSIDE_IP}/24", "dev", "up0")
            ip("address", "add", f"{OUTSIDE_IP6}/64", "dev", "up0", "nodad")

        namespaces.run_in(netns, configure)
        return netns

    def _netns_holder(self, netns: str) -> str:
        """A process in the namespace, because iproute2 names namespaces by process."""
        spawn = partial(subprocess.Popen, ["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        process = namespaces.run_in(netns, spawn)

        def end() -> None:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()

        self._undo.callback(end)
        return str(process.pid)

    def serve(self, netns: str | None, port: int, *, udp: bool = False) -> None:
        """Answer everyone on ``port`` of a namespace (``None``: the host's) with the address the question came from."""
        server = _make_in(netns, lambda: _listen(port, udp=udp))
        stop = threading.Event()
        thread = threading.Thread(target=_answer_udp if udp else _answer_tcp, args=(server, stop), daemon=True)
        thread.start()

        def end() -> None:
            stop.set()
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()

        self._undo.callback(end)

    def documents(self) -> list[tuple[str, str]]:
        """What the store has of the network, but for where allocation goes on."""
        kinds = ("network.intent", "network.lease", "network.port")
        return [(kind, key) for kind in kinds for key, _ in self.store.items(kind, dict)]

    def links(self) -> list[str]:
        """Host ends of pod links there are, and what they redirect to."""
        return [name for _, name in socket.if_nameindex() if name.startswith(self.config.link_prefix)]

    def elements(self) -> int:
        """Host ports the kernel knows, IPv4 and IPv6 counted apart."""
        listed = nft("list", "table", "inet", self.config.table)
        return listed.count(" : 10.") + listed.count(" : fd97")

    def nothing_left(self) -> bool:
        """Whether no pod has anything any more."""
        return not self.documents() and not self.links() and not self.elements()


class Pod:
    """An attached pod."""

    def __init__(self, name: str, netns: str, attachment: Attachment) -> None:
        self.name, self.netns, self.attachment = name, netns, attachment
        self.ipv4 = attachment.ips[0]
        self.ipv6 = attachment.ips[1] if len(attachment.ips) > 1 else ""


def _make_in(netns: str | None, make: Callable[[], socket.socket]) -> socket.socket:
    """A socket stays in the namespace it was made in."""
    return make() if netns is None else namespaces.run_in(netns, make)


def _listen(port: int, *, udp: bool) -> socket.socket:
    server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("::", port))
    if not udp:
        server.listen(64)
    return server


def _answer_tcp(server: socket.socket, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            connection, peer = server.accept()
        except OSError:
            return
        with connection:
            connection.sendall(peer[0].removeprefix("::ffff:").encode())


def _answer_udp(server: socket.socket, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            _, peer = server.recvfrom(64)
        except OSError:
            return
        if peer is None:
            return
        server.sendto(peer[0].removeprefix("::ffff:").encode(), peer)


def ask(netns: str | None, address: str, port: int, *, udp: bool = False, seconds: float = ANSWER_SECONDS) -> str:
    """Connect from a namespace; the source address the server saw. Raises OSError when nobody answers."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    with _make_in(netns, lambda: socket.socket(family, kind)) as client:
        client.settimeout(seconds)
        client.connect((address, port))
        if udp:
            client.send(b"?")
        return client.recv(64).decode()


def answers(netns: str | None, address: str, port: int, *, udp: bool = False) -> bool:
    """Whether anyone answers."""
    with contextlib.suppress(OSError):
        return bool(ask(netns, address, port, udp=udp))
    return False


def is_silent(netns: str | None, address: str, port: int, *, udp: bool = False) -> bool:
    """Whether nobody answers within a moment."""
    with contextlib.suppress(OSError):
        ask(netns, address, port, udp=udp, seconds=0.4)
        return False
    return True


@contextlib.contextmanager
def no_mount_left(directory: Path) -> Iterator[None]:
    """Proof that a block leaves no mount behind in ``directory``."""
    yield
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()


def in_parallel(calls: Sequence[Callable[[], T]], workers: int = 8) -> list[T]:
    with ThreadPoolExecutor(workers) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]
