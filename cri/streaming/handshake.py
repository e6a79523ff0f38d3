"""Which protocol a client and ForgeOne agree on, and the answer that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cri.streaming import command, forward, http, websocket
from engines.base import Stdio

STREAM_PROTOCOL: Final = "x-stream-protocol-version"
PORT_FORWARD: Final = "portforward.k8s.io"
TUNNEL: Final = "SPDY/3.1+portforward.k8s.io"

SPDY_COMMANDS: Final[Mapping[str, int]] = {
    "v4.channel.k8s.io": 4,
    "v3.channel.k8s.io": 3,
    "v2.channel.k8s.io": 2,
    "channel.k8s.io": 1,
}
WEBSOCKET_COMMANDS: Final[Mapping[str, tuple[int, bool]]] = {
    "": (1, False),
    "channel.k8s.io": (1, False),
    "base64.channel.k8s.io": (1, True),
    "v4.channel.k8s.io": (4, False),
    "v4.base64.channel.k8s.io": (4, True),
    "v5.channel.k8s.io": (5, False),
}
"""Version, and whether messages are base64."""
WEBSOCKET_FORWARDS: Final[Mapping[str, bool]] = {
    "": False,
    "v4.channel.k8s.io": False,
    "v4.base64.channel.k8s.io": True,
}
"""Whether messages are base64."""

_SPDY: Final = "spdy/3.1"
_WEBSOCKET: Final = "websocket"


@dataclass(frozen=True, slots=True)
class Agreed:
    """The answer to send, and what to speak after it."""

    answer: bytes
    link: command.Link | forward.Link


def for_command(request: http.Request, stdio: Stdio) -> Agreed:
    """:raises BadRequest: the client cannot be served."""
    if _kind(request) == _SPDY:
        protocol = _chosen(request, tuple(SPDY_COMMANDS))
        # Clients older than the negotiation speak the first version.
        return Agreed(_spdy_answer(protocol), command.SpdyLink(stdio, SPDY_COMMANDS.get(protocol, 1)))
    protocol = _subprotocol(request, tuple(WEBSOCKET_COMMANDS))
    version, encoded = WEBSOCKET_COMMANDS[protocol]
    return Agreed(_websocket_answer(request, protocol), command.WebSocketLink(stdio, version, encoded=encoded))


def for_forward(request: http.Request, ports: Sequence[int]) -> Agreed:
    """:raises BadRequest: the client cannot be served."""
    if _kind(request) == _SPDY:
        return Agreed(_spdy_answer(_chosen(request, (PORT_FORWARD,))), forward.SpdyLink())
    protocol = _subprotocol(request, (TUNNEL, *WEBSOCKET_FORWARDS))
    if protocol == TUNNEL:
        return Agreed(_websocket_answer(request, protocol), forward.TunnelLink())
    if not ports:
        raise http.BadRequest(400, "no port was asked for")
    link = forward.WebSocketLink(ports, encoded=WEBSOCKET_FORWARDS[protocol])
    return Agreed(_websocket_answer(request, protocol), link)


def _kind(request: http.Request) -> str:
    kind = http.upgrade(request)
    if kind not in {_SPDY, _WEBSOCKET}:
        raise http.BadRequest(400, "neither SPDY/3.1 nor websocket")
    if request.method != "GET" and (kind == _WEBSOCKET or request.method != "POST"):
        raise http.BadRequest(405, "wrong method", (("Allow", "GET, POST" if kind == _SPDY else "GET"),))
    return kind


def _chosen(request: http.Request, ours: Sequence[str]) -> str:
    """The client's first that we know; empty where it names none."""
    theirs = request.all(STREAM_PROTOCOL)
    found = next((protocol for protocol in theirs if protocol in ours), "")
    if theirs and not found:
        known = tuple(("X-Accepted-Stream-Protocol-Versions", protocol) for protocol in ours)
        raise http.BadRequest(403, "no stream protocol in common", known)
    return found


def _subprotocol(request: http.Request, ours: Sequence[str]) -> str:
    if request.one("sec-websocket-version") != "13":
        raise http.BadRequest(426, "WebSocket version 13 is expected", (("Sec-WebSocket-Version", "13"),))
    theirs = request.all("sec-websocket-protocol")
    found = next((protocol for protocol in theirs if protocol in ours), "")
    if theirs and not found:
        raise http.BadRequest(403, "no subprotocol in common")
    return found


def _spdy_answer(protocol: str) -> bytes:
    fields = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")]
    return http.answer(101, fields + ([("X-Stream-Protocol-Version", protocol)] if protocol else []))


def _websocket_answer(request: http.Request, protocol: str) -> bytes:
    try:
        accept = websocket.accept_key(request.one("sec-websocket-key"))
    except ValueError:
        raise http.BadRequest(400, "sec-websocket-key is not one") from None
    fields = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Accept", accept)]
    return http.answer(101, fields + ([("Sec-WebSocket-Protocol", protocol)] if protocol else []))
