"""The agent's core: what becomes of requests, streams and processes."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from engines.microvm.wire import frames
from engines.microvm.wire.fields import encode
from engines.microvm.wire.messages import (
    Create,
    Created,
    Delete,
    Dial,
    Done,
    Exec,
    File,
    Freeze,
    Hello,
    Resize,
    Rootfs,
    Setting,
    Setup,
    Signal,
    Start,
    Stats,
    StatsReply,
    StatsRequest,
    Update,
)
from engines.microvm.wire.protocol import DATA_MAX, STDERR, STDIN, STDOUT, VERSION, WINDOW, Kind
from tests.unit.microvm.agents import Agent, Failure, Output, program


@pytest.fixture
def agent(agent_binary: Path) -> Iterator[Agent]:
    one = Agent(agent_binary)
    try:
        yield one
    finally:
        one.close()


@pytest.fixture
def pod(agent: Agent) -> Agent:
    """One that is a pod's, with a container ``c`` whose process 1 echoes."""
    agent.setup()
    agent.create("c", "cat", number=1, stdin=True)
    agent.start("c")
    return agent


def test_it_greets_whoever_speaks_its_version(agent: Agent) -> None:
    greeting = agent.ask(Kind.HELLO, Hello(version=VERSION))
    assert greeting.version == VERSION
    with pytest.raises(Failure) as caught:
        agent.ask(Kind.HELLO, Hello(version=VERSION + 1))
    assert caught.value.what.errno == errno.EPROTONOSUPPORT


def test_there_are_no_containers_before_the_machine_is_a_pods_and_it_is_once(agent: Agent) -> None:
    agent.ask(Kind.QUIESCE, Done())
    with pytest.raises(Failure) as caught:
        agent.ask(Kind.STATS, StatsRequest())
    assert caught.value.what.errno == errno.EPERM
    agent.setup()
    with pytest.raises(Failure) as caught:
        agent.setup()
    assert caught.value.what.errno == errno.EALREADY
    with pytest.raises(Failure, match="pod's already"):
        agent.ask(Kind.QUIESCE, Done())


def test_a_setup_that_failed_is_not_tried_again(agent: Agent) -> None:
    setup = Setup(time=1, entropy=bytes(32), hostname="refused", machine_id="0" * 32)
    with pytest.raises(Failure, match="as it was told"):
        agent.ask(Kind.SETUP, setup)
    with pytest.raises(Failure) as caught:
        agent.setup()
    assert caught.value.what.errno == errno.EALREADY


def test_a_container_runs_when_it_is_started_and_its_end_comes_after_all_it_said(agent: Agent) -> None:
    agent.setup()
    agent.create("c", "sh", "-c", "echo out; echo err >&2; exit 3", number=1)
    assert not agent.step(0.05)
    agent.start("c")
    assert agent.wait(1) == (3, b"out\n", b"err\n")
    assert agent.outputs[1].ended == {STDOUT, STDERR}


def test_a_signals_number_is_told(pod: Agent) -> None:
    pod.ask(Kind.SIGNAL, Signal(container="c", signo=15))
    assert pod.wait(1)[0] == 128 + 15
    with pytest.raises(Failure) as caught:
        pod.ask(Kind.SIGNAL, Signal(process=1, signo=15))
    assert caught.value.what.errno == errno.ESRCH


def test_much_goes_in_and_comes_out_as_it_was(pod: Agent) -> None:
    data = bytes(range(256)) * 8192
    pod.write(1, data)
    pod.end(1)
    code, out, _ = pod.wait(1)
    assert code == 0
    assert out == data


def test_what_a_process_does_not_read_waits_and_holds_up_nobody(pod: Agent) -> None:
    pod.execute("c", "sleep", "60", number=2, stdin=True)
    pod.write(2, bytes(WINDOW))
    assert pod.outputs[2].window.left == 0
    pod.execute("c", "echo", "hello", number=3)
    assert pod.wait(3) == (0, b"hello\n", b"")
    pod.ask(Kind.SIGNAL, Signal(process=2, signo=9))
    assert pod.wait(2)[0] == 137


