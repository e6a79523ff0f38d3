"""Brings the records in line with the kernel after a restart, each with a deadline of its own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import structlog

from engines.base import Handle, Namespaces, SandboxPlan, SandboxSpec
from forgeone_shim.errors import InternalError, NotFound
from forgeone_shim.kernel import mounts, namespaces
from forgeone_shim.lifecycle.machine import State
from forgeone_shim.runtime import placement
from forgeone_shim.runtime.containers import Containers
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.recheck import Recheck
from forgeone_shim.runtime.records import ContainerRecord, SandboxRecord
from forgeone_shim.runtime.sandboxes import Sandboxes
from forgeone_shim.runtime.table import Entry

# CRI is served after this many seconds at the latest; whatever is still unsettled then goes on beside it.
PATIENCE = 5.0
_THREADS = 16
_AGAIN_SECONDS = 1.0


class Recovery:
    """Runs once, before CRI is served. What fails is retried by the janitor, so one bad container holds nobody up."""

    def __init__(self, parts: Parts, sandboxes: Sandboxes, containers: Containers, recheck: Recheck) -> None:
        self._p, self._sandboxes, self._containers, self._recheck = parts, sandboxes, containers, recheck
        self._log = structlog.get_logger("recovery")

    def run(self) -> None:
        """Reconcile every record, then remove what no record knows."""
        attached = (one.record for one in self._p.sandboxes.all() if one.record.state is State.BOOTED)
        self._p.network.know(
            (placement.attachable(self._p, one), one.ips) for one in attached if one.namespaces.network is not None
        )
        # Threads of its own: what is stuck here must not be in the way of the pods that are started beside it.
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="recovery")
        jobs = [pool.submit(self._container, entry) for entry in self._p.containers.all()]
        jobs += [pool.submit(self._sandbox, entry) for entry in self._p.sandboxes.all()]
        pool.shutdown(wait=False)
        late = wait(jobs, timeout=PATIENCE).not_done
        if late:
            self._log.warning("still being recovered", count=len(late))
        self._remove_strangers()

    def _container(self, entry: Entry[ContainerRecord]) -> None:
        if self._is_orphan(entry.record):
            self._attempt(f"remove orphaned container {entry.record.id[:13]}", lambda: self._remove_orphan(entry))
        else:
            self._attempt(f"recover container {entry.record.id[:13]}", lambda: self._recover(entry))

    def _recover(self, entry: Entry[ContainerRecord]) -> None:
        self._containers.recover(entry)
        self._recheck.container(entry)

    def _is_orphan(self, record: ContainerRecord) -> bool:
        try:
            self._p.sandboxes.find(record.sandbox_id)
        except NotFound:
            return True
        return False

    def _remove_orphan(self, entry: Entry[ContainerRecord]) -> None:
        """One whose sandbox's record could not be read: nobody would ever ask for its removal."""
        self._log.error("its sandbox is not known", container=entry.record.id, sandbox=entry.record.sandbox_id)
        self._containers.recover(entry)
        self._containers.remove_entry(entry)

    def _sandbox(self, entry: Entry[SandboxRecord]) -> None:
        self._attempt(f"recover sandbox {entry.record.id[:13]}", lambda: self._recover_sandbox(entry))

    def _attempt(self, name: str, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            self._log.warning("will be retried", job=name, error=str(error))
            self._p.janitor.until_done(name, job)

    def _recover_sandbox(self, entry: Entry[SandboxRecord]) -> None:
        record = entry.record
        if record.state is State.TERMINATED:
            return
        if record.engine not in self._p.engines:
            self._log.error("its engine is not installed", sandbox=record.id, engine=record.engine)
        alive = record.state is State.BOOTED and self._intact(record)
        if not alive:
            self._log.info("sandbox is not whole any more", sandbox=record.id, state=str(record.state))
            self._sandboxes.lost(entry)
            return
        self._sandboxes.follow(record)
        placement.restrain(self._p, record)

    def _intact(self, record: SandboxRecord) -> bool:
        ns = record.namespaces
        pinned = [path for path in (ns.user, ns.network, ns.ipc, ns.uts) if path]
        if not all(_is_namespace(Path(path)) for path in pinned):
            return False
        return self._p.engines[record.engine].sandbox_alive(self._sandboxes.engine_plan(record))

    def _remove_strangers(self) -> None:
        known = self._known_sandboxes()
        self._p.janitor.until_done("recover the network", self._recover_network)
        containers = {entry.record.id for entry in self._p.containers.all()}
        for name in (_names(self._p.paths.containers) | _names(self._p.paths.writable)) - containers:
            self._p.janitor.until_done(f"remove unknown container {name[:13]}", partial(self._forget, name))
        for name in _names(self._p.paths.sandboxes) - known:
            self._p.janitor.until_done(f"remove unknown sandbox {name[:13]}", partial(self._unpin, name))

    def _known_sandboxes(self) -> set[str]:
        return {entry.record.id for entry in self._p.sandboxes.all()}

    def _recover_network(self) -> None:
        try:
            self._release_network()
        except InternalError as error:
            # A plugin that is gone may fail for ever: the other pods do not wait for that.
            self._log.warning("attachments are left", error=str(error))
            self._p.janitor.until_done("release unknown attachments", self._release_network, after=_AGAIN_SECONDS)
        self._p.network.recovered(self._p.handlers.conf_dirs())

    def _release_network(self) -> None:
        failed = self._p.network.reconcile(self._known_sandboxes)
        if failed:
            raise InternalError(f"still attached to the network: {', '.join(failed)}")

    def _forget(self, container_id: str) -> None:
        bundle = self._p.paths.bundle(container_id)
        for engine in self._p.engines.values():
            engine.delete(
                Handle(container_id=container_id, sandbox_id="", bundle=str(bundle), exits=str(self._p.paths.exits))
            )
        self._p.rootfs.remove(container_id)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(bundle)
        self._p.paths.exit_file(container_id).unlink(missing_ok=True)

    def _unpin(self, sandbox_id: str) -> None:
        directory = self._p.paths.sandbox(sandbox_id)
        plan = SandboxPlan(
            sandbox_id=sandbox_id,
            directory=str(directory),
            hostname="",
            cgroup=self._p.config.cgroup_root,
            namespaces=Namespaces(network=None, ipc=None, uts=None, pid=""),
            shares_pid=True,
            spec=SandboxSpec(name="", uid="", namespace=""),
        )
        for engine in self._p.engines.values():
            engine.remove_sandbox(plan)
        namespaces.unpin(self._p.paths.namespaces(sandbox_id))
        mounts.unmount(self._p.paths.shm(sandbox_id))
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(directory)


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if len(path.name) == 64}


def _is_namespace(path: Path) -> bool:
    """Whether something is mounted on the file: a pin that a reboot or an operator took away is an empty file."""
    try:
        return path.stat().st_dev != path.parent.stat().st_dev
    except OSError:
        return False
