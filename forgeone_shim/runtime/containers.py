"""The verbs of a container, in order of life: create, start, stop, remove."""

from __future__ import annotations

import os
import posixpath
import shutil
import time
from collections.abc import Mapping, Sequence
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
from forgeone_shim.config.handlers import WASM_ENGINE
from forgeone_shim.contract.facts import Point, RequestFacts
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.devices.cdi import Cdi
from forgeone_shim.errors import (
    AlreadyExists,
    FailedPrecondition,
    ForgeError,
    InvalidInput,
    NotFound,
)
from forgeone_shim.fs.users import resolve_user
from forgeone_shim.lifecycle.machine import Event, State, Subject
from forgeone_shim.registry.model import Image
from forgeone_shim.registry.service import ImageService
from forgeone_shim.runtime import (
    checkpoint_files,
    choose,
    classes,
    generation,
    image_volumes,
    placement,
    suggested,
    userns,
)
from forgeone_shim.runtime.endings import Endings
from forgeone_shim.runtime.flights import Flights
from forgeone_shim.runtime.identity import Born
from forgeone_shim.runtime.insight import Insight
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.process import argv, process, signal_number
from forgeone_shim.runtime.records import ContainerRecord, ImageVolume, SandboxRecord, container_key
from forgeone_shim.runtime.table import Entry
from forgeone_shim.runtime.watching import Watching
from forgeone_shim.shim.exits import LOST_CODE, Exit, ExitWatch, read_exit

_SETTLE_SECONDS = 60.0


