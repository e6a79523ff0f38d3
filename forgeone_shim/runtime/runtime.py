"""The master control: wires the rooms together and offers the verbs that the CRI side calls."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

from engines.base import Console, ContainerSpec, Engine, ExecResult, HostCalls, Resources, SandboxSpec, Stdio
from forgeone_shim import abi
from forgeone_shim.audit import log as audit
from forgeone_shim.audit.ledger import Ledger
from forgeone_shim.audit.log import AuditLog
from forgeone_shim.cluster.policies import ClusterPolicies
from forgeone_shim.config import handlers as handler_files
from forgeone_shim.config.handlers import AUTO_ENGINE
from forgeone_shim.config.model import Config
from forgeone_shim.deadline import Deadline
from forgeone_shim.devices.blockio import Classes
from forgeone_shim.dna.source import Source
from forgeone_shim.errors import FailedPrecondition, NotFound
from forgeone_shim.fs.layers import LayerStore
from forgeone_shim.fs.rootfs import RootfsStore
from forgeone_shim.kernel import cgroups, selinux
from forgeone_shim.kernel.namespaces import run_in
from forgeone_shim.lifecycle.machine import Event, Lifecycle, State, Transition
from forgeone_shim.metrics.figures import Figure
from forgeone_shim.metrics.guests import Guests
from forgeone_shim.metrics.meter import Meter
from forgeone_shim.metrics.samples import Sample, of_trust
from forgeone_shim.network.cni import wellknown
from forgeone_shim.network.network import Network
from forgeone_shim.registry.model import Image
from forgeone_shim.registry.service import ImageService
from forgeone_shim.runtime import absent, choose, inforce
from forgeone_shim.runtime.around import Around
from forgeone_shim.runtime.behaviours import Behaviours
from forgeone_shim.runtime.beside import Beside
from forgeone_shim.runtime.checkpoints import Checkpoints, RestoredContainer
from forgeone_shim.runtime.chronicle import Chronicle
from forgeone_shim.runtime.containers import Containers
from forgeone_shim.runtime.events import EventHub, Feed, Happening
from forgeone_shim.runtime.guard import Guard
from forgeone_shim.runtime.handlers import Handlers
from forgeone_shim.runtime.identity import Identity
from forgeone_shim.runtime.inforce import InForce, Users
from forgeone_shim.runtime.insight import Insight
from forgeone_shim.runtime.inspection import Inspection
from forgeone_shim.runtime.janitor import Janitor
from forgeone_shim.runtime.labels import Labeller
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.paths import Paths
from forgeone_shim.runtime.pauses import Pauses
from forgeone_shim.runtime.pulls import Pulls
from forgeone_shim.runtime.readiness import Readiness
from forgeone_shim.runtime.recheck import Recheck
from forgeone_shim.runtime.records import CONTAINER_KIND, SANDBOX_KIND, ContainerRecord, SandboxRecord
from forgeone_shim.runtime.recovery import Recovery
from forgeone_shim.runtime.running import Running
from forgeone_shim.runtime.sandboxes import Sandboxes
from forgeone_shim.runtime.table import Entry, Table
from forgeone_shim.runtime.updates import Updates
from forgeone_shim.runtime.views import (
    Condition,
    ContainerView,
    FilesystemUsage,
    HandlerStatus,
    NodeStatus,
    SandboxView,
)
from forgeone_shim.runtime.watching import Answers, Watching
from forgeone_shim.scheduler.scheduler import Scheduler
from forgeone_shim.shim.exits import Exit, ExitWatch, find_supervisor
from forgeone_shim.shim.namespaces import NamespaceServer
from forgeone_shim.state.store import StateStore

ENGINE_GROUP: Final = "forgeone.engines"
_LOCK_PATIENCE: Final = 30.0
# For a connection to a machine's loopback interface, where somebody listens or nobody.
_DIAL_SECONDS: Final = 5.0


def load_engines(config: Config) -> dict[str, Engine]:
    """Every installed engine, built from plain configuration."""
    plain = asdict(config)
    return {point.name: point.load()(plain) for point in entry_points(group=ENGINE_GROUP)}


class Runtime:
    """One per process and root. Made by :meth:`open`; every verb may be called from any thread."""

    def __init__(
        self, parts: Parts, images: ImageService, log: AuditLog, locks: Sequence[int], readiness: Readiness
    ) -> None:
        self.images, self._readiness = images, readiness
        self._log, self._chronicle = log, parts.chronicle
        # Before all others: what they do with a step does not matter to the log.
        parts.lifecycle.subscribe(self._chronicle.told)
        self.lifecycle = parts.lifecycle
        self._p, self._locks = parts, locks
        self._configuration = Condition(ready=True)
        self._warming = Deadline()
        self._containers = Containers(parts, images)
        self._sandboxes = Sandboxes(parts, self._containers)
        self._updates = Updates(parts)
        self._pauses = Pauses(parts, self._containers.endings)
        self._watching = Watching(parts, Answers(self._containers.endings, self._pauses))
        self._containers.watched_by(self._watching)
        parts.identity.watched_by(self._watching.standing)
        self.behaviours = Behaviours(self._watching, images, parts.chronicle)
        self.beside = Beside(
            parts.sandboxes,
            parts.containers,
            parts.handlers,
            images,
            policies=parts.policies,
            chronicle=parts.chronicle,
        )
        self._running = Running(parts, self._watching)
        self._insight = Insight(parts)
        self.inspection = Inspection(parts, parts.identity)
        self.inspection.section("behaviour", self._watching.summary)
        self.inspection.pod_section("refused", lambda record: parts.network.refused(record.id))
        parts.network.report_to(self._tampered)
        self._containers.report_to(self._insight)
        self._recheck = Recheck(parts, self._containers)
        self._checkpoints = Checkpoints(parts, images, self._sandboxes, self._containers)
        self._ends = ThreadPoolExecutor(16, thread_name_prefix="ended")
        self._watch = ExitWatch(
            parts.paths.exits,
            self._ended,
            lambda id_: find_supervisor(parts.paths.bundle(id_), id_),
            self._containers.endings.orphaned,
        )
        self._containers.watch(self._watch)
        self._events = EventHub(parts.lifecycle, self._happening)
        self._guests = Guests(parts.engines, lambda view: parts.paths.handle(view.id, view.sandbox_id, view.cgroup))
        self.meter = Meter(parts.cgroups, self._layer_usage, self._trust, self._guests)
        parts.lifecycle.subscribe(self._forget_usage)
        parts.lifecycle.subscribe(self._insight.told)
        parts.lifecycle.subscribe(self._watching.told)

    @classmethod
    def open(cls, config: Config, engines: Mapping[str, Engine] | None = None) -> Runtime:
        """Take root and state (waiting for an earlier owner to let go), wire everything and recover."""
        paths = Paths(Path(config.root), Path(config.state))
        paths.prepare()
        files = handler_files.read(Path(config.handlers_dir))
        named = inforce.read(config)
        locks = [_take(path) for path in paths.locks]
        store = StateStore(paths.database)
        log = AuditLog.open(
            paths.audit,
            paths.keys,
            Ledger(store),
            name=os.uname().nodename,
            options=audit.Options(config.audit.keep, refuse=config.audit.on_damage == "refuse"),
        )
        layers = LayerStore(paths.layers)
        containers = Table(store, CONTAINER_KIND, "container", ContainerRecord)

        sandboxes = Table(store, SANDBOX_KIND, "sandbox", SandboxRecord)

        def sandbox(id_: str) -> SandboxRecord | None:
            with contextlib.suppress(NotFound):
                return sandboxes.find(id_).record
            return None

        chronicle = Chronicle(log, sandbox, arguments=config.audit.arguments)
        cluster = ClusterPolicies(paths.cluster, paths.cluster_scratch, config.cluster)
        policies = InForce(named, cluster)

        def layers_in_use() -> set[str]:
            return {layer for entry in containers.all() for layer in entry.record.used_layers}

        janitor = Janitor()
        installed = dict(engines) if engines is not None else load_engines(config)
        host = cgroups.detect(config.native.cgroup_driver)
        present = absent.Engines(installed, host)
        layers.recover()
        rootfs = RootfsStore(paths.root, paths.state, layers)
        readiness = Readiness(present, layers, rootfs)
        images = ImageService(
            store,
            paths.root,
            config.registry,
            layers,
            pinned=config.pinned_images,
            layers_in_use=layers_in_use,
            packages=config.packages,
            signatures=config.signatures,
            witness=Pulls(chronicle),
            abi=abi.VERSION,
            audience=readiness,
        )
        identity = Identity(present, paths, Source())
        around = Around(sandboxes, containers, identity, config)
        scheduler = Scheduler(installed, config.scheduler)
        parts = Parts(
            config=config,
            paths=paths,
            store=store,
            lifecycle=Lifecycle(),
            janitor=janitor,
            pool=ThreadPoolExecutor(32, thread_name_prefix="work"),
            network=Network(config.network, config.cni, store, wellknown.find, janitor.until_done),
            layers=layers,
            rootfs=rootfs,
            engines=present,
            handlers=Handlers(installed, files, config.scheduler.order),
            scheduler=scheduler,
            cgroups=host,
            shim=NamespaceServer(paths.shim),
            sandboxes=sandboxes,
            containers=containers,
            blockio=Classes(config.resources.blockio_config_file),
            labeller=Labeller(
                selinux.detect() if config.selinux.mode == "auto" else None,
                config.selinux.categories,
                lambda: (entry.record.selinux for entry in sandboxes.all()),
            ),
            identity=identity,
            guard=Guard(policies.policies, chronicle, images, around, cluster.waiting, isolated=scheduler.isolated),
            policies=policies,
            chronicle=chronicle,
            around=around,
        )
        runtime = cls(parts, images, log, locks, readiness)
        chronicle.started(config, parts.guard.policies)
        runtime._checkpoints.sweep()
        Recovery(parts, runtime._sandboxes, runtime._containers, runtime._recheck).run()
        runtime._watching.recover()
        chronicle.recovered([*(one.record for one in sandboxes.all()), *(one.record for one in containers.all())])
        parts.janitor.until_done("collect unused layers", images.collect_garbage)
        # So that a source that is stuck is known before a container counts on it.
        parts.pool.submit(identity.source.health)
        parts.pool.submit(readiness.all, images.list(), runtime._warming)
        policies.begin(Users(parts.guard.follow, runtime._policies_changed, chronicle.synced))
        return runtime

    def reconfigure(self, config: Config) -> tuple[str, ...]:
        """What can change while it runs; returns what did besides keys of the configuration.

        :raises ForgeError: it cannot be used; nothing has changed then.
        """
        before, files = self._p.handlers.all(), handler_files.read(Path(config.handlers_dir))
        named = inforce.read(config)
        plain = asdict(config)
        # All are asked before any changes, and cannot fail after that.
        takes = [engine.reconfigure(plain) for engine in self._p.engines.values()]
        take_handlers = self._p.handlers.plan(files, config.scheduler.order)
        take_images = self.images.plan(config.registry, config.pinned_images, config.packages, config.signatures)
        policies = take_images()
        take_handlers()
        isolation = self._p.scheduler.follow(config.scheduler)
        self._p.network.reconfigure(config.network.mode, config.cni, self._p.handlers.conf_dirs())
        self._p.around.follow(config)
        edited = [key for take in takes for key in take()]
        reread = self._p.policies.reread(named, config.cluster)
        if reread:
            edited.append("policies")
        if reread or isolation:
            self._policies_changed()
        different = {one.name for one in {*before} ^ {*self._p.handlers.all()}}
        return (*edited, *policies, *(f"handler {name}" for name in sorted(different)))

    def _policies_changed(self) -> None:
        self._p.pool.submit(self._recheck.all)

    def configuration_loaded(self, changed: Sequence[str], waiting: Sequence[str]) -> None:
        """The last reload was not refused: keys and files that changed, and those that wait for a restart."""
        self._configuration = Condition(ready=True)
        self._chronicle.loaded(changed, waiting, self._p.guard.policies)
        self._chronicle.settle(Deadline(), must=False)

    def configuration_refused(self, why: str) -> None:
        """What the last reload was refused for, for Status."""
        self._configuration = Condition(False, "Refused", why)
        self._chronicle.refused(why)
        self._chronicle.settle(Deadline(), must=False)

    def close(self) -> None:
        """Let go of everything but the containers, which go on."""
        self._p.policies.close()
        self._warming.abandon()
        self.images.close()
        self.meter.close()
        self._guests.close()
        self._watch.close()
        self._sandboxes.close()
        self._ends.shutdown(wait=True)
        self._p.network.close()
        self._watching.close()
        self._p.janitor.close()
        self._p.pool.shutdown(wait=True)
        for engine in self._p.engines.values():
            engine.close()
        self._p.shim.close()
        self._p.layers.close()
        self._chronicle.stopped()
        self._log.close()
        self._p.store.close()
        for lock in self._locks:
            os.close(lock)

    def _tampered(self, sandbox_id: str) -> None:
        self._chronicle.noted("network.repaired", self._p.sandboxes.find(sandbox_id).record)

    def _ended(self, container_id: str, found: Exit) -> None:
        self._ends.submit(self._containers.endings.report, container_id, found)

    # -- sandboxes

    def run_sandbox(self, spec: SandboxSpec, deadline: Deadline) -> str:
        """Returns the id of a ready sandbox."""
        with self._chronicle.settled(deadline):
            return self._sandboxes.run(spec, deadline)

    def stop_sandbox(self, id_: str, deadline: Deadline) -> None:
        """Kill what runs in it and give back its network; a missing one is no error."""
        with self._chronicle.settled(deadline, must=False):
            self._sandboxes.stop(id_, deadline)

    def remove_sandbox(self, id_: str, deadline: Deadline) -> None:
        """Stop it and forget it with its containers; a missing one is no error."""
        with self._chronicle.settled(deadline, must=False):
            self._sandboxes.remove(id_, deadline)

    def update_sandbox(self, id_: str, overhead: Resources | None, resources: Resources | None) -> None:
        """Keep what a pod is to have now; ``None`` leaves what it had."""
        with self._chronicle.settled(Deadline()):
            self._updates.sandbox(id_, overhead, resources)
            record = self._p.sandboxes.find(id_).record
            self._chronicle.noted("updated", record, overhead=overhead, resources=resources)

    def sandbox(self, id_: str) -> SandboxView:
        """By id or unique prefix."""
        return self._sandbox_view(self._p.sandboxes.find(id_).record)

    def sandboxes(self) -> list[SandboxView]:
        """All of them, oldest first."""
        return [self._shown_sandbox(entry) for entry in self._p.sandboxes.all()]

    def _shown_sandbox(self, entry: Entry[SandboxRecord]) -> SandboxView:
        record, unknown = entry.record, entry.record.engine not in self._p.engines
        shown = entry.shown
        if shown is None or shown[0] is not record or shown[2] is not unknown:
            entry.shown = shown = (record, 0, unknown, self._sandbox_view(record))
        view: SandboxView = shown[3]
        return view

    def _sandbox_view(self, record: SandboxRecord) -> SandboxView:
        return SandboxView(
            id=record.id,
            spec=record.effective_spec,
            created_at=record.created_at,
            state=record.state,
            ips=record.ips,
            handler=record.spec.runtime_handler,
            netns=record.namespaces.network or "",
            cgroup=record.cgroup_parent,
            engine=record.engine,
            placed=record.placed,
            unknown="" if record.engine in self._p.engines else absent.message(record.engine),
        )

    # -- containers

    def create_container(self, sandbox_id: str, spec: ContainerSpec, deadline: Deadline) -> str:
        """Returns the id of a container that waits to be started."""
        with self._chronicle.settled(deadline):
            return self._containers.create(sandbox_id, spec, deadline)

    def start_container(self, id_: str, deadline: Deadline) -> None:
        """Let it run."""
        with self._chronicle.settled(deadline):
            self._containers.start(id_, deadline)

    def stop_container(self, id_: str, timeout: float, deadline: Deadline) -> None:
        """Ask it to stop; kill it ``timeout`` seconds later."""
        with self._chronicle.settled(deadline, must=False):
            self._containers.stop(id_, timeout, deadline)

    def remove_container(self, id_: str, deadline: Deadline) -> None:
        """Kill it if need be and forget it; a missing one is no error."""
        with self._chronicle.settled(deadline, must=False):
            self._containers.remove(id_, deadline)

    def update_container(self, id_: str, resources: Resources, deadline: Deadline) -> None:
        """Change the limits that are set; all or none of them."""
        with self._chronicle.settled(deadline):
            self._updates.container(id_, resources, deadline)
            self._chronicle.noted("updated", self._p.containers.find(id_).record, resources=resources)

    def pause_container(self, id_: str, deadline: Deadline) -> None:
        """Stop its processes where they are; one that is paused already is no error."""
        with self._chronicle.settled(deadline, must=False):
            self._pauses.pause(id_, deadline)

    def resume_container(self, id_: str, deadline: Deadline) -> None:
        """Let a paused one go on; one that runs is no error."""
        with self._chronicle.settled(deadline):
            self._pauses.resume(id_, deadline)

    def host_calls(self, id_: str, deadline: Deadline, *, follow: bool) -> Iterator[HostCalls]:
        """What a traced container's guest asked of its host; with ``follow`` until it ends."""
        return self._insight.host_calls(id_, deadline, follow=follow)

    def inspect(self, id_: str) -> dict[str, Any]:
        """Everything that is known of a container or a pod, by id or unique prefix; NotFound: there is neither."""
        return self.inspection.of(id_)

    def paused_containers(self) -> list[str]:
        """Their ids: CRI calls them running."""
        return [entry.record.id for entry in self._p.containers.all() if entry.record.state is State.PAUSED]

    def container(self, id_: str) -> ContainerView:
        """By id or unique prefix."""
        return self._container_view(self._p.containers.find(id_))

    def containers(self, sandbox_id: str = "") -> list[ContainerView]:
        """All of them, or those of one sandbox, oldest first."""
        entries = self._containers.of(sandbox_id) if sandbox_id else self._p.containers.all()
        return [self._container_view(entry) for entry in entries]

    def _container_view(self, entry: Entry[ContainerRecord]) -> ContainerView:
        record, pid = entry.record, entry.pid
        unknown = record.engine not in self._p.engines and record.state is not State.TERMINATED
        shown = entry.shown
        if shown is None or shown[0] is not record or shown[1] != pid or shown[2] is not unknown:
            entry.shown = shown = (record, pid, unknown, self._new_view(record, pid, unknown=unknown))
        view: ContainerView = shown[3]
        return view

    def _new_view(self, record: ContainerRecord, pid: int, *, unknown: bool) -> ContainerView:
        return ContainerView(
            id=record.id,
            sandbox_id=record.sandbox_id,
            spec=record.effective_spec,
            image_id=record.image_id,
            image_ref=record.image_ref,
            user=record.user,
            state=record.state,
            created_at=record.created_at,
            started_at=record.started_at,
            finished_at=record.finished_at,
            exit_code=record.exit_code,
            reason=absent.REASON if unknown else record.reason,
            message=absent.message(record.engine) if unknown else record.message,
            log_path=record.log_path,
            stop_signal=record.stop_signal,
            bundle=str(self._p.paths.bundle(record.id)),
            pid=pid,
            cgroup=record.cgroup,
            engine=record.engine,
            unknown=unknown,
        )

    def exec_sync(self, id_: str, argv: tuple[str, ...], timeout: float | None) -> ExecResult:
        """Run ``argv`` inside a running container and wait; ``timeout`` in seconds."""
        return self._running.exec_sync(id_, argv, timeout)

    def exec_console(self, id_: str, argv: tuple[str, ...], stdio: Stdio) -> Console:
        """Start ``argv`` inside a running container and hand over its streams; they must be closed."""
        return self._running.exec_console(id_, argv, stdio)

    def attach_console(self, id_: str, stdio: Stdio) -> Console:
        """The streams of a running container from now on; they must be closed."""
        return self._running.attach_console(id_, stdio)

    def may_exec(self, id_: str, argv: tuple[str, ...], *, tty: bool = False) -> None:
        """Whether ``argv`` may be run in a container. :raises Denied: it may not."""
        self._running.may_exec(id_, argv, tty=tty)

    def may_attach(self, id_: str) -> None:
        """Whether the streams of a container may be had. :raises Denied: they may not."""
        self._running.may_attach(id_)

    def may_forward(self, sandbox_id: str, ports: tuple[int, ...]) -> None:
        """Whether these ports of a pod may be reached; none named: all of them. :raises Denied: they may not."""
        self._running.may_forward(sandbox_id, ports)

    def pod_connection(self, sandbox_id: str, port: int) -> socket.socket | None:
        """A stream that leads to ``port`` of a ready pod; ``None`` where a :meth:`pod_socket` does.

        :raises Denied: it may not be reached.
        """
        record = self._running.may_forward(sandbox_id, (port,))
        plan = self._sandboxes.engine_plan(record)
        return self._p.engines[record.engine].dial(plan, port, Deadline.after(_DIAL_SECONDS))

    def pod_socket(self, sandbox_id: str, family: socket.AddressFamily, port: int) -> socket.socket:
        """A TCP socket in the network of a ready pod, to be connected to ``port``. :raises Denied: it may not be."""
        record = self._running.may_forward(sandbox_id, (port,))

        def make() -> socket.socket:
            return socket.socket(family, socket.SOCK_STREAM)

        netns = record.namespaces.network
        return make() if netns is None else run_in(netns, make)

    def reopen_log(self, id_: str) -> None:
        """After a log rotation."""
        self._running.reopen_log(id_)

    # -- checkpoints

    def checkpoint_container(self, id_: str, location: str, deadline: Deadline) -> None:
        """Save a running container into an archive."""
        with self._chronicle.settled(deadline):
            self._checkpoints.container(id_, location, deadline)
            self._chronicle.noted("checkpointed", self._p.containers.find(id_).record, path=location)

    def checkpoint_pod(
        self, id_: str, path: str, container_ids: Sequence[str], options: Mapping[str, str], deadline: Deadline
    ) -> None:
        """Save running containers of a pod, all as of one moment, into a directory."""
        with self._chronicle.settled(deadline):
            self._checkpoints.pod(id_, path, container_ids, options, deadline)
            record = self._p.sandboxes.find(id_).record
            self._chronicle.noted("checkpointed", record, path=path, containers=list(container_ids))

    def restore_pod(
        self,
        path: str,
        spec: SandboxSpec,
        containers: Sequence[ContainerSpec],
        options: Mapping[str, str],
        deadline: Deadline,
    ) -> tuple[str, tuple[RestoredContainer, ...]]:
        """A pod whose containers go on, once started, where the checkpoint has them; the ids of both."""
        with self._chronicle.settled(deadline):
            id_, made = self._checkpoints.restore(path, spec, options, containers, deadline)
            self._chronicle.noted("restored", self._p.sandboxes.find(id_).record, path=path)
            return id_, made

    # -- audit log

    def forwarding(self, sandbox_id: str, ports: Sequence[int]) -> AbstractContextManager[dict[str, Any]]:
        """Around a client's connections to a pod's ports; what is put into the dictionary is logged with their end."""
        record = self._p.sandboxes.find(sandbox_id).record
        return self._chronicle.session("portforward", record, Deadline(), ports=list(ports))

    def rotate_audit_key(self, deadline: Deadline) -> str:
        """Sign the audit log with a new key; what it is verified with."""
        return str(self._log.rotate(deadline))

    def accept_audit_damage(self, deadline: Deadline) -> None:
        """Somebody has looked into the log that was found damaged."""
        self._log.accept(deadline)

    # -- events

    def listen(self) -> Feed:
        """What happens to pods and containers from now on."""
        return self._events.listen()

    def _happening(self, made: Transition) -> Happening:
        sandbox = made.record if isinstance(made.record, SandboxRecord) else None
        if sandbox is None:
            with contextlib.suppress(NotFound):
                sandbox = self._p.sandboxes.find(made.sandbox_id).record
        return Happening(
            made,
            None if sandbox is None else self._sandbox_view(sandbox),
            tuple(self.containers(made.sandbox_id)),
        )

    # -- usage

    def _layer_usage(self, container_id: str) -> FilesystemUsage:
        used, inodes = self._p.rootfs.usage(container_id)
        return FilesystemUsage(str(self._p.paths.root), used, inodes, time.time_ns())

    def _trust(self, container_id: str) -> tuple[Sample, ...]:
        try:
            record = self._p.containers.find(container_id).record
        except NotFound:
            return ()
        return tuple(of_trust(self._p.identity.score(record).total, record.entropy))

    def _forget_usage(self, made: Transition) -> None:
        if made.event is Event.REMOVE:
            self.meter.forget(made.id)

    # -- node

    def status(self) -> NodeStatus:
        """Whether pods can run here, and what each handler can do."""
        ready, reason, message = self._p.network.status()
        features = {name: engine.features() for name, engine in self._p.engines.items()}
        features[AUTO_ENGINE] = self._p.scheduler.features()
        handlers = [HandlerStatus(handler.name, features[handler.engine]) for handler in self._p.handlers.all()]
        network = Condition(ready, reason, message)
        problem = self._log.problem()
        log = Condition(False, "AuditLogNotSound", problem) if problem else Condition(ready=True)
        cluster = self._p.policies.condition()
        return NodeStatus(self._runtime_condition(), network, tuple(handlers), self._configuration, log, cluster)

    def _runtime_condition(self) -> Condition:
        for name, engine in self._p.engines.items():
            for problem in engine.problems():
                if problem.fatal:
                    return Condition(False, "EngineNotUsable", f"{name}: {problem.what}; {problem.fix or problem.why}")
        return Condition(ready=True)

    def wasm_first(self, handler: str, pod: str = "") -> bool:
        """Whether pods of that handler want the module where an image's name stands for a module and a program.

        Without one, the handler of the pod with that key counts, and without that the default.

        :raises InvalidInput: there is no such runtime handler.
        """
        known = self._p.sandboxes.by_key(pod) if pod and not handler else None
        if known is not None:
            return choose.wasm_first(known.record.engine)
        return bool(handler) and choose.wasm_first(self._usual_engine(handler))

    def _usual_engine(self, handler: str) -> str:
        found = self._p.handlers.find(handler)
        return self._p.scheduler.usual() if found.chooses else found.engine

    def image_wanted(self, image: Image, handler: str, pod: str, deadline: Deadline) -> None:
        """An image was pulled for pods of that handler, or for the one with that key: their engine gets ready for it.

        :raises InvalidInput: there is no such runtime handler.
        """
        known = self._p.sandboxes.by_key(pod) if pod and not handler else None
        if known is not None or handler:
            engine = known.record.engine if known is not None else self._usual_engine(handler)
            self._readiness.wanted(image, engine, deadline)

    @property
    def cgroup_driver(self) -> str:
        """``systemd`` or ``cgroupfs``, as the kubelet must use too."""
        return str(self._p.cgroups.driver)

    def update_pod_cidr(self, cidr: str) -> None:
        """The control plane's ranges for this node's pods, with a comma between them."""
        self._p.network.use_ranges(tuple(cidr.split(",")))

    def network_details(self, sandbox_id: str) -> dict[str, object]:
        """What there is to tell people of a pod's network."""
        return self._p.network.details(sandbox_id)

    def figures(self) -> Iterable[Figure]:
        """What there is to tell of this node besides what its verbs do."""
        yield from self._chronicle.figures()
        yield from self._p.policies.figures()

    def image_filesystem(self) -> FilesystemUsage:
        """What images take."""
        used, inodes = self.images.usage()
        return FilesystemUsage(str(self._p.paths.layers), used, inodes, time.time_ns())

    def container_filesystem(self) -> FilesystemUsage:
        """What containers have written to their root filesystems."""
        used = inodes = 0
        for entry in self._p.containers.all():
            container_bytes, container_inodes = self._p.rootfs.usage(entry.record.id)
            used, inodes = used + container_bytes, inodes + container_inodes
        return FilesystemUsage(str(self._p.paths.root), used, inodes, time.time_ns())


def _take(path: Path) -> int:
    """The lock of a directory: one owner at a time, given up by the kernel with its process."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    taken = threading.Event()

    def wait() -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
            taken.set()

    # An earlier owner may be ending right now: the kernel hands the lock over the moment it is gone.
    threading.Thread(target=wait, name="lock", daemon=True).start()
    if not taken.wait(_LOCK_PATIENCE):
        os.close(fd)
        raise FailedPrecondition(
            f"{path} is held by another forgeoned", fix="stop it, or give this one a --root and a --state of its own"
        )
    return fd
