"""The wasm engine: WebAssembly modules and components, each in a jailed process of its own, forked from a warm one."""

from __future__ import annotations

import contextlib
import functools
import os
import signal as signals
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
from engines.wasm import card as cards
from engines.wasm import checks, commands, jail, modules, notes, plans, settings
from engines.wasm import imprint as imprints
from engines.wasm.annotations import TRACE
from engines.wasm.annotations import read as read_annotations
from engines.wasm.aot.cache import Cache
from engines.wasm.aot.target import Variant
from engines.wasm.client import Zygote
from engines.wasm.commands import Command
from engines.wasm.execute import ExecConsole
from engines.wasm.jail import JailPlan
from engines.wasm.messages import Code, Container, Execution
from engines.wasm.notes import Note
from engines.wasm.sandboxes import Sandboxes
from engines.wasm.tracing import ring
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import (
    FailedPrecondition,
    ForgeError,
    InternalError,
    InvalidInput,
    NotFound,
    syscall_error,
)
from forgeone_shim.kernel import cgroups, freezer, procs
from forgeone_shim.kernel import host as hosts
from forgeone_shim.kernel.bpf import Compiler
from forgeone_shim.kernel.cgroups import Mode
from forgeone_shim.kernel.procs import Pidfd
from forgeone_shim.limits import groups, updates
from forgeone_shim.shim import attach, contract
from forgeone_shim.shim.supervision import FILES, Supervision

_GONE_SECONDS: Final = 10.0
_SUPERVISOR_SECONDS: Final = 5.0
_EXEC_SECONDS: Final = 30.0
_BOTH: Final = Stdio(stdout=True, stderr=True)


