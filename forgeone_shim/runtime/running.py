"""What can be done to a container while it runs: exec, attach, a log file opened anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from engines.base import Console, ExecResult, Stdio
from forgeone_shim.contract.facts import Point, RequestFacts
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.lifecycle.machine import LIVE, State
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.recorded import Recorded
from forgeone_shim.runtime.records import ContainerRecord, SandboxRecord
from forgeone_shim.runtime.table import Entry
from forgeone_shim.runtime.watching import Watching

EXEC_OUTPUT_LIMIT = 16 * 1024 * 1024


class Running:
    """Every verb is FailedPrecondition on a container that does not run; one that waits to be started has streams."""

    def __init__(self, parts: Parts, watching: Watching | None = None) -> None:
        self._p, self._watching = parts, watching

    def exec_sync(self, id_: str, argv: tuple[str, ...], timeout: float | None) -> ExecResult:
        """Run ``argv`` inside and wait; ``timeout`` in seconds."""
        entry = self.may_exec(id_, argv)
        engine, chronicle = self._p.engines[entry.record.engine], self._p.chronicle
        with chronicle.session("exec", entry.record, Deadline(), **chronicle.command(argv)) as told:
            result = engine.exec_sync(self._p.handle(entry.record), argv, timeout, EXEC_OUTPUT_LIMIT)
            told["exit_code"] = result.exit_code
        return result

    def exec_console(self, id_: str, argv: tuple[str, ...], stdio: Stdio) -> Console:
        """Start ``argv`` inside and hand over its streams."""
        entry = self.may_exec(id_, argv, tty=stdio.tty)
        engine, handle, told = self._p.engines[entry.record.engine], self._p.handle(entry.record), self._p.chronicle
        end = told.begin("exec", entry.record, Deadline(), **told.command(argv), tty=stdio.tty, stdin=stdio.stdin)
        return _recorded(lambda: engine.exec_console(handle, argv, stdio), end)

    def attach_console(self, id_: str, stdio: Stdio) -> Console:
        """The streams of the first process; a terminal is there only if the container has one."""
        entry = self.may_attach(id_)
        spec = entry.record.spec
        stdio = replace(stdio, stdin=stdio.stdin and spec.stdin, tty=stdio.tty and spec.tty)
        engine, handle = self._p.engines[entry.record.engine], self._p.handle(entry.record)
        end = self._p.chronicle.begin("attach", entry.record, Deadline(), tty=stdio.tty, stdin=stdio.stdin)
        return _recorded(lambda: engine.attach_console(handle, stdio), end)

    def may_exec(self, id_: str, argv: tuple[str, ...], *, tty: bool = False) -> Entry[ContainerRecord]:
        """A container that ``argv`` may be run in now.

        :raises Denied: it may not.
        """
        entry = self._awake(id_)
        if not argv:
            raise InvalidInput("cmd", "is empty")
        self._p.guard.container(Point.EXEC, entry.record, Deadline(), RequestFacts(command=argv, tty=tty))
        if self._watching is not None:
            self._watching.executing(entry.record)
        return entry

    def may_attach(self, id_: str) -> Entry[ContainerRecord]:
        """A container whose streams may be had now.

        :raises Denied: they may not.
        """
        entry = self._running(id_, State.BOOTED)
        self._p.guard.container(Point.ATTACH, entry.record, Deadline())
        return entry

    def may_forward(self, sandbox_id: str, ports: tuple[int, ...] = ()) -> SandboxRecord:
        """A ready pod whose ports may be reached now; no port named: all of them.

        :raises Denied: they may not.
        """
        record = self._p.sandboxes.find(sandbox_id).record
        if record.state is not State.BOOTED:
            raise FailedPrecondition(f"sandbox {record.id[:13]} is not ready ({record.state})")
        self._p.guard.forward(record, ports, Deadline())
        return record

    def reopen_log(self, id_: str) -> None:
        """Make its supervisor open its log file anew (after a rotation)."""
        entry = self._running(id_)
        if entry.record.log_path:
            self._p.engines[entry.record.engine].reopen_log(self._p.handle(entry.record))

    def _awake(self, id_: str) -> Entry[ContainerRecord]:
        entry = self._running(id_)
        if entry.record.state is State.PAUSED:
            # A process that joins a frozen cgroup would be frozen too, before its first instruction.
            raise FailedPrecondition(f"container {entry.record.id[:13]} is paused", fix="forge resume")
        return entry

    def _running(self, id_: str, *others: State) -> Entry[ContainerRecord]:
        entry = self._p.containers.find(id_)
        if entry.record.state not in LIVE.union(others):
            raise FailedPrecondition(f"container {entry.record.id[:13]} is not running ({entry.record.state})")
        return entry


def _recorded(make: Callable[[], Console], end: Callable[..., None]) -> Console:
    try:
        return Recorded(make(), end)
    except BaseException as error:
        end(error=type(error).__name__)
        raise
