"""The native engine: containers of the host's own kernel, made by crun and supervised by conmon."""

from __future__ import annotations

import contextlib
import functools
import os
import signal as signals
import socket
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import structlog

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
    Mount,
    Problem,
    Resources,
    SandboxPlan,
    SandboxSpec,
    Stdio,
    Step,
    Trust,
    Verdict,
)
from engines.native import (
    capabilities,
    checkpoints,
    checks,
    conmon,
    console,
    execute,
    hooks,
    idmaps,
    imprint,
    logs,
    lookup,
    runtime_default,
    seccomp,
    spec,
)
from engines.native.apparmor import AppArmor
from engines.native.conmon import Programs
from engines.native.crun import Containers
from engines.native.extras import Extras, ExtraSettings
from engines.native.imprint import Version
from engines.native.rdt import Resctrl, group_of
from engines.native.runtime_default import Template
from engines.native.sandbox import Sandboxes
from engines.native.sealed import SealedProgram, environment
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import (
    FailedPrecondition,
    ForgeError,
    InternalError,
    InvalidInput,
    NotFound,
    Unavailable,
    syscall_error,
)
from forgeone_shim.kernel import cgroups, freezer, selinux
from forgeone_shim.kernel import host as hosts
from forgeone_shim.kernel.bpf import Compiler
from forgeone_shim.kernel.cgroups import Driver, Mode
from forgeone_shim.kernel.procs import Pidfd
from forgeone_shim.kernel.spawn import find_program, run
from forgeone_shim.limits import scope as scopes
from forgeone_shim.limits import updates
from forgeone_shim.limits.blockio import limit_io
from forgeone_shim.limits.hugepages import limit_reservations
from forgeone_shim.limits.resources import hugepages, limits
from forgeone_shim.shim import contract, supervision
from forgeone_shim.shim.attach import AttachConsole

_CONFIG = "config.json"
_LOG_NOTE = "log-path"
_NEW_LIMITS = "limits.json"
_GONE_SECONDS = 10.0
_CONMON_SECONDS = 5.0
_UPDATE_SECONDS = 10.0
_PROFILES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(ExtraSettings):
    """The engine's part of the configuration; the same names as ``[native]`` has."""

    crun: str = "crun"
    conmon: str = "conmon"
    init: str = "catatonit"
    cgroup_driver: str = "auto"
    seccomp_profile_root: str = ""
    seccomp_default_profile: str = ""
    log_size_max: int = 0
    log_rate: int = 0


