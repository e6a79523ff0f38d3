"""Machines whose agent says what none would: they end, their containers' ends are told, and the host holds."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.base import Stdio
from engines.microvm.keeper import orders
from engines.microvm.wire import fields, messages
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, FailedPrecondition, ForgeError, InternalError, ResourceExhausted
from forgeone_shim.kernel.procs import Pidfd
from forgeone_shim.shim import exits
from tests.unit.microvm.keepers import FakeKeepers, Pod, readable, soon

_MEMORY_MAX = 24 << 20


@pytest.fixture(scope="module")
def keepers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeKeepers]:
    made = FakeKeepers(tmp_path_factory.mktemp("zygote"))
    yield made
    made.close()


@pytest.fixture
def pod(keepers: FakeKeepers, tmp_path: Path) -> Iterator[Pod]:
    made = Pod(keepers, tmp_path)
    made.launch()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("huge", "4294967280 bytes"),
        ("kind", "no frame of kind 999"),
        ("request", "no frame of kind 13"),
        ("window", "were granted"),
        ("empty", "0 bytes are not within"),
        ("stranger", "none of number 4711"),
        ("other-stream", "none of number 4711"),
        ("code", "code"),
        ("twice", "none of number"),
        ("reply", "was not asked"),
        ("credit", "input that there is not"),
        ("notes", "far too many"),
        ("letters", "not UTF-8"),
        ("garbage", ""),
    ],
)
def test_what_the_protocol_does_not_have_ends_the_machine(pod: Pod, program: str, message: str) -> None:
    pod.run("c1", "sleep")
    pod.create("c2", "sleep")
    # The command's answer may come too late to be heard.
    with contextlib.suppress(ForgeError), pod.exec("c1", program) as console:
        readable(console.exited)
    assert (pod.ended("c1"), pod.ended("c2")) == (137, 137)
    reason, why = pod.verdict("c1")
    assert reason == orders.GUEST_PROTOCOL
    assert message in why
    pod.gone()
    assert [path.name for path in pod.directory.iterdir()] == [orders.LOG]
    assert (pod.directory / orders.LOG).stat().st_size <= 64 << 10


def test_a_frame_that_never_ends_is_the_end_of_the_channel(pod: Pod) -> None:
    pod.run("c1", "half")
    assert pod.ended("c1") == 137
    assert pod.verdict("c1")[0] == orders.VM_DIED
    pod.gone()


def test_a_guest_that_floods_and_hears_nothing_costs_no_memory(pod: Pod) -> None:
    """Its requests are refused once it has read too little of them."""
    pod.create("c1", "deaf")
    pod.keeper.start("c1", soon())
    huge = fields.encode(messages.StatsRequest(containers=tuple("c" * 120 for _ in range(8000))))
    for _ in range(12):
        with pytest.raises(ForgeError):
            pod.keeper.stats(Deadline.after(0.1), huge)
    with pytest.raises(ForgeError, match="has not read what it was told"):
        pod.keeper.stats(Deadline.after(5), huge)
    assert pod.resident() < _MEMORY_MAX
    # It can always be ended.
    pod.keeper.stop(soon())
    assert pod.ended("c1") == 137


def test_a_guest_that_answers_nothing_keeps_nobody_longer_than_he_waits(pod: Pod) -> None:
    pod.create("c1", "sleep")
    quiet = messages.Setup(time=1, entropy=bytes(32), hostname="quiet", machine_id="0" * 32)
    pod.keeper.setup(fields.encode(quiet), soon())
    with pytest.raises(DeadlineExceeded):
        pod.keeper.delete("c1", Deadline.after(0.2))
    pod.keeper.stop(soon())
    assert pod.ended("c1") == 137


def test_output_that_nobody_reads_waits_in_the_guest(pod: Pod) -> None:
    pod.run("c1", "sleep")
    floods = [pod.exec("c1", "flood", stdio=Stdio(stdout=True, stderr=True)) for _ in range(12)]
    consoles = [flood.__enter__() for flood in floods]
    for console in consoles:
        readable(console.readers[0])
    pod.keeper.look(soon())
    assert pod.resident() < _MEMORY_MAX
    for flood in floods:
        flood.__exit__(None, None, None)
    while pod.keeper.look(soon()).processes > 1:
        pass


def test_what_waits_takes_no_more_than_its_bytes_however_small_its_pieces_are(pod: Pod) -> None:
    pod.run("c1", "sleep")
    with pod.exec("c1", "crumbs", "8", stdio=Stdio(stdout=True, stderr=True)) as console:
        readable(console.readers[0])
        pod.run("c2", "crumbs", "8", log_rate=1024)
        # All has come once what is asked then is answered.
        pod.keeper.stats(soon())
        assert pod.resident() < _MEMORY_MAX


def test_many_that_nobody_reads_take_no_more_than_a_part_of_the_host(
    pod: Pod,
) -> None:
    pod.run("c1", "sleep")
    with contextlib.ExitStack() as stack:
        # More than half of what they say waits, although they have ended.
        consoles = [
            stack.enter_context(pod.exec("c1", "burst", stdio=Stdio(stdout=True, stderr=True))) for _ in range(90)
        ]
        pod.keeper.look(soon())
        assert pod.resident() < _MEMORY_MAX + (72 << 20)
        kept = 0
        for console in consoles:
            with contextlib.suppress(ResourceExhausted):
                kept += console.collect(soon(), 1 << 30).exit_code == 0
        assert 30 < kept < 90
        with pod.exec("c1", "echo", "there") as console:
            assert console.collect(soon(), 100).stdout == b"there\n"


def test_there_is_a_limit_to_what_a_pod_can_have(pod: Pod) -> None:
    pod.run("c1", "sleep")
    lines = []
    with pytest.raises(ForgeError, match="256 connections into"):
        for _ in range(300):
            lines.append(pod.keeper.dial(80, soon()))
    assert len(lines) == 256
    with contextlib.ExitStack() as stack:
        with pytest.raises(ForgeError, match="192 commands executed"):
            for _ in range(300):
                stack.enter_context(pod.exec("c1", "sleep"))
        # The pod's orders are taken all the same.
        pod.run("c2", "echo")
        pod.keeper.signal("c1", signal.SIGTERM, soon())
        assert (pod.ended("c1"), pod.ended("c2")) == (143, 0)
    for line in lines:
        line.close()
    assert pod.keeper.look(soon()).monitor_pid == pod.launched.monitor_pid
    assert pod.resident() < _MEMORY_MAX


def test_notes_are_kept_for_the_operator_as_one_line_each(pod: Pod) -> None:
    pod.run("c1", "note", "first\nsecond \x1b[31m")
    assert pod.ended("c1") == 0
    (line,) = (pod.directory / orders.LOG).read_text().splitlines()
    assert line.endswith("Z first?second ?[31m")


def test_strangers_orders_are_refused(pod: Pod) -> None:
    pod.create("c1", "sleep")
    for data in (b"", b"x", b"i", b"i\x81\xa4kind\xa5start", b"f", b"i" + b"\xff" * 1000):
        with pod.keeper._connect(soon()) as connection:
            connection.send(data)
            readable(connection.fileno())
            assert connection.recv(100) == b""
    assert pod.keeper.look(soon()).alive == ("c1",)


def test_a_hundred_deaths_of_keepers_and_monitors_leave_nothing(keepers: FakeKeepers, tmp_path: Path) -> None:
    for turn in range(100):
        home = tmp_path / str(turn)
        home.mkdir()
        pod = Pod(keepers, home)
        pod.launch()
        pod.run("c1", "sleep")
        victim = pod.launched.pid if turn % 2 else pod.launched.monitor_pid
        # At one point of an order or another.
        with Pidfd(pod.launched.pid) as keeper, Pidfd(pod.launched.monitor_pid) as monitor:
            connection = pod.keeper._connect(soon())
            connection.send(b"i" + orders.encode(orders.Stats()))
            os.kill(victim, signal.SIGKILL)
            assert keeper.wait(20)
            assert monitor.wait(20)
            connection.close()
        found = exits.read_exit(pod.exits, "c1")
        assert (found is None) == bool(turn % 2)
        assert found is None or found.code == 137
        assert not pod.keeper.alive()
        with pytest.raises((FailedPrecondition, InternalError)):
            pod.keeper.stats(soon())
        pod.close()
