"""Checkpoints: of one container into an archive, of a pod into a directory, and a pod made from one."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from engines.base import ContainerSpec, NamespaceMode, SandboxSpec, User
from forgeone_shim.contract.facts import Point
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import AlreadyExists, FailedPrecondition, ForgeError, InvalidInput, syscall_error
from forgeone_shim.lifecycle.machine import State
from forgeone_shim.registry.service import ImageService
from forgeone_shim.runtime import checkpoint_files as files
from forgeone_shim.runtime.checkpoint_files import SavedContainer, SavedPod
from forgeone_shim.runtime.containers import Containers
from forgeone_shim.runtime.flights import Flights
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.process import process
from forgeone_shim.runtime.records import ContainerRecord, SandboxRecord, sandbox_key
from forgeone_shim.runtime.sandboxes import Sandboxes
from forgeone_shim.runtime.table import Entry

_CONFIG = "config.json"
_SETTLE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class RestoredContainer:
    """A container that a pod was restored with, waiting to be started."""

    name: str
    id: str


_Request = tuple[Path, SandboxSpec, tuple[ContainerSpec, ...]]
_Restored = tuple[str, tuple[RestoredContainer, ...]]


class Checkpoints:
    """Thread-safe. A container is frozen while it is saved, and goes on whatever happens."""

    def __init__(self, parts: Parts, images: ImageService, sandboxes: Sandboxes, containers: Containers) -> None:
        self._p, self._images = parts, images
        self._sandboxes, self._containers = sandboxes, containers
        self._restores: Flights[tuple[_Request, _Restored]] = Flights()

    def sweep(self) -> None:
        """Remove what checkpoints that were cut off have left. Once, at the start."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._p.paths.checkpoints)

    # -- one container

    def container(self, id_: str, location: str, deadline: Deadline) -> None:
        """Save a running container into the archive ``location``, an absolute path in a directory that exists.

        :raises FailedPrecondition: it does not run, or this host cannot save it.
        :raises Denied: its memory may not be written to a file.
        """
        target = _absolute("location", location)
        if not target.parent.is_dir():
            raise InvalidInput("location", f"{target.parent} is not a directory")
        entry = self._p.containers.find(id_)
        self._running(entry)
        self._p.guard.container(Point.CHECKPOINT, entry.record, deadline)
        with entry.working(deadline), self._workshop() as work, self._frozen([entry], deadline) as inner:
            record = self._running(entry)
            self._save(record, work, inner)
            self._describe(record, work)
            files.pack(work, target, inner)

    def _describe(self, record: ContainerRecord, work: Path) -> None:
        """What tools that read checkpoints of containers look for."""
        spec = Path(self._p.paths.bundle(record.id), _CONFIG).read_bytes()
        (work / "spec.dump").write_bytes(spec)
        config = {
            "id": record.id,
            "name": record.spec.name,
            "rootfsImage": record.image_id,
            "rootfsImageRef": record.image_ref,
            "rootfsImageName": record.spec.user_specified_image or record.spec.image,
            "runtime": "crun",
            "createdTime": _time(record.created_at),
            "checkpointedTime": datetime.now(UTC).isoformat(),
            "restored": False,
        }
        (work / "config.dump").write_text(json.dumps(config))

    @contextlib.contextmanager
    def _workshop(self) -> Iterator[Path]:
        work = self._p.paths.checkpoints / secrets.token_hex(8)
        try:
            work.mkdir(parents=True, mode=0o700)
            yield work
        except OSError as error:
            raise syscall_error("checkpoint in", work, error) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)

    # -- a pod

    def pod(
        self,
        sandbox_id: str,
        output_path: str,
        container_ids: Sequence[str],
        options: Mapping[str, str],
        deadline: Deadline,
    ) -> None:
        """Save running containers of a ready pod, all as of one moment, into the empty directory ``output_path``.

        :raises FailedPrecondition: the pod is not ready, a container does not run, or this host cannot save them.
        :raises InvalidInput: the directory is not there or not empty, or the list of containers is not sound.
        """
        _no_options(options)
        target = _empty_directory(output_path)
        sandbox = self._p.sandboxes.find(sandbox_id)
        if sandbox.record.state is not State.BOOTED:
            raise FailedPrecondition(f"sandbox {sandbox.record.id[:13]} is not ready ({sandbox.record.state})")
        entries = self._chosen(sandbox.record, container_ids)
        for entry in entries:
            self._p.guard.container(Point.CHECKPOINT, entry.record, deadline)
        with contextlib.ExitStack() as held:
            for entry in entries:
                held.enter_context(entry.working(deadline))
            try:
                self._save_pod(target, sandbox.record, entries, deadline)
            except BaseException:
                _clear(target)
                raise

    def _save_pod(
        self, target: Path, sandbox: SandboxRecord, entries: Sequence[Entry[ContainerRecord]], deadline: Deadline
    ) -> None:
        try:
            (target / files.CONTAINERS).mkdir(mode=0o700)
            with self._frozen(entries, deadline) as inner:
                saved = tuple(self._save_one(target, str(number), entry, inner) for number, entry in enumerate(entries))
            deadline.check("before a checkpoint was completed")
            pod = SavedPod(
                format=files.FORMAT,
                engine=sandbox.engine,
                name=sandbox.spec.name,
                namespace=sandbox.spec.namespace,
                containers=saved,
            )
            files.write_pod(target, pod)
        except OSError as error:
            raise syscall_error("checkpoint into", target, error) from error

    def _save_one(
        self, target: Path, directory: str, entry: Entry[ContainerRecord], deadline: Deadline
    ) -> SavedContainer:
        record, home = self._running(entry), target / files.CONTAINERS / directory
        home.mkdir(mode=0o700)
        self._save(record, home, deadline)
        image = self._images.resolve(record.image_id)
        expected = process(record.spec, image.config, record.user, image.module)
        return SavedContainer(
            name=record.spec.name,
            directory=directory,
            image_id=record.image_id,
            args=expected.args,
            cwd=expected.cwd,
            uid=record.user.uid,
            gid=record.user.gid,
            groups=record.user.additional_gids,
            confined=files.confinement(record.spec.security),
        )

    def _chosen(self, sandbox: SandboxRecord, ids: Sequence[str]) -> list[Entry[ContainerRecord]]:
        field = "container_ids"
        if not ids:
            raise InvalidInput(field, "is empty")
        found = {}
        for id_ in ids:
            entry = self._p.containers.find(id_)
            if entry.record.sandbox_id != sandbox.id:
                raise InvalidInput(field, f"container {id_[:13]!r} is in another pod")
            if entry.record.id in found:
                raise InvalidInput(field, f"container {id_[:13]!r} is named twice")
            found[entry.record.id] = entry
        # In the order of their ids: whoever else takes several of them takes them so.
        return [found[id_] for id_ in sorted(found)]

    # -- both

    def _running(self, entry: Entry[ContainerRecord]) -> ContainerRecord:
        record = entry.record
        if record.state is not State.RUNNING:
            raise FailedPrecondition(f"container {record.id[:13]} is {record.state}: only one that runs can be saved")
        if record.spec.security.namespaces.pid is not NamespaceMode.CONTAINER:
            what = f"container {record.id[:13]} has no PID namespace of its own, and so cannot be saved"
            raise FailedPrecondition(what, fix="do not share the process namespace (shareProcessNamespace, hostPID)")
        if record.spec.security.namespaces.user is not NamespaceMode.NODE:
            raise FailedPrecondition(f"container {record.id[:13]} is in a user namespace, and so cannot be saved")
        return record

    @contextlib.contextmanager
    def _frozen(self, entries: Sequence[Entry[ContainerRecord]], deadline: Deadline) -> Iterator[Deadline]:
        """None of them runs within the block; after it all do. For the block is a deadline of its own.

        It passes when one of them is asked to stop, which does not wait for checkpoints.

        :raises FailedPrecondition: one of them does not run, or has been asked to stop.
        """
        with deadline.within() as inner, contextlib.ExitStack() as thaw:
            try:
                for entry in entries:
                    self._freeze(entry, inner, thaw)
                yield inner
            except ForgeError:
                # That is then the reason, whatever it has led to.
                for entry in entries:
                    self._running(entry)
                raise

    def _freeze(self, entry: Entry[ContainerRecord], deadline: Deadline, thaw: contextlib.ExitStack) -> None:
        engine, handle = self._p.engines[entry.record.engine], self._p.handle(entry.record)

        def break_off() -> None:
            deadline.abandon()
            engine.resume(handle)

        def let_go() -> None:
            with entry.state:
                entry.break_off = None
            engine.resume(handle, Deadline.after(_SETTLE_SECONDS))

        with entry.state:
            self._running(entry)
            entry.break_off = break_off
        thaw.callback(let_go)
        engine.pause(handle, deadline)
        deadline.check("while a container was frozen")

    def _save(self, record: ContainerRecord, home: Path, deadline: Deadline) -> None:
        """Processes and files of a frozen container."""
        images = home / files.IMAGES
        images.mkdir(mode=0o700)
        self._p.engines[record.engine].checkpoint(self._p.handle(record), str(images), deadline)
        with (home / files.DIFF).open("xb") as out:
            deleted = self._p.rootfs.save(record.id, out, deadline)
        # Only now is it certain that nothing has run meanwhile.
        deadline.check("while a container was saved")
        (home / files.DELETED).write_text(json.dumps(deleted))

    # -- a pod from a checkpoint

    def restore(
        self,
        checkpoint_path: str,
        spec: SandboxSpec,
        options: Mapping[str, str],
        specs: Sequence[ContainerSpec],
        deadline: Deadline,
    ) -> tuple[str, tuple[RestoredContainer, ...]]:
        """Make a pod whose containers will go on, once they are started, where the checkpoint has them.

        A repeated call joins the one under way, or has its result. The checkpoint is copied: it may go before they are
        started. On any error nothing is left of the pod.

        :raises InvalidInput: there is no such checkpoint, or the containers asked for are not those in it.
        :raises FailedPrecondition: a container is asked for as it was not, the handler's engine is another, or others
            than root could have written the checkpoint.
        :raises Denied: the pod, or one of its containers, may not be made from it.
        """
        _no_options(options)
        request = (_absolute("checkpoint_path", checkpoint_path), spec, tuple(specs))
        # Two at a time would undo each other's pod.
        made, restored = self._restores.run(
            sandbox_key(spec), deadline, lambda joined: (request, self._restore(*request, joined))
        )
        if made != request:
            raise AlreadyExists("a pod of this name, uid and attempt has just been restored otherwise")
        return restored

    def _restore(
        self, directory: Path, spec: SandboxSpec, specs: Sequence[ContainerSpec], deadline: Deadline
    ) -> _Restored:
        pod = files.read_pod(directory)
        saved = _matched(pod, specs)
        handler = self._p.handlers.find(spec.runtime_handler)
        if not handler.chooses and handler.engine != pod.engine:
            raise FailedPrecondition(f"the checkpoint is of the {pod.engine} engine, the handler has {handler.engine}")
        for one, wanted in zip(specs, saved, strict=True):
            self._compare(one, wanted)
        self._sandboxes.may_restore(spec, pod.engine, deadline)
        known = {entry.record.id for entry in self._p.sandboxes.all()}
        sandbox_id = self._sandboxes.run(spec, deadline, pod.engine)
        try:
            made = []
            for one, wanted in zip(specs, saved, strict=True):
                source = directory / files.CONTAINERS / wanted.directory
                made.append(RestoredContainer(one.name, self._containers.create(sandbox_id, one, deadline, source)))
        except BaseException:
            if sandbox_id not in known:
                self._undo(sandbox_id)
            raise
        return sandbox_id, tuple(made)

    def _undo(self, sandbox_id: str) -> None:
        def undo() -> None:
            self._sandboxes.remove(sandbox_id, Deadline())

        try:
            undo()
        except Exception:
            self._p.janitor.until_done(f"undo restored sandbox {sandbox_id[:13]}", undo)

    def _compare(self, spec: ContainerSpec, saved: SavedContainer) -> None:
        """What is asked for must be what was saved. The environment is not compared: it tells of pod and node."""
        image = self._images.resolve(spec.image)
        field = f"container_configs[{spec.name}]"
        if image.id != saved.image_id:
            raise FailedPrecondition(f"{field}.image is {image.id}, in the checkpoint it is {saved.image_id}")
        if spec.tty:
            raise FailedPrecondition(f"{field}.tty: a container with a terminal cannot be restored")
        security = spec.security
        if security.namespaces.pid is not NamespaceMode.CONTAINER:
            raise FailedPrecondition(f"{field}: its process namespace must be its own, as it was")
        if security.namespaces.user is not NamespaceMode.NODE:
            raise FailedPrecondition(f"{field}: it was in no user namespace, and cannot be restored into one")
        expected = process(spec, image.config, User(saved.uid, saved.gid, saved.groups), image.module)
        if (expected.args, expected.cwd) != (saved.args, saved.cwd):
            raise FailedPrecondition(f"{field}: its command or working directory is not that of the checkpoint")
        for name, allowed in files.confinement(security).items():
            if allowed != saved.confined.get(name):
                raise FailedPrecondition(f"{field}.linux.security_context.{name} is not that of the checkpoint")
        for name, asked, was in (
            ("run_as_user", security.run_as_user, saved.uid),
            ("run_as_group", security.run_as_group, saved.gid),
        ):
            if asked is not None and asked != was:
                raise FailedPrecondition(f"{field}.{name} is {asked}, in the checkpoint it is {was}")


