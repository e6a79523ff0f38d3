"""Packets with descriptors, long ones, and those that nobody should have sent."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.shim import supervision, wire
from forgeone_shim.shim.supervision import Broken, Ending, Failed, Launched, Ready, Started
from forgeone_shim.shim.wire import Ended, ProtocolError


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        yield left, right


def _open() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size", [0, 1, 65534, 65535, 65536, 2_000_000])
@pytest.mark.parametrize("count", [0, 1, wire.DESCRIPTORS_MAX])
def test_a_message_arrives_as_it_was_sent(pair: tuple[socket.socket, socket.socket], size: int, count: int) -> None:
    before = _open()
    data = os.urandom(size)
    wire.send(pair[0], data, [0] * count)
    message = wire.receive(pair[1])
    assert message.data == data
    assert len(message.fds) == count
    assert all(os.path.sameopenfile(fd, 0) and not os.get_inheritable(fd) for fd in message.fds)
    message.close()
    assert _open() == before


def test_what_is_too_long_is_not_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(ProtocolError, match="longer"):
        wire.send(pair[0], bytes(wire.DATA_MAX + 1))
    with pytest.raises(ProtocolError, match="descriptors"):
        wire.send(pair[0], b"", [0] * (wire.DESCRIPTORS_MAX + 1))


def test_the_end_says_whether_what_was_sent_was_read(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].send(b"x")
    pair[1].close()
    with pytest.raises(Ended) as ended:
        wire.receive(pair[0])
    assert not ended.value.heard
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.send(b"x")
    right.recv(1)
    right.close()
    with left, pytest.raises(Ended) as ended:
        wire.receive(left)
    assert ended.value.heard


@pytest.mark.parametrize("packet", [b"x", b"f", b"z" * 70_000])
def test_what_makes_no_sense_leaves_no_descriptor(pair: tuple[socket.socket, socket.socket], packet: bytes) -> None:
    before = _open()
    for fds in ([], [0, 0], [0] * 100):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        pair[0].sendmsg([packet], rights)
        with pytest.raises(ProtocolError):
            wire.receive(pair[1])
        assert _open() == before


TEXT = st.text(max_size=50)
WORDS = st.one_of(
    st.just(Ready()),
    st.just(Started()),
    st.builds(Broken, error=TEXT, message=TEXT),
    st.builds(Ending, reason=TEXT, message=TEXT),
)
ANSWERS = st.one_of(
    st.builds(Launched, pid=st.integers(1, 1 << 22)), st.builds(Failed, step=TEXT, error=TEXT, message=TEXT)
)


@given(WORDS)
def test_a_containers_words_arrive_as_they_were_said(word: supervision.Word) -> None:
    assert supervision.decode_word(supervision.encode(word)) == word


@given(ANSWERS)
def test_a_supervisors_answer_arrives_as_it_was_said(answer: supervision.Answer) -> None:
    assert supervision.decode_answer(supervision.encode(answer)) == answer


@given(st.binary(max_size=100))
def test_noise_is_neither(data: bytes) -> None:
    for decode in (supervision.decode_word, supervision.decode_answer, supervision.decode_ending):
        with pytest.raises(ProtocolError):
            decode(data)


@given(st.text(max_size=3000), st.integers(0, 4096))
def test_a_text_is_cut_between_characters(text: str, limit: int) -> None:
    short = supervision.shortened(text, limit)
    assert len(short.encode()) <= limit
    assert text.encode(errors="replace").decode().startswith(short)
