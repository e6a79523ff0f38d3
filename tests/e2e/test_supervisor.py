"""Supervisors of containers with a PID namespace and a cgroup; plain functions stand for what engines run."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from engines.base import LiveState
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded
from forgeone_shim.kernel import cgroups
from forgeone_shim.kernel.cgroups import Mode
from forgeone_shim.kernel.procs import Pidfd
from forgeone_shim.shim import contract, wire
from forgeone_shim.shim.client import ForkServer
from hack.lab.settings import cgroup_host
from tests.unit.shim.containers import ID, PROGRAM, Lab, read
from tests.unit.shim.plain_program import Run

pytestmark = pytest.mark.root


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


def test_the_first_process_of_a_namespace_has_another_number_outside(lab: Lab) -> None:
    pid = lab.create("who", namespace=True)
    assert pid > 1
    lab.start()
    assert lab.ended() == 0
    assert lab.lines() == [("stdout", "F", b"1 0")]


@pytest.mark.parametrize("started", [False, True])
def test_a_signal_that_the_kernel_would_keep_from_the_first_process_ends_it_at_once(lab: Lab, started: bool) -> None:
    pid = lab.create("spin", namespace=True)
    if started:
        lab.start()
        time.sleep(0.05)
    with Pidfd(pid) as held:
        began = time.monotonic()
        held.send(signal.SIGTERM)
        assert held.wait(5)
        assert time.monotonic() - began < 0.5
    assert lab.ended() == 143


def test_the_first_process_of_a_namespace_dies_with_its_supervisor(lab: Lab) -> None:
    with Pidfd(lab.create("spin", namespace=True)) as held:
        lab.start()
        contract.stop(str(lab.bundle), ID, 0)
        assert held.wait(5)
    assert contract.look(str(lab.bundle)).state is LiveState.STOPPED


@pytest.fixture
def limited() -> Iterator[Path]:
    host = cgroup_host()
    path = f"/forgeone-supervisor-{os.getpid()}"
    directory = host.directory("memory", path)
    if directory is None:
        pytest.skip("no memory controller")
    made = Path(directory)
    made.mkdir()
    limit = made / ("memory.max" if host.mode is Mode.V2 else "memory.limit_in_bytes")
    if not limit.exists():
        made.rmdir()
        pytest.skip("the memory controller is not enabled here")
    limit.write_text(str(48 << 20))
    with contextlib.suppress(OSError):
        (made / "memory.swap.max").write_text("0")
    yield made
    cgroups.remove_tree(str(made))


def test_a_container_killed_for_memory_is_marked(lab: Lab, limited: Path) -> None:
    name = "memory.events" if cgroup_host().mode is Mode.V2 else "memory.oom_control"
    lab.create("hog", cgroup=str(limited), oom_counter=str(limited / name))
    lab.start()
    assert lab.ended() == 137
    assert contract.was_oom_killed(str(lab.bundle))


def test_many_at_once_all_end_as_they_should(server: ForkServer, tmp_path: Path) -> None:
    labs = []
    for number in range(20):
        (tmp_path / str(number)).mkdir()
        labs.append(Lab(server, tmp_path / str(number)))
    try:
        for number, one in enumerate(labs):
            one.create("say", f"{number}\n", "", str(number), namespace=True)
        for one in labs:
            one.start()
        assert [one.ended() for one in labs] == list(range(20))
        assert [one.lines()[0][2] for one in labs] == [str(number).encode() for number in range(20)]
    finally:
        for one in labs:
            one.close()


def test_whenever_it_is_killed_nothing_goes_on_and_an_exit_file_means_a_whole_log(
    server: ForkServer, tmp_path: Path
) -> None:
    """The supervisor, at moments spread over a container's life."""
    for number in range(24):
        (tmp_path / str(number)).mkdir()
        one = Lab(server, tmp_path / str(number))
        pid = one.create("flood", "x" * 63, "1", namespace=True)
        held, supervisor = Pidfd(pid), contract.supervisor(str(one.bundle), ID)
        assert supervisor is not None
        with held, supervisor:
            one.start()
            time.sleep(number * 0.002)
            supervisor.send(signal.SIGKILL)
            assert supervisor.wait(5)
            assert held.wait(5)
        if (one.exits / ID).exists():
            assert (one.exits / ID).read_text() == "0"
            assert len(one.lines()) == (1 << 20) // 64
        assert [path.name for path in one.exits.iterdir()] in ([], [ID])


def _known(bundle: Path) -> list[str]:
    """Processes that name the bundle, or are the container's of this test."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if os.fsencode(bundle) in words or words.startswith(b"forgeone-test\0"):
                found.append(f"{entry.name} {words!r}")
    return found


def test_whenever_a_client_hangs_up_during_creation_nothing_is_left(server: ForkServer, tmp_path: Path) -> None:
    server.ensure()
    made = 0
    for number in range(40):
        (tmp_path / str(number)).mkdir()
        one = Lab(server, tmp_path / str(number))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(str(server._directory / server._socket))
            wire.send(client, msgspec.json.encode(Run(one.plan(), "sleep", (), namespace=True)))
            time.sleep(number * 0.0004)
        # As an engine that undoes: the supervisor is found, or will find nobody.
        contract.stop(str(one.bundle), ID, 5)
        made += contract.process(str(one.bundle)) is not None
        server.ask(b"pid", (), Deadline.after(10))
        deadline = Deadline.after(5)
        while _known(one.bundle):
            assert not deadline.passed, _known(one.bundle)
            time.sleep(0.001)
        assert one.left() == []
        assert list(one.exits.iterdir()) == []
    assert not made


def test_a_request_that_waited_longer_than_its_client_disturbs_nobody(tmp_path: Path) -> None:
    server = ForkServer(tmp_path / "server", PROGRAM)
    pid = int(server.ask(b"pid", (), Deadline.after(10))[0])
    lab = Lab(server, tmp_path)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(DeadlineExceeded):
            lab.create("sleep", deadline=0.1)
    finally:
        os.kill(pid, signal.SIGCONT)
    lab.create("sleep")
    assert contract.look(str(lab.bundle)).state is LiveState.CREATED
    assert contract.supervisor(str(lab.bundle), ID) is not None
    lab.close()
    server.close()


def test_whenever_a_container_is_killed_its_code_is_told_once_and_its_log_is_whole_lines(
    server: ForkServer, tmp_path: Path
) -> None:
    for number in range(24):
        (tmp_path / str(number)).mkdir()
        one = Lab(server, tmp_path / str(number))
        pid = one.create("flood", "x" * 63, "1", namespace=True)
        with Pidfd(pid) as held:
            one.start()
            time.sleep(number * 0.002)
            held.send(signal.SIGKILL)
        assert one.ended() in (0, 137)
        one.lines()


def test_the_attached_see_everything_of_a_terminal_that_ends_at_once(lab: Lab) -> None:
    lab.create("terminal", tty=True, namespace=True)
    with contextlib.closing(lab.attach(tty=True)) as console:
        lab.start()
        os.kill(lab.pid, signal.SIGHUP)
        read(console)
    assert lab.ended() == 129
