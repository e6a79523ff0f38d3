"""A supervisor and a plain function as its container: log, exit file, signals, attach, and every death in between."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from engines.base import LiveState, Output, Verdict
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, FailedPrecondition, InternalError, InvalidInput
from forgeone_shim.kernel.inotify import (
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_DELETE,
    IN_MODIFY,
    IN_MOVED_TO,
    DirectoryEvents,
)
from forgeone_shim.kernel.procs import Pidfd
from forgeone_shim.shim import contract, exits, supervision, wire
from forgeone_shim.shim.client import ForkServer
from forgeone_shim.shim.programs import Program
from tests.unit.shim.containers import ID, PROGRAM, Lab, read, watched
from tests.unit.shim.plain_program import Run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    made = ForkServer(tmp_path_factory.mktemp("server"), PROGRAM)
    yield made
    made.close()


@pytest.fixture
def lab(server: ForkServer, tmp_path: Path) -> Iterator[Lab]:
    made = Lab(server, tmp_path)
    yield made
    made.close()


def test_a_container_is_held_until_it_is_started_and_its_end_is_told(lab: Lab) -> None:
    pid = lab.create("say", "one\ntwo", "wrong\n", "7")
    bundle = str(lab.bundle)
    assert contract.look(bundle).state is LiveState.CREATED
    assert contract.look(bundle).pid == pid
    assert lab.log.read_bytes() == b""
    lab.start()
    assert lab.ended() == 7
    assert sorted(lab.lines()) == [("stderr", "F", b"wrong"), ("stdout", "F", b"one"), ("stdout", "F", b"two")]
    assert contract.look(bundle).state is LiveState.STOPPED
    assert contract.verdict(bundle) is None
    assert not contract.was_oom_killed(bundle)
    contract.forget(bundle)
    assert lab.left() == []
    assert contract.look(bundle).state is LiveState.MISSING


def test_a_container_is_started_once_and_not_when_it_has_ended(lab: Lab) -> None:
    lab.create("sleep")
    lab.start()
    assert not contract.start(str(lab.bundle))
    assert contract.look(str(lab.bundle)).state is LiveState.RUNNING


def test_one_whose_cgroup_is_frozen_is_paused(lab: Lab) -> None:
    lab.create("sleep")
    freezer = lab.home / "freezer"
    freezer.write_text("FROZEN\n")
    assert contract.look(str(lab.bundle), str(freezer)).state is LiveState.CREATED
    lab.start()
    assert contract.look(str(lab.bundle), str(freezer)).state is LiveState.PAUSED
    freezer.write_text("FREEZING\n")
    assert contract.look(str(lab.bundle), str(freezer)).state is LiveState.PAUSED
    freezer.write_text("THAWED\n")
    assert contract.look(str(lab.bundle), str(freezer)).state is LiveState.RUNNING


def test_one_that_died_before_its_start_says_so(lab: Lab) -> None:
    pid = lab.create("sleep")
    os.kill(pid, signal.SIGKILL)
    assert lab.ended() == 137
    with pytest.raises(BrokenPipeError):
        contract.start(str(lab.bundle))


def test_why_it_ended_is_kept(lab: Lab) -> None:
    assert lab.run("exit_with", "134", "WasmTrap", "unreachable " * 1000) == 134
    found = contract.verdict(str(lab.bundle))
    assert found is not None
    assert found.reason == "WasmTrap"
    assert len(found.message.encode()) == supervision.MESSAGE_MAX


def test_how_it_ended_is_told_even_where_why_cannot_be_kept(lab: Lab) -> None:
    lab.create("exit_with", "134", "WasmTrap", "unreachable")
    (lab.bundle / supervision.VERDICT).mkdir()
    lab.start()
    assert lab.ended() == 134
    assert contract.verdict(str(lab.bundle)) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_a_container_that_runs_no_python(lab: Lab, number: int) -> None:
    pid = lab.create("spin")
    lab.start()
    time.sleep(0.05)
    began = time.monotonic()
    os.kill(pid, number)
    assert lab.ended() == 128 + number
    assert time.monotonic() - began < 1


def test_a_signal_ends_one_that_was_never_started(lab: Lab) -> None:
    os.kill(lab.create("spin"), signal.SIGTERM)
    assert lab.ended() == 143


def test_a_container_may_end_by_itself_on_a_signal(lab: Lab) -> None:
    pid = lab.create("graceful")
    with contextlib.closing(lab.attach()) as console:
        lab.start()
        read(console, b"here")
        os.kill(pid, signal.SIGTERM)
        assert lab.ended() == 0
    assert lab.lines()[-1] == ("stdout", "F", b"done")


def test_what_breaks_after_the_start_is_an_end_with_a_reason(lab: Lab) -> None:
    assert lab.run("break_down", "after") == 255
    assert contract.verdict(str(lab.bundle)) == Verdict("EngineError", "ValueError: of no use")


@pytest.mark.parametrize(
    ("function", "words", "error", "text"),
    [
        ("refuse", (), InvalidInput, "command: no such module"),
        ("break_down", ("before",), InternalError, "launch: ValueError: of no use"),
        ("die", (), InternalError, "ended with code 9 before it was ready"),
        ("no_entry", (), InternalError, "enter the container's namespaces: No such file or directory /proc/0/ns/pid"),
    ],
)
def test_what_cannot_be_made_is_an_error_and_leaves_nothing(
    lab: Lab, function: str, words: tuple[str, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=re.escape(text)):
        lab.create(function, *words)
    assert lab.left() == []
    assert list(lab.exits.iterdir()) == []


def test_a_log_that_cannot_be_opened_fails_the_creation(lab: Lab) -> None:
    with pytest.raises(InternalError, match=r"open the log: No such file or directory .*/none/0\.log"):
        lab.create("sleep", log_path=str(lab.home / "none" / "0.log"))
    assert lab.left() == []


def test_processes_are_known_by_their_titles(lab: Lab) -> None:
    pid = lab.create("sleep")
    assert Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0") == [b"forgeone-test", ID.encode()]
    held = exits.find_supervisor(lab.bundle, ID)
    assert held is not None
    with held:
        words = Path(f"/proc/{held.pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    assert words == [b"forgeone-supervisor", ID.encode(), str(lab.bundle).encode()]


def test_a_container_has_no_descriptors_of_others(lab: Lab) -> None:
    assert lab.run("descriptors") == 0
    assert lab.lines() == [("stdout", "F", b"[]")]


def test_what_a_container_says_that_makes_no_sense_harms_nobody(lab: Lab) -> None:
    assert lab.run("lie") == 5
    assert ("stdout", "F", b"still here") in lab.lines()


# Streams


def test_input_goes_to_the_container_and_its_output_to_whoever_is_attached(lab: Lab) -> None:
    lab.create("echo", stdin=True, stdin_once=True)
    with contextlib.closing(lab.attach(stdin=True)) as one, contextlib.closing(lab.attach()) as other:
        lab.start()
        assert one.write(b"hello\n") == 6
        assert read(one, b"hello")[Output.STDOUT] == b"hello\n"
        one.end_input()
        assert read(one)[Output.STDERR] == b"end of input\n"
        assert read(other) == {Output.STDOUT: b"hello\n", Output.STDERR: b"end of input\n"}
    assert lab.ended() == 0
    assert sorted(lab.lines()) == [("stderr", "F", b"end of input"), ("stdout", "F", b"hello")]


def test_input_stays_open_for_the_next_client_unless_it_is_for_one(lab: Lab) -> None:
    lab.create("echo", stdin=True)
    lab.start()
    for word in (b"one\n", b"two\n"):
        with contextlib.closing(lab.attach(stdin=True)) as console:
            console.write(word)
            assert word in read(console, word)[Output.STDOUT]
    assert contract.look(str(lab.bundle)).state is LiveState.RUNNING


def test_a_client_that_goes_ends_the_input_that_is_for_one(lab: Lab) -> None:
    lab.create("echo", stdin=True, stdin_once=True)
    lab.start()
    lab.attach(stdin=True).close()
    assert lab.ended() == 0


def test_input_beyond_what_pipes_hold_arrives_whole(lab: Lab) -> None:
    lab.create("echo", stdin=True, stdin_once=True)
    data = b"".join(b"%07d\n" % number for number in range(100_000))
    got = b""
    with contextlib.closing(lab.attach(stdin=True)) as console:
        lab.start()
        left = memoryview(data)
        while len(got) < len(data):
            poll = select.poll()
            poll.register(console.readers[0], select.POLLIN | (select.POLLOUT if left else 0))
            [(_, events)] = poll.poll(10_000)
            if events & select.POLLOUT:
                left = left[console.write(bytes(left[:8192])) :]
            if events & select.POLLIN:
                found = console.read(console.readers[0])
                got += found[1] if found is not None and found[0] is Output.STDOUT else b""
        console.end_input()
        assert got == data
        assert lab.ended() == 0


def test_a_container_without_input_reads_its_end(lab: Lab) -> None:
    assert lab.run("echo") == 0


def test_a_terminal_is_one_with_a_size_and_an_end(lab: Lab) -> None:
    lab.create("terminal", tty=True, stdin=True, stdin_once=True)
    with contextlib.closing(lab.attach(stdin=True, tty=True)) as console:
        console.resize(123, 45)
        lab.start()
        assert read(console, b"True")[Output.STDOUT].endswith(b"True True True\r\n")
        console.write(b"size\n")
        read(console, b"123x45")
        console.write(b"hello\n")
        read(console, b"<hello>")
        console.end_input()
        read(console)
    assert lab.ended() == 3
    assert ("stdout", "F", b"123x45\r") in lab.lines()


def test_a_slow_client_gets_everything(lab: Lab) -> None:
    lab.create("flood", "x" * 63, "3")
    with contextlib.closing(lab.attach()) as console:
        lab.start()
        time.sleep(0.3)
        got = read(console)[Output.STDOUT]
    assert len(got) == 3 << 20
    assert lab.ended() == 0
    assert len(lab.lines()) == (3 << 20) // 64


# The log


def test_a_long_line_is_logged_in_parts_and_an_unfinished_one_as_it_is(lab: Lab) -> None:
    assert lab.run("say", "x" * 40_000 + "\nrest") == 0
    found = lab.lines()
    assert [(tag, len(text)) for _, tag, text in found] == [("P", 16384), ("P", 16384), ("F", 7232), ("F", 4)]


def test_no_log_path_is_no_log(lab: Lab) -> None:
    assert lab.run("say", "one\n", log_path="") == 0
    assert not lab.log.exists()


def test_a_log_is_opened_anew_when_it_is_asked_for(lab: Lab) -> None:
    lab.create("echo", stdin=True)
    lab.start()
    with contextlib.closing(lab.attach(stdin=True)) as console:
        console.write(b"one\n")
        read(console, b"one")
        lab.log.rename(lab.home / "1.log")
        contract.reopen_log(str(lab.bundle), ID, str(lab.log))
        console.write(b"two\n")
        read(console, b"two")
    assert [text for _, _, text in lab.lines()] == [b"two"]


def test_a_log_at_its_limit_is_begun_anew(lab: Lab) -> None:
    assert lab.run("flood", "x" * 63, "1", log_size_max=100_000) == 0
    assert 0 < lab.log.stat().st_size <= 100_000
    lab.lines()


def test_a_log_with_a_rate_holds_the_container_back_and_loses_nothing(lab: Lab) -> None:
    lab.create("flood", "x" * 63, "1", log_rate=400_000)
    began = time.monotonic()
    lab.start()
    assert lab.ended() == 0
    # The last of it was in the pipe when the container ended, and passes at once.
    assert time.monotonic() - began > 1
    assert len(lab.lines()) == (1 << 20) // 64


def test_a_flood_does_not_stall_and_the_exit_file_comes_after_its_last_line(lab: Lab) -> None:
    lab.create("flood", "x" * 99, "100")
    lab.start()
    began = time.monotonic()
    with watched(lab.exits) as wait:
        wait((lab.exits / ID).exists, 30)
    content = lab.log.read_bytes()
    spent = time.monotonic() - began
    assert content.count(b"\n") == (100 << 20) // (655 * 100) * 655
    print(f"{100 / spent:.0f} MiB/s")
    assert spent < 10
    lab.gone()


def test_an_end_is_told_once(lab: Lab) -> None:
    lab.create("say", "one\n")
    events = DirectoryEvents(lab.exits, IN_CREATE | IN_MODIFY | IN_CLOSE_WRITE | IN_MOVED_TO | IN_DELETE)
    try:
        lab.start()
        assert lab.ended() == 0
        assert events.read().names == (ID,)
    finally:
        events.close()


# Deaths


def test_where_the_supervisor_is_killed_the_container_is_too_and_no_code_is_made_up(lab: Lab) -> None:
    pid = lab.create("spin")
    lab.start()
    with Pidfd(pid) as container:
        held = contract.supervisor(str(lab.bundle), ID)
        assert held is not None
        with held:
            held.send(signal.SIGKILL)
        assert container.wait(5)
    assert list(lab.exits.iterdir()) == []
    assert contract.look(str(lab.bundle)).state is LiveState.STOPPED


def test_the_end_of_the_fork_server_is_nothing_to_a_container(tmp_path: Path) -> None:
    server = ForkServer(tmp_path / "server", PROGRAM)
    lab = Lab(server, tmp_path)
    lab.create("echo", stdin=True, stdin_once=True)
    assert server._child is not None
    with Pidfd(server._child.pid) as held:
        held.send(signal.SIGKILL)
        assert held.wait(5)
    with contextlib.closing(lab.attach(stdin=True)) as console:
        lab.start()
        console.write(b"one\n")
        read(console, b"one")
        console.end_input()
    assert lab.ended() == 0
    (tmp_path / "again").mkdir()
    again = Lab(server, tmp_path / "again")
    assert again.run("say", "two\n") == 0
    server.close()


def test_a_server_that_is_told_to_end_does_not_wait_for_containers(tmp_path: Path) -> None:
    server = ForkServer(tmp_path / "server", PROGRAM)
    lab = Lab(server, tmp_path)
    pid = lab.create("sleep")
    assert server._child is not None
    with Pidfd(server._child.pid) as held:
        server.close()
        assert held.wait(5)
    lab.start()
    os.kill(pid, signal.SIGTERM)
    assert lab.ended() == 143


def test_a_client_that_stops_waiting_leaves_nothing(lab: Lab) -> None:
    where = lab.home / "where"
    with pytest.raises(DeadlineExceeded):
        lab.create("wait_forever", str(where), deadline=0.3)
    contract.stop(str(lab.bundle), ID, 5)
    _gone_of(where)
    assert lab.left() == []
    assert list(lab.exits.iterdir()) == []


def _gone_of(where: Path) -> None:
    for pid in map(int, where.with_name(where.name + ".done").read_text().split()):
        with contextlib.suppress(ProcessLookupError), Pidfd(pid) as held:
            assert held.wait(5)


def test_a_client_that_goes_away_is_noticed_at_once(lab: Lab) -> None:
    deadline = Deadline.after(20)
    where = lab.home / "where"
    with watched(lab.home) as wait:
        failed: list[BaseException] = []

        def ask() -> None:
            try:
                run = msgspec.json.encode(Run(lab.plan(), "wait_forever", (str(where),)))
                lab.server.ask(run, (), deadline)
            except BaseException as error:
                failed.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        wait(where.with_name("where.done").exists, 10)
        deadline.abandon()
        asking.join(2)
    assert isinstance(failed[0], DeadlineExceeded)
    contract.stop(str(lab.bundle), ID, 5)
    _gone_of(where)
    assert lab.left() == []


def test_a_client_that_dies_with_the_answer_unread_leaves_nothing(lab: Lab) -> None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lab.server.ensure()
    connection.connect(str(lab.server._directory / lab.server._socket))
    connection.send(b"i" + msgspec.json.encode(Run(lab.plan(), "sleep")))
    assert select.select([connection], [], [], 10)[0], "the answer is there"
    held = contract.process(str(lab.bundle))
    assert held is not None
    with held:
        connection.close()
        assert held.wait(5)
    lab.gone()
    assert lab.left() == []
    assert list(lab.exits.iterdir()) == []


def test_where_the_supervisor_is_killed_during_creation_the_client_is_told(lab: Lab) -> None:
    where = lab.home / "where"
    with watched(lab.home) as wait:
        failed: list[BaseException] = []

        def ask() -> None:
            try:
                lab.create("wait_forever", str(where))
            except BaseException as error:
                failed.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        wait(where.with_name("where.done").exists, 10)
        contract.stop(str(lab.bundle), ID, 0)
        asking.join(5)
    assert isinstance(failed[0], InternalError)
    with (
        contextlib.suppress(ProcessLookupError),
        Pidfd(int(where.with_name("where.done").read_text().split()[0])) as it,
    ):
        assert it.wait(5)
    # A second attempt in the same bundle is not in the way of what the first one left.
    assert lab.run("say", "one\n") == 0


def test_a_container_without_a_supervisor_takes_no_orders(lab: Lab) -> None:
    lab.create("sleep")
    contract.stop(str(lab.bundle), ID, 0)
    with pytest.raises(FailedPrecondition, match="supervisor"):
        contract.reopen_log(str(lab.bundle), ID, str(lab.log))
    with pytest.raises(FailedPrecondition, match="attach"):
        lab.attach()


# The server


def _memory(pid: int) -> Iterator[bytes]:
    """All that the process may write to."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            place, permissions, *_ = line.split()
            if "w" in permissions:
                first, end = (int(one, 16) for one in place.split("-"))
                memory.seek(first)
                yield memory.read(end - first)


