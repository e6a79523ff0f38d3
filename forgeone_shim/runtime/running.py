"""What can be done to a container while it runs: exec, attach, a log file opened anew."""

from __future__ import annotations

from dataclasses import replace

from engines.base import Console, ExecResult, Stdio
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.lifecycle.machine import LIVE, State
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.records import ContainerRecord
from forgeone_shim.runtime.table import Entry

EXEC_OUTPUT_LIMIT = 16 * 1024 * 1024


class Running:
    """Every verb is FailedPrecondition on a container that does not run; one that waits to be started has streams."""

    def __init__(self, parts: Parts) -> None:
        self._p = parts

    def exec_sync(self, id_: str, argv: tuple[str, ...], timeout: float | None) -> ExecResult:
        """Run ``argv`` inside and wait; ``timeout`` in seconds."""
        entry = self._awake(id_)
        if not argv:
            raise InvalidInput("cmd", "is empty")
        engine = self._p.engines[entry.record.engine]
        return engine.exec_sync(self._p.handle(entry.record), argv, timeout, EXEC_OUTPUT_LIMIT)

    def exec_console(self, id_: str, argv: tuple[str, ...], stdio: Stdio) -> Console:
        """Start ``argv`` inside and hand over its streams."""
        entry = self._awake(id_)
        if not argv:
            raise InvalidInput("cmd", "is empty")
        return self._p.engines[entry.record.engine].exec_console(self._p.handle(entry.record), argv, stdio)

    def attach_console(self, id_: str, stdio: Stdio) -> Console:
        """The streams of the first process; a terminal is there only if the container has one."""
        entry = self._running(id_, State.BOOTED)
        spec = entry.record.spec
        stdio = replace(stdio, stdin=stdio.stdin and spec.stdin, tty=stdio.tty and spec.tty)
        return self._p.engines[entry.record.engine].attach_console(self._p.handle(entry.record), stdio)

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
