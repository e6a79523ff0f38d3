"""The words of a QEMU, and the conversation with it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.microvm.vmm.qemu.monitor import Gone, Monitor
from engines.microvm.vmm.qemu.qmp import (
    EVENTS_MAX,
    LINE_MAX,
    Greeting,
    Happened,
    Parser,
    QmpError,
    Refused,
    Returned,
    command,
)
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, InternalError

_GREETING = {
    "QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}
}
_LINES = (
    (_GREETING, Greeting((7, 2, 22))),
    ({"return": {}, "id": 1}, Returned(1, {})),
    ({"return": [{"fd": 3}], "id": 2}, Returned(2, [{"fd": 3}])),
    ({"error": {"class": "GenericError", "desc": "no"}, "id": 3}, Refused(3, "no")),
    ({"error": {"class": "GenericError", "desc": "what?"}}, Refused(-1, "what?")),
    (
        {"event": "SHUTDOWN", "timestamp": {"seconds": 1, "microseconds": 2}, "data": {"guest": True}},
        Happened("SHUTDOWN", {"guest": True}),
    ),
    ({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}, Happened("STOP", {})),
)


@given(st.lists(st.integers(min_value=1, max_value=40)))
def test_a_conversation_is_read_however_it_is_cut(cuts: list[int]) -> None:
    text = b"".join(json.dumps(line).encode() + b"\r\n" for line, _ in _LINES)
    parser, found, at = Parser(), [], 0
    for size in [*cuts, len(text)]:
        found += parser.feed(text[at : at + size])
        at += size
    assert found == [message for _, message in _LINES]


@given(st.binary(max_size=200))
def test_what_no_qemu_says_is_an_error_and_nothing_else(data: bytes) -> None:
    try:
        Parser().feed(data + b"\n")
    except QmpError:
        pass
    else:
        assert not data.strip()


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        "1",
        '{"id": 1}',
        '{"return": {}, "id": "1"}',
        '{"error": "x"}',
        '{"QMP": {}}',
        '{"event": 1}',
        "[" * 99999,
    ],
)
def test_a_line_that_is_no_message_is_refused(line: str) -> None:
    with pytest.raises(QmpError):
        Parser().feed(line.encode() + b"\n")


def test_a_line_without_end_is_refused() -> None:
    parser = Parser()
    with pytest.raises(QmpError, match="longer"):
        for _ in range(LINE_MAX // 1000 + 2):
            parser.feed(b"x" * 1000)


def test_a_command_is_one_line() -> None:
    said = command("add-fd", 7, {"fdset-id": 1, "opaque": "a\nb"})
    assert said.count(b"\n") == 1
    assert json.loads(said) == {"execute": "add-fd", "id": 7, "arguments": {"fdset-id": 1, "opaque": "a\nb"}}


class Peer:
    """Answers as it is told, line by line, in a thread."""

    def __init__(self, answer: Callable[[dict[str, object], list[int]], list[object]]) -> None:
        self.ours, self._theirs = socket.socketpair()
        self._answer = answer
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._theirs:
            self._say([_GREETING])
            rest = b""
            while True:
                data, fds, _, _ = socket.recv_fds(self._theirs, 65536, 8)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    asked = json.loads(line)
                    said = [{"return": {}, "id": asked["id"]}]
                    if asked["execute"] != "qmp_capabilities":
                        said = self._answer(asked, fds)
                    self._say(said)
                    if not said:
                        return

    def _say(self, lines: list[object]) -> None:
        self._theirs.sendall(b"".join(json.dumps(line).encode() + b"\r\n" for line in lines))


@pytest.fixture
def met() -> Iterator[Callable[[Callable[[dict[str, object], list[int]], list[object]]], Monitor]]:
    made: list[Monitor] = []

    def meet(answer: Callable[[dict[str, object], list[int]], list[object]]) -> Monitor:
        monitor = Monitor(Peer(answer).ours)
        made.append(monitor)
        monitor.greet(soon())
        return monitor

    yield meet
    for monitor in made:
        monitor.close()


def soon() -> Deadline:
    return Deadline.after(10)


def test_an_answer_is_found_among_events_and_answers_to_others(met) -> None:
    monitor = met(
        lambda asked, _: [
            {"event": "STOP"},
            {"return": "old", "id": 1},
            {"return": {"x": 1}, "id": asked["id"]},
            {"event": "RESUME"},
        ]
    )
    assert monitor.execute("stop", soon()) == {"x": 1}
    monitor.wait(lambda event: event.name == "RESUME", "go on", soon())
    assert monitor.events() == [Happened("STOP", {})]
    assert monitor.events() == []


def test_a_descriptor_goes_with_its_command(met) -> None:
    seen: list[str] = []

    def answer(asked: dict[str, object], fds: list[int]) -> list[object]:
        seen.extend(os.readlink(f"/proc/self/fd/{fd}") for fd in fds)
        return [{"return": {}, "id": asked["id"]}]

    null = os.open("/dev/null", os.O_RDONLY)
    met(answer).execute("add-fd", soon(), {"fdset-id": 1}, fd=null)
    os.close(null)
    assert seen == ["/dev/null"]


def test_what_is_refused_is_an_error_with_the_reason(met) -> None:
    monitor = met(lambda asked, _: [{"error": {"class": "GenericError", "desc": "no such disk"}, "id": asked["id"]}])
    with pytest.raises(InternalError, match="refuses device_del: no such disk") as error:
        monitor.execute("device_del", soon())
    assert not isinstance(error.value, Gone)


def test_one_that_hangs_up_is_gone_and_stays_gone(met) -> None:
    monitor = met(lambda _, __: [])
    for _ in range(2):
        with pytest.raises(Gone):
            monitor.execute("stop", soon())
    with pytest.raises(Gone):
        monitor.events()


def test_one_that_says_nothing_is_waited_for_no_longer_than_the_deadline(met) -> None:
    monitor = met(lambda _, __: [{"event": "STOP"}])
    with pytest.raises(DeadlineExceeded):
        monitor.execute("stop", Deadline.after(0.05))
    with pytest.raises(DeadlineExceeded):
        monitor.wait(lambda event: event.name == "RESUME", "go on", Deadline.after(0.05))


def test_one_that_never_stops_talking_is_heard_no_longer_than_the_deadline() -> None:
    ours, theirs = socket.socketpair()
    over = threading.Event()

    def talk() -> None:
        with theirs, contextlib.suppress(OSError):
            while not over.is_set():
                theirs.sendall(b'{"return":{},"id":99}\r\n' * 1000)

    talker = threading.Thread(target=talk, daemon=True)
    talker.start()
    with ours:
        monitor = Monitor(ours)
        with pytest.raises(DeadlineExceeded):
            monitor.execute("stop", Deadline.after(0.05))
        with pytest.raises(DeadlineExceeded):
            monitor.wait(lambda event: event.name == "RESUME", "go on", Deadline.after(0.05))
        over.set()
    talker.join(10)
    assert not talker.is_alive()


def test_events_without_end_are_no_qemus(met) -> None:
    monitor = met(lambda _, __: [{"event": "STOP"}] * (EVENTS_MAX + 10))
    with pytest.raises(Gone, match="events at once"):
        monitor.execute("stop", soon())
    poll = select.poll()
    poll.register(monitor, select.POLLIN)
    assert poll.poll(0), "nobody who polls it comes to know"
    assert len(monitor.events()) > EVENTS_MAX
    with pytest.raises(Gone):
        monitor.events()
