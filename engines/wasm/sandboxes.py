"""What a pod has besides its namespaces and containers: an init, where its containers share their processes."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Final

from engines.base import Resources, SandboxPlan
from engines.wasm.client import Zygote
from engines.wasm.jail import reaper
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import InternalError, syscall_error
from forgeone_shim.kernel import cgroups, mounts, procs
from forgeone_shim.kernel.bpf import Compiler
from forgeone_shim.kernel.host import Host
from forgeone_shim.kernel.procs import Pidfd, open_process
from forgeone_shim.limits import groups

_NAMESPACE: Final = "ns/pid"
_INIT_NOTE: Final = "wasm-init"
_PARENT_NOTE: Final = "cgroup-made"
_GONE_SECONDS: Final = 10.0


class Sandboxes:
    """Prepares and removes sandboxes; holds nothing but its tools."""

    def __init__(self, host: Host, zygote: Zygote, compiler: Compiler) -> None:
        self._host, self._zygote, self._compiler = host, zygote, compiler

    def prepare(self, plan: SandboxPlan, deadline: Deadline) -> str:
        """Note whether the pod's cgroup is of our making; start the init if one is wanted and pin its namespace.

        Returns the path of the shared PID namespace, or ``""``.
        """
        if not cgroups.exists(self._host.cgroups, plan.cgroup):
            Path(plan.directory, _PARENT_NOTE).touch()
        if not plan.shares_pid:
            return ""
        pinned = Path(plan.directory, _NAMESPACE)
        if self.alive(plan) and os.path.ismount(pinned):
            return str(pinned)
        # What an earlier try that died half way may have left.
        self._remove_init(plan)
        with contextlib.ExitStack() as undo:
            undo.callback(self._remove_init, plan)
            self._start_init(plan, pinned, deadline)
            undo.pop_all()
        return str(pinned)

    def _start_init(self, plan: SandboxPlan, pinned: Path, deadline: Deadline) -> None:
        cell = reaper.plan_init(plan, self._host, self._compiler)
        with groups.made(self._host, reaper.init_cgroup(plan, self._host), Resources(), deadline):
            pid = self._zygote.init(plan.sandbox_id, cell, deadline)
            held, seen = open_process(pid), procs.stat(pid)
            if held is None or seen is None:
                raise InternalError(f"the init of sandbox {plan.sandbox_id} died at once")
            with held:
                try:
                    pinned.parent.mkdir(exist_ok=True)
                    pinned.touch()
                    Path(plan.directory, _INIT_NOTE).write_text(f"{pid} {seen.started}\n")
                except OSError as error:
                    raise syscall_error("write", plan.directory, error) from error
                mounts.bind(f"/proc/{pid}/ns/pid", pinned)
                # Only a process that still lives after the bind is the one whose namespace was bound.
                if held.wait(0):
                    raise InternalError(f"the init of sandbox {plan.sandbox_id} died at once")

    def alive(self, plan: SandboxPlan) -> bool:
        """Whether the init lives; a sandbox without one has nothing that could die."""
        if not plan.shares_pid:
            return True
        held = _init(plan)
        if held is None:
            return False
        with held:
            seen = procs.stat(held.pid)
            # It waits for the last of the namespace to be reaped, which is how its end is noticed.
            return seen is not None and not seen.exiting

    def remove(self, plan: SandboxPlan) -> None:
        """Kill the init (and with it all that is left in its namespace) and let go of what :meth:`prepare` made."""
        self._remove_init(plan)
        note = Path(plan.directory, _PARENT_NOTE)
        if note.exists():
            cgroups.remove_empty(self._host.cgroups, plan.cgroup)
            note.unlink(missing_ok=True)

    def _remove_init(self, plan: SandboxPlan) -> None:
        pinned = Path(plan.directory, _NAMESPACE)
        if not plan.shares_pid and not pinned.exists():
            return
        held = _init(plan)
        if held is not None:
            with held:
                held.send(signal.SIGKILL)
                held.wait(_GONE_SECONDS)
        groups.remove(self._host.cgroups, reaper.init_cgroup(plan, self._host))
        mounts.unmount(pinned)
        pinned.unlink(missing_ok=True)
        Path(plan.directory, _INIT_NOTE).unlink(missing_ok=True)


def _init(plan: SandboxPlan) -> Pidfd | None:
    """The number is trusted only with its start time."""
    try:
        pid, started = map(int, Path(plan.directory, _INIT_NOTE).read_text().split())
    except (OSError, ValueError):
        return None
    return open_process(pid, started)
