"""A pod's keeper, with a machine that is none: conmon's contract, orders, and what is left at each end."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.base import LiveState, Output, Stdio
from engines.microvm import client, engine
from engines.microvm.keeper import agent, orders
from engines.microvm.keeper.orders import Driver, Monitor, Save
from engines.microvm.vmm.base import Confinement
from engines.microvm.wire import fields, messages
from engines.microvm.wire.protocol import Kind
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidInput,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from forgeone_shim.kernel.procs import Pidfd
from forgeone_shim.shim import contract, exits, supervision
from forgeone_shim.shim.attach import AttachConsole
from tests.unit.microvm.keepers import FakeKeepers, Pod, created, readable, soon

_SETUP = messages.Setup(time=1, entropy=bytes(32), hostname="pod", machine_id="0" * 32)


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


# Its making


def test_a_keeper_tells_of_itself_its_monitor_and_the_guests_kernel(pod: Pod) -> None:
    assert (pod.launched.release, pod.launched.features) == ("6.1?", ("share",))
    assert pod.keeper.alive()
    title = Path(f"/proc/{pod.launched.pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    assert title[:2] == [orders.TITLE.encode(), b"5" * 64]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("broken", InvalidInput, "kernel: it is none"),
        ("mute", DeadlineExceeded, "before the machine's agent answered"),
        ("newer", InternalError, "speaks version 2"),
    ],
)
def test_of_a_machine_that_does_not_come_up_nothing_is_left(
    keepers: FakeKeepers, tmp_path: Path, wrong: str, error: type[Exception], message: str
) -> None:
    pod = Pod(keepers, tmp_path)
    with pytest.raises(error, match=message):
        pod.launch(wrong, seconds=0.5)
    pod.close()
    assert list(pod.directory.iterdir()) == []


def test_a_launch_that_nobody_waits_for_any_more_is_taken_back(keepers: FakeKeepers, tmp_path: Path) -> None:
    pod = Pod(keepers, tmp_path)
    with pytest.raises(DeadlineExceeded):
        pod.launch("mute", deadline=Deadline.after(0.3))
    held = pod.keeper.process()
    if held is not None:
        with held:
            assert held.wait(20)
    assert list(pod.directory.iterdir()) == []


def test_a_template_is_saved_of_a_machine_that_has_greeted(keepers: FakeKeepers, tmp_path: Path) -> None:
    machine = Pod(keepers, tmp_path).machine()
    asked = Save(
        name="t",
        monitor=Monitor(driver=Driver.QEMU, program="/none"),
        machine=machine,
        who=Confinement(uid=os.getuid(), gid=os.getgid()),
    )
    memory, state = os.memfd_create("memory"), os.memfd_create("state")
    try:
        keepers.save(asked, soon(), memory=memory, state=state)
        assert (os.fstat(memory).st_size, os.pread(state, 10, 0)) == (machine.memory, b"saved")
    finally:
        os.close(memory)
        os.close(state)


# A container's life


def test_a_containers_life_is_told_as_conmon_tells_it(pod: Pod) -> None:
    pid = pod.create("c1", "echo", "hello", "there")
    assert pid == pod.launched.monitor_pid
    assert pod.look("c1") == (found := pod.look("c1"))
    assert (found.state, found.pid) == (LiveState.CREATED, pid)
    pod.keeper.start("c1", soon())
    assert pod.ended("c1") == 0
    assert pod.lines("c1") == [("stdout", b"hello there")]
    assert pod.look("c1").state is LiveState.STOPPED
    with pytest.raises(FailedPrecondition, match="no supervisor"):
        contract.reopen_log(str(pod.bundle("c1")), "c1", str(pod.home / "c1.log"))
    pod.keeper.delete("c1", soon())


def test_a_running_container_is_seen_as_one_and_dies_by_a_signal(pod: Pod) -> None:
    pod.run("c1", "sleep")
    assert pod.look("c1").state is LiveState.RUNNING
    with pytest.raises(FailedPrecondition, match="is running"):
        pod.keeper.start("c1", soon())
    pod.keeper.signal("c1", signal.SIGTERM, soon())
    assert pod.ended("c1") == 143
    with pytest.raises(FailedPrecondition, match="has ended"):
        pod.keeper.start("c1", soon())
    # Again is no error.
    pod.keeper.signal("c1", signal.SIGKILL, soon())


def test_the_supervisor_of_a_container_is_found_by_its_start_time(pod: Pod) -> None:
    pod.run("c1", "sleep")
    held = exits.find_supervisor(pod.bundle("c1"), "c1")
    assert held is not None
    with held:
        assert held.pid == pod.launched.pid
    note = pod.bundle("c1") / supervision.SUPERVISOR_PIDFILE
    note.write_text(f"{pod.launched.pid} 1\n")
    assert exits.find_supervisor(pod.bundle("c1"), "c1") is None


def test_a_container_that_the_kernel_killed_for_memory_says_so(pod: Pod) -> None:
    pod.run("c1", "oom")
    assert pod.ended("c1") == 137
    assert contract.was_oom_killed(str(pod.bundle("c1")))


def test_frozen_containers_are_seen_as_such(pod: Pod) -> None:
    pod.run("c1", "sleep")
    pod.keeper.freeze("c1", soon(), on=True)
    assert pod.look("c1").state is LiveState.PAUSED
    pod.keeper.freeze("c1", soon(), on=False)
    assert pod.look("c1").state is LiveState.RUNNING


def test_deleting_ends_what_runs_and_is_no_error_again(pod: Pod) -> None:
    pod.run("c1", "sleep")
    pod.keeper.delete("c1", soon())
    assert pod.ended("c1") == 137
    pod.keeper.delete("c1", soon())
    assert pod.keeper.look(soon()) == orders.Seen(monitor_pid=pod.launched.monitor_pid)
    with pytest.raises(NotFound, match="c1"):
        pod.keeper.start("c1", soon())


def test_what_the_guest_refuses_is_an_error_of_the_field_and_nothing_is_left(pod: Pod) -> None:
    with pytest.raises(InvalidInput, match=r'command: exec: "missing": not found\?\[31m'):
        pod.create("c1", "missing")
    with pytest.raises(ResourceExhausted, match="no memory"):
        pod.create("c2", "full")
    with pytest.raises(DeadlineExceeded, match="disk"):
        pod.create("c2", "diskless")
    assert list(pod.bundle("c1").iterdir()) == []
    assert pod.keeper.look(soon()).alive == ()
    pod.create("c1", "sleep")


def test_a_create_whose_client_has_gone_is_taken_back(pod: Pod) -> None:
    with pod.keeper.creation("c1", soon()) as making:
        asked = orders.Create(supervision=pod.supervision("c1"), payload=created("c1", "sleep"))
        making._connection.send(b"i" + orders.encode(asked))
        readable(making._connection.fileno())
    # Its deletion may be on its way.
    pod.keeper.delete("c1", soon())
    assert pod.keeper.look(soon()).alive == ()
    assert list(pod.bundle("c1").iterdir()) == []


def test_a_container_that_is_deleted_while_it_is_refused_is_gone_once(pod: Pod) -> None:
    with pod.keeper.creation("c1", soon()) as making, pod.keeper._connect(soon()) as other:
        asked = orders.Create(supervision=pod.supervision("c1"), payload=created("c1", "missing"))
        making._connection.send(b"i" + orders.encode(asked))
        other.send(b"i" + orders.encode(orders.Delete("c1")))
        readable(making._connection.fileno())
        readable(other.fileno())
    assert pod.keeper.look(soon()).alive == ()


def test_a_second_container_of_a_name_is_refused(pod: Pod) -> None:
    pod.create("c1", "sleep")
    with pytest.raises(InternalError, match="already"):
        pod.create("c1", "sleep")
    assert pod.look("c1").state is LiveState.CREATED


def test_disks_are_shared_by_containers_of_one_image(pod: Pod) -> None:
    (first,), (volume,) = pod.prepared("c1", "sleep")
    (second,), (other,) = pod.prepared("c2", "sleep")
    (third,), _ = pod.prepared("c3", "sleep", image="another")
    assert first == second != third
    assert volume != other
    for name, left in (("c1", {first, third}), ("c2", {third}), ("c3", set())):
        pod.keeper.delete(name, soon())
        assert {int(one) for one in pod.disks.read_text().split()} == left


def test_what_was_prepared_for_a_container_that_was_not_made_is_taken_back(pod: Pod) -> None:
    with pytest.raises(InvalidInput):
        pod.prepared("c1", "missing")
    pod.keeper.look(soon())
    assert pod.disks.read_text() == ""
    with Path("/dev/zero").open("rb") as disk, pod.keeper.creation("c2", soon()) as making:
        making.prepare([(orders.Disk(), disk.fileno())] * 40)
        assert len(pod.disks.read_text().split()) == 40
    pod.keeper.look(soon())
    assert pod.disks.read_text() == ""


# Streams


def test_attached_clients_see_output_and_give_input(pod: Pod) -> None:
    pod.create("c1", "cat", stdin=True, stdin_once=True)
    console = AttachConsole("c1", str(pod.bundle("c1")), Stdio(stdin=True, stdout=True, stderr=True))
    pod.keeper.start("c1", soon())
    assert console.write(b"hello\n") == 6
    readable(console.readers[0])
    assert console.read(console.readers[0]) == (Output.STDOUT, b"hello\n")
    console.end_input()
    assert pod.ended("c1") == 0
    console.close()
    assert pod.lines("c1") == [("stdout", b"hello")]


def test_a_terminal_is_told_its_size_and_a_log_is_opened_anew(pod: Pod) -> None:
    pod.run("c1", "size", tty=True)
    console = AttachConsole("c1", str(pod.bundle("c1")), Stdio(stdout=True, tty=True))
    console.resize(80, 24)
    readable(console.readers[0])
    assert console.read(console.readers[0]) == (Output.STDOUT, b"80x24\n")
    console.close()
    log = pod.home / "c1.log"
    log.rename(pod.home / "old.log")
    contract.reopen_log(str(pod.bundle("c1")), "c1", str(log))
    assert log.exists()


def test_all_of_a_flood_is_in_the_log_before_its_end_is_told(pod: Pod) -> None:
    size = 8 << 20
    pod.run("c1", "flood", str(size))
    assert pod.ended("c1") == 0
    assert sum(len(text) + 1 for _, text in pod.lines("c1")) in (size, size + 1)


def test_a_flood_starves_nobody_and_waits_for_the_rate_of_its_log(pod: Pod) -> None:
    pod.run("c1", "flood", log_rate=1 << 20, log_size_max=4 << 20)
    pod.run("c2", "flood", log_size_max=4 << 20)
    pod.run("c3", "sleep")
    for _ in range(5):
        with pod.exec("c3", "echo", "there") as console:
            assert console.collect(soon(), 100).stdout == b"there\n"
    assert pod.resident() < 16 << 20


def test_credit_for_the_input_of_what_has_just_ended_is_passed_over(pod: Pod) -> None:
    pod.run("c1", "late")
    assert pod.ended("c1") == 0
    pod.run("c2", "echo", "there")
    assert pod.ended("c2") == 0


# Beside it


def test_a_command_gives_its_output_errors_and_code(pod: Pod) -> None:
    pod.run("c1", "sleep")
    with pod.exec("c1", "err", "no") as console:
        found = console.collect(soon(), 100)
    assert (found.exit_code, found.stdout, found.stderr) == (1, b"", b"no\n")


def test_a_commands_input_comes_back(pod: Pod) -> None:
    pod.run("c1", "sleep")
    with pod.exec("c1", "cat", stdio=Stdio(stdin=True, stdout=True)) as console:
        assert console.write(b"word") == 4
        readable(console.readers[0])
        assert console.read(console.readers[0]) == (Output.STDOUT, b"word")
        console.end_input()
        readable(console.exited)
        assert console.finish() == 0


def test_a_terminal_of_a_commands_is_told_its_size(pod: Pod) -> None:
    pod.run("c1", "sleep")
    with pod.exec("c1", "size", stdio=Stdio(stdin=True, stdout=True, stderr=True, tty=True)) as console:
        console.resize(132, 50)
        (reader,) = console.readers
        readable(reader)
        assert console.read(reader) == (Output.STDOUT, b"132x50\n")


def test_a_command_that_nobody_waits_for_is_killed(pod: Pod) -> None:
    pod.run("c1", "sleep")
    with pod.exec("c1", "sleep"):
        assert pod.keeper.look(soon()).processes == 2
    with pod.exec("c1", "flood") as console, pytest.raises(DeadlineExceeded):
        console.collect(Deadline.after(0.2), 100)
    with pod.exec("c1", "echo", "after"):
        pass
    while pod.keeper.look(soon()).processes > 1:
        pass


def test_a_command_that_cannot_be_executed_is_its_callers_fault(pod: Pod) -> None:
    pod.run("c1", "sleep")
    with pytest.raises(InvalidInput, match="command"), pod.exec("c1", "missing"):
        pass
    with pytest.raises(NotFound), pod.exec("c2", "echo"):
        pass


def test_connections_into_the_machine_go_both_ways_and_end(pod: Pod) -> None:
    with pod.keeper.dial(80, soon()) as line:
        line.sendall(b"ping")
        assert line.recv(10) == b"ping"
        line.shutdown(socket.SHUT_WR)
        assert line.recv(10) == b""
    with pytest.raises(Unavailable, match="refused"):
        pod.keeper.dial(1, soon())
    pod.keeper.dial(81, soon()).close()
    while pod.keeper.look(soon()).processes:
        pass


def test_the_hosts_oom_killer_takes_the_machine_for_the_container_that_is_worth_most(pod: Pod) -> None:
    score = Path(f"/proc/{pod.launched.monitor_pid}/oom_score_adj")
    seen = []
    for name, given in (("c1", 1000), ("c2", 900)):
        with pod.keeper.creation(name, soon()) as making:
            making.create(pod.supervision(name), created(name, "sleep"), oom_score_adj=given)
        seen.append(int(score.read_text()))
    # Whoever may not lower it again leaves it.
    assert seen[0] == 1000 and seen[1] in {900, 1000}
    pod.keeper.delete("c2", soon())
    assert int(score.read_text()) == 1000


def test_the_machine_is_set_up_and_measured(pod: Pod) -> None:
    assert pod.keeper.setup(fields.encode(_SETUP), soon()) == b""
    pod.create("c1", "sleep")
    found = fields.decode(messages.StatsReply, pod.keeper.stats(soon()))
    assert [one.container for one in found.containers] == ["c1"]


# Ends


def test_stopping_tells_the_ends_of_all_and_leaves_nothing(pod: Pod) -> None:
    pod.run("c1", "sleep")
    pod.create("c2", "sleep")
    pod.keeper.stop(soon())
    assert (pod.ended("c1"), pod.ended("c2")) == (137, 137)
    assert contract.verdict(str(pod.bundle("c1"))) is None
    assert not pod.keeper.alive()
    pod.gone()
    assert list(pod.directory.iterdir()) == []
    with pytest.raises(FailedPrecondition, match="no machine"):
        pod.keeper.start("c1", soon())
    # Of what has ended with it this is no error.
    pod.keeper.signal("c1", signal.SIGKILL, soon())
    pod.keeper.delete("c1", soon())
    pod.keeper.stop(soon())


def test_a_monitor_that_is_killed_ends_its_containers_with_what_it_said(pod: Pod) -> None:
    pod.run("c1", "sleep")
    pod.create("c2", "sleep")
    with pod.exec("c1", "sleep") as console:
        os.kill(pod.launched.monitor_pid, signal.SIGKILL)
        assert (pod.ended("c1"), pod.ended("c2")) == (137, 137)
        readable(console.exited)
        with pytest.raises(InternalError, match="left no exit code"):
            console.finish()
    assert pod.verdict("c1") == (orders.VM_DIED, "exited: as it was killed?")
    pod.gone()


def test_a_keeper_that_is_killed_takes_its_machine_along(pod: Pod) -> None:
    pod.prepared("c1", "sleep")
    pod.keeper.start("c1", soon())
    with Pidfd(pod.launched.monitor_pid) as monitor:
        os.kill(pod.launched.pid, signal.SIGKILL)
        assert monitor.wait(20)
    assert pod.look("c1").state is LiveState.STOPPED
    assert not pod.keeper.alive()


def test_a_keeper_outlives_the_fork_server(tmp_path: Path) -> None:
    keepers = FakeKeepers(tmp_path / "zygote")
    pod = Pod(keepers, tmp_path)
    pod.launch()
    pod.run("c1", "sleep")
    assert keepers._server._child is not None
    os.kill(keepers._server._child.pid, signal.SIGKILL)
    with pod.exec("c1", "echo", "there") as console:
        assert console.collect(soon(), 100).stdout == b"there\n"
    pod.close()
    keepers.close()


def test_an_idle_keeper_sleeps(pod: Pod) -> None:
    def switches() -> str:
        status = Path(f"/proc/{pod.launched.pid}/status").read_text()
        return status[status.index("\nvoluntary_ctxt_switches") :]

    pod.run("c1", "sleep")
    # The last connection's end is an event.
    pod.keeper.look(soon())
    seen = ""
    with Pidfd(pod.launched.pid) as held:
        while seen != switches():
            seen = switches()
            assert not held.wait(0.2)


def test_who_wants_an_end_waits_until_a_machine_that_hangs_was_ended() -> None:
    for kind, seconds in ((Kind.SIGNAL, engine._KILL_SECONDS), (Kind.DELETE, engine._DELETE_SECONDS)):
        assert agent._SILENCES[kind] + 10 < min(seconds, client._ANSWER_SECONDS)
