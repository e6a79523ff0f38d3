"""What is asked of systemd on its own socket, of a manager that answers as it does."""

from __future__ import annotations

import itertools
import socket
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
    Parser,
    new_error,
    new_method_return,
    new_signal,
)

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from forgeone_shim.node.layout import Layout
from forgeone_shim.node.steps import Do
from forgeone_shim.node.systemd import Systemd

OBJECT = "/org/freedesktop/systemd1"
EMITTER = DBusAddress(OBJECT, interface="org.freedesktop.systemd1.Manager")


class Manager:
    """``results`` are how jobs end, by their units; ``None``: they do not. ``units`` are their states."""

    def __init__(self, path: Path) -> None:
        self.results: dict[str, str | None] = {}
        self.units: dict[str, tuple[str, int]] = {}
        self.asked: list[tuple[str, Any]] = []
        self._listening = socket.socket(socket.AF_UNIX)
        path.parent.mkdir(parents=True)
        self._listening.bind(str(path))
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb", buffering=0) as reader:
            # dbus specification, Authentication Protocol.
            line = b""
            while not line.endswith(b"BEGIN\r\n"):
                piece = reader.read(1)
                if not piece:
                    return
                line += piece
                if line.endswith(b"\r\n") and b"AUTH" in line.rpartition(b"\r\n")[0].rpartition(b"\r\n")[2]:
                    connection.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n")
            parser, serial = Parser(), itertools.count(1)
            while data := connection.recv(4096):
                for message in parser.feed(data):
                    for answer in self._answers(message):
                        connection.sendall(answer.serialise(serial=next(serial)))

    def _answers(self, message: Message) -> Iterator[Message]:
        assert message.header.message_type is MessageType.method_call
        member = message.header.fields[HeaderFields.member]
        self.asked.append((member, message.body))
        if member == "LoadUnit":
            yield new_method_return(message, "o", (f"{OBJECT}/unit/{message.body[0].replace('.', '_2e')}",))
        elif member == "Get":
            unit = message.header.fields[HeaderFields.path].rpartition("/")[2].replace("_2e", ".")
            state, pid = self.units.get(unit, ("inactive", 0))
            body = ("u", pid) if message.body[1] == "MainPID" else ("s", state)
            yield new_method_return(message, "v", (body,))
        elif member in {"Reload", "Subscribe"}:
            yield new_method_return(message)
        elif member == "StartTransientUnit" and message.body[0] in self.units:
            yield new_error(message, "org.freedesktop.systemd1.UnitExists", "s", ("there is one",))
        elif message.body[0].startswith("none"):
            yield new_error(message, "org.freedesktop.systemd1.NoSuchUnit", "s", (f"{message.body[0]} not loaded",))
        else:
            result = self.results.get(message.body[0], "done")
            # A job of somebody else's, and one that ends before its answer.
            yield _removed(1, "other.service", "failed")
            if result is not None:
                yield _removed(7, message.body[0], result)
            yield new_method_return(message, "o", (f"{OBJECT}/job/7",))


def _removed(number: int, unit: str, result: str) -> Message:
    return new_signal(EMITTER, "JobRemoved", "uoss", (number, f"{OBJECT}/job/{number}", unit, result))


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "run/systemd/private")
    yield made
    made.close()


@pytest.fixture
def systemd(tmp_path: Path, manager: Manager) -> Systemd:
    return Systemd(Layout(tmp_path))


def soon() -> Deadline:
    return Deadline.after(5)


def test_jobs_are_waited_for(systemd: Systemd, manager: Manager) -> None:
    systemd.job(Do.RESTART, "x.service", soon())
    assert manager.asked[-1] == ("RestartUnit", ("x.service", "replace"))
    systemd.reload(soon())
    assert manager.asked[-1][0] == "Reload"


def test_a_job_that_fails_says_where_to_look(systemd: Systemd, manager: Manager) -> None:
    manager.results["x.service"] = "failed"
    with pytest.raises(FailedPrecondition, match=r"restart of x\.service failed \(journalctl -u x\.service\)"):
        systemd.job(Do.RESTART, "x.service", soon())


def test_what_is_not_there_is_stopped_already_and_cannot_start(systemd: Systemd) -> None:
    systemd.job(Do.STOP, "none.service", soon())
    systemd.queue(Do.STOP, "none.service", soon())
    with pytest.raises(Exception, match="not loaded"):
        systemd.job(Do.START, "none.service", soon())


def test_a_job_without_an_end_is_waited_for_as_long_as_was_said(systemd: Systemd, manager: Manager) -> None:
    manager.results["x.service"] = None
    with pytest.raises(DeadlineExceeded):
        systemd.job(Do.RESTART, "x.service", Deadline.after(0.2))
    systemd.queue(Do.RESTART, "x.service", soon())


def test_what_runs_is_told(systemd: Systemd, manager: Manager) -> None:
    manager.units = {"x.service": ("active", 7), "y.service": ("activating", 0), "z.service": ("failed", 0)}
    assert [systemd.active(f"{name}.service", soon()) for name in "xyzn"] == [True, True, False, False]
    assert [systemd.main_pid(f"{name}.service", soon()) for name in "xz"] == [7, 0]


def test_a_program_runs_as_a_unit_and_one_that_runs_already_is_joined(systemd: Systemd, manager: Manager) -> None:
    assert systemd.execute("install.service", ["/bin/x", "y"], soon()) == "done"
    name, mode, properties, _ = manager.asked[-1][1]
    assert (name, mode) == ("install.service", "fail")
    assert ("ExecStart", ("a(sasb)", [("/bin/x", ["/bin/x", "y"], False)])) in properties
    manager.units = {"install.service": ("activating", 8)}
    manager.results["install.service"] = "failed"
    assert systemd.execute("install.service", ["/bin/x"], soon()) == "failed"
    assert manager.asked[-1] == ("StartUnit", ("install.service", "fail"))


def test_a_unit_that_runs_is_waited_for_and_one_that_is_gone_is_not(systemd: Systemd, manager: Manager) -> None:
    manager.results["install.service"] = "failed"
    systemd.join("install.service", soon())
    systemd.join("none.service", soon())


def test_a_host_without_systemd_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="there is no systemd"):
        Systemd(Layout(tmp_path)).reload(soon())
