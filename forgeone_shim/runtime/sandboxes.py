"""The verbs of a sandbox, in order of life: run, stop, remove."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from concurrent.futures import Future
from dataclasses import replace

import structlog

from engines.base import NamespaceMode, Namespaces, ProfileType, SandboxPlan, SandboxSpec
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import AlreadyExists, FailedPrecondition, InvalidInput, NotFound, Unimplemented
from forgeone_shim.kernel import cgroups, mounts, namespaces
from forgeone_shim.lifecycle.machine import Event, State, Subject
from forgeone_shim.network import podfiles
from forgeone_shim.network.facts import Attachment
from forgeone_shim.runtime import placement, userns
from forgeone_shim.runtime.containers import Containers
from forgeone_shim.runtime.flights import Flights
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.records import SandboxRecord, sandbox_key
from forgeone_shim.runtime.table import Entry
from forgeone_shim.shim.deaths import Deaths
from forgeone_shim.texts import parameter_owner, parameter_parts, parameters

SHM_BYTES = 64 * 1024 * 1024


def new_id() -> str:
    """64 hexadecimal digits, as CRI clients expect of an id."""
    return secrets.token_hex(32)


class Sandboxes:
    """Runs, stops and removes sandboxes. Every verb may be repeated and blocks until it is done."""

    def __init__(self, parts: Parts, containers: Containers) -> None:
        self._p, self._containers = parts, containers
        self._flights: Flights[str] = Flights()
        self._log = structlog.get_logger("sandboxes")
        containers.endings.doubt(self.look_after)
        self._deaths = Deaths(self._died)
        given = parameters("default_sysctls", parts.config.default_sysctls)
        self._sysctls = tuple((parameter_owner(parameter_parts(name)), name, value) for name, value in given.items())

    def run(self, spec: SandboxSpec, deadline: Deadline, engine: str = "") -> str:
        """Returns the id of a ready sandbox; the same name and attempt again returns the same sandbox.

        ``engine`` is what it had, where it comes from a checkpoint: nothing else is chosen for it.
        """
        check(spec)
        if spec.cgroup_parent:
            cgroups.check_parent(self._p.cgroups.driver, spec.cgroup_parent)
        return self._flights.run(sandbox_key(spec), deadline, lambda joined: self._run(spec, engine, joined))

    def _run(self, spec: SandboxSpec, engine: str, deadline: Deadline) -> str:
        existing = self._p.sandboxes.by_key(sandbox_key(spec))
        if existing is not None and existing.record.state is State.BOOTED:
            if existing.record.spec != spec:
                raise AlreadyExists(
                    f"sandbox {existing.record.id[:13]} has this name, uid and attempt but another configuration",
                    fix="stop it, or raise the attempt",
                )
            return existing.record.id
        record = self._plan(spec)
        try:
            record = self._allowed(record, engine, deadline)
            if record.placed:
                self._p.chronicle.noted("placed", record, reason=record.placed)
            entry = self._p.sandboxes.add(record)
        finally:
            self._p.labeller.settle(record.selinux)
        with entry.work:
            if entry.dropped:
                raise FailedPrecondition(f"sandbox {entry.record.id[:13]} was removed while it was being made")
            try:
                self._build(entry, deadline)
            except BaseException:
                self._abandon(entry)
                raise
        return entry.record.id

    def may_restore(self, spec: SandboxSpec, engine: str, deadline: Deadline) -> None:
        """Whether such a pod may be made from a checkpoint of that engine. :raises Denied: it may not."""
        record = self._plan(spec)
        self._p.labeller.settle(record.selinux)
        self._p.guard.restore(self._placed(record, engine, deadline), deadline)

    def _allowed(self, record: SandboxRecord, only: str, deadline: Deadline) -> SandboxRecord:
        """With an engine, and the contract that holds for it. :raises Denied: it may not be started."""
        while True:
            placed = self._placed(record, only, deadline)
            allowed = self._p.guard.sandbox(placed, deadline)
            # Policies that came in between may demand another engine, by a label that the guard knows nothing of.
            if not record.handler.chooses or allowed.contract == placed.contract:
                return allowed
            deadline.check("while policies changed")

    def _placed(self, record: SandboxRecord, only: str, deadline: Deadline) -> SandboxRecord:
        """With an engine, where its handler leaves the choice to the node: the first that policies allow.

        :raises Denied: there is none.
        """
        if not record.handler.chooses:
            return record
        record = self._p.guard.bound(record, deadline)
        tried: list[SandboxRecord] = []
        try:
            for one in self._p.scheduler.placements(record.spec, record.contract, only):
                tried.append(replace(record, engine=one.engine, placed=one.reason))
                if self._p.guard.would_start(tried[-1]):
                    return tried[-1]
        except FailedPrecondition as error:
            raise self._p.guard.unplaced(record, error, deadline) from error
        # Policies allow none of them: the first is what the denial is about.
        return tried[0]

    def _plan(self, spec: SandboxSpec) -> SandboxRecord:
        handler = self._p.handlers.find(spec.runtime_handler)
        id_ = new_id()
        ns = self._p.paths.namespaces(id_)
        options = spec.security.namespaces
        host_network = options.network is NamespaceMode.NODE
        if options.user is not NamespaceMode.NODE and not handler.chooses:
            features = self._p.engines[handler.engine].features()
            if not (features.user_namespaces_host_network if host_network else features.user_namespaces):
                where = " and the host's network" if host_network else ""
                raise Unimplemented(
                    f"the {handler.engine} engine has no pods with a user namespace{where} on this host"
                )
        return SandboxRecord(
            id=id_,
            spec=spec,
            engine=handler.engine,
            state=State.CREATED,
            created_at=time.time_ns(),
            namespaces=Namespaces(
                network=None if host_network else str(ns / "net"),
                uts=None if host_network else str(ns / "uts"),
                ipc=None if options.ipc is NamespaceMode.NODE else str(ns / "ipc"),
                pid=None if options.pid is NamespaceMode.NODE else "",
                user=None if options.user is NamespaceMode.NODE else str(ns / "user"),
            ),
            hostname=podfiles.effective_hostname(spec.hostname, os.uname().nodename, host_network=host_network),
            cgroup_parent=spec.cgroup_parent or self._p.config.cgroup_root,
            handler=handler,
            selinux=self._p.labeller.pod(spec),
        )

    def _build(self, entry: Entry[SandboxRecord], deadline: Deadline) -> None:
        record = entry.record
        directory = self._p.paths.sandbox(record.id)
        directory.mkdir(mode=0o700)
        owners = userns.owners(record)
        if owners is not None:
            userns.open_to_root(directory, owners)
        with contextlib.ExitStack() as stack:
            pinned: Future[None] = Future()
            attached = self._attach_network(record, pinned, deadline)
            if attached is not None:
                # Whatever fails meanwhile: an attach that came after the detach would stay.
                stack.callback(lambda: attached.cancel() or attached.exception())
            self._pin_namespaces(record, pinned, deadline)
            shared_pid = self._p.engines[record.engine].prepare_sandbox(self.engine_plan(record), deadline)
            if record.namespaces.ipc is not None:
                shm = self._p.paths.shm(record.id)
                shm.mkdir()
                owner = None if owners is None else owners.root
                mounts.mount_tmpfs(shm, SHM_BYTES, 0o1777, record.selinux.mount, owner)
            got = attached.result() if attached else None
            if got is not None:
                self._p.engines[record.engine].connect_sandbox(self.engine_plan(record), deadline)
        ips = got.ips if got else ()
        # What the network says of name servers is the second choice, before the host's own.
        dns = record.spec.dns or (got.dns if got else None)
        host_network = record.namespaces.network is None
        files = podfiles.plan_pod_files(record.hostname, ips, dns, host_network=host_network)
        podfiles.write_pod_files(directory, files, owner=None if owners is None else owners.root)
        deadline.check("while the sandbox was set up")
        pid = shared_pid or record.namespaces.pid
        self._step(entry, Event.BOOT, ips=ips, namespaces=replace(record.namespaces, pid=pid))
        self.follow(record)

    def _pin_namespaces(self, record: SandboxRecord, pinned: Future[None], deadline: Deadline) -> None:
        ns, kinds = record.namespaces, _kinds(record.namespaces)
        sysctls = self._all_sysctls(record)
        directory = self._p.paths.namespaces(record.id)
        try:
            if ns.user is None:
                namespaces.pin_namespaces(directory, tuple(kinds), record.hostname, sysctls)
            else:
                options = record.spec.security.namespaces
                userns.pin(
                    self._p.shim,
                    directory,
                    options,
                    kinds=kinds,
                    hostname=record.hostname,
                    sysctls=sysctls,
                    deadline=deadline,
                )
        except BaseException as error:
            pinned.set_exception(error)
            raise
        pinned.set_result(None)

    def _all_sysctls(self, record: SandboxRecord) -> dict[str, str]:
        kinds = _kinds(record.namespaces)
        own = {name: value for kind, name, value in self._sysctls if kind in kinds}
        return {**own, **record.spec.sysctls}

    def _attach_network(
        self, record: SandboxRecord, pinned: Future[None], deadline: Deadline
    ) -> Future[Attachment] | None:
        if record.namespaces.network is None:
            return None
        pod = placement.attachable(self._p, record)
        return self._p.pool.submit(self._p.network.attach, pod, pinned.result, deadline)

    def _step(self, entry: Entry[SandboxRecord], event: Event, **fields: object) -> None:
        record = entry.record
        self._p.lifecycle.step(
            Subject.SANDBOX,
            record.id,
            sandbox_id=record.id,
            before=record.state,
            event=event,
            commit=lambda s: entry.change(state=s, **fields),
        )

    def engine_plan(self, record: SandboxRecord) -> SandboxPlan:
        """What the record's engine is told of its sandbox."""
        rule = self._p.guard.network(record)
        return SandboxPlan(
            sandbox_id=record.id,
            directory=str(self._p.paths.sandbox(record.id)),
            hostname=record.hostname,
            cgroup=record.cgroup_parent,
            namespaces=record.namespaces,
            shares_pid=record.spec.security.namespaces.pid is NamespaceMode.POD,
            spec=record.spec,
            sysctls=self._all_sysctls(record),
            restricted=rule is not None and rule.restricts,
        )

    def dismantle(self, record: SandboxRecord) -> None:
        """The inverse of everything :meth:`_build` does, however far it came. Idempotent."""
        self._let_go(record)
        self._remove_rest(record)

    def _let_go(self, record: SandboxRecord) -> None:
        if record.namespaces.network is not None:
            self._p.network.detach(record.id)
        namespaces.unpin(self._p.paths.namespaces(record.id))
        mounts.unmount(self._p.paths.shm(record.id))

    def _remove_rest(self, record: SandboxRecord) -> None:
        self._deaths.forget(record.id)
        self._p.engines[record.engine].remove_sandbox(self.engine_plan(record))
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._p.paths.sandbox(record.id))

    def _abandon(self, entry: Entry[SandboxRecord]) -> None:
        def undo() -> None:
            with entry.work:
                self.dismantle(entry.record)
                self._drop(entry)

        try:
            undo()
        except Exception:
            self._p.janitor.until_done(f"undo sandbox {entry.record.id[:13]}", undo)

    def stop(self, id_: str, deadline: Deadline) -> None:
        """Kill what runs in it and give back its network and namespaces; a missing sandbox is no error."""
        try:
            entry = self._p.sandboxes.find(id_)
        except NotFound:
            return
        self.stop_entry(entry, deadline)

    def stop_entry(self, entry: Entry[SandboxRecord], deadline: Deadline) -> None:
        """Stop, or finish a stop that was begun."""
        with entry.working(deadline):
            if entry.record.state is State.CREATED:
                self._abandon(entry)
                return
            with entry.state:
                if entry.record.state is State.TERMINATED:
                    return
                self._step(entry, Event.STOP)
            endings = self._containers.endings
            dying = endings.kill_all(self._containers.of(entry.record.id), deadline)
            self._let_go(entry.record)
            endings.await_deaths(dying, deadline)
            # The pod's cgroup can go only after its containers'.
            endings.clean_all(self._containers.of(entry.record.id))
            self._remove_rest(entry.record)
            self._step(entry, Event.EXIT)

    def remove(self, id_: str, deadline: Deadline) -> None:
        """Stop it, remove its containers and forget it; a missing sandbox is no error."""
        try:
            entry = self._p.sandboxes.find(id_)
        except NotFound:
            return
        with entry.working(deadline):
            self.stop_entry(entry, deadline)
            for container in self._containers.of(entry.record.id):
                self._containers.remove_entry(container, deadline)
            self._drop(entry)

    def _drop(self, entry: Entry[SandboxRecord]) -> None:
        """Forget its record. Whoever was told of its creation is told of its removal, once."""
        with entry.state:
            record = entry.record
            if entry.dropped or record.state is State.CREATED:
                self._p.sandboxes.drop(entry)
                return
            self._p.lifecycle.step(
                Subject.SANDBOX,
                record.id,
                sandbox_id=record.id,
                before=record.state,
                event=Event.REMOVE,
                commit=lambda _: self._p.sandboxes.drop(entry),
            )

    def follow(self, record: SandboxRecord) -> None:
        """Look after a sandbox that is ready when the process that it depends on ends, if there is one."""
        engine, plan = self._p.engines[record.engine], self.engine_plan(record)
        held = engine.sandbox_process(plan)
        if held is not None:
            self._deaths.follow(record.id, held)
        elif not engine.sandbox_alive(plan):
            self._died(record.id)

    def _died(self, id_: str) -> None:
        self._p.janitor.until_done(f"look after sandbox {id_[:13]}", lambda: self.look_after(id_))

    def close(self) -> None:
        """The daemon ends: sandboxes are looked after no more."""
        self._deaths.close()

    def look_after(self, id_: str) -> None:
        """Stop it if what its engine holds for it has died, so that a kubelet makes another."""
        try:
            entry = self._p.sandboxes.find(id_)
        except NotFound:
            return
        record = entry.record
        if record.state is State.BOOTED and not self._p.engines[record.engine].sandbox_alive(self.engine_plan(record)):
            self._log.warning("what it depends on has died", sandbox=record.id)
            self.lost(entry)

    def lost(self, entry: Entry[SandboxRecord]) -> None:
        """Its namespaces are gone (a reboot, a dead init): it is not ready any more."""
        self.stop_entry(entry, NEVER)


def _kinds(paths: Namespaces) -> list[str]:
    """The kinds of namespaces that a pod has of its own."""
    known = (("net", paths.network), ("uts", paths.uts), ("ipc", paths.ipc))
    return [kind for kind, path in known if path is not None]


def check(spec: SandboxSpec) -> None:
    """What can be refused before anything is made."""
    security = spec.security
    userns.check(security.namespaces)
    if security.namespaces.network not in (NamespaceMode.POD, NamespaceMode.NODE):
        raise InvalidInput("linux.security_context.namespace_options.network", "must be POD or NODE")
    if security.namespaces.pid is NamespaceMode.TARGET:
        raise InvalidInput("linux.security_context.namespace_options.pid", "TARGET is for containers only")
    if security.seccomp is not None and security.seccomp.type is ProfileType.LOCALHOST:
        localhost = security.seccomp.localhost_ref
        if not localhost:
            raise InvalidInput("linux.security_context.seccomp.localhost_ref", "is empty")
