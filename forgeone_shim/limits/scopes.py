"""Scopes that systemd makes when asked over D-Bus (org.freedesktop.systemd1(5), ``StartTransientUnit``).

A scope is made of processes that run, and is gone with the last of them. So that it can be made before there is a
container, a process that does nothing is its first.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from jeepney import DBusAddress, HeaderFields, MatchRule, Message, MessageType, new_method_call
from jeepney.bus import get_bus
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import DBusConnection, prep_socket

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, InternalError, Unavailable, syscall_error
from forgeone_shim.kernel import cgroups
from forgeone_shim.kernel.cgroups import CgroupHost, Mode
from forgeone_shim.kernel.spawn import find_program, spawn

_SECONDS: Final = 10.0
_NOTHING: Final = "cat"
_INTERFACE: Final = "org.freedesktop.systemd1.Manager"
_MANAGER: Final = DBusAddress("/org/freedesktop/systemd1", bus_name="org.freedesktop.systemd1", interface=_INTERFACE)
_EXISTS: Final = "org.freedesktop.systemd1.UnitExists"
_NO_LIMIT: Final = 2**64 - 1


class _Exists(FailedPrecondition):
    """There is a unit of that name."""


def unit_of(cgroup: str) -> tuple[str, str]:
    """Slice and scope of ``SLICE:PREFIX:NAME``."""
    owner, prefix, name = cgroup.split(":")
    return owner, f"{prefix}-{name}.scope"


@contextlib.contextmanager
def started(host: CgroupHost, cgroup: str, deadline: Deadline) -> Iterator[None]:
    """The scope of a container, which the block has to put a process into if it is to last.

    :raises Unavailable: systemd does not answer.
    :raises FailedPrecondition: systemd refuses.
    """
    owner, scope = unit_of(cgroup)
    with ExitStack() as stack:
        pid = _placeholder(stack)
        _start(scope, owner, pid, deadline)
        if host.mode is Mode.V2:
            # Limits are one level below, and there are no processes above them (cgroup-v2.rst, No Internal Process).
            inner = host.unified + host.occupied(cgroup)
            try:
                Path(inner).mkdir(exist_ok=True)
                cgroups.write(f"{inner}/cgroup.procs", str(pid))
            except OSError as error:
                raise syscall_error("make cgroup", inner, error) from error
        yield


def forget_slice(host: CgroupHost, cgroup: str, deadline: Deadline) -> None:
    """Have systemd let go of a slice in which nothing runs any more; one that is in use stays.

    systemd makes a slice for the first scope in it, keeps it for good, and makes its control group again when that is
    removed without a word; while it still looks after a scope that has ended, nobody else can remove it.

    :raises Unavailable: systemd does not answer.
    """
    if cgroups.processes(host, cgroup):
        return
    unit = cgroups.slice_name(cgroup)
    message = new_method_call(_MANAGER, "StopUnit", "ss", (unit, "fail"))
    try:
        with deadline.within(_SECONDS) as soon, _Bus(soon) as bus, contextlib.suppress(FailedPrecondition):
            # A refusal says that there is no such unit, or that something is about to start in it.
            _call(bus, message)
    except (OSError, KeyError, ValueError, TimeoutError) as error:
        raise Unavailable(f"systemd does not stop {unit}: {error or 'no answer'}", fix="systemctl status") from error


def _placeholder(stack: ExitStack) -> int:
    """A process that ends with the block, or with this process, whichever is first."""
    program = find_program(_NOTHING)
    if program is None:
        raise Unavailable(f"{_NOTHING} is not installed", fix="apt-get install coreutils")
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        child = stack.enter_context(spawn(program, [_NOTHING], files={0: read}))
    except OSError as error:
        os.close(write)
        raise InternalError(f"start {program}: {error.strerror}") from error
    finally:
        os.close(read)
    stack.callback(os.close, write)
    return child.pid


class _Bus(DBusConnection):  # type: ignore[misc] # jeepney says nothing of its types
    """A connection on which nothing is waited for beyond the deadline."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        connected = prep_socket(get_bus("SYSTEM"), timeout=deadline.remaining())
        try:
            super().__init__(connected)
        except BaseException:
            connected.close()
            raise

    def receive(self, *, timeout: float | None = None) -> Message:
        return super().receive(timeout=self._deadline.remaining(timeout))


def _start(scope: str, owner: str, pid: int, deadline: Deadline) -> None:
    rule = MatchRule(type="signal", interface=_INTERFACE, member="JobRemoved", path=_MANAGER.object_path)
    ended: deque[Message] = deque()
    try:
        with deadline.within(_SECONDS) as soon, _Bus(soon) as bus, bus.filter(rule, queue=ended):
            _call(bus, new_method_call(message_bus, "AddMatch", "s", (rule.serialise(),)))
            _call(bus, new_method_call(_MANAGER, "Subscribe"))
            try:
                job = _asked_for(bus, scope, owner, pid)
            except _Exists:
                # What an attempt that was cut off has left, or of which systemd has not noticed yet that it is empty.
                # It may be gone by now.
                with contextlib.suppress(FailedPrecondition):
                    (stopping,) = _call(bus, new_method_call(_MANAGER, "StopUnit", "ss", (scope, "replace")))
                    _result(bus, ended, stopping)
                job = _asked_for(bus, scope, owner, pid)
            result = _result(bus, ended, job)
    except (OSError, KeyError, ValueError, TimeoutError) as error:
        deadline.check(f"while systemd made {scope}")
        raise Unavailable(f"systemd does not make {scope}: {error or 'no answer'}", fix="systemctl status") from error
    if result != "done":
        raise FailedPrecondition(f"systemd does not make {scope}: {result}", fix=f"journalctl -u {scope}")


def _asked_for(bus: DBusConnection, scope: str, owner: str, pid: int) -> str:
    """The job by which systemd starts the scope."""
    arguments: tuple[Any, ...] = (scope, "fail", _properties(scope, owner, pid), [])
    (job,) = _call(bus, new_method_call(_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", arguments))
    return str(job)


def _result(bus: DBusConnection, ended: deque[Message], job: str) -> str:
    """How a job ends; others' are of no interest."""
    while True:
        _, path, _, result = bus.recv_until_filtered(ended).body
        if path == job:
            return str(result)


def _properties(scope: str, owner: str, pid: int) -> list[tuple[str, tuple[str, Any]]]:
    """Delegated, so that systemd leaves the limits in it alone; forgotten when it ends, however that was."""
    return [
        ("Description", ("s", f"ForgeOne container {scope.removesuffix('.scope')}")),
        ("Slice", ("s", owner)),
        ("PIDs", ("au", [pid])),
        ("Delegate", ("b", True)),
        ("DefaultDependencies", ("b", False)),
        ("CollectMode", ("s", "inactive-or-failed")),
        ("TasksMax", ("t", _NO_LIMIT)),
    ]


def _call(bus: DBusConnection, message: Message) -> tuple[Any, ...]:
    reply = bus.send_and_get_reply(message)
    if reply.header.message_type is MessageType.error:
        text = str(reply.body[0]) if reply.body else "an error without words"
        kind = _Exists if reply.header.fields.get(HeaderFields.error_name) == _EXISTS else FailedPrecondition
        raise kind(f"systemd refuses: {text}")
    return tuple(reply.body)