def _matched(pod: SavedPod, specs: Sequence[ContainerSpec]) -> list[SavedContainer]:
    """The saved containers in the order of ``specs``."""
    field = "container_configs"
    known = {one.name: one for one in pod.containers}
    names = [spec.name for spec in specs]
    if not names:
        raise InvalidInput(field, "is empty")
    if len(set(names)) != len(names):
        raise InvalidInput(field, "has a name twice")
    if set(names) != set(known):
        raise InvalidInput(field, f"names {sorted(names)}; in the checkpoint are {sorted(known)}")
    return [known[name] for name in names]


def _no_options(options: Mapping[str, str]) -> None:
    if options:
        raise InvalidInput("options", f"{min(options)!r} is not an option of this runtime: there are none")


def _absolute(field: str, text: str) -> Path:
    path = Path(text)
    if "\0" in text or not path.is_absolute() or ".." in path.parts or not path.name:
        raise InvalidInput(field, f"{text!r} is not an absolute path")
    return path


def _empty_directory(text: str) -> Path:
    path = _absolute("output_path", text)
    try:
        if path.is_symlink() or any(path.iterdir()):
            raise InvalidInput("output_path", f"{path} is not empty, or a symlink")
    except OSError as error:
        raise InvalidInput("output_path", f"{path}: {error.strerror}") from error
    return path


def _clear(directory: Path) -> None:
    for name in (files.CONTAINERS, files.POD):
        path = directory / name
        with contextlib.suppress(FileNotFoundError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _time(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat()
