"""The socket between forgeoned and its watch: whole messages, whoever speaks meanwhile, and an end to silence."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.cluster import wire
from forgeone_shim.cluster.session import Session
from forgeone_shim.cluster.wire import Begun, Came, Gone, Heard, Listed, Told, Trouble, Unsaid, Verdict
from forgeone_shim.errors import Unavailable

MESSAGES: list[Told] = [
    Begun(),
    Came("uid", 2**53, {"spec": {"text": "é\n\0", "list": [1, None, True]}}, ""),
    Gone("a"),
    Listed(),
    Heard(),
    Trouble("why\nnot"),
    Unsaid("no"),
]


@pytest.fixture
def ends() -> Iterator[tuple[Session, socket.socket]]:
    ours, theirs = socket.socketpair()
    session = Session(ours, silence=5)
    with ours, theirs:
        yield session, theirs
    session.close()


def test_every_message_comes_as_it_was_sent(ends: tuple[Session, socket.socket]) -> None:
    session, theirs = ends
    theirs.sendall(b"".join(map(wire.line, MESSAGES)))
    assert session.batch() == MESSAGES


def test_half_a_message_waits_for_its_other_half(ends: tuple[Session, socket.socket]) -> None:
    session, theirs = ends
    data = wire.line(Trouble("x" * 100))
    theirs.sendall(wire.line(Heard()) + data[:50])
    assert session.batch() == [Heard()]
    theirs.sendall(data[50:])
    assert session.batch() == [Trouble("x" * 100)]


@pytest.mark.parametrize("data", [b"{}\n", b"\n", b'{"type":"what"}\n', b"[" * 5000 + b"\n", b'{"type":"gone"}\n'])
def test_what_is_no_message_ends_the_session(ends: tuple[Session, socket.socket], data: bytes) -> None:
    session, theirs = ends
    theirs.sendall(data)
    with pytest.raises(Unavailable, match="no message"):
        session.batch()


def test_an_end_is_told_after_what_was_said_before_it(ends: tuple[Session, socket.socket]) -> None:
    session, theirs = ends
    theirs.sendall(wire.line(Heard()) + b'{"type"')
    theirs.close()
    assert session.batch() == [Heard()]
    with pytest.raises(Unavailable, match="has ended"):
        session.batch()


def test_silence_has_an_end() -> None:
    ours, theirs = socket.socketpair()
    session = Session(ours, silence=0.05)
    with ours, theirs, pytest.raises(Unavailable, match=r"nothing for 0\.05 seconds"):
        session.batch()
    session.close()


def test_it_can_be_ended_while_somebody_listens(ends: tuple[Session, socket.socket]) -> None:
    session, _ = ends
    threading.Timer(0.05, session.end).start()
    with pytest.raises(Unavailable, match="has ended"):
        session.batch()


def test_whoever_speaks_meanwhile_disturbs_nobody(ends: tuple[Session, socket.socket]) -> None:
    session, theirs = ends
    verdicts = [Verdict("a" * 60, "uid", number, "") for number in range(200)]
    speakers = [threading.Thread(target=session.say, args=(verdicts,)) for _ in range(3)]
    for one in speakers:
        one.start()
    theirs.sendall(wire.line(Heard()))
    assert session.batch() == [Heard()]
    lines, found = wire.Lines(), 0
    while found < 600:
        for line in lines.feed(theirs.recv(65536)):
            wire.verdict(line)
            found += 1
    for one in speakers:
        one.join()


@given(st.lists(st.binary(max_size=20).map(lambda one: one.replace(b"\n", b"")), max_size=6), st.integers(1, 7))
def test_lines_are_the_same_however_they_come(lines: list[bytes], size: int) -> None:
    data = b"".join(one + b"\n" for one in lines)
    cut, found = wire.Lines(), []
    for start in range(0, len(data), size):
        found += cut.feed(data[start : start + size])
    assert found == lines


def test_a_line_that_never_ends_is_refused() -> None:
    cut = wire.Lines(longest=10)
    cut.feed(b"x" * 10)
    with pytest.raises(ValueError, match="longer than 10"):
        cut.feed(b"x")
