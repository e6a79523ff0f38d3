"""Scopes asked for over D-Bus, of a bus of the test's own and a manager that does what systemd would."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageType,
    new_error,
    new_method_call,
    new_method_return,
    new_signal,
)
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection

from engines.base import Resources
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from forgeone_shim.kernel import cgroups
from forgeone_shim.kernel import host as hosts
from forgeone_shim.kernel.cgroups import CgroupHost, Driver, Mode
from forgeone_shim.kernel.host import Host
from forgeone_shim.limits import groups

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="there is no dbus-daemon"),
]

BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
</policy></busconfig>
"""
OBJECT = "/org/freedesktop/systemd1"


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    config = tmp_path / "bus.conf"
    config.write_text(BUS.format(path=tmp_path / "bus"))
    command = ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", daemon.stdout.readline().strip())
        yield
        daemon.terminate()


class Manager:
    """As much of systemd as a scope needs; ``result`` is how its jobs end, empty: they do not."""

    def __init__(self, root: str, result: str, refusal: str = "", *, left: bool = False) -> None:
        self.root, self.result, self.refusal, self.left = root, result, refusal, left
        self.asked: dict[str, Any] = {}
        self._bus = open_dbus_connection("SYSTEM")
        self._bus.send_and_get_reply(
            new_method_call(message_bus, "RequestName", "su", ("org.freedesktop.systemd1", 4)), timeout=5
        )
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                message = self._bus.receive(timeout=20)
            except (OSError, TimeoutError, ValueError):
                return
            if message.header.message_type is not MessageType.method_call:
                continue
            member = message.header.fields[HeaderFields.member]
            if member == "Stop":
                return
            if member == "Subscribe":
                self._bus.send(new_method_return(message))
            elif member == "StopUnit":
                self.left = False
                self._bus.send(new_method_return(message, "o", (f"{OBJECT}/job/5",)))
                self._removed(5, message.body[0], "done")
            elif member == "StartTransientUnit":
                self._start(message)

    def _start(self, message: Message) -> None:
        name, _, properties, _ = message.body
        self.asked = {"name": name} | {key: value for key, (_, value) in properties}
        if self.refusal or self.left:
            error = "UnitExists" if self.left else "NoSuchUnit"
            self._bus.send(new_error(message, f"org.freedesktop.systemd1.{error}", "s", (self.refusal,)))
            return
        path = Path(self.root + cgroups.slice_path(self.asked["Slice"]), name)
        path.mkdir(parents=True, exist_ok=True)
        for pid in self.asked["PIDs"]:
            (path / "cgroup.procs").write_text(str(pid))
        # Before the answer, too, as a job that ends at once does.
        self._removed(6, "other.service", "failed")
        if self.result:
            self._removed(7, name, self.result)
        self._bus.send(new_method_return(message, "o", (f"{OBJECT}/job/7",)))

    def _removed(self, number: int, unit: str, result: str) -> None:
        emitter = DBusAddress(OBJECT, interface="org.freedesktop.systemd1.Manager")
        self._bus.send(new_signal(emitter, "JobRemoved", "uoss", (number, f"{OBJECT}/job/{number}", unit, result)))

    def close(self) -> None:
        self._bus.sock.shutdown(2)
        self._thread.join(5)
        self._bus.close()


@pytest.fixture
def host() -> Host:
    found = hosts.read("cgroupfs")
    if not found.cgroups.unified:
        pytest.skip("there is no cgroup2 mounted")
    group = CgroupHost(mode=Mode.V2, driver=Driver.SYSTEMD, unified=found.cgroups.unified)
    return Host(cgroups=group, capabilities=found.capabilities)


@pytest.fixture
def cgroup(host: Host) -> Iterator[str]:
    owner = f"forgeonetest{os.getpid()}.slice"
    yield f"{owner}:forgeone:c1"
    left = cgroups.processes(host.cgroups, owner)
    cgroups.remove(host.cgroups, owner)
    assert not left


