"""The agent's core under a host that says anything: it refuses what Python refuses, and sanitizers keep silent."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.microvm.wire import frames
from engines.microvm.wire.fields import ProtocolError, decode, encode
from engines.microvm.wire.messages import REQUESTS, Delete, Dial, Done, Exec, Failed, Resize, Signal, StatsRequest
from engines.microvm.wire.protocol import WINDOW, Kind, Tag
from tests.unit.microvm.agents import Agent, Failure, Output, program
from tests.unit.microvm.told import messages

ASKED = sorted(set(REQUESTS) - {Kind.POWEROFF})
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.fixture
def agent(agent_binary: Path) -> Iterator[Agent]:
    """One that is no pod's: what is well said is refused for that, and what is not before it."""
    one = Agent(agent_binary)
    try:
        yield one
    finally:
        one.close()


@st.composite
def payloads(draw: st.DrawFn, kind: type[msgspec.Struct]) -> bytes:
    """Of a message, with a few bytes changed, lost, or there twice; or of another's fields."""
    data = bytearray(encode(draw(messages(kind))))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 8))
        what = draw(st.integers(0, 4))
        if what == 0:
            data[at : at + size] = draw(st.binary(min_size=size, max_size=size))
        elif what == 1:
            del data[at : at + size]
        elif what == 2:
            data[at:at] = data[at : at + 14]
        elif what == 3:
            data += struct.pack("<HIQ", draw(st.sampled_from(Tag)), 8, draw(st.integers(0, 3)))
        else:
            data[at:at] = draw(st.sampled_from((b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80")))
    return bytes(data)


def understood(agent: Agent, kind: Kind, payload: bytes) -> bool:
    agent.id += 1
    agent.send(frames.frame(kind, agent.id, payload))
    while agent.id not in agent.answers:
        assert agent.step()
    answer, said = agent.answers.pop(agent.id)
    if answer is Kind.REPLY:
        return True
    failed = decode(Failed, said)
    assert (failed.errno == errno.EBADMSG) == (failed.step == "read the request")
    return failed.errno != errno.EBADMSG


@pytest.mark.parametrize("kind", ASKED, ids=lambda kind: kind.name)
@settings(max_examples=40, deadline=None, suppress_health_check=SLOW)
@given(data=st.data())
def test_both_sides_take_and_refuse_the_same(agent: Agent, kind: Kind, data: st.DataObject) -> None:
    request = REQUESTS[kind][0]
    payload = data.draw(payloads(request))
    try:
        decode(request, payload)
        good = True
    except ProtocolError:
        good = False
    assert understood(agent, kind, payload) == good


def test_a_payload_is_as_large_as_may_be(agent: Agent) -> None:
    field = struct.pack("<HI", Tag.CONTAINER, 1) + b"a"
    assert understood(agent, Kind.STATS, field * (1024 * 1024 // len(field)))


GARBAGE = st.one_of(
    st.binary(min_size=1, max_size=80),
    st.builds(
        lambda size, kind, zero, ident, rest: struct.pack("<IHHI", size, kind, zero, ident) + rest,
        st.integers(0, 40) | st.sampled_from((65536, 65537, 1 << 20, (1 << 20) + 1, 0xFFFFFFFF)),
        st.sampled_from(Kind) | st.integers(0, 0xFFFF),
        st.just(0) | st.integers(0, 0xFFFF),
        st.integers(0, 20) | st.integers(0, 0xFFFFFFFF),
        st.binary(max_size=40),
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(st.lists(GARBAGE, min_size=1, max_size=6))
def test_no_bytes_bring_it_down_but_by_its_own_will(agent_binary: Path, garbage: list[bytes]) -> None:
    agent = Agent(agent_binary)
    agent.outputs = {number: Output() for number in range(32)}
    try:
        agent.setup()
        agent.create("c", "cat", number=1, stdin=True)
        agent.start("c")
        try:
            for one in garbage:
                agent.send(one)
        except (BrokenPipeError, ConnectionResetError):
            assert agent.gone()
    finally:
        agent.close()


STEPS = st.one_of(
    st.tuples(st.just("run"), st.integers(2, 6), st.sampled_from(("cat", "flood", "echo", "both", "sleep"))),
    st.tuples(st.just("write"), st.integers(1, 6), st.integers(1, WINDOW)),
    st.tuples(
        st.sampled_from(("end", "kill", "resize", "credit", "dial", "stuck")), st.integers(1, 6), st.integers(1, 9)
    ),
    st.tuples(st.sampled_from(("delete", "create", "stats")), st.just(1), st.just(0)),
)
PROGRAMS = {
    "cat": ("cat",),
    "flood": ("cat", "/dev/zero"),
    "echo": ("echo", "x"),
    "both": ("sh", "-c", "echo x; echo y >&2; exec cat >&2"),
    "sleep": ("sleep", "60"),
}


class Script:
    """Steps of a host that keeps to the protocol; the agent's harness holds each word against it."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        # What is not answered yet, by its process.
        self.stuck_ones: dict[int, int] = {}
        agent.setup()
        agent.grants = False
        self.create(1, 0)

    def do(self, what: str, number: int, how: Any) -> None:
        self.hear()
        try:
            getattr(self, what)(number, how)
        except Failure as failure:
            assert failure.what.errno in (errno.EEXIST, errno.ENOENT, errno.ESRCH, errno.ECONNREFUSED), failure

    def hear(self) -> None:
        for number, ident in list(self.stuck_ones.items()):
            if ident in self.agent.answers:
                del self.stuck_ones[number]
                if self.agent.answers.pop(ident)[0] is Kind.FAILED:
                    del self.agent.outputs[number]

    def stuck(self, number: int, how: int) -> None:
        if not self.live(number):
            what = Exec(container="c", program=program("stuck", str(how * how), stdin=True), process=number)
            self.agent.outputs[number] = Output()
            self.stuck_ones[number] = self.agent.asked(Kind.EXEC, what)

    def live(self, number: int) -> bool:
        output = self.agent.outputs.get(number)
        return output is not None and output.exited is None

    def create(self, number: int, _: int) -> None:
        if not self.live(number):
            self.agent.create("c", "cat", number=number, stdin=True)
            self.agent.start("c")

    def run(self, number: int, what: str) -> None:
        if not self.live(number):
            self.agent.execute("c", *PROGRAMS[what], number=number, stdin=what != "sleep", tty=number == 6)

    def write(self, number: int, size: int) -> None:
        if self.live(number):
            output = self.agent.outputs[number]
            for _ in range(8):
                some = min(size, output.window.left, 65536)
                if some:
                    self.agent.send(frames.frame(Kind.DATA, number * 4, b"z" * some))
                    output.window.sent(some)

    def end(self, number: int, _: int) -> None:
        self.agent.end(number)

    def kill(self, number: int, signo: int) -> None:
        self.agent.ask(Kind.SIGNAL, Signal(process=number, signo=9 if signo > 4 else 15))

    def resize(self, number: int, size: int) -> None:
        self.agent.send(frames.message(Kind.RESIZE, number, Resize(width=size, height=size)))

    def credit(self, number: int, _: int) -> None:
        if self.live(number):
            for which, allowance in self.agent.outputs[number].allowances.items():
                missing = WINDOW - allowance.left
                if missing:
                    allowance.left += missing
                    self.agent.send(frames.credit(frames.stream(number, which), missing))

    def dial(self, number: int, _: int) -> None:
        self.agent.ask(Kind.DIAL, Dial(process=100 + number, port=1))

    def delete(self, _: int, __: int) -> None:
        self.agent.ask(Kind.DELETE, Delete(container="c"))
        self.hear()
        assert all(output.exited for output in self.agent.outputs.values())

    def stats(self, _: int, __: int) -> None:
        self.agent.ask(Kind.STATS, StatsRequest())


@settings(max_examples=50, deadline=None, suppress_health_check=SLOW)
@given(st.lists(STEPS, max_size=20))
def test_whatever_a_host_does_in_whatever_order_words_are_in_order(
    agent_binary: Path, steps: list[tuple[str, int, Any]]
) -> None:
    agent = Agent(agent_binary)
    try:
        script = Script(agent)
        for step in steps:
            script.do(*step)
        script.do("delete", 1, 0)
        agent.ask(Kind.POWEROFF, Done())
        assert agent.gone()
    finally:
        agent.close()
