"""Names looked up in the container's own way: its hosts file and its resolv.conf, and no library of its image.

The C library's resolver would load what the image's nsswitch.conf names, and cannot be told when to stop.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_HOSTS: Final = Path("/etc/hosts")
_RESOLV: Final = Path("/etc/resolv.conf")
_FILE_MAX: Final = 1 << 20
_A, _AAAA, _IN = 1, 28, 1
_NXDOMAIN: Final = 3
_SERVERS_MAX: Final = 3
_SEARCH_MAX: Final = 32
_ANSWERS_MAX: Final = 64
_STREAM: Final = socket.SOCK_STREAM | socket.SOCK_CLOEXEC
_HEADER: Final = struct.Struct(">HHHHHH")


class NotResolved(Exception):
    """A name has no address: ``rcode`` is the server's word for it, empty where none answered in time."""

    def __init__(self, text: str, rcode: str = "") -> None:
        super().__init__(text)
        self.rcode = rcode


@dataclass(frozen=True, slots=True)
class Resolver:
    """What resolv.conf(5) says. ``timeout`` (seconds) is for one try with one server."""

    servers: tuple[str, ...] = ("127.0.0.1",)
    search: tuple[str, ...] = ()
    ndots: int = 1
    timeout: float = 5.0
    attempts: int = 2
    port: int = 53


def resolve(name: str, deadline: float) -> list[str]:
    """The addresses of a name, IPv4's first; at most until ``deadline`` (monotonic seconds).

    :raises NotResolved: there are none.
    """
    bare = name.rstrip(".").lower()
    found = _from_hosts(_text(_HOSTS), bare)
    if found:
        return found
    if bare == "localhost" or bare.endswith(".localhost"):
        return ["127.0.0.1"]
    return lookup(parse(_text(_RESOLV)), name.lower(), deadline)


def parse(text: str) -> Resolver:
    """A resolv.conf; what is not understood is passed over, as resolvers do."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    numbers = {"ndots": 1, "timeout": 5, "attempts": 2}
    for line in text.splitlines():
        word, *rest = line.split("#")[0].split(";")[0].split() or [""]
        if word == "nameserver" and rest:
            servers.append(rest[0])
        elif word in ("search", "domain"):
            search = tuple(each.strip(".") for each in rest[:_SEARCH_MAX])
        elif word == "options":
            for key, _, value in (each.partition(":") for each in rest):
                if key in numbers and value.isdecimal():
                    numbers[key] = int(value)
    return Resolver(
        servers=tuple(servers[:_SERVERS_MAX]) or ("127.0.0.1",),
        search=search,
        ndots=min(numbers["ndots"], 15),
        timeout=float(max(1, min(numbers["timeout"], 30))),
        attempts=max(1, min(numbers["attempts"], 5)),
    )


def lookup(resolver: Resolver, name: str, deadline: float) -> list[str]:
    """Ask the servers for ``name``, with the search list as its dots and resolv.conf say.

    :raises NotResolved: it has no address, or nobody answered.
    """
    bare = name.rstrip(".")
    suffixed = [f"{bare}.{domain}" for domain in resolver.search if domain]
    if name.endswith("."):
        candidates = [bare]
    elif bare.count(".") >= resolver.ndots:
        candidates = [bare, *suffixed]
    else:
        candidates = [*suffixed, bare]
    failure = NotResolved(f"{name!r} has no address", "NXDOMAIN")
    for candidate in candidates:
        try:
            found = _ask(resolver, candidate, deadline)
        except NotResolved as error:
            # A server that fails says nothing about the name, and the next name might be somebody else's.
            if error.rcode not in ("NXDOMAIN", ""):
                failure = error
                continue
            raise
        if found:
            return found
    raise failure


def _ask(resolver: Resolver, name: str, deadline: float) -> list[str]:
    """Both kinds of addresses at once; none where the name does not exist."""
    questions = {number: _question(number, name, kind) for number, kind in zip(_numbers(), (_A, _AAAA), strict=True)}
    found: dict[int, tuple[list[str], int]] = {}
    failed: dict[int, tuple[list[str], int]] = {}
    for attempt in range(resolver.attempts * len(resolver.servers)):
        server = resolver.servers[attempt % len(resolver.servers)]
        until = min(deadline, time.monotonic() + resolver.timeout)
        if time.monotonic() >= deadline:
            break
        with contextlib.suppress(OSError):
            _try(server, resolver.port, questions, found, until)
        # Another server, or the same a moment later, may know what this one could not say.
        for number in [each for each, (_, code) in found.items() if code not in (0, _NXDOMAIN)]:
            failed[number] = found.pop(number)
        if len(found) == len(questions):
            break
    if not found and not failed:
        raise NotResolved(f"no name server answered for {name!r}")
    addresses = [address for number in questions if number in found for address in found[number][0]]
    if not addresses and failed:
        raise NotResolved(f"the name server failed for {name!r}", f"RCODE{max(code for _, code in failed.values())}")
    return addresses


def _numbers() -> tuple[int, int]:
    first = int.from_bytes(os.urandom(2), "big")
    return first, first ^ 1


def _try(
    server: str, port: int, questions: dict[int, bytes], found: dict[int, tuple[list[str], int]], until: float
) -> None:
    """Send what is not answered yet to one server, from a port of its own, and take the answers."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as udp:
        udp.connect((server, port))
        for number, question in questions.items():
            if number not in found:
                udp.send(question)
        while len(found) < len(questions) and _readable(udp, until):
            data = udp.recv(4096)
            number = int.from_bytes(data[:2], "big")
            if number not in questions or number in found:
                continue
            if len(data) > 3 and data[2] & 0x02:
                data = _by_tcp(server, port, questions[number], until)
            answer = _answer(data, questions[number])
            if answer is not None:
                found[number] = answer


