"""Namespaces that live without a process."""

from __future__ import annotations

import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from forgeone_shim.errors import ForgeError, InvalidInput, NotFound
from forgeone_shim.kernel import namespaces
from forgeone_shim.kernel.namespaces import pin_namespaces, run_in, unpin
from tests.e2e.network_lab import no_mount_left

pytestmark = pytest.mark.root


def _inside(directory: Path, *argv: str) -> str:
    joins = [f"--{kind}={directory / kind}" for kind in namespaces.KINDS if (directory / kind).exists()]
    return subprocess.run(["nsenter", *joins, *argv], check=True, capture_output=True, text=True).stdout.strip()


def test_pinned_namespaces_have_the_name_and_parameters_asked_for(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "ns"
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "0", "kernel/shm_rmid_forced": "1", "fs.mqueue.msg_max": "20"}
    with no_mount_left(tmp_path):
        pin_namespaces(directory, hostname="forge-pod", sysctls=sysctls)
        assert _inside(directory, "hostname") == "forge-pod"
        assert _inside(directory, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start") == "0"
        assert _inside(directory, "cat", "/proc/sys/kernel/shm_rmid_forced") == "1"
        assert _inside(directory, "cat", "/proc/sys/fs/mqueue/msg_max") == "20"
        unpin(directory)
    assert not directory.exists()


def test_the_host_keeps_its_own_name_and_parameters(tmp_path: Path) -> None:
    name, parameter = socket.gethostname(), Path("/proc/sys/kernel/shm_rmid_forced")
    before = parameter.read_text()
    pin_namespaces(tmp_path, hostname="forge-pod", sysctls={"kernel.shm_rmid_forced": "1"})
    unpin(tmp_path)
    assert (socket.gethostname(), parameter.read_text()) == (name, before)


def test_loopback_is_up_in_a_new_network_namespace(tmp_path: Path) -> None:
    pin_namespaces(tmp_path, ("net",))

    def talk() -> bytes:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
            client.sendall(b"hello")
            connection, _ = server.accept()
            with connection:
                return connection.recv(5)

    try:
        assert run_in(tmp_path / "net", talk) == b"hello"
    finally:
        unpin(tmp_path)


def test_only_the_kinds_asked_for_are_pinned(tmp_path: Path) -> None:
    pin_namespaces(tmp_path, ("uts",), hostname="forge-pod")
    try:
        assert [path.name for path in tmp_path.iterdir()] == ["uts"]
    finally:
        unpin(tmp_path)


def test_unpin_twice_and_of_nothing_is_no_error(tmp_path: Path) -> None:
    pin_namespaces(tmp_path / "ns")
    unpin(tmp_path / "ns")
    unpin(tmp_path / "ns")
    unpin(tmp_path / "never" / "there")


def test_what_an_interrupted_attempt_left_is_replaced(tmp_path: Path) -> None:
    with no_mount_left(tmp_path):
        pin_namespaces(tmp_path, hostname="first")
        pin_namespaces(tmp_path, hostname="second")
        assert _inside(tmp_path, "hostname") == "second"
        unpin(tmp_path)


@pytest.mark.parametrize(
    "sysctls",
    [{"net.no.such": "1"}, {"net.ipv4.ip_forward": "many"}, {"net.core.rmem_max": "1"}, {"kernel.panic": "1"}],
)
def test_a_parameter_that_cannot_be_set_is_named_and_nothing_stays(tmp_path: Path, sysctls: dict[str, str]) -> None:
    directory = tmp_path / "ns"
    with no_mount_left(tmp_path), pytest.raises(InvalidInput) as raised:
        pin_namespaces(directory, sysctls=sysctls)
    assert next(iter(sysctls)) in str(raised.value)
    assert not directory.exists()


def test_a_failed_pin_takes_back_the_ones_before_it(tmp_path: Path) -> None:
    directory = tmp_path / "ns"
    (directory / "ipc" / "in the way").mkdir(parents=True)
    with no_mount_left(tmp_path), pytest.raises(ForgeError):
        pin_namespaces(directory, ("net", "uts", "ipc"))
    assert [path.name for path in directory.iterdir()] == ["ipc"]


def test_run_in_passes_results_and_errors_and_leaves_its_caller_where_it_is(tmp_path: Path) -> None:
    pin_namespaces(tmp_path, ("net",))
    here = Path("/proc/thread-self/ns/net").readlink()

    def fail() -> None:
        raise LookupError("from inside")

    try:
        there = run_in(tmp_path / "net", lambda: Path("/proc/thread-self/ns/net").readlink())
        assert there != here
        with pytest.raises(LookupError, match="from inside"):
            run_in(tmp_path / "net", fail)
        assert Path("/proc/thread-self/ns/net").readlink() == here
    finally:
        unpin(tmp_path)


def test_run_in_a_namespace_that_is_not_pinned_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        run_in(tmp_path / "net", lambda: None)
    (tmp_path / "plain").touch()
    with pytest.raises(NotFound):
        run_in(tmp_path / "plain", lambda: None)


def test_many_pins_in_parallel_are_apart_and_leave_no_thread(tmp_path: Path) -> None:
    with no_mount_left(tmp_path), ThreadPoolExecutor(8) as pool:
        pins = [partial(pin_namespaces, tmp_path / str(n), hostname=f"pod-{n}") for n in range(24)]
        for done in [pool.submit(pin) for pin in pins]:
            done.result()
        assert {_inside(tmp_path / str(n), "hostname") for n in range(24)} == {f"pod-{n}" for n in range(24)}
        for n in range(24):
            unpin(tmp_path / str(n))
    assert not [thread for thread in threading.enumerate() if thread.name == "namespace"]
