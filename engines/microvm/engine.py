"""The microvm engine: every pod in a virtual machine of its own."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NoReturn

from engines.base import (
    Console,
    ContainerPlan,
    ExecResult,
    Expected,
    Features,
    Handle,
    HandlerSettings,
    HostCalls,
    HostCount,
    ImagePlan,
    Imprint,
    Live,
    LiveState,
    Measurement,
    Problem,
    Resources,
    SandboxPlan,
    SandboxSpec,
    Stdio,
    Step,
    Trust,
    Verdict,
)
from engines.microvm import checks, measuring, notes, plans, refusals, sandboxes, settings, sizing, volumes
from engines.microvm import imprint as imprints
from engines.microvm.client import Keeper, Keepers
from engines.microvm.console import ExecConsole
from engines.microvm.filters import Filters
from engines.microvm.images import writable
from engines.microvm.images.cache import Images
from engines.microvm.keeper.orders import FROZEN, Disk, Volume
from engines.microvm.machines import Machines
from engines.microvm.notes import Note
from engines.microvm.sandboxes import Sandboxes
from engines.microvm.settings import Settings
from engines.microvm.wire import fields, messages
from engines.microvm.wire.fields import ProtocolError
from forgeone_shim import binds
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, ForgeError, InternalError, NotFound, Unavailable
from forgeone_shim.kernel import host as hosts
from forgeone_shim.kernel.bpf import Compiler
from forgeone_shim.kernel.procs import Pidfd
from forgeone_shim.limits import groups
from forgeone_shim.limits.resources import oom_score_adj
from forgeone_shim.shim import attach, contract
from forgeone_shim.shim.supervision import FILES, Supervision

# As long as it takes a keeper to end a machine whose agent does not answer, and more: that is an end as well.
_KILL_SECONDS: Final = 75.0
_DELETE_SECONDS: Final = 75.0
_EXEC_SECONDS: Final = 30.0
_ORDER_SECONDS: Final = 30.0
_BOTH: Final = Stdio(stdout=True, stderr=True)


class MicrovmEngine:
    """Implements :class:`engines.base.Engine`.

    A container's bundle holds what its supervisor, the pod's keeper, keeps there, and ``microvm.json``
    (:mod:`engines.microvm.notes`). What a pod has is below ``STATE/microvm``, what machines boot and their disks below
    ``ROOT/microvm``. In memory there is nothing but facts of the host.
    """

    def __init__(self, chosen: Settings, root: Path, state: Path) -> None:
        self._settings = chosen
        self._host = hosts.read(chosen.cgroup_driver)
        compiler = Compiler()
        self._filters = Filters(compiler)
        self._default = self._filters.default(chosen)
        self._keepers = Keepers(state / "microvm")
        self._machines = Machines(chosen, root, self._keepers)
        self._sandboxes = Sandboxes(self._host, self._keepers, self._machines, state / "microvm")
        self._images = Images(root / "microvm" / "images")
        self._layers = root / "microvm" / "layers"

    @property
    def name(self) -> str:
        """``microvm``."""
        return "microvm"

    def features(self) -> Features:
        """Mounts are shared by a server of the host's, which enforces that they are read-only with all below them."""
        return Features(
            recursive_read_only_mounts=True, supplemental_groups_policy=True, mount_options=True, own_kernel=True
        )

    def problems(self) -> list[Problem]:
        """What this host lacks for machines; pods of other engines run without any of it."""
        return [replace(one, fatal=False) for one in checks.problems(self._settings)]

    def check(self, settings: HandlerSettings) -> None:
        """Whether the settings of a handler can be used; InvalidInput says why not."""
        self._filters.check(settings)

    def reconfigure(self, config: Mapping[str, Any]) -> Callable[[], tuple[str, ...]]:
        """What puts limits of logs, and what RuntimeDefault means, in force for containers to come; the rest waits.

        InvalidInput where it cannot be used; nothing has changed then.
        """
        chosen = settings.read(config)
        default = self._filters.default(chosen)

        def take() -> tuple[str, ...]:
            self._settings, self._default = chosen, default
            return ()

        return take

    def close(self) -> None:
        """Let go of templates and the fork server; machines go on."""
        self._machines.close()
        self._keepers.close()

    # Images

    def prepare_image(self, image: ImagePlan, deadline: Deadline) -> None:
        """Pack it as a disk, if it is mounted. FailedPrecondition says what this host lacks for that."""
        if image.rootfs:
            os.close(self._images.open(image.image_id, image.rootfs, deadline))

    def retain_images(self, ids: Collection[str]) -> None:
        """Forget the disks of other images."""
        self._images.retain(ids)

    # Sandboxes

    def unfit(self, spec: SandboxSpec, expected: Expected) -> str:
        """What a machine does not have, if the pod needs it."""
        return refusals.foreseen(spec, expected)

    def prepare_sandbox(self, plan: SandboxPlan, deadline: Deadline) -> str:
        """Start the pod's machine; ``""``, as none of its namespaces is on the host."""
        groups.warm(self._host)
        self._sandboxes.prepare(plan, self._settings, deadline)
        return ""

    def connect_sandbox(self, plan: SandboxPlan, deadline: Deadline) -> None:
        """Make the machine the pod's: its address and name, the time, and randomness that no other machine has."""
        self._sandboxes.connect(plan, deadline)

    def sandbox_alive(self, plan: SandboxPlan) -> bool:
        """Whether the machine and its keeper live, which end together."""
        return self._sandboxes.alive(plan.sandbox_id)

    def sandbox_process(self, plan: SandboxPlan) -> Pidfd | None:
        """The keeper's."""
        return self._sandboxes.keeper(plan.sandbox_id).process()

    def remove_sandbox(self, plan: SandboxPlan) -> None:
        """Undo :meth:`prepare_sandbox`; nothing to undo is no error."""
        self._sandboxes.remove(plan.sandbox_id, plan.cgroup)

    def dial(self, plan: SandboxPlan, port: int, deadline: Deadline) -> socket.socket | None:
        """A connection to a port of the machine's loopback."""
        try:
            return self._sandboxes.keeper(plan.sandbox_id).dial(port, deadline)
        except Unavailable as error:
            raise FailedPrecondition(str(error)) from error

    # Containers, in order of life

    def create(self, plan: ContainerPlan, deadline: Deadline) -> int:
        """Create the container, held before its first instruction; returns the pid of its machine's monitor.

        A command that cannot be executed is InvalidInput of ``command``. On any error nothing is left but the bundle's
        directory.
        """
        deadline.check("before the container was created")
        refusals.container(plan)
        pod = self._sandboxes.read(plan.sandbox_id)
        mounts = binds.resolve(plan.spec.mounts)
        found = self._filters.of(plan, self._settings.seccomp_profile_root, self._default)
        first = plans.program(plan, found.program, found.flags)
        places = volumes.plan(plan, mounts, volumes.look((*plan.pod_mounts, *mounts)))
        note = Note(
            sandbox_id=plan.sandbox_id,
            log_path=plan.log_path,
            program=first,
            disk=str(self._layers / plan.container_id) if self._settings.writable_layer == "disk" else "",
            version=pod.version,
            facts=dict(sandboxes.facts(pod)),
        )
        size = self._settings.disk_size or self._settings.writable_layer_size or pod.memory // 2
        with contextlib.ExitStack() as held, contextlib.ExitStack() as undo:
            undo.callback(self._undo_create, _handle(plan))
            notes.write(plan.bundle, note)
            self._sandboxes.give_cpus(plan.sandbox_id, plan.container_id, plan.spec.resources)
            making = held.enter_context(self._sandboxes.keeper(plan.sandbox_id).creation(plan.container_id, deadline))
            shares = volumes.opened(places, held)
            ready = making.prepare(
                disks=self._disks(plan, note, size, held, deadline),
                volumes=[
                    (Volume(readonly=share.readonly, common=share.common, live=share.live), fd)
                    for share, fd in shares.items()
                ],
            )
            rootfs = plans.rootfs(plan, ready.luns, size)
            asked = plans.create(plan, first, rootfs, places, dict(zip(shares, ready.volumes, strict=True)))
            created = making.create(
                self._supervision(plan),
                fields.encode(asked),
                oom_score_adj=oom_score_adj(plan.spec.resources, self._host),
            )
            undo.pop_all()
        return created.pid

    def _disks(
        self, plan: ContainerPlan, note: Note, size: int, held: contextlib.ExitStack, deadline: Deadline
    ) -> list[tuple[Disk, int]]:
        """The image's, and of a writable layer on disk; ``held`` closes them."""
        image = self._images.open(plan.image_id, plan.rootfs, deadline)
        held.callback(os.close, image)
        found = [(Disk(key=plan.image_id), image)]
        if note.disk:
            layer = writable.make(Path(note.disk), size, deadline)
            held.callback(os.close, layer)
            found.append((Disk(readonly=False), layer))
        return found

    def _supervision(self, plan: ContainerPlan) -> Supervision:
        return Supervision(
            container_id=plan.container_id,
            bundle=plan.bundle,
            exits=plan.exits,
            log_path=plan.log_path,
            log_size_max=self._settings.log_size_max,
            log_rate=self._settings.log_rate,
            tty=plan.spec.tty,
            stdin=plan.spec.stdin,
            stdin_once=plan.spec.stdin_once,
        )

    def _undo_create(self, handle: Handle) -> None:
        with contextlib.suppress(ForgeError):
            self.delete(handle)
        contract.forget(handle.bundle, (*FILES, notes.NAME, FROZEN))
        Path(handle.exits, handle.container_id).unlink(missing_ok=True)

    def start(self, handle: Handle, deadline: Deadline) -> None:
        """Let the created container run. One that runs already, or has ended, is FailedPrecondition."""
        deadline.check("before the container was started")
        self._keeper(handle).start(handle.container_id, deadline)

    def kill(self, handle: Handle, signal: int, *, everything: bool = False) -> None:
        """Signal the first process, or every process of the container. A dead container is no error."""
        with contextlib.suppress(NotFound):
            deadline = Deadline.after(_KILL_SECONDS)
            self._keeper(handle).signal(handle.container_id, signal, deadline, everything=everything)

    def delete(self, handle: Handle) -> None:
        """Kill what is left and forget the container. A missing container is no error."""
        with contextlib.ExitStack() as last:
            # Its bundle may be gone, as after a reboot, and this not.
            last.callback(writable.remove, self._layers / handle.container_id)
            with contextlib.suppress(NotFound):
                sandbox_id = notes.read(handle.bundle, handle.container_id).sandbox_id
                self._sandboxes.keeper(sandbox_id).delete(handle.container_id, Deadline.after(_DELETE_SECONDS))
                self._sandboxes.put_back_cpus(sandbox_id, handle.container_id)

    def update(self, handle: Handle, resources: Resources) -> None:
        """Give the container these limits, all or none of them; what is not set stays as it is."""
        note = notes.read(handle.bundle, handle.container_id)
        pod = self._sandboxes.read(note.sandbox_id)
        if resources.memory_limit > pod.memory:
            raise FailedPrecondition(
                f"linux.memory_limit_in_bytes: the pod's machine has {pod.memory} bytes, and cannot grow",
                fix="make the pod anew",
            )
        if pod.vcpus < min(sizing.cpus(resources), self._machines.processors()):
            raise FailedPrecondition(
                f"linux.cpu_quota: the pod's machine has {pod.vcpus} processors, and gets no more",
                fix="make the pod anew",
            )
        asked = messages.Update(container=handle.container_id, cgroup=plans.cgroup(resources))
        with contextlib.ExitStack() as undo:
            before = self._sandboxes.give_cpus(note.sandbox_id, handle.container_id, resources)
            undo.callback(self._sandboxes.put_back_cpus, note.sandbox_id, handle.container_id, before)
            if asked.cgroup:
                deadline = Deadline.after(_ORDER_SECONDS)
                self._sandboxes.keeper(note.sandbox_id).update(handle.container_id, fields.encode(asked), deadline)
            undo.pop_all()

    def pause(self, handle: Handle, deadline: Deadline) -> None:
        """Freeze every process of the container; returns when none runs any more."""
        self._keeper(handle).freeze(handle.container_id, deadline, on=True)

    def resume(self, handle: Handle, settled: Deadline | None = None) -> None:  # noqa: ARG002
        """Let a frozen container go on; one that is not frozen, or has gone, is no error."""
        if self.look(handle).state is LiveState.PAUSED:
            self._keeper(handle).freeze(handle.container_id, Deadline.after(_ORDER_SECONDS), on=False)

    def checkpoint(self, handle: Handle, images: str, deadline: Deadline) -> None:
        """Not of one container: its machine is its pod's."""
        self._no_checkpoints(handle, images, deadline)

    def restore(self, plan: ContainerPlan, images: str, deadline: Deadline) -> int:
        """Not of one container: its machine is its pod's."""
        self._no_checkpoints(plan, images, deadline)

    @staticmethod
    def _no_checkpoints(*_: object) -> NoReturn:
        raise FailedPrecondition("a container in a machine cannot be checkpointed by itself")

    def look(self, handle: Handle) -> Live:
        """The container as its keeper has left it in the bundle."""
        found = contract.look(handle.bundle, f"{handle.bundle}/{FROZEN}")
        if found.state is not LiveState.MISSING and Path(handle.exits, handle.container_id).exists():
            # The monitor, whose process the pid is, goes on.
            return Live(LiveState.STOPPED)
        return found

    def exec_sync(self, handle: Handle, argv: tuple[str, ...], timeout: float | None, limit: int) -> ExecResult:
        """Run ``argv`` inside; ``timeout`` seconds (``None``: none) later it is killed and DeadlineExceeded raised."""
        deadline = Deadline.after(timeout)
        console = self._executed(handle, argv, _BOTH, deadline)
        try:
            return console.collect(deadline, limit)
        finally:
            console.close()

    def exec_console(self, handle: Handle, argv: tuple[str, ...], stdio: Stdio) -> Console:
        """Start ``argv`` inside and hand over its streams; they must be closed."""
        return self._executed(handle, argv, stdio, Deadline.after(_EXEC_SECONDS))

    def _executed(self, handle: Handle, argv: tuple[str, ...], stdio: Stdio, deadline: Deadline) -> ExecConsole:
        note = notes.read(handle.bundle, handle.container_id)
        state = self.look(handle).state
        if state is not LiveState.RUNNING:
            raise FailedPrecondition(f"container {handle.container_id} is {state.value}, not running")
        program = plans.executed(note.program, argv, tty=stdio.tty, stdin=stdio.stdin)
        asked = messages.Exec(container=handle.container_id, program=program)
        console = ExecConsole(handle.container_id)
        with contextlib.ExitStack() as undo:
            undo.callback(console.close)
            console.start(self._sandboxes.keeper(note.sandbox_id), fields.encode(asked), stdio, deadline)
            undo.pop_all()
        return console

    def attach_console(self, handle: Handle, stdio: Stdio) -> Console:
        """The streams of the container's first process from now on."""
        return attach.AttachConsole(handle.container_id, handle.bundle, stdio)

    def reopen_log(self, handle: Handle) -> None:
        """Make the keeper open the container's log file anew; returns once it has."""
        note = notes.read(handle.bundle, handle.container_id)
        contract.reopen_log(handle.bundle, handle.container_id, note.log_path)

    def was_oom_killed(self, handle: Handle) -> bool:
        """Whether the guest's kernel killed a process of this container for memory."""
        return contract.was_oom_killed(handle.bundle)

    def measured(self, handles: Sequence[Handle], deadline: Deadline) -> Measurement | None:
        """One look at the machine of a pod; nothing in it where that does not answer."""
        sandbox_id = handles[0].sandbox_id if handles else ""
        try:
            cgroup = self._sandboxes.read(sandbox_id).cgroup
        except NotFound:
            return Measurement(cgroup="", containers={})
        wanted = {handle.container_id for handle in handles}
        try:
            said = self._sandboxes.keeper(sandbox_id).stats(deadline)
            told = fields.decode(messages.StatsReply, said).containers
        except ProtocolError as error:
            raise InternalError(
                f"what the machine of sandbox {sandbox_id} says of itself cannot be read: {error}"
            ) from error
        except ForgeError:
            told = ()
        return measuring.measurement(cgroup, told, wanted)

    def told(self, _handle: Handle, _step: Step) -> None:
        """Guests have no card."""

    def trusted(self, _handle: Handle, _trust: Trust) -> None:
        """Guests have no card."""

    def host_calls(self, handle: Handle, after: int, *, ended: bool) -> HostCalls:  # noqa: ARG002
        """None are recorded: a guest calls its own kernel."""
        raise FailedPrecondition(f"container {handle.container_id[:13]} is not traced: it calls its machine's kernel")

    def host_counts(self, _handle: Handle) -> tuple[HostCount, ...] | None:
        """None: a guest calls its own kernel."""
        return None

    def imprint(self, handle: Handle) -> Imprint:
        """What was made of a container's plan; NotFound where there is no such container any more."""
        return imprints.imprint(handle.bundle, handle.container_id)

    def seal(self, handle: Handle) -> str:
        """The digest of its note; NotFound where there is no such container any more."""
        return imprints.seal(handle.bundle, handle.container_id)

    def verdict(self, handle: Handle) -> Verdict | None:
        """Of a container that did not end by itself: what became of its machine."""
        return contract.verdict(handle.bundle)

    def _keeper(self, handle: Handle) -> Keeper:
        return self._sandboxes.keeper(notes.read(handle.bundle, handle.container_id).sandbox_id)


def _handle(plan: ContainerPlan) -> Handle:
    return Handle(
        container_id=plan.container_id,
        sandbox_id=plan.sandbox_id,
        bundle=plan.bundle,
        exits=plan.exits,
        cgroup=plan.cgroup,
    )
