"""WebSocket framing: two ends that talk to each other, in any pieces, and peers that do not play by the rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.streaming.websocket import Closed, Connection, Event, Piece, ProtocolError, accept_key, masked


def feed(end: Connection, data: bytes, sizes: list[int]) -> list[Event]:
    found: list[Event] = []
    at = turn = 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        found += end.receive(data[at : at + size])
        at, turn = at + size, turn + 1
    return found


def whole(events: list[Event]) -> list[tuple[bool, bytes]]:
    """Messages put together from their pieces."""
    found: list[tuple[bool, bytes]] = []
    for event in events:
        assert isinstance(event, Piece)
        if event.first:
            found.append((event.text, event.data))
        else:
            found[-1] = (event.text, found[-1][1] + event.data)
    return found


@given(
    st.lists(st.tuples(st.booleans(), st.binary(max_size=70000)), max_size=5),
    st.lists(st.integers(1, 9000), min_size=1),
)
def test_what_one_end_says_the_other_hears_in_any_pieces(said: list[tuple[bool, bytes]], sizes: list[int]) -> None:
    for client in (True, False):
        speaker, listener = Connection(client=client), Connection(client=not client)
        for text, body in said:
            speaker.send(body, text=text)
        assert whole(feed(listener, speaker.take(), sizes)) == said


@given(st.binary(max_size=400), st.lists(st.integers(1, 50), min_size=1))
def test_noise_is_refused_or_ignored_but_never_an_accident(noise: bytes, sizes: list[int]) -> None:
    try:
        feed(Connection(), noise, sizes)
    except ProtocolError:
        return


@given(st.binary(max_size=100), st.binary(min_size=4, max_size=4), st.integers(0, 9))
def test_masking_is_its_own_inverse_at_any_offset(data: bytes, mask: bytes, offset: int) -> None:
    assert masked(masked(data, mask, offset), mask, offset) == data
    assert masked(data, mask, offset) == bytes(b ^ mask[(i + offset) % 4] for i, b in enumerate(data))


def test_the_handshake_answer_is_that_of_the_specification() -> None:
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize("key", ["", "dGhl", "!!!!"])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(ValueError):
        accept_key(key)


def test_a_message_in_fragments_with_a_ping_between_them() -> None:
    server = Connection()
    zero = bytes(4)
    data = b"\x01\x82" + zero + b"he" + b"\x89\x81" + zero + b"p" + b"\x80\x83" + zero + b"llo"
    assert server.receive(data) == [Piece(True, b"he", True, False), Piece(True, b"llo", False, True)]
    assert server.take() == b"\x8a\x01p"


def test_a_close_is_answered_and_nothing_is_heard_after_it() -> None:
    client, server = Connection(client=True), Connection()
    client.close()
    client.send(b"too late")
    assert server.receive(client.take()) == [Closed(1000)]
    assert server.receive(b"anything") == []
    assert client.receive(server.take()) == [Closed(1000)]


@pytest.mark.parametrize(
    "frame",
    [
        b"\x82\x01x",  # not masked
        b"\xc2\x80" + bytes(4),  # a reserved bit
        b"\x83\x80" + bytes(4),  # an opcode of the future
        b"\x80\x80" + bytes(4),  # a continuation of nothing
        b"\x02\x80" + bytes(4) + b"\x82\x80" + bytes(4),  # a message within a message
        b"\x09\x80" + bytes(4),  # a ping in fragments
        b"\x89\xfe\x00\x80",  # a ping too long
        b"\x82\xfe\x00\x05",  # a length not in its shortest form
        b"\x82\xff" + b"\xff" * 8,
        b"\x88\x81" + bytes(5),  # half a close code
    ],
)
def test_a_peer_that_breaks_the_rules_is_refused(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        Connection().receive(frame)
