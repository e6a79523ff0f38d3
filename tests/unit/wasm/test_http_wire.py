"""HTTP/1.1 as bytes: what is taken, what is refused, and that no cut of the bytes makes a difference."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.wasm.guest.http import names, wire
from engines.wasm.guest.http.wire import Body, Framing, Malformed


def request(text: bytes) -> wire.Request:
    return wire.parse_request(text.replace(b"\n", b"\r\n"))


def test_a_request_is_taken_apart() -> None:
    got = request(b"POST /a?b=c HTTP/1.1\nHost: h:80\nX-Y:  z \t\nContent-Length: 5\n\n")
    assert (got.method, got.path, got.authority, got.length, got.framing) == (
        "POST",
        "/a?b=c",
        "h:80",
        5,
        Framing.LENGTH,
    )
    assert ("x-y", b"z") in got.headers and got.keep_alive


@pytest.mark.parametrize(
    ("target", "authority", "path"),
    [
        (b"http://b/c?d", "b", "/c?d"),
        (b"http://b", "b", "/"),
        (b"HTTP://b:1?x", "b:1", "/?x"),
        (b"/c", "a", "/c"),
    ],
)
def test_a_target_with_a_host_counts_for_more_than_the_header(target: bytes, authority: str, path: str) -> None:
    got = request(b"GET %b HTTP/1.1\nHost: a\n\n" % target)
    assert (got.authority, got.path) == (authority, path)


@pytest.mark.parametrize(
    ("lines", "keeps"),
    [
        (b" HTTP/1.1\nHost: a\n\n", True),
        (b" HTTP/1.1\nHost: a\nConnection: x, Close\n\n", False),
        (b" HTTP/1.0\n\n", False),
        (b" HTTP/1.0\nConnection: keep-alive\n\n", True),
    ],
)
def test_a_connection_is_kept_as_its_version_and_header_say(lines: bytes, keeps: bool) -> None:
    assert request(b"GET /" + lines).keep_alive is keeps


@pytest.mark.parametrize("line", [b"a:" + b" " * 60_000 + b"\0", b"a:" + b"x " * 30_000 + b"\0", b"a" * 60_000])
def test_a_long_line_that_is_wrong_at_its_end_is_refused_at_once(line: bytes) -> None:
    # Backwards and forwards through 60,000 spaces is a minute in which nobody is served.
    began = time.monotonic()
    with pytest.raises(Malformed):
        wire.parse_request(b"GET / HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n\r\n")
    with pytest.raises(Malformed):
        wire.parse_response(b"HTTP/1.1 200 OK\r\n" + line + b"\r\n\r\n", "GET")
    assert time.monotonic() - began < 1


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parsers(data: bytes) -> None:
    for head in (data + b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n" + data + b"\r\n\r\n"):
        with contextlib.suppress(Malformed):
            wire.parse_request(head)
        with contextlib.suppress(Malformed):
            wire.parse_response(head, "GET")
    body = Body(Framing.CHUNKED)
    body.feed(data)
    with contextlib.suppress(Malformed):
        while body.take(7):
            pass


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=50), max_size=6),
    trailer=st.booleans(),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    limit=st.integers(1, 64),
)
def test_a_chunked_body_is_the_same_however_it_is_cut(
    chunks: list[bytes], trailer: bool, cuts: list[int], limit: int
) -> None:
    trailers = [("a", b"b")] if trailer else None
    encoded = b"".join(map(wire.chunk, chunks)) + wire.last_chunk(trailers) + b"next"
    body, taken, at = Body(Framing.CHUNKED), b"", 0
    while not body.done:
        step = cuts[at % len(cuts)]
        body.feed(encoded[at : at + step])
        at += step
        while part := body.take(limit):
            taken += part
        assert at < len(encoded) + 10
    body.feed(encoded[at:])
    assert taken == b"".join(chunks)
    assert body.trailers == trailers
    assert body.rest() == b"next"


def test_a_body_cut_short_is_no_body() -> None:
    body = Body(Framing.LENGTH, 5)
    body.feed(b"abc")
    assert body.take(10) == b"abc"
    with pytest.raises(Malformed):
        body.end()


def test_a_body_until_the_end_ends_with_the_connection() -> None:
    body = Body(Framing.CLOSE)
    body.feed(b"abc")
    assert body.take(2) == b"ab"
    body.end()
    assert body.take(2) == b"c" and body.done


@pytest.mark.parametrize("status", [101, 204, 304])
def test_some_answers_have_no_body(status: int) -> None:
    assert wire.parse_response(b"HTTP/1.1 %d x\r\nContent-Length: 4\r\n\r\n" % status, "GET").framing is Framing.NONE


def test_resolv_conf_is_read_as_a_kubelet_writes_it() -> None:
    text = "search ns.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5 timeout:1 #x\n"
    resolver = names.parse(text)
    assert resolver.servers == ("10.96.0.10",)
    assert resolver.search == ("ns.svc.cluster.local", "svc.cluster.local")
    assert (resolver.ndots, resolver.timeout) == (5, 1.0)


@given(st.text(max_size=200))
def test_no_text_breaks_the_reading_of_resolv_conf(text: str) -> None:
    assert names.parse(text).servers


@given(st.binary(max_size=100))
def test_no_bytes_break_the_reading_of_an_answer(data: bytes) -> None:
    question = names._question(1, "a.b", 1)
    names._answer(data, question)
    names._answer(question[:2] + b"\x81\x80\0\1\0\2\0\0\0\0" + question[12:] + data, question)