def test_input_waits_for_a_slow_reader_and_its_end_comes_last(pod: Agent) -> None:
    data = bytes(range(256)) * (WINDOW // 256)
    pod.execute("c", "sh", "-c", "sleep 0.2; cat", number=2, stdin=True)
    pod.write(2, data)
    pod.end(2)
    assert pod.wait(2) == (0, data, b"")


def test_a_stream_without_credit_says_no_more_than_its_window_and_another_goes_on(pod: Agent) -> None:
    pod.grants = False
    pod.execute("c", "head", "-c", str(4 * WINDOW), "/dev/zero", number=2)
    while len(pod.outputs[2].streams[STDOUT]) < WINDOW:
        assert pod.step()
    assert not pod.step(0.05)
    pod.execute("c", "echo", "hello", number=3)
    assert pod.wait(3) == (0, b"hello\n", b"")
    pod.outputs[2].allowances[STDOUT].left += 5
    pod.send(frames.credit(frames.stream(2, STDOUT), 5))
    assert pod.step()
    assert len(pod.outputs[2].streams[STDOUT]) == WINDOW + 5
    assert not pod.step(0.05)


def test_floods_share_the_channel_alike(pod: Agent) -> None:
    for number in (2, 3, 4):
        pod.execute("c", "cat", "/dev/zero", number=number)
    outputs = [pod.outputs[number].streams[STDOUT] for number in (2, 3, 4)]
    while not all(outputs):
        assert pod.step()
    for output in outputs:
        output.clear()
    while sum(map(len, outputs)) < 16 * 1024 * 1024:
        assert pod.step()
    # As far as the processes themselves are let run alike.
    assert max(map(len, outputs)) < 8 * min(map(len, outputs))


def test_whoever_is_left_behind_with_a_stream_does_not_hold_up_its_end(pod: Agent) -> None:
    pod.execute("c", "sh", "-c", "echo said; sleep 60 & echo $! >&2", number=2)
    begin = time.monotonic()
    code, out, err = pod.wait(2)
    assert (code, out) == (0, b"said\n")
    assert time.monotonic() - begin < 10
    pod.execute("c", "kill", err.decode().strip(), number=3)
    assert pod.wait(3)[0] == 0


def test_nor_does_whoever_floods_it(pod: Agent) -> None:
    pod.execute("c", "sh", "-c", "echo said >&2; cat /dev/zero & exit 3", number=2)
    code, _, err = pod.wait(2)
    assert (code, err) == (3, b"said\n")


def test_what_was_said_before_an_end_comes_whole_however_late_it_is_granted(pod: Agent) -> None:
    pod.grants = False
    pod.execute("c", "head", "-c", str(WINDOW + 5000), "/dev/zero", number=2)
    while STDERR not in pod.outputs[2].ended:
        assert pod.step()
    assert len(pod.outputs[2].streams[STDOUT]) == WINDOW
    pod.outputs[2].allowances[STDOUT].left += WINDOW
    pod.send(frames.credit(frames.stream(2, STDOUT), WINDOW))
    code, out, _ = pod.wait(2)
    assert (code, len(out)) == (0, WINDOW + 5000)


def test_a_terminal_has_one_stream_its_size_and_a_line_discipline(pod: Agent) -> None:
    pod.execute("c", "sh", "-c", "read line; stty size; exec cat", number=2, tty=True, stdin=True)
    pod.send(frames.message(Kind.RESIZE, 2, Resize(width=120, height=40)))
    pod.write(2, b"go\nmore\n\x04")
    code, out, err = pod.wait(2)
    assert (code, err) == (0, b"")
    assert b"40 120\r\n" in out
    assert out.endswith(b"more\r\n")


def test_a_size_that_is_told_before_the_terminal_is_there_is_kept_for_it(pod: Agent) -> None:
    pod.outputs[2] = Output()
    what = Exec(container="c", program=program("sh", "-c", "sleep 0.1; stty size", tty=True), process=2)
    pod.id += 1
    both = frames.message(Kind.EXEC, pod.id, what) + frames.message(Kind.RESIZE, 2, Resize(width=120, height=40))
    pod.send(both)
    pod.answer(pod.id, Created)
    assert pod.wait(2) == (0, b"40 120\r\n", b"")


def test_what_is_said_of_what_has_ended_is_passed_over(pod: Agent) -> None:
    pod.execute("c", "true", number=2)
    assert pod.wait(2)[0] == 0
    pod.send(frames.frame(Kind.DATA, frames.stream(2, STDIN), b"x") + frames.frame(Kind.EOF, frames.stream(2, STDIN)))
    pod.send(frames.credit(frames.stream(2, STDOUT), 7) + frames.message(Kind.RESIZE, 2, Resize(width=1, height=1)))
    pod.ask(Kind.HELLO, Hello(version=VERSION))


def test_input_for_a_process_without_any_is_taken_and_dropped(pod: Agent) -> None:
    pod.execute("c", "sh", "-c", "cat; sleep 0.2", number=2)
    pod.write(2, bytes(2 * WINDOW))
    assert pod.wait(2) == (0, b"", b"")


def test_a_number_is_one_processs(pod: Agent) -> None:
    with pytest.raises(Failure) as caught:
        pod.ask(Kind.EXEC, Exec(container="c", program=program("true"), process=1))
    assert (caught.value.what.errno, caught.value.what.field) == (errno.EEXIST, "process")
    with pytest.raises(Failure, match="process: is missing"):
        pod.ask(Kind.EXEC, Exec(container="c", program=program("true")))
    with pytest.raises(Failure) as caught:
        pod.ask(Kind.EXEC, Exec(container="other", program=program("true"), process=9))
    assert (caught.value.what.errno, caught.value.what.field) == (errno.ENOENT, "container")


def test_a_create_that_fails_leaves_its_number_free(pod: Agent) -> None:
    with pytest.raises(Failure) as caught:
        pod.create("c", "true", number=2)
    assert (caught.value.what.errno, caught.value.what.field) == (errno.EEXIST, "container")
    pod.execute("c", "true", number=2)
    assert pod.wait(2)[0] == 0


def test_a_process_that_is_not_ready_holds_up_nobody_until_it_is_given_up(pod: Agent) -> None:
    stuck = pod.asked(Kind.EXEC, Exec(container="c", program=program("stuck", "300"), process=2))
    pod.execute("c", "echo", "hello", number=3)
    assert pod.wait(3) == (0, b"hello\n", b"")
    assert stuck not in pod.answers
    with pytest.raises(Failure) as caught:
        pod.answer(stuck, Created)
    assert caught.value.what.errno == errno.ETIMEDOUT
    with pytest.raises(Failure) as caught:
        pod.create("d", "stuck", "1", number=2)
    assert caught.value.what.errno == errno.ETIMEDOUT
    pod.create("d", "true", number=2)


def test_nor_is_it_waited_for_when_its_container_or_itself_has_ended(pod: Agent) -> None:
    stuck = [pod.asked(Kind.EXEC, Exec(container="c", program=program("stuck", "60000"), process=n)) for n in (2, 3, 4)]
    pod.outputs[2] = Output()
    pod.ask(Kind.SIGNAL, Signal(process=2, signo=9))
    assert pod.answer(stuck[0], Created)
    assert pod.wait(2)[0] == 137
    making = Create(container="d", rootfs=Rootfs(lun=0, fstype="erofs"), program=program("stuck", "60000"), process=5)
    unmade = pod.asked(Kind.CREATE, making)
    with pytest.raises(Failure, match="there is no container d"):
        pod.start("d")
    pod.end(1)
    assert pod.wait(1)[0] == 0
    pod.ask(Kind.DELETE, Delete(container="c"))
    for ident in stuck[1:]:
        with pytest.raises(Failure) as caught:
            pod.answer(ident, Created)
        assert caught.value.what.errno == errno.ESRCH
    assert unmade not in pod.answers


def test_a_container_that_cannot_be_ended_holds_up_nobody(pod: Agent) -> None:
    pod.create("hung", "sleep", "60", number=2)
    hung = pod.asked(Kind.DELETE, Delete(container="hung"))
    with pytest.raises(Failure, match="being deleted"):
        pod.ask(Kind.DELETE, Delete(container="hung"))
    pod.execute("c", "true", number=3)
    assert pod.wait(3)[0] == 0
    assert hung not in pod.answers
    with pytest.raises(Failure, match="cannot be killed"):
        pod.answer(hung, Done)
    pod.ask(Kind.SIGNAL, Signal(process=2, signo=9))
    assert pod.wait(2)[0] == 137


def test_nothing_comes_of_a_container_after_the_answer_to_its_deletion(pod: Agent) -> None:
    pod.execute("c", "cat", "/dev/zero", number=2)
    pod.grants = False
    while len(pod.outputs[2].streams[STDOUT]) < WINDOW:
        assert pod.step()
    pod.ask(Kind.DELETE, Delete(container="c"))
    assert [pod.outputs[number].exited is not None for number in (1, 2)] == [True, True]
    assert pod.outputs[1].exited.code == 137  # type: ignore[union-attr]
    pod.create("c", "echo", "again", number=1)
    pod.start("c")
    assert pod.wait(1) == (0, b"again\n", b"")


def test_a_container_is_measured_changed_and_stopped_in_its_tracks(pod: Agent) -> None:
    reply = pod.ask(Kind.STATS, StatsRequest(containers=("c", "unknown")))
    machine = (File(name="/proc/self/comm", content=b"agent\n"),)
    assert reply == StatsReply(containers=(Stats(container="c", processes=1, state="running"),), files=machine)
    pod.ask(Kind.UPDATE, Update(container="c", cgroup=(Setting(name="cpu.weight", value="5"),)))
    assert pod.notes.pop() == "cpu.weight=5"
    pod.ask(Kind.FREEZE, Freeze(container="c", on=True))
    pod.write(1, b"x")
    assert not pod.step(0.05)
    pod.ask(Kind.FREEZE, Freeze(container="c", on=False))
    pod.end(1)
    assert pod.wait(1) == (0, b"x", b"")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_connection_goes_to_the_loopback_of_either_family(pod: Agent, family: socket.AddressFamily) -> None:
    with socket.socket(family) as server:
        server.bind(("127.0.0.1" if family is socket.AF_INET else "::1", 0))
        server.listen()
        pod.outputs[7] = Output()
        pod.ask(Kind.DIAL, Dial(process=7, port=server.getsockname()[1]))
        connection, _ = server.accept()
        with connection:
            pod.write(7, b"ping")
            assert connection.recv(10) == b"ping"
            pod.end(7)
            assert connection.recv(10) == b""
            connection.sendall(b"x" * (2 * DATA_MAX))
    assert pod.wait(7) == (0, b"x" * (2 * DATA_MAX), b"")


def test_a_connection_is_refused_or_hung_up(pod: Agent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        pod.outputs[7] = Output()
        pod.ask(Kind.DIAL, Dial(process=7, port=port))
        connection, _ = server.accept()
        with connection:
            pod.ask(Kind.SIGNAL, Signal(process=7, signo=9))
            assert pod.wait(7)[0] == 0
            assert connection.recv(10) == b""
    with pytest.raises(Failure) as caught:
        pod.ask(Kind.DIAL, Dial(process=8, port=port))
    assert caught.value.what.errno == errno.ECONNREFUSED
    assert f"port {port}" in caught.value.what.message


def test_requests_in_one_piece_are_answered_each(pod: Agent) -> None:
    count = 300
    asked = [pod.asked(Kind.STATS, StatsRequest()) for _ in range(count)]
    for ident in asked:
        pod.answer(ident, StatsReply)


def test_it_goes_off_when_it_is_told_to(pod: Agent) -> None:
    pod.ask(Kind.POWEROFF, Done())
    assert pod.gone()


@pytest.mark.parametrize(
    "data",
    [
        frames.header(Kind.REPLY, 1, 0),
        frames.header(Kind.DATA, 1, 1) + b"x",
        frames.header(Kind.DATA, 4, 0),
        frames.header(Kind.EOF, 4, 1) + b"x",
        frames.header(Kind.HELLO, 1, 0xFFFFFFFF),
        frames.frame(Kind.DATA, 4, bytes(DATA_MAX)) * (WINDOW // DATA_MAX + 1),
        frames.frame(Kind.CREDIT, 5, struct.pack("<Q", 1)),
        frames.frame(Kind.CREDIT, 5, struct.pack("<Q", 1 << 63)),
        frames.frame(Kind.RESIZE, 1, b"x"),
        struct.pack("<IHHI", 0, Kind.POWEROFF, 1, 1),
    ],
)
def test_a_host_that_does_not_keep_to_the_protocol_is_told_so_and_left(pod: Agent, data: bytes) -> None:
    pod.ask(Kind.SIGNAL, Signal(process=1, signo=19))
    with suppress(BrokenPipeError, ConnectionResetError):
        pod.send(data)
    assert pod.gone()
    assert len(pod.notes) == 1


def test_a_start_of_what_is_not_there_names_the_field(pod: Agent) -> None:
    ident = pod.asked(Kind.START, Start(container="ghost"))
    with pytest.raises(Failure) as caught:
        pod.answer(ident, Done)
    assert caught.value.what.field == "container"
    assert encode(caught.value.what)
