"""The request that upgrades, what is agreed on, and the tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.streaming import command, forward, handshake, http
from cri.streaming.tokens import Tokens
from engines.base import Stdio
from forgeone_shim.errors import ResourceExhausted

ALL = Stdio(stdin=True, stdout=True, stderr=True)


def request(*fields: tuple[str, str], method: str = "GET", path: str = "/exec/t") -> http.Request:
    lines = [f"{method} {path} HTTP/1.1", "Host: node", *(f"{name}: {value}" for name, value in fields)]
    return http.parse("\r\n".join(lines).encode())


SPDY = (("Connection", "keep-alive, Upgrade"), ("Upgrade", "SPDY/3.1"))
WEBSOCKET = (
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
)


def test_a_head_is_read_once_it_is_whole_and_the_rest_is_the_protocols() -> None:
    data = b"POST /exec/abc?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nX:  y \r\n\r\n\x80\x03"
    for size in range(len(data) - 2):
        assert http.split(data[:size]) is None
    found = http.split(data)
    assert found is not None
    assert (found[0].method, found[0].path, found[0].one("x"), found[1]) == ("POST", "/exec/abc", "y", b"\x80\x03")


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.0\r\nHost: a",
        b"GET  / HTTP/1.1\r\nHost: a",
        b"GET http://a/ HTTP/1.1\r\nHost: a",
        b"GET / HTTP/1.1",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b",
        b"GET / HTTP/1.1\r\nHost : a",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded",
        b"GET / HTTP/1.1\r\nHost: a\nX: b",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \0",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5",
        b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked",
        b"GET / HTTP/1.1\r\nHost: a" + b"\r\nX: y" * 101,
    ],
)
def test_a_request_that_is_not_exactly_one_is_refused(head: bytes) -> None:
    with pytest.raises(http.BadRequest):
        http.parse(head)


def test_a_head_without_end_is_refused() -> None:
    with pytest.raises(http.BadRequest, match="too long"):
        http.split(b"x" * http.MAX_HEAD)


@given(st.binary(max_size=300))
def test_noise_is_refused_or_read(noise: bytes) -> None:
    try:
        http.split(noise + b"\r\n\r\n")
    except http.BadRequest:
        return


@pytest.mark.parametrize(
    ("offered", "version"),
    [("v5.channel.k8s.io, v4.channel.k8s.io", 4), ("v3.channel.k8s.io", 3), ("channel.k8s.io", 1), ("", 1)],
)
def test_spdy_speaks_the_first_version_both_know(offered: str, version: int) -> None:
    fields = (*SPDY, *([("X-Stream-Protocol-Version", offered)] if offered else []))
    agreed = handshake.for_command(request(*fields, method="POST"), ALL)
    assert isinstance(agreed.link, command.SpdyLink)
    assert agreed.answer.startswith(b"HTTP/1.1 101 ")
    name = next(key for key, value in handshake.SPDY_COMMANDS.items() if value == version)
    assert (f"X-Stream-Protocol-Version: {name}\r\n".encode() in agreed.answer) is bool(offered)


@pytest.mark.parametrize("offered", list(handshake.WEBSOCKET_COMMANDS))
def test_websocket_speaks_each_subprotocol(offered: str) -> None:
    fields = (*WEBSOCKET, *([("Sec-WebSocket-Protocol", "x.y, " + offered)] if offered else []))
    agreed = handshake.for_command(request(*fields), ALL)
    assert isinstance(agreed.link, command.WebSocketLink)
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in agreed.answer
    assert (f"Sec-WebSocket-Protocol: {offered}\r\n".encode() in agreed.answer) is bool(offered)


def test_ports_are_forwarded_over_each_protocol() -> None:
    spdy = (*SPDY, ("X-Stream-Protocol-Version", "portforward.k8s.io"))
    tunnel = (*WEBSOCKET, ("Sec-WebSocket-Protocol", handshake.TUNNEL))
    plain = (*WEBSOCKET, ("Sec-WebSocket-Protocol", "v4.channel.k8s.io"))
    assert isinstance(handshake.for_forward(request(*spdy, method="POST"), ()).link, forward.SpdyLink)
    assert isinstance(handshake.for_forward(request(*tunnel), ()).link, forward.TunnelLink)
    assert isinstance(handshake.for_forward(request(*plain), (80,)).link, forward.WebSocketLink)
    with pytest.raises(http.BadRequest, match="no port"):
        handshake.for_forward(request(*plain), ())


@pytest.mark.parametrize(
    ("fields", "method", "status"),
    [
        ((), "GET", 426),
        ((("Connection", "Upgrade"), ("Upgrade", "h2c")), "GET", 400),
        ((*SPDY, ("Upgrade", "websocket")), "POST", 400),
        ((*SPDY, ("X-Stream-Protocol-Version", "v9.channel.k8s.io")), "POST", 403),
        (SPDY, "DELETE", 405),
        (WEBSOCKET, "POST", 405),
        ((*WEBSOCKET, ("Sec-WebSocket-Protocol", "v9.channel.k8s.io")), "GET", 403),
        (WEBSOCKET[:3], "GET", 400),
        ((*WEBSOCKET[:2], ("Sec-WebSocket-Version", "8"), WEBSOCKET[3]), "GET", 426),
    ],
)
def test_a_client_that_cannot_be_served_is_told_why(
    fields: tuple[tuple[str, str], ...], method: str, status: int
) -> None:
    with pytest.raises(http.BadRequest) as caught:
        handshake.for_command(request(*fields, method=method), ALL)
    assert caught.value.status == status


def test_a_token_is_good_once_and_for_its_time_only() -> None:
    now = [0.0]
    tokens: Tokens[str] = Tokens(lifetime=60, clock=lambda: now[0])
    used, late = tokens.issue("a"), tokens.issue("b")
    now[0] = 59.9
    assert tokens.redeem(used) == "a"
    assert tokens.redeem(used) is None
    now[0] = 60.0
    assert tokens.redeem(late) is None
    assert tokens.redeem("made up") is None


def test_no_more_tokens_wait_than_may() -> None:
    now = [0.0]
    tokens: Tokens[int] = Tokens(lifetime=60, limit=2, clock=lambda: now[0])
    tokens.issue(1)
    tokens.issue(2)
    with pytest.raises(ResourceExhausted):
        tokens.issue(3)
    now[0] = 61.0
    assert tokens.redeem(tokens.issue(4)) == 4