class WasmEngine:
    """Implements :class:`engines.base.Engine`.

    A container's bundle holds what its supervisor keeps (:mod:`forgeone_shim.shim.supervision`) and ``wasm.json``
    (:mod:`engines.wasm.notes`). Compiled modules are below ``ROOT/wasm``, the zygote's socket is in ``STATE/wasm``.
    Nothing else is kept, and in memory nothing but facts of the host.
    """

    def __init__(self, chosen: settings.Settings, root: Path, state: Path) -> None:
        self._settings = chosen
        self._host = hosts.read(chosen.cgroup_driver)
        self._compiler = Compiler()
        self._zygote = Zygote(state / "wasm")
        self._sandboxes = Sandboxes(self._host, self._zygote, self._compiler)
        self._cache = Cache(root / "wasm", compile_timeout=chosen.compile_timeout, compile_memory=chosen.compile_memory)

    @property
    def name(self) -> str:
        """``wasm``."""
        return "wasm"

    def features(self) -> Features:
        """Supplemental groups come resolved, so both policies work."""
        return Features(
            user_namespaces=self._host.user_namespaces,
            user_namespaces_host_network=self._host.user_namespaces,
            supplemental_groups_policy=True,
            mount_options=True,
            recursive_read_only_mounts=self._host.recursive_attributes,
        )

    def problems(self) -> list[Problem]:
        """What this host lacks for the engine to work."""
        found = [*checks.problems(), *jail.problems(self._host, self._compiler)]
        # Native pods run without any of it.
        return [replace(one, fatal=False, unusable=one.fatal or one.unusable) for one in found]

    def check(self, settings: HandlerSettings) -> None:
        """A handler's seccomp profile is for programs that make system calls of their own: refused here."""
        if settings.seccomp:
            raise InvalidInput("seccomp_profile", "the wasm engine has one of its own, tighter than those of programs")

    def reconfigure(self, config: Mapping[str, Any]) -> Callable[[], tuple[str, ...]]:
        """What puts the limits of logs in force for containers to come; InvalidInput where they cannot be used."""
        chosen = settings.read(config)

        def take() -> tuple[str, ...]:
            self._settings = chosen
            return ()

        return take

    def close(self) -> None:
        """Let go of the zygote; containers go on."""
        self._zygote.close()

    # Images

    def prepare_image(self, image: ImagePlan, deadline: Deadline) -> None:
        """Compile its module, and have the zygote hold the code. An image that is no WebAssembly needs nothing."""
        module = modules.in_layers(image)
        if module < 0:
            return
        try:
            if not modules.is_wasm(module):
                return
            code, fd = self._compiled(module, Variant.PLAIN, deadline, image_id=image.image_id)
        finally:
            os.close(module)
        try:
            self._zygote.preload((code, fd), deadline)
        finally:
            os.close(fd)

    def retain_images(self, ids: Collection[str]) -> None:
        """Forget the code of other images."""
        self._zygote.retain(self._cache.retain(ids))

    def _compiled(
        self, module: int, variant: Variant, deadline: Deadline, *, image_id: str = "", field: str = modules.FIELD
    ) -> tuple[Code, int]:
        """Code for the module in the open file, and a descriptor of it, which is the caller's to close.

        ``image_id`` where the file is an image's: a file of it is the same in every container. What is no module is
        InvalidInput of ``field``.
        """
        try:
            entry = self._cache.entry(module, deadline, variant=variant, image_id=image_id, scope=image_id)
        except InvalidInput as error:
            raise InvalidInput(field, f"the module cannot be run: {error.reason}", fix=error.fix) from error
        return Code(entry.key, entry.kind, entry.variant), self._cache.open_verified(entry, deadline)

    # Sandboxes

    def unfit(self, _spec: SandboxSpec, _expected: Expected) -> str:
        """Nothing: its pods share what is the host's."""
        return ""

    def prepare_sandbox(self, plan: SandboxPlan, deadline: Deadline) -> str:
        """Start the pod's init if its containers share a PID namespace; returns the namespace's path or ``""``."""
        groups.warm(self._host)
        return self._sandboxes.prepare(plan, deadline)

    def connect_sandbox(self, plan: SandboxPlan, deadline: Deadline) -> None:
        """Nothing to do: its containers are in the network namespace itself."""

    def sandbox_alive(self, plan: SandboxPlan) -> bool:
        """Whether the pod's init lives; always so for a pod without one."""
        return self._sandboxes.alive(plan)

    def sandbox_process(self, _plan: SandboxPlan) -> Pidfd | None:
        """None: that of an init is missed when its containers end with it."""
        return None

    def remove_sandbox(self, plan: SandboxPlan) -> None:
        """Undo :meth:`prepare_sandbox`; nothing to undo is no error."""
        self._sandboxes.remove(plan)

    # Containers, in order of life

    def create(self, plan: ContainerPlan, deadline: Deadline) -> int:
        """Create the container, held before its guest's first instruction; returns its first process's pid.

        A module that is not there, or cannot be run, is InvalidInput of ``command``. On any error nothing is left but
        the bundle's directory.
        """
        deadline.check("before the container was created")
        groups.warm(self._host)
        asked = read_annotations(plan.pod_annotations, plan.spec.name)
        plans.check(plan)
        choice = modules.wanted(plan.process.args, plan.process.env, plan.process.cwd, plan.module)
        with contextlib.ExitStack() as held:
            opened = modules.find(plan, choice)
            held.callback(os.close, opened.fd)
            image_id = "" if opened.mounted else plan.image_id
            code, fd = self._compiled(opened.fd, plans.variant(asked), deadline, image_id=image_id)
            held.callback(os.close, fd)
            guest = plans.guest(plan, asked, choice)
            note = Note(
                log_path=plan.log_path,
                code=code,
                image_id=image_id,
                module=opened.path,
                exports=asked.exports,
                guest=guest,
                jail=self._jail(plan, deadline),
                insight=plans.insight(plan, asked, guest, code.kind),
            )
            with contextlib.ExitStack() as undo:
                undo.callback(self._undo_create, _handle(plan))
                notes.write(plan.bundle, note)
                container = Container(
                    supervision=self._supervision(plan), jail=note.jail, guest=guest, insight=note.insight
                )
                with groups.made(self._host, plan.cgroup, plan.spec.resources, deadline, plan.blockio):
                    pid = self._zygote.create((code, fd), container, deadline)
                undo.pop_all()
        return pid

    def _jail(self, plan: ContainerPlan, deadline: Deadline) -> JailPlan:
        found = jail.gather(plan, self._compiler, deadline, seccomp_root=self._settings.seccomp_profile_root)
        return jail.plan_jail(plan, self._host, found)

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
            oom_counter=self._oom_counter(plan.cgroup),
        )

    def _oom_counter(self, cgroup: str) -> str:
        directory = self._host.cgroups.directory("memory", cgroup)
        name = "memory.events" if self._host.cgroups.mode is Mode.V2 else "memory.oom_control"
        return f"{directory}/{name}" if directory else ""

    def _undo_create(self, handle: Handle) -> None:
        with contextlib.suppress(ForgeError):
            self.delete(handle)
        contract.forget(handle.bundle, (*FILES, notes.NAME, cards.NAME, ring.NAME))
        Path(handle.exits, handle.container_id).unlink(missing_ok=True)

    def start(self, handle: Handle, deadline: Deadline) -> None:
        """Let the created container run. One that runs already, or has ended, is FailedPrecondition."""
        deadline.check("before the container was started")
        name = handle.container_id
        try:
            if contract.start(handle.bundle):
                return
        except OSError as error:
            raise FailedPrecondition(f"container {name} died before it was started: {error.strerror}") from error
        state = self.look(handle).state
        if state is LiveState.MISSING:
            raise NotFound("container", name)
        raise FailedPrecondition(f"container {name} is {state.value}, not created")

    def kill(self, handle: Handle, signal: int, *, everything: bool = False) -> None:
        """Signal the first process, or every process of the container. A dead container is no error.

        The first process has no action of its own for signals that a terminal or a child would send; by all others it
        ends.
        """
        held = contract.process(handle.bundle)
        if held is not None:
            with held:
                held.send(signal)
        if everything and handle.cgroup:
            cgroups.kill_all(self._host.cgroups, handle.cgroup, signal)
        if signal == signals.SIGKILL:
            self._let_die(handle.cgroup)

    def delete(self, handle: Handle) -> None:
        """Kill what is left and forget the container. A missing container is no error."""
        name = handle.container_id
        held = contract.process(handle.bundle)
        if held is not None:
            with held:
                held.send(signals.SIGKILL)
                self._let_die(handle.cgroup)
                if not held.wait(_GONE_SECONDS):
                    raise InternalError(f"container {name}: its first process does not die (pid {held.pid})")
        if handle.cgroup and not cgroups.kill_all(self._host.cgroups, handle.cgroup, timeout=_GONE_SECONDS):
            raise InternalError(f"container {name}: processes in {handle.cgroup} do not die")
        # It reads from the cgroup whether it was for memory.
        contract.stop(handle.bundle, name, _SUPERVISOR_SECONDS)
        if handle.cgroup:
            groups.remove(self._host.cgroups, handle.cgroup)

    def _let_die(self, cgroup: str) -> None:
        """What somebody has frozen cannot, in a hierarchy of version 1."""
        if self._host.cgroups.mode is not Mode.V2:
            with contextlib.suppress(ForgeError):
                freezer.thaw(self._host.cgroups, cgroup)

    def update(self, handle: Handle, resources: Resources) -> None:
        """Give the container these limits, all or none of them; what is not set stays as it is.

        What its memories may grow to was set at its creation.
        """
        if not handle.cgroup or not cgroups.exists(self._host.cgroups, handle.cgroup):
            raise NotFound("container", handle.container_id)
        with updates.applied(updates.plan(resources, self._host, handle.cgroup)):
            cards.limit(f"{handle.bundle}/{cards.NAME}", functools.partial(plans.limits, resources))

    def pause(self, handle: Handle, deadline: Deadline) -> None:
        """Freeze every process of the container; returns when none runs any more."""
        freezer.freeze(self._host.cgroups, handle.cgroup, deadline)

    def resume(self, handle: Handle, settled: Deadline | None = None) -> None:  # noqa: ARG002
        """Let a frozen container go on; one that is not frozen is no error."""
        freezer.thaw(self._host.cgroups, handle.cgroup)

    def checkpoint(self, handle: Handle, images: str, deadline: Deadline) -> None:
        """Not of a guest."""
        self._no_checkpoints(handle, images, deadline)

    def restore(self, plan: ContainerPlan, images: str, deadline: Deadline) -> int:
        """Not of a guest."""
        self._no_checkpoints(plan, images, deadline)

    @staticmethod
    def _no_checkpoints(*_: object) -> NoReturn:
        raise FailedPrecondition("a WebAssembly container cannot be checkpointed: a guest's stack cannot be written")

    def look(self, handle: Handle) -> Live:
        """The container as the kernel sees it."""
        return contract.look(handle.bundle, self._freezer(handle.cgroup))

    def _freezer(self, cgroup: str) -> str | None:
        if not cgroup:
            return None
        directory = self._host.cgroups.directory("freezer", cgroup)
        name = "cgroup.freeze" if self._host.cgroups.mode is Mode.V2 else "freezer.state"
        return None if directory is None else f"{directory}/{name}"

    def exec_sync(self, handle: Handle, argv: tuple[str, ...], timeout: float | None, limit: int) -> ExecResult:
        """Run a function of the container's module, or a module in the container; see :meth:`exec_console`."""
        deadline = Deadline.after(timeout)
        console = self._executed(handle, argv, _BOTH, deadline)
        try:
            return console.collect(deadline, limit)
        finally:
            console.close()

    def exec_console(self, handle: Handle, argv: tuple[str, ...], stdio: Stdio) -> Console:
        """Run one more guest in the container and hand over its streams.

        ``argv[0]`` is an exported function that the pod's annotation names, run in a fresh instance of the container's
        module, or the path of a module in the container. Unimplemented says that it is neither.
        """
        return self._executed(handle, argv, stdio, Deadline.after(_EXEC_SECONDS))

    def attach_console(self, handle: Handle, stdio: Stdio) -> Console:
        """The streams of the container's guest from now on."""
        return attach.AttachConsole(handle.container_id, handle.bundle, stdio)

    def reopen_log(self, handle: Handle) -> None:
        """Make the supervisor open its log file anew; returns once it has."""
        path = notes.log_path(handle.bundle, handle.container_id)
        contract.reopen_log(handle.bundle, handle.container_id, path)

    def was_oom_killed(self, handle: Handle) -> bool:
        """Whether the kernel killed a process of this container for memory; ask before :meth:`delete`."""
        if handle.cgroup:
            if cgroups.oom_kills(self._host.cgroups, handle.cgroup) > 0:
                return True
            # Looked at after the count: of a cgroup that somebody has removed a 0 says nothing.
            if cgroups.exists(self._host.cgroups, handle.cgroup):
                return False
        return contract.was_oom_killed(handle.bundle)

    def told(self, handle: Handle, step: Step) -> None:
        """Where the container's guest may want to know, it finds it in the card."""
        card = f"{handle.bundle}/{cards.NAME}"
        if step.event:
            cards.take(card, step)
        else:
            cards.correct(card, step.after)

    def trusted(self, handle: Handle, trust: Trust) -> None:
        """Where the container's guest may want to know, it finds it in the card."""
        cards.trust(f"{handle.bundle}/{cards.NAME}", trust)

    def host_calls(self, handle: Handle, after: int, *, ended: bool) -> HostCalls:
        """From the trace that the guest's process keeps in the bundle, which outlives it."""
        path = f"{handle.bundle}/{ring.NAME}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise FailedPrecondition(
                f"container {handle.container_id[:13]} is not traced", fix=f'annotate its pod with {TRACE}: "true"'
            ) from error
        except OSError as error:
            raise syscall_error("open", path, error) from error
        try:
            return ring.read(fd, after, ended=ended)
        finally:
            os.close(fd)

    def host_counts(self, handle: Handle) -> tuple[HostCount, ...] | None:
        """Of a core module that is traced or watched; components have no functions that can be stood in front of."""
        try:
            fd = os.open(f"{handle.bundle}/{ring.NAME}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise syscall_error("open", ring.NAME, error) from error
        try:
            return ring.read_counts(fd)
        finally:
            os.close(fd)

    def measured(self, handles: Sequence[Handle], deadline: Deadline) -> Measurement | None:  # noqa: ARG002
        """None: its control group tells."""
        return None

    def dial(self, plan: SandboxPlan, port: int, deadline: Deadline) -> socket.socket | None:  # noqa: ARG002
        """None: its network namespace leads there."""
        return None

    def imprint(self, handle: Handle) -> Imprint:
        """What was made of a container's plan; NotFound where there is no such container any more."""
        return imprints.imprint(handle.bundle, handle.container_id)

    def seal(self, handle: Handle) -> str:
        """The digest of its note; NotFound where there is no such container any more."""
        return imprints.seal(handle.bundle, handle.container_id)

    def verdict(self, handle: Handle) -> Verdict | None:
        """Of a guest that trapped, or could not be started: which, and the first line of why."""
        return contract.verdict(handle.bundle)

    # Execs

    def _executed(self, handle: Handle, argv: tuple[str, ...], stdio: Stdio, deadline: Deadline) -> ExecConsole:
        note = notes.read(handle.bundle, handle.container_id)
        target = contract.process(handle.bundle)
        if target is None:
            raise FailedPrecondition(f"container {handle.container_id} is not running")
        with target:
            state = self.look(handle).state
            if state is not LiveState.RUNNING:
                raise FailedPrecondition(f"container {handle.container_id} is {state.value}, not running")
            try:
                return self._execute_beside(target, note, commands.choose(argv, note), stdio, deadline)
            except ForgeError as error:
                # Whatever could not be found or joined then, this is why. It waits for the exec's process, too.
                seen = procs.stat(target.pid)
                if target.wait(0) or seen is None or seen.exiting:
                    raise FailedPrecondition(f"container {handle.container_id} is not running any more") from error
                raise

    def _execute_beside(
        self, target: Pidfd, note: Note, command: Command, stdio: Stdio, deadline: Deadline
    ) -> ExecConsole:
        container_id, called = note.insight.identity.id, command.guest.argv[0]
        with contextlib.ExitStack() as stack:
            opened = modules.open_below(f"/proc/{target.pid}/root", command.module)
            if opened is not None:
                stack.callback(os.close, opened.fd)
            if opened is None or not modules.is_wasm(opened.fd):
                if not command.certain:
                    raise commands.refused(called)
                raise InvalidInput(commands.FIELD, f"module {called!r} not found in the container")
            code, fd = self._compiled(opened.fd, note.code.variant, deadline, field=commands.FIELD)
            stack.callback(os.close, fd)
            execution = Execution(
                container_id=container_id,
                jail=note.jail,
                guest=command.guest,
                insight=note.insight,
                tty=stdio.tty,
            )
            console = ExecConsole(container_id)
            with contextlib.ExitStack() as undo:
                undo.callback(console.close)
                console.start(self._zygote, (code, fd), execution, target, stdio, deadline=deadline)
                undo.pop_all()
        return console


def _handle(plan: ContainerPlan) -> Handle:
    return Handle(
        container_id=plan.container_id,
        sandbox_id=plan.sandbox_id,
        bundle=plan.bundle,
        exits=plan.exits,
        cgroup=plan.cgroup,
    )