class NativeEngine:
    """Implements :class:`engines.base.Engine`.

    A container's bundle holds ``config.json``, conmon's pid files, control fifo and attach socket (``attach``). crun's
    state is below ``STATE/crun``. Nothing is kept in memory but facts of the host.
    """

    def __init__(self, settings: Settings, state: Path) -> None:
        self._settings = settings
        self._host = hosts.read(settings.cgroup_driver)
        self._log_limits = logs.Limits(size_max=settings.log_size_max, rate=settings.log_rate)
        self._containers = Containers(state / "crun")
        self._compiler = Compiler()
        # A profile is parsed once, not for every container.
        self._parsed = functools.lru_cache(_PROFILES)(runtime_default.parse)
        self._default = self._read_default(settings)
        self._extras = Extras(settings, self._host, self._crun_version)
        arguments = [f"--root={self._containers.root}"]
        if self._host.cgroups.driver is Driver.SYSTEMD:
            arguments.append("--systemd-cgroup")
        self._programs = Programs(
            crun=SealedProgram(find_program(settings.crun) or ""),
            conmon=find_program(settings.conmon) or "",
            init=os.path.realpath(find_program(settings.init) or ""),
            crun_arguments=tuple(arguments),
            environment=environment(),
        )
        self._version = Version(find_program(settings.crun) or "", "crun")
        self._resctrl = Resctrl()
        self._sandboxes = Sandboxes(self._host, self._programs, self._containers, self._compiler.compile)
        # Without this capability the kernel takes no profile.
        parser = find_program("apparmor_parser") if "CAP_MAC_ADMIN" in self._host.capabilities else None
        self._apparmor = AppArmor(enabled=self._host.apparmor, parser=parser or "")
        threading.Thread(target=self._compile_common, daemon=True).start()
        if self._host.apparmor and parser:
            threading.Thread(target=self._load_apparmor, daemon=True).start()

    @property
    def name(self) -> str:
        """``native``."""
        return "native"

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
        programs = self._settings.crun, self._settings.conmon, self._settings.init
        return [*checks.problems(*programs, self._host), *self._extras.problems()]

    def check(self, settings: HandlerSettings) -> None:
        """Whether the settings of a handler can be used; InvalidInput says why not."""
        if settings.seccomp:
            runtime_default.checked("seccomp_profile", settings.seccomp, self._compiler)

    def reconfigure(self, config: Mapping[str, Any]) -> Callable[[], tuple[str, ...]]:
        """What puts ``[native]`` in force for new containers; the programs and the cgroup driver stay.

        InvalidInput where it cannot be used; nothing has changed then.
        """
        settings = Settings(**config["native"])
        default = self._read_default(settings)
        log_limits = logs.Limits(size_max=settings.log_size_max, rate=settings.log_rate)
        extras = Extras(settings, self._host, self._crun_version)

        def take() -> tuple[str, ...]:
            old_path, old = self._settings.seccomp_default_profile, self._default
            self._settings, self._default, self._log_limits, self._extras = settings, default, log_limits, extras
            edited = old_path == settings.seccomp_default_profile and old != default
            return ("native.seccomp_default_profile",) if edited else ()

        return take

    def _runtime_default(self, handler: HandlerSettings) -> spec.RuntimeDefault:
        try:
            template = self._parsed(handler.seccomp) if handler.seccomp else self._default
        except ValueError as error:
            raise FailedPrecondition(f"the pod's handler has a seccomp profile that cannot be used: {error}") from error
        return seccomp.default_profile if template is None else template.profile

    def _read_default(self, settings: Settings) -> Template | None:
        path, key = settings.seccomp_default_profile, "native.seccomp_default_profile"
        if not path:
            return None
        return runtime_default.checked(key, runtime_default.read(key, path), self._compiler)

    # Sandboxes

    def unfit(self, _spec: SandboxSpec, _expected: Expected) -> str:
        """Nothing: its pods share what is the host's."""
        return ""

    def prepare_sandbox(self, plan: SandboxPlan, deadline: Deadline) -> str:
        """Start the pod's init if its containers share a PID namespace; returns the namespace's path or ``""``."""
        self._warm()
        if plan.shares_pid:
            self._need_crun()
            if not self._programs.init or not Path(self._programs.init).is_file():
                raise Unavailable(f"{self._settings.init} is not installed", fix=checks.INSTALL)
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
        """Create the container, held before its first instruction; returns its first process's pid.

        A command that cannot be executed is InvalidInput. On any error nothing is left but the bundle's directory.
        """
        return self._make(plan, deadline)

    def restore(self, plan: ContainerPlan, images: str, deadline: Deadline) -> int:
        """Make the container as the checkpoint in the directory ``images`` has it, running; its first process's pid."""
        checkpoints.need(self._settings.crun)
        # An earlier attempt that was cut off has left its files: the log's fifo, the code it ended with.
        self._undo_create(_handle(plan))
        return self._make(plan, deadline, images)

    def _make(self, plan: ContainerPlan, deadline: Deadline, images: str = "") -> int:
        self._warm()
        self._need_crun()
        self._need(self._programs.conmon, self._settings.conmon)
        deadline.check("before the container was created")
        root, default = self._settings.seccomp_profile_root, self._runtime_default(plan.handler)
        extras = self._extras
        plan = extras.asked(plan)
        owner = idmaps.owner(plan.process.user, plan.namespaces, plan.spec.security.namespaces)
        gathered = extras.found(plan, spec.gather(plan, self._host, root, default))
        apparmor = self._apparmor.choose(plan.spec.security.apparmor, privileged=plan.spec.security.privileged)
        gathered = replace(gathered, apparmor=apparmor)
        if plan.selinux.mount:
            _relabel(plan.selinux.mount, (*plan.pod_mounts, *gathered.mounts), deadline)
        config = spec.config(plan, self._host, gathered, self._compiler.compile)
        chosen = extras.put(config, plan, deadline)
        group = self._resctrl.group(plan.rdt_class)
        if group:
            config["linux"]["intelRdt"] = {"closID": group}
        with contextlib.ExitStack() as undo:
            undo.callback(self._undo_create, _handle(plan))
            try:
                _write_private(f"{plan.bundle}/{_CONFIG}", msgspec.json.encode(config))
                Path(plan.bundle, _LOG_NOTE).write_text(plan.log_path)
                chosen.keep(plan.bundle)
            except OSError as error:
                raise syscall_error("write", plan.bundle, error) from error
            pid = self._run(plan, images, deadline)
            self._resctrl.place(group, pid)
            if plan.spec.resources.hugepages:
                pages = hugepages(plan.spec.resources, self._host)
                limit_reservations(pages, self._host.cgroups, plan.cgroup)
            if plan.blockio is not None:
                limit_io(plan.blockio, self._host.cgroups, plan.cgroup)
            if owner is not None:
                self._give_pipes(plan.container_id, owner)
            undo.pop_all()
        return pid

    def _run(self, plan: ContainerPlan, images: str, deadline: Deadline) -> int:
        if not images:
            return conmon.create(plan, self._programs, self._log_limits, deadline)
        options = checkpoints.restore_options(images, plan.bundle)
        try:
            return conmon.create(plan, self._programs, self._log_limits, deadline, options)
        except (InvalidInput, InternalError) as error:
            raise checkpoints.restore_error(plan.container_id, plan.bundle, str(error)) from error

    def checkpoint(self, handle: Handle, images: str, deadline: Deadline) -> None:
        """Write the container's processes into the empty directory ``images``; they stay as they are.

        Freeze them before and thaw them after with :meth:`pause`, where the files they write are to be of that moment.
        """
        checkpoints.need(self._settings.crun)
        checkpoints.mark(handle.bundle)
        checkpoints.dump(self._programs, handle.container_id, images, deadline)

    def pause(self, handle: Handle, deadline: Deadline) -> None:
        """Freeze every process of the container; returns when none runs any more."""
        freezer.freeze(self._host.cgroups, handle.cgroup, deadline)

    def resume(self, handle: Handle, settled: Deadline | None = None) -> None:
        """Let a frozen container go on, with a deadline in it for good; one that is not frozen is no error."""
        freezer.thaw(self._host.cgroups, handle.cgroup)
        if settled is not None and checkpoints.is_marked(handle.bundle):
            checkpoints.await_end(handle.container_id, settled)
            freezer.thaw(self._host.cgroups, handle.cgroup)
            checkpoints.unmark(handle.bundle)

    def _give_pipes(self, name: str, owner: tuple[int, int]) -> None:
        held = self._containers.first_process(name)
        if held is None:
            raise InternalError(f"container {name} died as it was created")
        with held:
            try:
                idmaps.give_pipes(held, owner)
            except OSError as error:
                raise syscall_error("chown", f"the standard output of container {name}", error) from error

    def _undo_create(self, handle: Handle) -> None:
        with contextlib.suppress(ForgeError):
            self.delete(handle)
        conmon.leftovers(handle.bundle, (*conmon.FILES, *logs.FILES, _CONFIG, _LOG_NOTE))
        Path(handle.exits, handle.container_id).unlink(missing_ok=True)

    def start(self, handle: Handle, deadline: Deadline) -> None:
        """Let the created container run. One that runs already, or has ended, is FailedPrecondition.

        Where a ``poststart`` hook fails the container is killed.
        """
        deadline.check("before the container was started")
        name = handle.container_id
        if handle.cgroup:
            scopes.hold(self._host.cgroups, handle.cgroup)
        try:
            if self._containers.release(name):
                if hooks.kept(handle.bundle):
                    self._poststart(handle, deadline)
                return
        except OSError as error:
            raise FailedPrecondition(f"container {name} died before it was started: {error.strerror}") from error
        state = self.look(handle).state
        if state is LiveState.MISSING:
            raise NotFound("container", name)
        raise FailedPrecondition(f"container {name} is {state.value}, not created")

    def _poststart(self, handle: Handle, deadline: Deadline) -> None:
        status = self._containers.status(handle.container_id)
        pid = 0 if status is None else status.pid
        try:
            hooks.poststart(handle.bundle, handle.container_id, pid, self._programs.environment, deadline)
        except ForgeError:
            self.kill(handle, signals.SIGKILL, everything=True)
            raise

    def kill(self, handle: Handle, signal: int, *, everything: bool = False) -> None:
        """Signal the first process, or every process of the container. A dead container is no error."""
        held = self._containers.first_process(handle.container_id)
        if held is not None:
            with held:
                held.send(signal)
        if everything and handle.cgroup:
            cgroups.kill_all(self._host.cgroups, handle.cgroup, signal)

    def delete(self, handle: Handle) -> None:
        """Kill what is left and forget the container. A missing container is no error."""
        name = handle.container_id
        held = self._containers.first_process(name)
        if held is not None:
            with held:
                held.send(signals.SIGKILL)
                if not held.wait(_GONE_SECONDS):
                    raise InternalError(f"container {name}: its first process does not die (pid {held.pid})")
        status = self._containers.status(name)
        # Where the container's record is lost, crun still knows the cgroup.
        cgroup = handle.cgroup or (status.cgroup if status is not None else "")
        if cgroup and not cgroups.kill_all(self._host.cgroups, cgroup, timeout=_GONE_SECONDS):
            raise InternalError(f"container {name}: processes in {cgroup} do not die")
        contract.stop(handle.bundle, name, _CONMON_SECONDS)
        if cgroup:
            scopes.release(self._host.cgroups, cgroup)
        logs.end(handle.bundle)
        if self._host.cgroups.driver is Driver.SYSTEMD and status is not None:
            # The scope is a unit of systemd's, which only forgets a failed one when told to.
            execute.command(self._programs, ("delete", "--force", name), Deadline.after(_GONE_SECONDS))
        if cgroup:
            cgroups.remove(self._host.cgroups, cgroup)
        self._containers.forget(name)
        if hooks.kept(handle.bundle):
            hooks.poststop(handle.bundle, name, self._programs.environment)

    def update(self, handle: Handle, resources: Resources) -> None:
        """Give the container these limits, all or none of them; what is not set stays as it is. Executes nothing.

        systemd, where it makes the cgroups, is told by crun: it would put the old limits back when it is reloaded.
        """
        if not handle.cgroup or not cgroups.exists(self._host.cgroups, handle.cgroup):
            raise NotFound("container", handle.container_id)
        with updates.applied(updates.plan(resources, self._host, handle.cgroup)):
            if self._host.cgroups.driver is Driver.SYSTEMD:
                self._tell_systemd(handle, resources)

    def _tell_systemd(self, handle: Handle, resources: Resources) -> None:
        path = Path(handle.bundle, _NEW_LIMITS)
        try:
            path.write_bytes(msgspec.json.encode(limits(resources, self._host)))
        except OSError as error:
            raise syscall_error("write", path, error) from error
        words = ("update", f"--resources={path}", handle.container_id)
        try:
            wrong = execute.command(self._programs, words, Deadline.after(_UPDATE_SECONDS))
        finally:
            path.unlink(missing_ok=True)
        if wrong:
            raise FailedPrecondition(f"container {handle.container_id}: systemd was not told its limits: {wrong}")

    def look(self, handle: Handle) -> Live:
        """The container as the kernel sees it; executes nothing. What CRIU may be at work on is not running."""
        live = self._containers.look(handle.container_id, self._freezer(handle.cgroup))
        if live.state is LiveState.RUNNING and checkpoints.is_marked(handle.bundle):
            return replace(live, state=LiveState.PAUSED)
        return live

    def exec_sync(self, handle: Handle, argv: tuple[str, ...], timeout: float | None, limit: int) -> ExecResult:
        """Run ``argv`` inside; ``timeout`` seconds (``None``: none) later it is killed and DeadlineExceeded raised.

        Each stream is capped at ``limit`` bytes. A command that is not there is InvalidInput.
        """
        self._need_crun()
        try:
            config = Path(handle.bundle, _CONFIG).read_bytes()
        except OSError as error:
            raise NotFound("container", handle.container_id) from error
        process = spec.exec_process(config, argv)
        self._check_command(handle, process, argv[0])
        try:
            encoded = msgspec.json.encode(process)
            owner = idmaps.exec_owner(config)
            with self._resctrl.entered(group_of(config)):
                return execute.run(self._programs, handle.container_id, encoded, timeout, limit, owner=owner)
        except InternalError as error:
            state = self.look(handle).state
            if state is not LiveState.RUNNING:
                raise FailedPrecondition(f"container {handle.container_id} is {state.value}, not running") from error
            raise

    def exec_console(self, handle: Handle, argv: tuple[str, ...], stdio: Stdio) -> Console:
        """Start ``argv`` inside and hand over its streams. A command that is not there is InvalidInput."""
        self._need_crun()
        try:
            config = Path(handle.bundle, _CONFIG).read_bytes()
        except OSError as error:
            raise NotFound("container", handle.container_id) from error
        process = spec.exec_process(config, argv, tty=stdio.tty)
        self._check_command(handle, process, argv[0])
        encoded = msgspec.json.encode(process)
        owner = idmaps.exec_owner(config)
        with self._resctrl.entered(group_of(config)):
            return console.executed(self._programs, handle.container_id, handle.bundle, encoded, stdio, owner=owner)

    def attach_console(self, handle: Handle, stdio: Stdio) -> Console:
        """The streams of the container's first process from now on, as conmon passes them on."""
        return AttachConsole(handle.container_id, handle.bundle, stdio)

    def _check_command(self, handle: Handle, process: spec.Json, command: str) -> None:
        """Refuse a command that is not there without starting crun.

        Besides being faster: the half-made process of a crun that fails is left for the host's init to reap, and the
        container cannot end before that.
        """
        held = self._containers.first_process(handle.container_id)
        if held is None:
            return
        with held:
            root = f"/proc/{held.pid}/root"
            if not lookup.command_exists(root, command, process["env"], process["cwd"]) and not held.wait(0):
                raise InvalidInput("cmd", f"executable file `{command}` not found in $PATH: No such file or directory")

    def reopen_log(self, handle: Handle) -> None:
        """Make conmon open its log file anew; returns once it has."""
        try:
            path = Path(handle.bundle, _LOG_NOTE).read_text()
        except OSError as error:
            raise NotFound("container", handle.container_id) from error
        conmon.reopen_log(handle.bundle, handle.container_id, path)

    def was_oom_killed(self, handle: Handle) -> bool:
        """Whether the kernel killed a process of this container for memory; ask before :meth:`delete`."""
        if handle.cgroup:
            if cgroups.oom_kills(self._host.cgroups, handle.cgroup) > 0:
                return True
            # Looked at after the count: of a cgroup that somebody has removed a 0 says nothing.
            if cgroups.exists(self._host.cgroups, handle.cgroup):
                return False
        return Path(handle.bundle, supervision.OOM_MARKER).exists()

    def told(self, _handle: Handle, _step: Step) -> None:
        """Nothing: a process of the host's kernel has nobody to ask."""

    def trusted(self, _handle: Handle, _trust: Trust) -> None:
        """Nothing: a process of the host's kernel has nobody to ask."""

    def host_calls(self, handle: Handle, after: int, *, ended: bool) -> HostCalls:  # noqa: ARG002
        """Refused: its calls are system calls."""
        raise FailedPrecondition(
            f"container {handle.container_id[:13]} runs on the native engine, which records no calls",
            fix="strace -p its pid, which crictl inspect tells",
        )

    def host_counts(self, _handle: Handle) -> tuple[HostCount, ...] | None:
        """None: its calls are system calls."""
        return None

    def measured(self, handles: Sequence[Handle], deadline: Deadline) -> Measurement | None:  # noqa: ARG002
        """None: its control group tells."""
        return None

    def dial(self, plan: SandboxPlan, port: int, deadline: Deadline) -> socket.socket | None:  # noqa: ARG002
        """None: its network namespace leads there."""
        return None

    def imprint(self, handle: Handle) -> Imprint:
        """What was made of a container's plan; NotFound where there is no such container any more."""
        return imprint.imprint(Path(handle.bundle, _CONFIG), handle.container_id, self._version.text())

    def seal(self, handle: Handle) -> str:
        """The digest of its ``config.json``; NotFound where there is no such container any more."""
        return imprint.seal(Path(handle.bundle, _CONFIG), handle.container_id)

    def verdict(self, _handle: Handle) -> Verdict | None:
        """None: a process ends with its exit code, and says the rest in its log."""
        return None

    def prepare_image(self, _image: ImagePlan, _deadline: Deadline) -> None:
        """Nothing: its layers are all that a container needs."""

    def retain_images(self, _ids: Collection[str]) -> None:
        """Nothing was made ready."""

    def close(self) -> None:
        """There is nothing to let go of: each container has a supervisor of its own."""

    def _freezer(self, cgroup: str) -> str | None:
        if not cgroup:
            return None
        directory = self._host.cgroups.directory("freezer", cgroup)
        name = "cgroup.freeze" if self._host.cgroups.mode is Mode.V2 else "freezer.state"
        return None if directory is None else f"{directory}/{name}"

    def _compile_common(self) -> None:
        """The filters that nearly every pod wants, and crun's version, before the first one asks."""
        for names in (capabilities.DEFAULT & self._host.capabilities, ()):
            self._compiler.compile(seccomp.default_profile(names))
        with contextlib.suppress(ForgeError):
            self._version.text()

    def _load_apparmor(self) -> None:
        """The default profile as this forgeoned has it, before the first pod asks."""
        try:
            self._apparmor.load_default(Deadline.after(_UPDATE_SECONDS))
        except ForgeError as error:
            structlog.get_logger("native").warning("no default AppArmor profile", error=str(error))

    def _warm(self) -> None:
        """Beside what comes next, so that crun's moves into cgroups need not wait for the kernel."""
        if self._host.quick_moves:
            return
        threading.Thread(target=cgroups.warm, args=(self._host.cgroups,), daemon=True).start()

    def _crun_version(self) -> tuple[int, ...]:
        path = find_program(self._settings.crun)
        return checks.parse_version(run(path, ["crun", "--version"], Deadline.after(5)).text) if path else ()

    def _need_crun(self) -> None:
        if not self._programs.crun:
            self._need("", self._settings.crun)

    @staticmethod
    def _need(path: str, name: str) -> None:
        if not path:
            raise Unavailable(f"{name} is not installed", fix=checks.INSTALL)


def _write_private(path: str, content: bytes) -> None:
    """In it is the container's environment, and a group of the host may have the number of the pod's root."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)


def _handle(plan: ContainerPlan) -> Handle:
    return Handle(
        container_id=plan.container_id,
        sandbox_id=plan.sandbox_id,
        bundle=plan.bundle,
        exits=plan.exits,
        cgroup=plan.cgroup,
    )


def _relabel(label: str, mounts: Iterable[Mount], deadline: Deadline) -> None:
    for mount in mounts:
        if mount.selinux_relabel:
            selinux.relabel(mount.source, label, deadline)
