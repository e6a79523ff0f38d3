"""A sandbox whose containers share a PID namespace: one tiny init that owns it and reaps."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import msgspec

from engines.base import IdMapping, SandboxPlan
from engines.native import idmaps, seccomp, spec
from engines.native.conmon import Programs
from engines.native.crun import Containers
from engines.native.execute import command
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import InternalError
from forgeone_shim.kernel import cgroups, mounts
from forgeone_shim.kernel.cgroups import Driver
from forgeone_shim.kernel.host import Host

_NOBODY = 65535
_TARGET = "/init"
_BUNDLE = "init"
_NAMESPACE = "ns/pid"
_PARENT_NOTE = "cgroup-made"
_GONE_SECONDS = 10.0


def init_id(sandbox_id: str) -> str:
    """The name crun knows a sandbox's init by; no container has it, as their ids are bare."""
    return f"init-{sandbox_id}"


def config(plan: SandboxPlan, host: Host, program: str, compile_filter: spec.CompileFilter) -> spec.Json:
    """The init's ``config.json``: one static program on an empty read-only root, and nothing it could use."""
    paths = plan.namespaces
    joined = [("user", paths.user), ("network", paths.network), ("ipc", paths.ipc), ("uts", paths.uts)]
    options = plan.spec.security.namespaces
    whole: spec.Json = {
        "ociVersion": spec.OCI_VERSION,
        "process": {
            "terminal": False,
            "user": {"uid": _nobody(options.uid_mappings), "gid": _nobody(options.gid_mappings)},
            "args": [_TARGET, "-P"],
            "env": [spec.PATH],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": {},
            "oomScoreAdj": max(-998, host.lowest_oom_score_adj),
        },
        "root": {"path": f"{plan.directory}/{_BUNDLE}/rootfs", "readonly": True},
        "mounts": [
            # crun wants a place for device nodes, whether they can be used or not.
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "noexec", "mode=755", "size=64k"],
            },
            {
                "destination": _TARGET,
                "type": "bind",
                "source": program,
                "options": ["bind", "ro", "nosuid", "nodev"],
            },
        ],
        "linux": {
            "cgroupsPath": _cgroup(plan, host),
            "namespaces": [{"type": kind, "path": path} for kind, path in joined if path]
            + [{"type": "pid"}, {"type": "mount"}],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            **idmaps.of_pod(paths, options),
        },
    }
    spec.add_filter(whole, seccomp.default_profile(()), compile_filter)
    return whole


def _nobody(mappings: Sequence[IdMapping]) -> int:
    """An id that no program of an image has, of those that a user namespace has."""
    return max((one.container_id + one.length - 1 for one in mappings), default=_NOBODY)


class Sandboxes:
    """Prepares and removes sandboxes; holds nothing but its tools."""

    def __init__(
        self, host: Host, programs: Programs, containers: Containers, compile_filter: spec.CompileFilter
    ) -> None:
        self._host = host
        self._programs = programs
        self._containers = containers
        self._compile = compile_filter

    def prepare(self, plan: SandboxPlan, deadline: Deadline) -> str:
        """Note whether the pod's cgroup is of our making; start the init if one is wanted and pin its namespace.

        Returns the path of the shared PID namespace, or ``""``.
        """
        directory = Path(plan.directory)
        if not cgroups.exists(self._host.cgroups, plan.cgroup):
            (directory / _PARENT_NOTE).touch()
        if not plan.shares_pid:
            return ""
        pinned = directory / _NAMESPACE
        if self.alive(plan) and os.path.ismount(pinned):
            return str(pinned)
        with contextlib.ExitStack() as undo:
            undo.callback(self.remove, plan)
            # What an earlier try that died half way may have left.
            self._remove_init(plan)
            self._start_init(plan, pinned, deadline)
            undo.pop_all()
        return str(pinned)

    def _start_init(self, plan: SandboxPlan, pinned: Path, deadline: Deadline) -> None:
        name = init_id(plan.sandbox_id)
        bundle = Path(plan.directory, _BUNDLE)
        (bundle / "rootfs").mkdir(parents=True, exist_ok=True)
        if plan.namespaces.user is not None:
            # The pod's root, which mounts on them, cannot make them.
            (bundle / "rootfs/dev").mkdir(exist_ok=True)
            (bundle / f"rootfs{_TARGET}").touch()
        whole = config(plan, self._host, self._programs.init, self._compile)
        (bundle / "config.json").write_bytes(msgspec.json.encode(whole))
        wrong = command(self._programs, ("create", "-b", str(bundle), name), deadline)
        held = None
        if not wrong:
            held = self._containers.first_process(name)
            self._containers.release(name)
        if held is None:
            raise InternalError(f"start the init of sandbox {plan.sandbox_id}: {wrong or 'it exited at once'}")
        with held:
            pinned.parent.mkdir(exist_ok=True)
            pinned.touch()
            mounts.bind(f"/proc/{held.pid}/ns/pid", pinned)
            # Only a process that still lives after the bind is the one whose namespace was bound.
            if held.wait(0):
                raise InternalError(f"the init of sandbox {plan.sandbox_id} died at once")

    def alive(self, plan: SandboxPlan) -> bool:
        """Whether the init lives; a sandbox without one has nothing that could die."""
        if not plan.shares_pid:
            return True
        held = self._containers.first_process(init_id(plan.sandbox_id))
        if held is None:
            return False
        held.close()
        return True

    def remove(self, plan: SandboxPlan) -> None:
        """Kill the init (and with it all that is left in its namespace) and let go of what :meth:`prepare` made."""
        self._remove_init(plan)
        note = Path(plan.directory, _PARENT_NOTE)
        if note.exists():
            if plan.spec.cgroup_parent and self._host.cgroups.driver is Driver.SYSTEMD:
                # D-Bus is not for a node without systemd.
                from forgeone_shim.limits import scopes

                # The node's own is every pod's that names none, and one of those may be about to start.
                scopes.forget_slice(self._host.cgroups, plan.cgroup, Deadline.after(_GONE_SECONDS))
            cgroups.remove_empty(self._host.cgroups, plan.cgroup)
            note.unlink(missing_ok=True)

    def _remove_init(self, plan: SandboxPlan) -> None:
        name = init_id(plan.sandbox_id)
        pinned = Path(plan.directory, _NAMESPACE)
        if not plan.shares_pid and not pinned.exists() and not self._containers.directory(name).exists():
            return
        held = self._containers.first_process(name)
        if held is not None:
            with held:
                held.send(signal.SIGKILL)
                held.wait(_GONE_SECONDS)
        cgroup = _cgroup(plan, self._host)
        cgroups.kill_all(self._host.cgroups, cgroup, timeout=_GONE_SECONDS)
        cgroups.remove(self._host.cgroups, cgroup)
        self._containers.forget(name)
        mounts.unmount(pinned)
        pinned.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(Path(plan.directory, _BUNDLE))


def _cgroup(plan: SandboxPlan, host: Host) -> str:
    return host.cgroups.container(plan.cgroup, init_id(plan.sandbox_id))
