"""A node's systemd over D-Bus (org.freedesktop.systemd1(5)): by the system bus, or its own socket where there is none.

Nothing is executed for it, so that it works from a container which has neither systemctl nor the host's processes.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from jeepney import DBusAddress, HeaderFields, MatchRule, Message, MessageType, Properties, new_method_call
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import DBusConnection, DBusConnectionBase, prep_socket
from jeepney.io.common import MessageFilters

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, NotFound, Unavailable
from forgeone_shim.node.layout import Layout
from forgeone_shim.node.steps import Do

_BUS: Final = "/run/dbus/system_bus_socket"
_PRIVATE: Final = "/run/systemd/private"
_PEER: Final = "org.freedesktop.systemd1"
_INTERFACE: Final = f"{_PEER}.Manager"
_MANAGER: Final = DBusAddress("/org/freedesktop/systemd1", bus_name=_PEER, interface=_INTERFACE)
_UNIT: Final = f"{_PEER}.Unit"
_SERVICE: Final = f"{_PEER}.Service"
_NO_UNIT: Final = f"{_PEER}.NoSuchUnit"
_EXISTS: Final = f"{_PEER}.UnitExists"
_SECONDS: Final = 30.0
"""For an answer that waits for no job; reading all units anew is the longest of them."""

_METHODS: Final = {Do.START: "StartUnit", Do.RESTART: "RestartUnit", Do.STOP: "StopUnit"}
_RUNS: Final = frozenset({"active", "activating", "reloading"})


class Systemd:
    """What the installer asks of a node's systemd. Every call has a connection of its own."""

    def __init__(self, node: Layout) -> None:
        self._node = node

    def reload(self, deadline: Deadline) -> None:
        """Read all units anew.

        :raises Unavailable: systemd does not answer.
        """
        with self._bus(deadline) as bus:
            _call(bus, new_method_call(_MANAGER, "Reload"))

    def job(self, do: Do, unit: str, deadline: Deadline) -> None:
        """Have a unit started, restarted or stopped, and wait until it is.

        :raises Unavailable: systemd does not answer in time. FailedPrecondition: the job failed.
        """
        with self._bus(deadline) as bus:
            message = new_method_call(_MANAGER, _METHODS[do], "ss", (unit, "replace"))
            try:
                result = _finished(bus, lambda: _call(bus, message))
            except NotFound:
                # Nothing is what a stopped unit of no file is.
                if do is Do.STOP:
                    return
                raise
        if result != "done":
            raise FailedPrecondition(f"systemd: {do} of {unit} {result}", fix=f"journalctl -u {unit}")

    def queue(self, do: Do, unit: str, deadline: Deadline) -> None:
        """:meth:`job`, without waiting: who is started at boot must not wait for what comes after.

        :raises Unavailable: systemd does not answer.
        """
        with self._bus(deadline) as bus, contextlib.suppress(NotFound):
            _call(bus, new_method_call(_MANAGER, _METHODS[do], "ss", (unit, "replace")))

    def active(self, unit: str, deadline: Deadline) -> bool:
        """Whether a unit runs, or is about to.

        :raises Unavailable: systemd does not answer.
        """
        with self._bus(deadline) as bus:
            try:
                return _property(bus, unit, _UNIT, "ActiveState") in _RUNS
            except NotFound:
                return False

    def main_pid(self, unit: str, deadline: Deadline) -> int:
        """The main process of a service; 0: it has none.

        :raises Unavailable: systemd does not answer.
        """
        with self._bus(deadline) as bus:
            try:
                return int(_property(bus, unit, _SERVICE, "MainPID"))
            except NotFound:
                return 0

    def execute(self, unit: str, argv: Sequence[str], deadline: Deadline) -> str:
        """Run a program to its end as a unit of its own; one of that name that runs already is waited for instead.

        Returns systemd's word for how that went: ``done``, or another.

        :raises Unavailable: systemd does not answer in time.
        """
        properties: list[tuple[str, tuple[str, Any]]] = [
            ("Description", ("s", "ForgeOne's installer")),
            ("Type", ("s", "oneshot")),
            ("ExecStart", ("a(sasb)", [(argv[0], list(argv), False)])),
            ("CollectMode", ("s", "inactive-or-failed")),
            ("TimeoutStartUSec", ("t", 2**64 - 1)),
        ]
        start = new_method_call(_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", (unit, "fail", properties, []))
        with self._bus(deadline) as bus:
            return _finished(bus, lambda: _started(bus, start, unit))

    def join(self, unit: str, deadline: Deadline) -> None:
        """Wait until a unit of :meth:`execute` has ended, however it does; one that is gone has.

        :raises Unavailable: systemd does not answer in time.
        """
        with self._bus(deadline) as bus, contextlib.suppress(NotFound):
            _finished(bus, lambda: _call(bus, new_method_call(_MANAGER, "StartUnit", "ss", (unit, "fail"))))

    @contextlib.contextmanager
    def _bus(self, deadline: Deadline) -> Iterator[_Connection]:
        try:
            with _connected(self._node, deadline) as bus:
                yield bus
        except (OSError, KeyError, ValueError, TimeoutError) as error:
            deadline.check("while systemd was asked")
            raise Unavailable(
                f"systemd does not answer: {error or 'no answer in time'}", fix="systemctl status"
            ) from None


class _Connection(DBusConnection):  # type: ignore[misc] # jeepney says nothing of its types
    """One on which nothing is waited for beyond a deadline. On systemd's own socket there is nobody to be greeted."""

    def __init__(self, sock: Any, deadline: Deadline, *, bus: bool) -> None:
        self._deadline = deadline
        if bus:
            super().__init__(sock)
        else:
            DBusConnectionBase.__init__(self, sock)
            self._filters = MessageFilters()
        self.bus = bus

    def receive(self, *, timeout: float | None = None) -> Message:
        return super().receive(timeout=self._deadline.remaining(timeout))


def _connected(node: Layout, deadline: Deadline) -> _Connection:
    for path, bus in ((_BUS, True), (_PRIVATE, False)):
        try:
            sock = prep_socket(str(node.at(path, follow=True)), timeout=deadline.remaining(_SECONDS))
        except (FileNotFoundError, ConnectionRefusedError):
            continue
        try:
            return _Connection(sock, deadline, bus=bus)
        except BaseException:
            sock.close()
            raise
    what = f"there is no systemd: neither {node.at(_BUS)} nor {node.at(_PRIVATE)} answers"
    raise Unavailable(what, fix="--service none starts nothing")


def _started(bus: _Connection, start: Message, unit: str) -> tuple[Any, ...]:
    try:
        return _call(bus, start)
    except _Exists:
        # "fail" leaves the job that is there alone and gives it: a oneshot unit that runs has one until its end.
        return _call(bus, new_method_call(_MANAGER, "StartUnit", "ss", (unit, "fail")))


def _finished(bus: _Connection, ask: Callable[[], tuple[Any, ...]]) -> str:
    """How the job ends that ``ask`` is answered with; others' are of no interest."""
    rule = MatchRule(type="signal", interface=_INTERFACE, member="JobRemoved", path=_MANAGER.object_path)
    ended: deque[Message] = deque()
    with bus.filter(rule, queue=ended):
        if bus.bus:
            _call(bus, new_method_call(message_bus, "AddMatch", "s", (rule.serialise(),)))
        _call(bus, new_method_call(_MANAGER, "Subscribe"))
        (job,) = ask()
        while True:
            _, path, _, result = bus.recv_until_filtered(ended).body
            if path == job:
                return str(result)


def _property(bus: _Connection, unit: str, interface: str, name: str) -> Any:
    (path,) = _call(bus, new_method_call(_MANAGER, "LoadUnit", "s", (unit,)))
    of = DBusAddress(path, bus_name=_PEER, interface=interface)
    ((_, value),) = _call(bus, Properties(of).get(name))
    return value


class _Exists(FailedPrecondition):
    """There is a unit of that name."""


def _call(bus: _Connection, message: Message) -> tuple[Any, ...]:
    reply = bus.send_and_get_reply(message)
    if reply.header.message_type is MessageType.error:
        text = str(reply.body[0]) if reply.body else "an error without words"
        name = reply.header.fields.get(HeaderFields.error_name)
        if name == _NO_UNIT:
            raise NotFound("unit", text, where="this node")
        raise (_Exists if name == _EXISTS else FailedPrecondition)(f"systemd refuses: {text}")
    return tuple(reply.body)
