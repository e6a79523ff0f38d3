"""SPDY framing: two ends that talk to each other, in any pieces, and peers that do not play by the rules."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.streaming import spdy
from cri.streaming.spdy import Accepted, Connection, Data, Ended, GoneAway, Opened, ProtocolError, Reset, Status

names = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12)
header_maps = st.dictionaries(
    names, st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30), max_size=8
)


def feed(end: Connection, data: bytes, sizes: list[int]) -> list[spdy.Event]:
    """``data`` in pieces of the given sizes, repeated; neighbouring data of one stream becomes one event."""
    found: list[spdy.Event] = []
    at = turn = 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        for event in end.receive(data[at : at + size]):
            last = found[-1] if found else None
            if isinstance(event, Data) and isinstance(last, Data) and last.stream == event.stream:
                found[-1] = Data(event.stream, last.data + event.data)
            else:
                found.append(event)
        at, turn = at + size, turn + 1
    return found


def opened() -> tuple[Connection, Connection, int]:
    client, server = Connection(client=True), Connection()
    stream = client.open({"streamType": "data"})
    server.receive(client.take())
    return client, server, stream


def test_the_dictionary_is_the_one_every_implementation_has() -> None:
    assert (len(spdy.DICTIONARY), zlib.adler32(spdy.DICTIONARY)) == (1423, 0xE3C6A7C2)


@given(
    st.lists(st.tuples(header_maps, st.binary(max_size=90000)), max_size=4), st.lists(st.integers(1, 7000), min_size=1)
)
def test_what_one_end_says_the_other_hears_in_any_pieces(
    said: list[tuple[dict[str, str], bytes]], sizes: list[int]
) -> None:
    client, server = Connection(client=True), Connection()
    expected: list[spdy.Event] = []
    for headers, body in said:
        stream = client.open(headers)
        client.send(stream, body, fin=True)
        expected += [Opened(stream, headers), *([Data(stream, body)] if body else []), Ended(stream)]
    client.goaway()
    assert feed(server, client.take(), sizes) == [*expected, GoneAway()]


@given(st.binary(max_size=400), st.lists(st.integers(1, 50), min_size=1))
def test_noise_is_refused_or_ignored_but_never_an_accident(noise: bytes, sizes: list[int]) -> None:
    _, server, _ = opened()
    try:
        feed(server, noise, sizes)
    except ProtocolError:
        return


@given(st.binary(max_size=200))
def test_a_header_block_of_noise_is_refused_or_read(noise: bytes) -> None:
    try:
        spdy.parse_headers(noise)
    except ProtocolError:
        return


def test_names_of_headers_are_in_lower_case() -> None:
    client, server = Connection(client=True), Connection()
    client.open({"streamType": "Error"})
    assert server.receive(client.take()) == [Opened(1, {"streamtype": "Error"})]


def test_a_stream_is_answered_and_used_both_ways_until_both_ends_have_ended() -> None:
    client, server, stream = opened()
    server.reply(stream)
    server.send(stream, b"hello")
    client.send(stream, b"", fin=True)
    assert client.receive(server.take()) == [Accepted(stream), Data(stream, b"hello")]
    assert server.receive(client.take()) == [Ended(stream)]
    server.send(stream, b"bye", fin=True)
    server.send(stream, b"nobody hears this")
    assert client.receive(server.take()) == [Data(stream, b"bye"), Ended(stream)]


def test_data_after_the_end_of_a_stream_resets_it() -> None:
    client, server, stream = opened()
    client.send(stream, b"", fin=True)
    server.receive(client.take())
    assert server.receive(struct.pack(">II", stream, 3) + b"abc") == []
    assert client.receive(server.take()) == [Reset(stream, Status.STREAM_ALREADY_CLOSED)]


def test_a_reset_stream_is_forgotten() -> None:
    client, server, stream = opened()
    client.reset(stream, Status.CANCEL)
    assert server.receive(client.take()) == [Reset(stream, Status.CANCEL)]
    server.send(stream, b"x")
    assert server.take() == b""


def test_a_ping_is_answered_and_the_answer_is_not() -> None:
    client, server = Connection(client=True), Connection()
    client.ping(7)
    assert server.receive(client.take()) == []
    answer = server.take()
    assert answer == struct.pack(">III", 0x80030006, 4, 7)
    assert client.receive(answer) == []
    assert client.take() == b""


def test_windows_settings_and_unknown_frames_have_no_effect() -> None:
    _, server, stream = opened()
    for kind, body in ((4, bytes(12)), (9, struct.pack(">II", stream, 5)), (77, b"xyz")):
        assert server.receive(struct.pack(">II", 0x80030000 | kind, len(body)) + body) == []
    assert server.take() == b""


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack(">II", 0x80020001, 10) + bytes(10),  # SPDY/2
        struct.pack(">II", 0x80030001, 0xFFFFFF),  # a control frame too long to keep
        struct.pack(">II", 0x80030001, 4) + bytes(4),  # SYN_STREAM cut short
        struct.pack(">II", 0x80030001, 14) + struct.pack(">IIH", 3, 0, 0) + b"junk",  # headers that do not inflate
        struct.pack(">II", 9, 1) + b"x",  # data on a stream never opened
        struct.pack(">II", 0, 1) + b"x",
    ],
)
def test_a_peer_that_breaks_the_rules_is_refused(frame: bytes) -> None:
    _, server, _ = opened()
    with pytest.raises(ProtocolError):
        server.receive(frame)


def test_a_stream_number_is_never_used_again() -> None:
    client, server = Connection(client=True), Connection()
    client.open({})
    client._next = 1
    client.open({})
    with pytest.raises(ProtocolError, match="after 1"):
        server.receive(client.take())


def test_headers_that_inflate_without_end_are_refused() -> None:
    client, server = Connection(client=True), Connection()
    client.open({"bomb": "0" * 1_000_000})
    with pytest.raises(ProtocolError, match="more than"):
        server.receive(client.take())


def test_more_streams_than_may_be_are_refused_one_by_one() -> None:
    client, server = Connection(client=True), Connection()
    for _ in range(spdy.MAX_STREAMS + 1):
        last = client.open({})
    server.receive(client.take())
    assert client.receive(server.take()) == [Reset(last, Status.REFUSED_STREAM)]
