"""Frames of the channel: taken out of any pieces, refused where a side may not send them."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.microvm.wire import frames
from engines.microvm.wire.fields import ProtocolError
from engines.microvm.wire.frames import GRANT, Allowance, Receiver, Side, Window
from engines.microvm.wire.protocol import DATA_MAX, HEADER_SIZE, NUMBER_MAX, REQUEST_MAX, STDIN, STDOUT, WINDOW, Kind


def raw(size: int, kind: int, ident: int, zero: int = 0) -> bytes:
    return struct.pack("<IHHI", size, kind, zero, ident)


def read(receiver: Receiver, data: bytes, sizes: list[int]) -> list[tuple[Kind, int, bytes]]:
    """In pieces of these sizes, as far as there is space."""
    seen, at = [], 0
    while at < len(data):
        space = receiver.space()
        assert len(space) > 0
        size = min(len(space), len(data) - at, sizes[at % len(sizes)])
        space[:size] = data[at : at + size]
        at += size
        seen += [(one.kind, one.id, bytes(one.payload)) for one in receiver.received(size)]
    return seen


SENT = st.one_of(
    st.tuples(st.just(Kind.DATA), st.just(frames.stream(3, STDOUT)), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just(Kind.DATA), st.just(frames.stream(9, STDOUT)), st.just(b"x" * DATA_MAX)),
    st.tuples(st.just(Kind.EOF), st.just(frames.stream(NUMBER_MAX - 1, STDOUT)), st.just(b"")),
    st.tuples(st.just(Kind.REPLY), st.integers(0, (1 << 32) - 1), st.binary(max_size=40)),
    st.tuples(st.just(Kind.REPLY), st.just(1), st.just(bytes(REQUEST_MAX))),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(SENT, max_size=8), st.lists(st.sampled_from((1, 5, 12, 100, 70_000)), min_size=1, max_size=3))
def test_frames_are_the_same_however_their_bytes_arrive(sent: list[tuple[Kind, int, bytes]], sizes: list[int]) -> None:
    receiver = Receiver(Side.AGENT)
    data = b"".join(frames.frame(*one) for one in sent)
    if len(data) > 10_000:
        sizes = [max(size, 5000) for size in sizes]
    assert read(receiver, data, sizes) == sent
    assert not receiver.midway


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(Side), st.binary(max_size=300))
def test_no_bytes_are_too_strange_to_be_refused(side: Side, data: bytes) -> None:
    with suppress(ProtocolError):
        read(Receiver(side), data, [7, 100])


def test_memory_for_a_large_message_is_given_back_after_it() -> None:
    receiver = Receiver(Side.AGENT)
    small = len(receiver.space())
    assert read(receiver, frames.frame(Kind.REPLY, 1, bytes(REQUEST_MAX)), [65536]) == [
        (Kind.REPLY, 1, bytes(REQUEST_MAX))
    ]
    assert len(receiver.space()) == small


def test_a_frame_that_has_begun_is_midway() -> None:
    receiver = Receiver(Side.AGENT)
    read(receiver, frames.frame(Kind.REPLY, 1, b"abc")[:-1], [4])
    assert receiver.midway


@pytest.mark.parametrize(
    ("side", "data"),
    [
        (Side.AGENT, raw(0, Kind.HELLO, 1)),
        (Side.HOST, raw(0, Kind.REPLY, 1)),
        (Side.HOST, raw(0, Kind.NOTE, 1)),
        (Side.AGENT, raw(0, 0, 1)),
        (Side.AGENT, raw(0, 999, 1)),
        (Side.AGENT, raw(0, Kind.REPLY, 1, zero=1)),
        (Side.AGENT, raw(REQUEST_MAX + 1, Kind.REPLY, 1)),
        (Side.AGENT, raw(0xFFFFFFFF, Kind.NOTE, 1)),
        (Side.AGENT, raw(0, Kind.DATA, 1)),
        (Side.AGENT, raw(DATA_MAX + 1, Kind.DATA, 1)),
        (Side.AGENT, raw(1, Kind.EOF, 1)),
        (Side.AGENT, raw(7, Kind.CREDIT, 0)),
        (Side.AGENT, raw(1, Kind.DATA, 4 + STDIN)),
        (Side.AGENT, raw(1, Kind.DATA, 3)),
        (Side.AGENT, raw(8, Kind.CREDIT, 1)),
        (Side.AGENT, raw(1, Kind.DATA, NUMBER_MAX * 4 + 1)),
        (Side.HOST, raw(1, Kind.DATA, 1)),
        (Side.HOST, raw(8, Kind.CREDIT, 0)),
    ],
)
def test_a_frame_that_the_side_does_not_send_is_refused_by_its_header(side: Side, data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read(Receiver(side), data, [HEADER_SIZE])


@pytest.mark.parametrize("size", [0, WINDOW + 1, (1 << 64) - 1])
def test_a_credit_is_some_and_a_window_at_most(size: int) -> None:
    receiver = Receiver(Side.AGENT)
    data = frames.frame(Kind.CREDIT, 0, struct.pack("<Q", size))
    receiver.space()[: len(data)] = data
    (found,) = receiver.received(len(data))
    with pytest.raises(ProtocolError):
        frames.credited(found)


def test_a_side_grants_what_it_has_consumed_and_no_more_can_come() -> None:
    allowance, window = Allowance(), Window()
    allowance.received(WINDOW)
    window.sent(WINDOW)
    with pytest.raises(ProtocolError):
        allowance.received(1)
    assert allowance.consumed(GRANT - 1) == 0
    assert allowance.consumed(1) == GRANT
    window.granted(GRANT)
    assert window.left == allowance.left == GRANT
    window.granted(WINDOW - GRANT)
    with pytest.raises(ProtocolError):
        window.granted(1)
