"""The verbs of a container, in order of life: create, start, stop, remove."""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from engines.base import (
    ContainerPlan,
    ContainerSpec,
    Engine,
    Handle,
    LiveState,
    NamespaceMode,
)
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.devices.cdi import Cdi
from forgeone_shim.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidInput,
    NotFound,
)
from forgeone_shim.fs.users import resolve_user
from forgeone_shim.lifecycle.machine import Event, State, Subject
from forgeone_shim.registry.model import Image
from forgeone_shim.registry.service import ImageService
from forgeone_shim.runtime import checkpoint_files, classes, image_volumes, placement, userns
from forgeone_shim.runtime.flights import Flights
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.process import process, signal_number
from forgeone_shim.runtime.records import ContainerRecord, SandboxRecord, container_key
from forgeone_shim.runtime.table import Entry
from forgeone_shim.shim.exits import LOST_CODE, Exit, ExitWatch, read_exit

SIGKILL_WAIT = 10.0
_LOOK_EVERY = 0.5
# What other runtimes report, and a shell never does.
START_ERROR_CODE = 128


class Containers:
    """Creates, starts, stops and removes containers. Every verb may be repeated."""

    def __init__(self, parts: Parts, images: ImageService) -> None:
        self._p, self._images = parts, images
        self._cdi = Cdi(parts.config.cdi.spec_dirs)
        self._flights: Flights[str] = Flights()
        self._watch: ExitWatch | None = None
        self._log = structlog.get_logger("containers")
        self._doubt: Callable[[str], None] = lambda _: None

    def watch(self, watch: ExitWatch) -> None:
        """Where to report the first processes of new containers."""
        self._watch = watch

    def doubt(self, look: Callable[[str], None]) -> None:
        """Whom to ask to look after a sandbox by id, when what befell a container may have come from the sandbox."""
        self._doubt = look

    def of(self, sandbox_id: str) -> list[Entry[ContainerRecord]]:
        """The containers of a sandbox."""
        return [entry for entry in self._p.containers.all() if entry.record.sandbox_id == sandbox_id]

    # -- create

    def create(self, sandbox_id: str, spec: ContainerSpec, deadline: Deadline, checkpoint: Path | None = None) -> str:
        """Returns the id of a container held before its first instruction; a repeated call returns the same one.

        With ``checkpoint``, a directory of its images and files, it has no process until it is started.
        """
        sandbox = self._p.sandboxes.find(sandbox_id)
        key = container_key(sandbox.record.id, spec)
        return self._flights.run(key, deadline, lambda joined: self._create(sandbox, key, spec, checkpoint, joined))

    def _create(
        self,
        sandbox: Entry[SandboxRecord],
        key: str,
        spec: ContainerSpec,
        checkpoint: Path | None,
        deadline: Deadline,
    ) -> str:
        existing = self._p.containers.by_key(key)
        # One that is still CREATED here failed, and waits to be undone.
        if existing is not None and existing.record.state is not State.CREATED:
            if existing.record.spec != spec:
                raise AlreadyExists(
                    f"container {existing.record.id[:13]} already has this name and attempt but another configuration",
                    fix="remove it, or raise the attempt",
                )
            return existing.record.id
        image = self._images.resolve(spec.image)
        if image.artifact:
            what = f"{spec.image!r} is an OCI artifact ({image.artifact}): it has no command to run"
            raise InvalidInput("config.image.image", what, fix="mount it as an image volume")
        record = replace(self._plan(sandbox.record, spec, image), restored=checkpoint is not None)
        with sandbox.state:
            self._require_ready(sandbox.record)
            entry = self._p.containers.add(record)
        with entry.work:
            if entry.dropped:
                raise FailedPrecondition(f"container {record.id[:13]} was removed while it was being created")
            try:
                self._build(entry, sandbox, image, checkpoint, deadline)
            except BaseException:
                self._abandon(entry)
                self._look_at_sandbox(record)
                raise
        return record.id

    @staticmethod
    def _require_ready(sandbox: SandboxRecord) -> None:
        if sandbox.state is not State.BOOTED:
            raise FailedPrecondition(f"sandbox {sandbox.id[:13]} is not ready ({sandbox.state})")

    def _plan(self, sandbox: SandboxRecord, spec: ContainerSpec, image: Image) -> ContainerRecord:
        placement.check(sandbox, spec)
        id_ = os.urandom(32).hex()
        stop_signal = spec.stop_signal or image.config.stop_signal or "SIGTERM"
        field = "config.stop_signal" if spec.stop_signal else "image.StopSignal"
        signal_number(stop_signal, field=field)
        log_path = posixpath.join(sandbox.spec.log_directory, spec.log_path) if spec.log_path else ""
        return ContainerRecord(
            id=id_,
            sandbox_id=sandbox.id,
            spec=spec,
            engine=sandbox.engine,
            state=State.CREATED,
            image_id=image.id,
            image_ref=image.repo_digests[0] if image.repo_digests else image.id,
            layers=image.layers,
            log_path=log_path if sandbox.spec.log_directory else "",
            cgroup=self._p.cgroups.container(sandbox.cgroup_parent, id_),
            stop_signal=stop_signal,
            created_at=time.time_ns(),
            own_pid_namespace=spec.security.namespaces.pid is NamespaceMode.CONTAINER,
            image_volumes=image_volumes.find(spec, self._images),
        )

    def _build(
        self,
        entry: Entry[ContainerRecord],
        sandbox: Entry[SandboxRecord],
        image: Image,
        checkpoint: Path | None,
        deadline: Deadline,
    ) -> None:
        record = entry.record
        # In it are the container's environment and, mounted, its set-user-ID programs: not for other users of the host.
        self._p.paths.bundle(record.id).mkdir(mode=0o700)
        if checkpoint is not None:
            self._p.rootfs.load(record.id, checkpoint / checkpoint_files.DIFF, deadline)
            checkpoint_files.copy(checkpoint / checkpoint_files.IMAGES, self._p.paths.checkpoint(record.id), deadline)
        plan = self._engine_plan(record, sandbox.record, image)
        deadline.check("before the container was created")
        start_error = ""
        if checkpoint is None:
            start_error = self._create_processes(entry, plan, deadline)
        deadline.check("while the container was created")
        with sandbox.state:
            self._require_ready(sandbox.record)
            self._step(entry, Event.BOOT, user=plan.process.user, start_error=start_error, cleaned=bool(start_error))
        if self._watch is not None and not entry.record.unstarted:
            self._watch.follow(record.id, entry.pid)

    def _create_processes(self, entry: Entry[ContainerRecord], plan: ContainerPlan, deadline: Deadline) -> str:
        """Returns why its command cannot be executed, empty where it can."""
        try:
            entry.pid = self._p.engines[entry.record.engine].create(plan, deadline)
        except InvalidInput as error:
            if error.field != "command":
                raise
            # Only an end counts for a Job, or a pod that is never restarted; a create would be repeated forever.
            self._release(entry)
            return error.reason
        return ""

    def _engine_plan(self, record: ContainerRecord, pod: SandboxRecord, image: Image) -> ContainerPlan:
        """What the engine is told, with the root file system mounted."""
        spec = record.spec
        edits = self._cdi.edits(spec)
        bundle = self._p.paths.bundle(record.id)
        owners = userns.owners(pod)
        if owners is not None:
            userns.open_to_root(bundle, owners)
        labels = self._p.labeller.container(pod.selinux, pod.spec, spec)
        readonly = spec.security.readonly_rootfs
        rootfs = self._p.rootfs.mount(record.id, record.layers, readonly, labels.mount, owners)
        user = resolve_user(rootfs, image.config.user, spec.security)
        if record.log_path:
            Path(record.log_path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        return ContainerPlan(
            container_id=record.id,
            sandbox_id=record.sandbox_id,
            bundle=str(bundle),
            rootfs=str(rootfs),
            exits=str(self._p.paths.exits),
            log_path=record.log_path,
            hostname=pod.hostname,
            cgroup=record.cgroup,
            process=process(spec, image.config, user),
            namespaces=placement.namespaces(self._p, pod, spec),
            pod_mounts=placement.pod_mounts(self._p, pod, spec),
            spec=image_volumes.mounted(record, self._p.rootfs, labels.mount, owners),
            blockio=self._p.blockio.find(classes.name(classes.BLOCKIO, pod.spec, spec)),
            selinux=labels,
            rdt_class=classes.name(classes.RDT, pod.spec, spec),
            handler=pod.handler.settings,
            edits=edits,
            pod_annotations=pod.spec.annotations,
        )

    def _abandon(self, entry: Entry[ContainerRecord]) -> None:
        def undo() -> None:
            with entry.work:
                self.dismantle(entry)
                self._drop(entry)

        try:
            undo()
        except Exception:
            self._p.janitor.until_done(f"undo container {entry.record.id[:13]}", undo)

    # -- start

    def start(self, id_: str, deadline: Deadline) -> None:
        """Let it run; a container that already runs is no error (a retry)."""
        entry = self._p.containers.find(id_)
        with entry.working(deadline):
            if entry.record.state in (State.RUNNING, State.PAUSED):
                return
            if entry.record.state is not State.BOOTED:
                raise FailedPrecondition(f"container {entry.record.id[:13]} is {entry.record.state}: cannot start")
            deadline.check("before the container was started")
            if entry.record.start_error:
                with entry.state:
                    self._fail_start(entry)
                raise InvalidInput("command", entry.record.start_error)
            started_at = time.time_ns()
            engine, handle = self._p.engines[entry.record.engine], self._p.handle(entry.record)
            try:
                if entry.record.restored:
                    self._restore(entry, engine, handle, deadline)
                else:
                    engine.start(handle, deadline)
            except FailedPrecondition:
                # An earlier call may have started it and failed to store that.
                if engine.look(handle).state is not LiveState.RUNNING:
                    raise
            with entry.state:
                self._step(entry, Event.START, started_at=started_at)

    def _restore(self, entry: Entry[ContainerRecord], engine: Engine, handle: Handle, deadline: Deadline) -> None:
        record, images = entry.record, self._p.paths.checkpoint(entry.record.id)
        live = engine.look(handle)
        if live.state in (LiveState.RUNNING, LiveState.PAUSED):
            # An earlier call restored it and failed to store that.
            entry.pid = live.pid
        else:
            engine.delete(handle)
            pod = self._p.sandboxes.find(record.sandbox_id).record
            plan = self._engine_plan(record, pod, self._images.resolve(record.image_id))
            entry.pid = engine.restore(plan, str(images), deadline)
        if self._watch is not None:
            self._watch.follow(record.id, entry.pid)
        shutil.rmtree(images, ignore_errors=True)

    def _fail_start(self, entry: Entry[ContainerRecord]) -> None:
        error, now = entry.record.start_error or "it was never started", time.time_ns()
        self._step(
            entry,
            Event.EXIT,
            exit_code=START_ERROR_CODE,
            finished_at=now,
            reason="StartError",
            message=error,
            kill_at=0,
        )
        entry.ended.set()

    # -- stop

    def stop(self, id_: str, timeout: float, deadline: Deadline) -> None:
        """Ask it to stop, and kill it ``timeout`` seconds later; a missing or ended container is no error."""
        try:
            entry = self._p.containers.find(id_)
        except NotFound:
            return
        self.stop_entry(entry, timeout, deadline)

    def stop_entry(self, entry: Entry[ContainerRecord], timeout: float, deadline: Deadline) -> None:
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
                self._finish_later(entry)
                raise
        if not entry.ended.is_set():
            self._force(entry, deadline)

    def _begin_stop(self, entry: Entry[ContainerRecord], timeout: float, deadline: Deadline) -> bool | None:
        """Store the stop; says whether the container had been started, or ``None`` when there is nothing to stop."""
        while True:
            with entry.state:
                state = entry.record.state
                if entry.record.unstarted:
                    self._fail_start(entry)
                    return None
                if state is State.TERMINATED:
                    return None
                if state is not State.CREATED:
                    kill_at = time.time_ns() + int(timeout * 1e9)
                    if entry.record.kill_at:
                        kill_at = min(kill_at, entry.record.kill_at)
                    if state is not State.STOPPING or kill_at != entry.record.kill_at:
                        self._step(entry, Event.STOP, kill_at=kill_at)
                    return state is not State.BOOTED
            # Being created by another thread, which holds the entry's work lock until it is Booted or dropped.
            with entry.working(deadline):
                if entry.record.state is State.CREATED:
                    return None

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
        self._kill(entry)
        self._await_death(entry, deadline)

    def _kill(self, entry: Entry[ContainerRecord]) -> None:
        record = entry.record
        engine = self._p.engines[record.engine]
        engine.kill(self._p.handle(record), signal.SIGKILL, everything=not record.own_pid_namespace)

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

    def kill_all(self, sandbox_id: str, deadline: Deadline) -> list[Entry[ContainerRecord]]:
        """Kill every container of a sandbox; those that are dying now, for :meth:`await_deaths`."""
        dying = [entry for entry in self.of(sandbox_id) if self._begin_stop(entry, 0, deadline) is not None]
        for entry in dying:
            if not entry.ended.is_set():
                self._kill(entry)
        return dying

    def await_deaths(self, dying: Sequence[Entry[ContainerRecord]], deadline: Deadline) -> None:
        """Return once all of them have ended."""
        for entry in dying:
            self._await_death(entry, deadline)

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
            reason, message = _why(found, oom=oom)
            # A file's time comes from a coarser clock than ours.
            finished_at = max(found.at, entry.record.started_at)
            self._step(
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
        self._look_at_sandbox(entry.record)

    def _look_at_sandbox(self, record: ContainerRecord) -> None:
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
            self._kill(entry)

    def clean(self, entry: Entry[ContainerRecord]) -> None:
        """Free what an ended container still holds: engine state, cgroup, mounts. Idempotent."""
        with entry.work:
            if not (entry.record.cleaned or entry.dropped) and entry.record.state is State.TERMINATED:
                self._release(entry)
                entry.change(cleaned=True)

    def clean_all(self, sandbox_id: str) -> None:
        """Free what the ended containers of a sandbox hold, or wait until that is done."""
        for entry in self.of(sandbox_id):
            if not entry.record.cleaned:
                self.clean(entry)

    def _release(self, entry: Entry[ContainerRecord]) -> None:
        record = entry.record
        self._p.engines[record.engine].delete(self._p.handle(record))
        self._p.rootfs.unmount(record.id)

    def dismantle(self, entry: Entry[ContainerRecord]) -> None:
        """The inverse of everything that creating did, however far it came. Idempotent."""
        record = entry.record
        if self._watch is not None:
            self._watch.forget(record.id)
        if not record.cleaned:
            self._release(entry)
        self._p.rootfs.remove(record.id)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._p.paths.bundle(record.id))
        self._p.paths.exit_file(record.id).unlink(missing_ok=True)

    # -- remove

    def remove(self, id_: str, deadline: Deadline) -> None:
        """Kill it if need be and forget it; a missing container is no error."""
        try:
            entry = self._p.containers.find(id_)
        except NotFound:
            return
        self.remove_entry(entry, deadline)

    def remove_entry(self, entry: Entry[ContainerRecord], deadline: Deadline = NEVER) -> None:
        """Kill it if need be and forget it."""
        self.stop_entry(entry, 0, deadline)
        with entry.working(deadline):
            self.dismantle(entry)
            self._drop(entry)
        try:
            for image_id in (entry.record.image_id, *(one.image_id for one in entry.record.image_volumes)):
                self._images.resolve(image_id)
        except NotFound:  # the image went first and left its layers to this container
            self._p.janitor.until_done("collect unused layers", self._images.collect_garbage)

    def _drop(self, entry: Entry[ContainerRecord]) -> None:
        """Forget its record. Whoever was told of its creation is told of its end and removal, once."""
        with entry.state:
            if entry.dropped or entry.record.state is State.CREATED:
                self._p.containers.drop(entry)
                return
            if entry.record.state is not State.TERMINATED:
                self._step(entry, Event.EXIT, finished_at=time.time_ns(), exit_code=LOST_CODE, reason="Error")
            self._p.lifecycle.step(
                Subject.CONTAINER,
                entry.record.id,
                sandbox_id=entry.record.sandbox_id,
                before=entry.record.state,
                event=Event.REMOVE,
                commit=lambda _: self._p.containers.drop(entry),
            )

    def _step(self, entry: Entry[ContainerRecord], event: Event, **fields: object) -> None:
        record = entry.record
        self._p.lifecycle.step(
            Subject.CONTAINER,
            record.id,
            sandbox_id=record.sandbox_id,
            before=record.state,
            event=event,
            commit=lambda s: entry.change(state=s, **fields),
        )

    # -- recovery

    def recover(self, entry: Entry[ContainerRecord]) -> None:
        """Bring one record in line with what the kernel says after a restart, and finish what was half done."""
        record = entry.record
        if record.state is State.CREATED:
            self._abandon(entry)
        elif record.state is State.TERMINATED:
            entry.ended.set()
            self.clean(entry)
        elif record.engine not in self._p.engines:
            self._recover_foreign(entry)
        else:
            self._recover_live(entry)

    def _recover_foreign(self, entry: Entry[ContainerRecord]) -> None:
        """Of an engine that is not installed: left alone while it lives, as its engine may come back."""
        record = entry.record
        found = read_exit(self._p.paths.exits, record.id)
        if found is None and self._p.engines[record.engine].look(self._p.handle(record)).state is LiveState.MISSING:
            found = Exit(LOST_CODE, time.time_ns(), lost=True)
        if found is not None:
            self.ended(record.id, found)
        elif record.state is State.STOPPING:
            self._finish_later(entry)

    def _recover_live(self, entry: Entry[ContainerRecord]) -> None:
        record = entry.record
        if record.start_error and record.state is State.BOOTED:
            return
        with entry.work:
            live = self._p.engines[record.engine].look(self._p.handle(record))
            entry.pid = live.pid
            if live.state is LiveState.PAUSED:
                # It was frozen for a checkpoint that was cut off.
                self._p.engines[record.engine].resume(self._p.handle(record))
                live = replace(live, state=LiveState.RUNNING)
            if record.state is State.BOOTED and live.state is LiveState.RUNNING:
                self._step(entry, Event.START, started_at=time.time_ns())
        if entry.record.unstarted:
            return
        found = read_exit(self._p.paths.exits, record.id)
        if found is not None:
            if record.state is State.BOOTED and entry.record.state is State.BOOTED:
                entry.change(started_at=record.created_at)
            self.ended(record.id, found)
        elif self._watch is not None:
            # A dead pid counts as ended unless its supervisor's exit file turns up within the grace period.
            self._watch.follow(record.id, live.pid or 2**22 + 1)
        if record.state is State.STOPPING and found is None:
            self._finish_later(entry)

    def _finish_later(self, entry: Entry[ContainerRecord]) -> None:
        left = max(0.0, (entry.record.kill_at - time.time_ns()) / 1e9)
        name = f"finish stopping {entry.record.id[:13]}"
        self._p.janitor.until_done(name, lambda: self._finish_stop(entry), after=left)

    def _finish_stop(self, entry: Entry[ContainerRecord]) -> None:
        if not (entry.ended.is_set() or entry.dropped):
            self._force(entry, NEVER)


def _why(found: Exit, *, oom: bool) -> tuple[str, str]:
    if oom:
        return "OOMKilled", ""
    if found.lost:
        return "Error", "the container's supervisor was lost before it could record the exit code"
    return ("Completed", "") if found.code == 0 else ("Error", "")