@pytest.mark.parametrize("size", [100, 200_000])
def test_what_one_container_is_told_is_not_in_the_memory_of_the_next(lab: Lab, size: int) -> None:
    mark = os.urandom(8).hex()
    try:
        next(_memory(int(lab.server.ask(b"pid", (), Deadline.after(10))[0])))
    except PermissionError:
        pytest.skip("this kernel lets no process look into another")
    assert lab.run("say", mark * (size // len(mark))) == 0
    server = int(lab.server.ask(b"pid", (), Deadline.after(10))[0])
    assert not [area for area in _memory(server) if mark.encode() in area]


def test_servers_of_two_versions_stay_apart(tmp_path: Path) -> None:
    servers = [ForkServer(tmp_path, Program(PROGRAM.module, PROGRAM.packages, version)) for version in ("1", "2")]
    pids = [server.ask(b"pid", (), Deadline.after(10))[0] for server in servers]
    assert len(set(pids)) == 2
    servers[0].close()
    assert servers[1].ask(b"pid", (), Deadline.after(10))[0] == pids[1]
    servers[1].close()


def test_orders_that_make_no_sense_are_passed_over(lab: Lab) -> None:
    lab.create("terminal", tty=True, stdin=True)
    lab.start()
    for text in (b"\n\xff 1 2\nbanana 1 1\n1 99999999999 1\n1 -1 1\n7 0 0\n2 0", b"x" * 4096, b"y" * 4000, b"\n"):
        fd = os.open(lab.bundle / supervision.CONTROL, os.O_WRONLY)
        os.write(fd, text)
        os.close(fd)
    lab.log.unlink()
    contract.reopen_log(str(lab.bundle), ID, str(lab.log))
    assert lab.log.exists()


def test_a_request_may_bring_descriptors_and_be_long_and_so_may_the_answer(server: ForkServer) -> None:
    read, write = os.pipe()
    data = b"back " + b"x" * 300_000
    answer, fds = server.ask(data, (read, write), Deadline.after(10))
    assert answer == data
    os.write(fds[1], b"!")
    assert os.read(read, 1) == b"!"
    for fd in (read, write, *fds):
        os.close(fd)


def test_there_may_be_more_children_than_the_server_has_descriptors(tmp_path: Path) -> None:
    server = ForkServer(tmp_path / "server", PROGRAM)
    labs: list[Lab] = []
    try:
        pid = int(server.ask(b"pid", (), Deadline.after(10))[0])
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (24, 24))
        for number in range(28):
            (tmp_path / str(number)).mkdir()
            labs.append(Lab(server, tmp_path / str(number)))
            labs[-1].create("sleep")
        _, back = server.ask(b"back ", (0, 1, 2), Deadline.after(10))
        assert len(back) == 3
        wire.close_all(back)
        for lab in labs:
            os.kill(lab.pid, signal.SIGKILL)
            assert lab.ended() == 137
        labs[0].run("say", "x")
        children = Path(f"/proc/{pid}/task/{pid}/children")
        # The last one, maybe, is reaped with the next.
        assert len(children.read_text().split()) <= 1
    finally:
        for lab in labs:
            lab.close()
        server.close()


def test_a_request_that_the_program_does_not_take_ends_the_connection_alone(server: ForkServer) -> None:
    pid = server.ask(b"pid", (), Deadline.after(10))[0]
    with pytest.raises(InternalError, match="without an answer"):
        server.ask(b"no such thing", (), Deadline.after(10))
    assert server.ask(b"pid", (), Deadline.after(10))[0] == pid
