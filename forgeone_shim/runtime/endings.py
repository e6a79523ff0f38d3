"""How containers end: stopped, killed, by themselves, or with their supervisor; and what is freed then."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Sequence

import structlog

from engines.base import LiveState, Verdict
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import DeadlineExceeded, InternalError, NotFound
from forgeone_shim.lifecycle.machine import Event, State, Subject
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.process import signal_number
from forgeone_shim.runtime.records import ContainerRecord
from forgeone_shim.runtime.table import Entry
from forgeone_shim.shim.exits import LOST_CODE, Exit, ExitWatch

SIGKILL_WAIT = 10.0
_LOOK_EVERY = 0.5
# What other runtimes report, and a shell never does.
START_ERROR_CODE = 128


class Endings:
    """Ends containers, takes note of their ends and frees what they hold. Every verb may be repeated."""

    def __init__(self, parts: Parts) -> None:
        self._p = parts
        self._watch: ExitWatch | None = None
        self._log = structlog.get_logger("containers")
        self._doubt: Callable[[str], None] = lambda _: None

    def watch(self, watch: ExitWatch) -> None:
        """Who follows the first processes of containers, and is to forget them."""
        self._watch = watch

    def doubt(self, look: Callable[[str], None]) -> None:
        """Whom to ask to look after a sandbox by id, when what befell a container may have come from the sandbox."""
        self._doubt = look

    # -- stop

    def stop(self, entry: Entry[ContainerRecord], timeout: float, deadline: Deadline) -> None:
        """A second call with a shorter ``timeout`` shortens the grace period of the first."""
        began_running = self._begin_stop(entry, timeout, deadline)
        if began_running is None:
            return
        record, engine = entry.record, self._p.engines[entry.record.engine]
        if began_running and timeout > 0:
            engine.kill(self._p.handle(record), signal_number(record.stop_signal, field="stop_signal"))
            try:
                self._await_grace(entry, timeout, deadline)
            except DeadlineExceeded:
                # Its caller has gone, its grace period has not.
                self.finish_later(entry)
                raise
        if not entry.ended.is_set():
            self._force(entry, deadline)

    def _begin_stop(self, entry: Entry[ContainerRecord], timeout: float, deadline: Deadline) -> bool | None:
        """Store the stop; says whether the container had been started, or ``None`` when there is nothing to stop."""
        while True:
            with entry.state:
                state = entry.record.state
                if state is State.TERMINATED:
                    return None
                if state is not State.CREATED and not entry.record.unstarted:
                    kill_at = time.time_ns() + int(timeout * 1e9)
                    if entry.record.kill_at:
                        kill_at = min(kill_at, entry.record.kill_at)
                    if state is State.PAUSED:
                        # Frozen, it would neither heed a signal nor die of one. First, so that a stop that fails here
                        # finds it paused when it is repeated. Without a grace period it dies before it does anything.
                        (self._thaw if timeout > 0 else self.kill)(entry)
                    if state is not State.STOPPING or kill_at != entry.record.kill_at:
                        self.step(entry, Event.STOP, kill_at=kill_at)
                    if entry.break_off is not None:
                        # It is being frozen, or saved.
                        entry.break_off()
                    return state is not State.BOOTED
            # Being created, or restored, by another thread, which holds the entry's work lock until it is Booted,
            # Running or dropped.
            with entry.working(deadline), entry.state:
                if entry.record.unstarted:
                    self.fail_start(entry)
                    return None
                if entry.record.state is State.CREATED:
                    return None

    def fail_start(self, entry: Entry[ContainerRecord]) -> None:
        """It has no process, and will have none: its command cannot be executed, or nobody started it."""
        error, now = entry.record.start_error or "it was never started", time.time_ns()
        self.step(
            entry,
            Event.EXIT,
            exit_code=START_ERROR_CODE,
            finished_at=now,
            reason="StartError",
            message=error,
            kill_at=0,
        )
        entry.ended.set()
        if not entry.record.cleaned:
            self._p.janitor.until_done(f"clean up container {entry.record.id[:13]}", lambda: self.clean(entry))

    def _await_grace(self, entry: Entry[ContainerRecord], timeout: float, deadline: Deadline) -> None:
        until = time.monotonic() + timeout
        while not entry.ended.is_set():
            # Another call may have moved the kill forward, so the wait is cut into pieces.
            grace = min(until - time.monotonic(), (entry.record.kill_at - time.time_ns()) / 1e9)
            if grace <= 0:
                return
            deadline.check("during the container's grace period")
            entry.ended.wait(deadline.remaining(min(grace, _LOOK_EVERY)))

    def _force(self, entry: Entry[ContainerRecord], deadline: Deadline) -> None:
        self.kill(entry)
        self._await_death(entry, deadline)

    def kill(self, entry: Entry[ContainerRecord]) -> None:
        """SIGKILL, for all of its processes where they have a PID namespace that is not theirs alone."""
        record = entry.record
        engine = self._p.engines[record.engine]
        engine.kill(self._p.handle(record), signal.SIGKILL, everything=not record.own_pid_namespace)
        if record.state is State.PAUSED:
            self._thaw(entry)

    def _thaw(self, entry: Entry[ContainerRecord]) -> None:
        self._p.engines[entry.record.engine].resume(self._p.handle(entry.record))

    def _await_death(self, entry: Entry[ContainerRecord], deadline: Deadline) -> None:
        record, engine = entry.record, self._p.engines[entry.record.engine]
        handle = self._p.handle(record)
        give_up = Deadline.after(SIGKILL_WAIT)
        while not entry.ended.wait(deadline.remaining(_LOOK_EVERY)):
            deadline.check("while the container was being killed")
            if engine.look(handle).state in (LiveState.MISSING, LiveState.STOPPED) and give_up.passed:
                self.ended(record.id, Exit(LOST_CODE, time.time_ns(), lost=True))
            elif give_up.passed:
                raise InternalError(f"container {record.id[:13]} does not die from SIGKILL")

    def kill_all(self, entries: Iterable[Entry[ContainerRecord]], deadline: Deadline) -> list[Entry[ContainerRecord]]:
        """Kill them; those that are dying now, for :meth:`await_deaths`."""
        dying = [entry for entry in entries if self._begin_stop(entry, 0, deadline) is not None]
        for entry in dying:
            if not entry.ended.is_set():
                self.kill(entry)
        return dying

    def await_deaths(self, dying: Sequence[Entry[ContainerRecord]], deadline: Deadline) -> None:
        """Return once all of them have ended."""
        for entry in dying:
            self._await_death(entry, deadline)

    def finish_later(self, entry: Entry[ContainerRecord]) -> None:
        """End it when its grace period is over, although nobody waits for that."""
        left = max(0.0, (entry.record.kill_at - time.time_ns()) / 1e9)
        name = f"finish stopping {entry.record.id[:13]}"
        self._p.janitor.until_done(name, lambda: self._finish_stop(entry), after=left)

    def _finish_stop(self, entry: Entry[ContainerRecord]) -> None:
        if not (entry.ended.is_set() or entry.dropped):
            self._force(entry, NEVER)

    # -- end

    def report(self, container_id: str, found: Exit) -> None:
        """Take note of an end, now or as soon as that is possible: it is told only once."""
        try:
            self.ended(container_id, found)
        except Exception:
            self._p.janitor.until_done(
                f"note the end of container {container_id[:13]}", lambda: self.ended(container_id, found)
            )

    def ended(self, container_id: str, found: Exit) -> None:
        """Its supervisor reported its end; safe to repeat, and for containers unknown here."""
        try:
            entry = self._p.containers.find(container_id)
        except NotFound:
            return
        # Waits for a start under way, so that an end never overtakes its own beginning.
        with entry.work, entry.state:
            if entry.record.state in (State.CREATED, State.TERMINATED):
                return
            oom = self._p.engines[entry.record.engine].was_oom_killed(self._p.handle(entry.record))
            reason, message = _why(
                found, entry.record.denied, None if oom or found.lost else self._verdict(entry.record), oom=oom
            )
            # A file's time comes from a coarser clock than ours.
            finished_at = max(found.at, entry.record.started_at)
            self.step(
                entry,
                Event.EXIT,
                exit_code=found.code,
                finished_at=finished_at,
                reason=reason,
                message=message,
                kill_at=0,
            )
        entry.pid = 0
        entry.ended.set()
        self._p.janitor.until_done(f"clean up container {container_id[:13]}", lambda: self.clean(entry))
        self.look_at_sandbox(entry.record)

    def _verdict(self, record: ContainerRecord) -> Verdict | None:
        try:
            return self._p.engines[record.engine].verdict(self._p.handle(record))
        except Exception as error:
            # That it has ended must be told, even where nobody knows why any more.
            self._log.warning("why it ended is not known", container=record.id, error=str(error))
            return None

    def look_at_sandbox(self, record: ContainerRecord) -> None:
        """Have the sandbox looked after where what befell its container may have come from it."""
        if not record.own_pid_namespace:
            # A PID namespace whose init dies takes its containers along, and no other can be made in it.
            name = f"look after sandbox {record.sandbox_id[:13]}"
            self._p.janitor.until_done(name, lambda: self._doubt(record.sandbox_id))

    def orphaned(self, container_id: str) -> None:
        """Its supervisor died before it: it is ended, as nobody reads its output or would learn its exit code."""
        name = f"end container {container_id[:13]}, whose supervisor died"
        self._p.janitor.until_done(name, lambda: self._end_orphan(container_id))

    def _end_orphan(self, container_id: str) -> None:
        try:
            entry = self._p.containers.find(container_id)
        except NotFound:
            return
        if not entry.ended.is_set():
            self._log.warning("ended, as its supervisor died", container=container_id)
            self.kill(entry)

    # -- free

    def clean(self, entry: Entry[ContainerRecord]) -> None:
        """Free what an ended container still holds: engine state, cgroup, mounts. Idempotent."""
        with entry.work:
            if not (entry.record.cleaned or entry.dropped) and entry.record.state is State.TERMINATED:
                self.release(entry)
                entry.change(cleaned=True)

    def clean_all(self, entries: Iterable[Entry[ContainerRecord]]) -> None:
        """Free what the ended ones of them hold, or wait until that is done."""
        for entry in entries:
            if not entry.record.cleaned:
                self.clean(entry)

    def release(self, entry: Entry[ContainerRecord]) -> None:
        """What an engine holds of it, and its mounts. Idempotent."""
        record = entry.record
        self._p.engines[record.engine].delete(self._p.handle(record))
        self._p.rootfs.unmount(record.id)

    def dismantle(self, entry: Entry[ContainerRecord]) -> None:
        """The inverse of everything that creating did, however far it came. Idempotent."""
        record = entry.record
        if self._watch is not None:
            self._watch.forget(record.id)
        if not record.cleaned:
            self.release(entry)
        self._p.rootfs.remove(record.id)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._p.paths.bundle(record.id))
        self._p.paths.exit_file(record.id).unlink(missing_ok=True)

    def step(self, entry: Entry[ContainerRecord], event: Event, **fields: object) -> None:
        """One step of its life: stored, then told."""
        record = entry.record
        self._p.lifecycle.step(
            Subject.CONTAINER,
            record.id,
            sandbox_id=record.sandbox_id,
            before=record.state,
            event=event,
            commit=lambda s: entry.change(state=s, **fields),
        )


def _why(found: Exit, denied: str, verdict: Verdict | None, *, oom: bool) -> tuple[str, str]:
    if denied:
        return "Denied", denied
    if oom:
        return "OOMKilled", ""
    if found.lost:
        return "Error", "the container's supervisor was lost before it could record the exit code"
    if verdict is not None:
        return verdict.reason, verdict.message
    return ("Completed", "") if found.code == 0 else ("Error", "")
