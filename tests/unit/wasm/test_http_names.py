"""Names, as a name server on the loopback says."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from engines.wasm.guest.http.names import NotResolved, Resolver, lookup


@dataclass
class NameServer:
    """Knows ``names``; the others do not exist. ``failing`` makes it answer SERVFAIL."""

    names: dict[str, str]
    failing: bool = False
    asked: list[str] = field(default_factory=list)
    udp: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    def resolver(self, **more: object) -> Resolver:
        return Resolver(port=self.udp.getsockname()[1], **more)  # type: ignore[arg-type]

    def serve(self) -> None:
        while True:
            data, sender = self.udp.recvfrom(1024)
            if not data:
                return
            end = data.index(b"\0", 12)
            labels, at = [], 12
            while data[at]:
                labels.append(data[at + 1 : at + 1 + data[at]].decode())
                at += data[at] + 1
            name, (kind,) = ".".join(labels), struct.unpack_from(">H", data, end + 1)
            self.asked.append(name)
            address = None if self.failing or kind != 1 else self.names.get(name)
            code = 2 if self.failing else (0 if name in self.names else 3)
            answer = b"" if address is None else b"\xc0\x0c\0\1\0\1\0\0\0\x05\0\4" + socket.inet_aton(address)
            head = data[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, 1 if answer else 0, 0, 0)
            self.udp.sendto(head + data[12 : end + 5] + answer, sender)


@pytest.fixture
def server() -> Iterator[NameServer]:
    made = NameServer({"db.ns.svc": "10.0.0.7", "example.org": "192.0.2.1"})
    made.udp.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=made.serve)
    thread.start()
    yield made
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.sendto(b"", made.udp.getsockname())
    thread.join()
    made.udp.close()


def soon() -> float:
    return time.monotonic() + 3


def test_a_service_is_found_by_the_search_list(server: NameServer) -> None:
    assert lookup(server.resolver(search=("ns.svc", "svc"), ndots=5), "db", soon()) == ["10.0.0.7"]
    assert set(server.asked) == {"db.ns.svc"}


def test_a_name_with_enough_dots_is_asked_for_as_it_is_first(server: NameServer) -> None:
    assert lookup(server.resolver(search=("ns.svc",), ndots=1), "example.org", soon()) == ["192.0.2.1"]
    assert set(server.asked) == {"example.org"}


def test_a_name_with_a_dot_at_its_end_is_not_searched_for(server: NameServer) -> None:
    with pytest.raises(NotResolved):
        lookup(server.resolver(search=("ns.svc",), ndots=5), "db.", soon())
    assert set(server.asked) == {"db"}


def test_a_name_that_does_not_exist_is_said_to_be_so(server: NameServer) -> None:
    with pytest.raises(NotResolved) as caught:
        lookup(server.resolver(), "nowhere.example", soon())
    assert caught.value.rcode == "NXDOMAIN"


def test_a_server_that_fails_is_told_from_a_name_that_does_not_exist(server: NameServer) -> None:
    server.failing = True
    with pytest.raises(NotResolved) as caught:
        lookup(server.resolver(), "example.org", soon())
    assert caught.value.rcode == "RCODE2"


def test_a_silent_server_costs_no_more_than_the_deadline() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        began = time.monotonic()
        with pytest.raises(NotResolved) as caught:
            lookup(Resolver(port=silent.getsockname()[1]), "example.org", began + 0.2)
        assert time.monotonic() - began < 1 and caught.value.rcode == ""