class Containers:
    """Creates, starts, stops and removes containers. Every verb may be repeated."""

    def __init__(self, parts: Parts, images: ImageService) -> None:
        self._p, self._images = parts, images
        self._cdi = Cdi(parts.config.cdi.spec_dirs)
        self._flights: Flights[str] = Flights()
        self.endings = Endings(parts)
        self._watch: ExitWatch | None = None
        self._insight: Insight | None = None
        self._watching: Watching | None = None

    def report_to(self, insight: Insight) -> None:
        """Whom to tell of containers that are found at the start."""
        self._insight = insight

    def watch(self, watch: ExitWatch) -> None:
        """Where to report the first processes of new containers."""
        self._watch = watch
        self.endings.watch(watch)

    def watched_by(self, watching: Watching) -> None:
        """Who watches what containers do that ask for it."""
        self._watching = watching

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
        wasm = choose.wasm_first(sandbox.record.engine)
        image = self._images.choose(spec.image, spec.user_specified_image, wasm=wasm)
        volumes = image_volumes.find(spec, self._images, wasm=wasm)
        restored = checkpoint is not None
        seeded = self._p.identity.seeded(restored=restored)
        record = replace(self._plan(sandbox.record, spec, image, volumes), restored=restored, **seeded)
        if spec.security.namespaces.pid is NamespaceMode.TARGET:
            # Whoever shares the processes of a container can do in it what an exec can.
            target = placement.target(self._p, sandbox.record, spec).record
            self._p.guard.container(Point.EXEC, target, deadline, RequestFacts(command=record.argv, tty=spec.tty))
        record = self._p.guard.create(sandbox.record, record, image, volumes, deadline)
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
                self.endings.look_at_sandbox(record)
                raise
        return record.id

    @staticmethod
    def _require_ready(sandbox: SandboxRecord) -> None:
        if sandbox.state is not State.BOOTED:
            raise FailedPrecondition(f"sandbox {sandbox.id[:13]} is not ready ({sandbox.state})")

    def _plan(
        self, sandbox: SandboxRecord, spec: ContainerSpec, image: Image, volumes: Sequence[tuple[str, Image]]
    ) -> ContainerRecord:
        placement.check(sandbox, spec)
        handlers, only = self._p.handlers.of(WASM_ENGINE), sandbox.handler.wasm_only
        engine = choose.engine(
            sandbox.spec,
            spec,
            image,
            of_pod=sandbox.engine,
            handlers=handlers,
            wasm_only=only,
            free=sandbox.handler.chooses and self._p.scheduler.has(WASM_ENGINE),
        )
        id_ = os.urandom(32).hex()
        stop_signal = spec.stop_signal or image.config.stop_signal or "SIGTERM"
        field = "config.stop_signal" if spec.stop_signal else "image.StopSignal"
        signal_number(stop_signal, field=field)
        log_path = posixpath.join(sandbox.spec.log_directory, spec.log_path) if spec.log_path else ""
        return ContainerRecord(
            id=id_,
            sandbox_id=sandbox.id,
            spec=spec,
            engine=engine,
            state=State.CREATED,
            image_id=image.id,
            image_ref=image.repo_digests[0] if image.repo_digests else image.id,
            layers=image.layers,
            log_path=log_path if sandbox.spec.log_directory else "",
            cgroup=self._p.cgroups.container(sandbox.cgroup_parent, id_),
            stop_signal=stop_signal,
            created_at=time.time_ns(),
            own_pid_namespace=spec.security.namespaces.pid is NamespaceMode.CONTAINER,
            suggested=suggested.limits(sandbox.spec.resources, image.annotations),
            image_volumes=tuple(ImageVolume(one.id, one.layers) for _, one in volumes),
            argv=argv(spec, image.config, image.module),
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
        if self._watching is not None:
            self._watching.prepare(record)
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
        born: Mapping[str, object] = {}
        if checkpoint is None and not start_error:
            born = self._p.identity.born(record, sandbox.record, plan, self._p.guard.mark(record))
        with sandbox.state:
            self._require_ready(sandbox.record)
            self.endings.step(
                entry, Event.BOOT, user=plan.process.user, start_error=start_error, cleaned=bool(start_error), **born
            )
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
            self.endings.release(entry)
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
        started = process(spec, image.config, user, image.module, pod.handler.default_env)
        return ContainerPlan(
            container_id=record.id,
            sandbox_id=record.sandbox_id,
            bundle=str(bundle),
            rootfs=str(rootfs),
            exits=str(self._p.paths.exits),
            log_path=record.log_path,
            hostname=pod.hostname,
            cgroup=record.cgroup,
            process=started,
            namespaces=placement.namespaces(self._p, pod, spec),
            pod_mounts=(*placement.pod_mounts(self._p, pod, spec), *generation.mount(started.env, spec.mounts, bundle)),
            spec=replace(image_volumes.mounted(record, self._p.rootfs, labels.mount, owners), security=record.security),
            blockio=self._p.blockio.find(classes.name(classes.BLOCKIO, pod.spec, spec)),
            selinux=labels,
            rdt_class=classes.name(classes.RDT, pod.spec, spec),
            handler=pod.handler.settings,
            edits=edits,
            pod_annotations=pod.spec.annotations,
            image_id=image.id,
            module=image.module,
            watched=record.contract.behaviour.watched,
        )

    def _abandon(self, entry: Entry[ContainerRecord]) -> None:
        def undo() -> None:
            with entry.work:
                self.endings.dismantle(entry)
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
                    self.endings.fail_start(entry)
                raise InvalidInput("command", entry.record.start_error)
            self._p.guard.container(Point.START, entry.record, deadline)
            placement.restrain(self._p, self._p.sandboxes.find(entry.record.sandbox_id).record)
            started_at = time.time_ns()
            born: Mapping[str, object] = {}
            engine, handle = self._p.engines[entry.record.engine], self._p.handle(entry.record)
            if self._watching is not None and not entry.record.restored:
                self._watching.begin(entry)
            try:
                if entry.record.restored:
                    born = self._restore(entry, engine, handle, deadline)
                else:
                    engine.start(handle, deadline)
            except FailedPrecondition:
                # An earlier call may have started it and failed to store that.
                if engine.look(handle).state is not LiveState.RUNNING:
                    raise
            with entry.state:
                self.endings.step(entry, Event.START, started_at=started_at, **born)

    def _restore(self, entry: Entry[ContainerRecord], engine: Engine, handle: Handle, deadline: Deadline) -> Born:
        record, images = entry.record, self._p.paths.checkpoint(entry.record.id)
        live = engine.look(handle)
        pod = self._p.sandboxes.find(record.sandbox_id).record
        # An earlier call may have restored it and failed to store that.
        there = live.state in (LiveState.RUNNING, LiveState.PAUSED)
        if not there:
            engine.delete(handle)
        plan = self._engine_plan(record, pod, self._images.resolve(record.image_id))
        entry.pid = live.pid if there else engine.restore(plan, str(images), deadline)
        try:
            born = self._p.identity.born(record, pod, plan, self._p.guard.mark(record))
            if self._watching is not None:
                # It has no control group before it runs.
                self._watching.begin(entry)
        except BaseException:
            engine.delete(handle)
            raise
        if self._watch is not None:
            self._watch.follow(record.id, entry.pid)
        shutil.rmtree(images, ignore_errors=True)
        return born

    # -- stop

    def stop(self, id_: str, timeout: float, deadline: Deadline) -> None:
        """Ask it to stop, and kill it ``timeout`` seconds later; a missing or ended container is no error."""
        try:
            entry = self._p.containers.find(id_)
        except NotFound:
            return
        if timeout > 0 and entry.record.state is State.PAUSED and not self._may_go_on(entry, deadline):
            timeout = 0
        self.endings.stop(entry, timeout, deadline)

    def _may_go_on(self, entry: Entry[ContainerRecord], deadline: Deadline) -> bool:
        """Whether a paused container may run once more, for the grace period that its author has chosen."""
        try:
            self._p.guard.container(Point.RESUME, entry.record, deadline)
        except ForgeError as error:
            structlog.get_logger("containers").warning("no grace period", container=entry.record.id, error=str(error))
            return False
        return True

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
        self.endings.stop(entry, 0, deadline)
        with entry.working(deadline):
            self.endings.dismantle(entry)
            self._drop(entry)
        try:
            for image_id in (entry.record.image_id, *(one.image_id for one in entry.record.image_volumes)):
                self._images.resolve(image_id)
        except NotFound:  # the image went first and left its layers to this container
            self._p.janitor.until_done("collect unused layers", self._images.collect_garbage)

    def _drop(self, entry: Entry[ContainerRecord]) -> None:
        """Forget its record. Whoever was told of its creation is told of its end and removal, once."""
        if self._watching is not None:
            self._watching.forget(entry.record.id)
        with entry.state:
            if entry.dropped or entry.record.state is State.CREATED:
                self._p.containers.drop(entry)
                return
            if entry.record.state is not State.TERMINATED:
                self.endings.step(entry, Event.EXIT, finished_at=time.time_ns(), exit_code=LOST_CODE, reason="Error")
            self._p.lifecycle.step(
                Subject.CONTAINER,
                entry.record.id,
                sandbox_id=entry.record.sandbox_id,
                before=entry.record.state,
                event=Event.REMOVE,
                commit=lambda _: self._p.containers.drop(entry),
            )

    # -- recovery

    def recover(self, entry: Entry[ContainerRecord]) -> None:
        """Bring one record in line with what the kernel says after a restart, and finish what was half done."""
        record = entry.record
        if record.state is State.CREATED:
            self._abandon(entry)
        elif record.state is State.TERMINATED:
            entry.ended.set()
            self.endings.clean(entry)
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
            self.endings.ended(record.id, found)
        elif record.state is State.STOPPING:
            self.endings.finish_later(entry)

    def _recover_live(self, entry: Entry[ContainerRecord]) -> None:
        record = entry.record
        if record.start_error and record.state is State.BOOTED:
            return
        with entry.work:
            live = self._p.engines[record.engine].look(self._p.handle(record))
            entry.pid = live.pid
            if live.state is LiveState.PAUSED and record.state is not State.PAUSED:
                self._thaw(entry)
                live = replace(live, state=LiveState.RUNNING)
            elif live.state is LiveState.RUNNING and record.state is State.PAUSED:
                # A resume that was cut off.
                self.endings.step(entry, Event.RESUME)
            if live.state is not LiveState.MISSING and live.state is not LiveState.STOPPED and record.genome is None:
                self._identify(entry)
            if record.state is State.BOOTED and live.state is LiveState.RUNNING:
                self.endings.step(entry, Event.START, started_at=time.time_ns())
        if self._insight is not None:
            self._insight.found(entry)
        if entry.record.unstarted:
            return
        found = read_exit(self._p.paths.exits, record.id)
        if found is not None:
            if record.state is State.BOOTED and entry.record.state is State.BOOTED:
                entry.change(started_at=record.created_at)
            self.endings.ended(record.id, found)
        elif self._watch is not None:
            # A dead pid counts as ended unless its supervisor's exit file turns up within the grace period.
            self._watch.follow(record.id, live.pid or 2**22 + 1)
        if record.state is State.STOPPING and found is None:
            self.endings.finish_later(entry)

    def _identify(self, entry: Entry[ContainerRecord]) -> None:
        """It was restored by a start that was cut off, or created by a forgeoned that made no fingerprints.

        One that cannot be made now is not made later: with a contract the container is denied for that.
        """
        record = entry.record
        try:
            pod = self._p.sandboxes.find(record.sandbox_id).record
            plan = self._engine_plan(record, pod, self._images.resolve(record.image_id))
            entry.change(**self._p.identity.born(record, pod, plan, self._p.guard.mark(record)))
        except ForgeError as error:
            structlog.get_logger("containers").warning("no fingerprint", container=record.id, error=str(error))

    def _thaw(self, entry: Entry[ContainerRecord]) -> None:
        """It was frozen for a pause or a checkpoint that was cut off; what made the latter may still be at it."""
        engine, handle = self._p.engines[entry.record.engine], self._p.handle(entry.record)

        def settle() -> None:
            # Another checkpoint must not begin meanwhile.
            with entry.work:
                until = Deadline.after(_SETTLE_SECONDS)
                engine.resume(handle, until)
                if entry.record.state is State.PAUSED:
                    engine.pause(handle, until)

        engine.resume(handle)
        self._p.janitor.until_done(f"let container {entry.record.id[:13]} go on", settle)
