"""The keeper's end of the channel, whatever comes: an answer to what was asked, or the end of the machine."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.microvm.keeper import agent as agents
from engines.microvm.keeper import orders
from engines.microvm.keeper import pod as pods
from engines.microvm.keeper.agent import Agent, AgentSilent, ChannelEnded
from engines.microvm.keeper.command import Guest
from engines.microvm.keeper.pod import Pod
from engines.microvm.wire import fields, frames, messages
from engines.microvm.wire.fields import ProtocolError
from engines.microvm.wire.frames import Receiver, Side
from engines.microvm.wire.messages import Exited, Failed
from engines.microvm.wire.protocol import STDIN, STDOUT, WINDOW, Kind
from forgeone_shim.shim.loop import Loop

_EXITED = fields.encode(Exited(code=3))


class Channel:
    """An agent's two ends, and one process with its input and output as pipes of ours."""

    def __init__(self) -> None:
        self.loop = Loop()
        ours, self.theirs = socket.socketpair()
        self.notes: list[str] = []
        self.agent = Agent(self.loop, ours, self.notes.append)
        give, self.input = os.pipe2(os.O_CLOEXEC)
        self.output, take = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.ends: list[Exited] = []
        self.guest = Guest(self.loop, self.agent, {STDIN: give, STDOUT: take}, self.ends.append)
        self.answers: list[bytes | Failed] = []
        self.agent.request(Kind.HELLO, b"", self.answers.append)
        self.guest.made()

    def turn(self) -> None:
        """Until nothing more happens."""
        for _ in range(200):
            self.loop.turn(0)

    def close(self) -> None:
        self.guest.close()
        self.agent.close()
        self.theirs.close()
        os.close(self.input)
        os.close(self.output)


@pytest.fixture
def channel() -> Iterator[Channel]:
    made = Channel()
    yield made
    made.close()


def test_an_answer_comes_to_who_asked(channel: Channel) -> None:
    channel.theirs.send(frames.frame(Kind.REPLY, 1, b"fields"))
    channel.turn()
    assert channel.answers == [b"fields"]
    assert channel.agent.wait() is None


def test_output_is_passed_on_and_its_end_is_told_after_it(channel: Channel) -> None:
    number = channel.guest.number
    data = frames.frame(Kind.DATA, frames.stream(number, STDOUT), b"out")
    channel.theirs.send(data + frames.frame(Kind.EXITED, number, _EXITED))
    channel.turn()
    assert os.read(channel.output, 10) == b"out"
    assert os.read(channel.output, 10) == b""
    assert channel.ends == [Exited(code=3)]


def test_credit_comes_as_output_is_read_and_not_before(channel: Channel) -> None:
    stream = frames.stream(channel.guest.number, STDOUT)
    piece = frames.frame(Kind.DATA, stream, bytes(32768))
    channel.theirs.setblocking(False)
    for _ in range(WINDOW // 32768):
        channel.theirs.send(piece)
        channel.turn()
    heard = channel.theirs.recv(1 << 20)
    assert heard == frames.frame(Kind.HELLO, 1)
    left = WINDOW
    while left:
        left -= len(os.read(channel.output, 65536))
        channel.turn()
    assert channel.theirs.recv(1 << 20) == frames.credit(stream, WINDOW // 4) * 4


def test_input_waits_for_credit(channel: Channel) -> None:
    os.set_blocking(channel.input, False)
    stream = frames.stream(channel.guest.number, STDIN)
    given = sent = 0
    while sent < WINDOW:
        with contextlib.suppress(BlockingIOError):
            given += os.write(channel.input, bytes(65536))
        channel.turn()
        sent += len(channel.theirs.recv(1 << 22))
    channel.turn()
    with pytest.raises(BlockingIOError):
        channel.theirs.recv(1, socket.MSG_DONTWAIT)
    channel.theirs.send(frames.credit(stream, WINDOW))
    os.write(channel.input, b"x")
    channel.turn()
    assert channel.theirs.recv(12)


def test_a_guest_that_never_reads_what_it_makes_the_host_say_is_found_out(channel: Channel) -> None:
    with pytest.raises(ProtocolError, match="has not read"):
        for _ in range(1000):
            channel.agent.send(frames.frame(Kind.STATS, 1, bytes(65536)))
    assert not channel.agent.takes_orders
    assert not channel.agent.roomy


def test_an_agent_that_does_not_answer_is_found_out_but_for_what_takes_its_time(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "_SILENCE", 0.0)
    channel.agent.request(Kind.HELLO, b"", channel.answers.append)
    assert channel.agent.wait() == 0
    with pytest.raises(AgentSilent):
        channel.agent.check()
    channel.theirs.send(frames.frame(Kind.REPLY, 1) + frames.frame(Kind.REPLY, 2))
    channel.turn()
    channel.agent.request(Kind.FREEZE, b"", channel.answers.append)
    assert channel.agent.wait() is None
    channel.agent.check()


def test_a_pods_guest_is_told_the_time_now_and_again(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pods, "_CLOCK_SECONDS", 0.0)
    nobody = cast("Any", None)
    vmm = cast("Any", SimpleNamespace(luns=1, slots=0))
    pod = Pod(channel.loop, channel.agent, vmm, nobody, keeper=(0, 0), monitor=(0, 0))
    assert pod.wait() is None
    pod.handle(nobody, orders.Setup(b""), [])
    assert pod.wait() == 0
    before = time.time_ns()
    pod.mind()
    channel.turn()
    *_, told = said_to(channel.theirs)
    assert told.kind is Kind.CLOCK
    assert before <= fields.decode(messages.Clock, told.payload).time <= time.time_ns()


def said_to(end: socket.socket) -> Iterator[frames.Frame]:
    receiver = Receiver(Side.HOST)
    return receiver.received(end.recv_into(receiver.space()))


_NUMBERS = st.sampled_from([0, 1, 2, 4, 5, 6, 7, 4711, (1 << 32) - 1])
_SAID = st.one_of(
    st.binary(max_size=64),
    st.builds(
        lambda kind, ident, payload: struct.pack("<IHHI", len(payload), kind, 0, ident) + payload,
        st.one_of(st.sampled_from([int(kind) for kind in Kind]), st.integers(0, 0xFFFF)),
        _NUMBERS,
        st.one_of(
            st.binary(max_size=40),
            st.just(_EXITED),
            st.integers(0, 1 << 64).map(lambda size: struct.pack("<Q", size & (1 << 64) - 1)),
            st.just(fields.encode(messages.Note(message="note"))),
            st.just(fields.encode(Failed(errno=2, step="s", message="m"))),
        ),
    ),
    st.builds(
        lambda size, kind: struct.pack("<IHHI", size, kind, 0, 1), st.integers(0, (1 << 32) - 1), st.sampled_from(Kind)
    ),
)


@given(st.lists(_SAID, max_size=12))
def test_whatever_a_guest_says_is_taken_or_ends_the_machine(said: list[bytes]) -> None:
    channel = Channel()
    try:
        channel.theirs.sendall(b"".join(said))
        with contextlib.suppress(ProtocolError, ChannelEnded):
            for _ in range(len(said) + 2):
                channel.loop.turn(0)
        # What is left of it is of no use, and costs nothing.
        with contextlib.suppress(ProtocolError, ChannelEnded):
            channel.agent.drain()
        assert len(channel.answers) <= 1
        assert len(channel.ends) <= 1
    finally:
        channel.close()