def _by_tcp(server: str, port: int, question: bytes, until: float) -> bytes:
    """An answer too long for a datagram."""
    # An address in a tuple is taken as it is; socket.create_connection would ask the C library's resolver.
    with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, _STREAM) as tcp:
        tcp.settimeout(max(0.1, until - time.monotonic()))
        tcp.connect((server, port))
        tcp.sendall(len(question).to_bytes(2, "big") + question)
        data = b""
        while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
            tcp.settimeout(max(0.1, until - time.monotonic()))
            part = tcp.recv(65536)
            if not part:
                break
            data += part
    return data[2:]


def _readable(udp: socket.socket, until: float) -> bool:
    poller = select.poll()
    poller.register(udp, select.POLLIN)
    return bool(poller.poll(max(0.0, until - time.monotonic()) * 1000))


def _question(number: int, name: str, kind: int) -> bytes:
    labels = b""
    for label in name.split("."):
        encoded = label.encode("ascii", "replace")
        if not 0 < len(encoded) < 64:
            raise NotResolved(f"{name!r} is no name", "NXDOMAIN")
        labels += bytes((len(encoded),)) + encoded
    if len(labels) > 254:
        raise NotResolved(f"{name!r} is no name", "NXDOMAIN")
    return _HEADER.pack(number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, _IN)


def _answer(data: bytes, question: bytes) -> tuple[list[str], int] | None:
    """The addresses in an answer and its code; ``None`` where it is not one to this question."""
    try:
        _, flags, questions, answers, _, _ = _HEADER.unpack_from(data)
        if not flags & 0x8000 or questions != 1 or data[12 : len(question)].lower() != question[12:].lower():
            return None
        wanted = int.from_bytes(question[-4:-2], "big")
        at, found = len(question), []
        for _ in range(min(answers, _ANSWERS_MAX)):
            at = _past_name(data, at)
            kind, of, _, size = struct.unpack_from(">HHIH", data, at)
            at += 10
            if at + size > len(data):
                return None
            if kind == wanted and of == _IN and size == (4 if kind == _A else 16):
                found.append(socket.inet_ntop(socket.AF_INET if kind == _A else socket.AF_INET6, data[at : at + size]))
            at += size
    except (struct.error, IndexError):
        return None
    return found, flags & 0xF


def _past_name(data: bytes, at: int) -> int:
    while data[at]:
        if data[at] >= 0xC0:
            return at + 2
        at += data[at] + 1
    return at + 1


def _from_hosts(text: str, name: str) -> list[str]:
    found = []
    for line in text.splitlines():
        address, *names = line.split("#")[0].split() or [""]
        if name in (each.lower() for each in names) and "%" not in address:
            found.append(address)
    return sorted(found, key=lambda address: ":" in address)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_FILE_MAX).decode("ascii", "replace")
    except OSError:
        return ""