def test_a_scope_is_started_for_the_container_and_outlives_its_first_process(
    bus: None, host: Host, cgroup: str
) -> None:
    manager = Manager(host.cgroups.unified, "done")
    inside = Path(host.cgroups.unified + host.cgroups.occupied(cgroup))
    with subprocess.Popen(["sleep", "60"]) as process:
        with groups.made(host, cgroup, Resources(), NEVER):
            assert manager.asked["name"] == "forgeone-c1.scope"
            assert manager.asked["Delegate"] is True
            assert cgroups.processes(host.cgroups, cgroup) == manager.asked["PIDs"]
            cgroups.write(f"{inside}/cgroup.procs", str(process.pid))
        assert cgroups.processes(host.cgroups, cgroup) == [process.pid], "the placeholder is gone"
        groups.remove(host.cgroups, cgroup)
        assert process.wait(5) == -9
    assert not inside.exists()
    manager.close()


def test_a_scope_that_systemd_cannot_start_is_refused_with_its_words(bus: None, host: Host, cgroup: str) -> None:
    manager = Manager(host.cgroups.unified, "done", "Unit forgeonetest.slice not found.")
    with pytest.raises(FailedPrecondition, match="slice not found"), groups.made(host, cgroup, Resources(), NEVER):
        pytest.fail("it was made")
    manager.close()


def test_a_scope_that_an_earlier_attempt_left_is_stopped_first(bus: None, host: Host, cgroup: str) -> None:
    manager = Manager(host.cgroups.unified, "done", left=True)
    with groups.made(host, cgroup, Resources(), NEVER):
        assert not manager.left
        assert cgroups.processes(host.cgroups, cgroup) == manager.asked["PIDs"]
    groups.remove(host.cgroups, cgroup)
    manager.close()


def test_a_job_that_fails_is_a_refusal_and_leaves_nothing(bus: None, host: Host, cgroup: str) -> None:
    manager = Manager(host.cgroups.unified, "failed")
    with pytest.raises(FailedPrecondition, match="failed"), groups.made(host, cgroup, Resources(), NEVER):
        pytest.fail("it was made")
    assert not Path(host.cgroups.unified + cgroups.relative(cgroup)).exists()
    manager.close()


def test_a_systemd_that_does_not_answer_is_waited_for_until_the_deadline(bus: None, host: Host, cgroup: str) -> None:
    manager = Manager(host.cgroups.unified, "")
    with pytest.raises(DeadlineExceeded), groups.made(host, cgroup, Resources(), Deadline.after(0.5)):
        pytest.fail("it was made")
    manager.close()


@pytest.mark.skipif(not Path(cgroups.SYSTEMD_RUNNING).is_dir(), reason="systemd does not run here")
def test_systemd_itself_makes_a_scope_and_forgets_it() -> None:
    host = hosts.read("systemd")
    owner = f"forgeonetest{os.getpid()}.slice"
    cgroup = f"{owner}:forgeone:c2"
    asked = Resources(memory_limit=64 << 20)
    with subprocess.Popen(["sleep", "600"]) as process:
        with groups.made(host, cgroup, asked, NEVER):
            for directory in host.cgroups.hierarchies:
                cgroups.write(f"{directory}{host.cgroups.occupied(cgroup)}/cgroup.procs", str(process.pid))
        for _ in range(2):
            assert _property("forgeone-c2.scope", "ActiveState") == "active"
            memory = Path(host.cgroups.directory("memory", cgroup) or "")
            name = "memory.max" if host.cgroups.mode is Mode.V2 else "memory.limit_in_bytes"
            assert (memory / name).read_text() == f"{64 << 20}\n"
            # What is set in a delegated group is nobody's but ours.
            subprocess.run(["systemctl", "daemon-reload"], check=True)
        groups.remove(host.cgroups, cgroup)
        assert process.wait(10) == -9
    assert not cgroups.exists(host.cgroups, cgroup)
    subprocess.run(["systemctl", "stop", owner], check=True)
    assert _property("forgeone-c2.scope", "LoadState") == "not-found"


def _property(unit: str, name: str) -> str:
    command = ["systemctl", "show", "--value", f"--property={name}", unit]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_without_systemd_the_reason_is_told(bus: None, host: Host, cgroup: str) -> None:
    with pytest.raises((Unavailable, FailedPrecondition)), groups.made(host, cgroup, Resources(), NEVER):
        pytest.fail("it was made")
