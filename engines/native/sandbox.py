"""A sandbox whose containers share a PID namespace: one tiny init that owns it and reaps."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

from engines.base import SandboxPlan
from engines.native import seccomp, spec
from engines.native.conmon import Programs
from engines.native.crun import Containers
from engines.native.host import Host
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import InternalError
from forgeone_shim.kernel import cgroups, mounts
from forgeone_shim.kernel.procs import Pidfd
from forgeone_shim.kernel.spawn import run

_NOBODY = 65535
_TARGET = "/init"
_BUNDLE = "init"
_NAMESPACE = "ns/pid"
_PARENT_NOTE = "cgroup-made"


def init_id(sandbox_id: str) -> str:
    """The name crun knows a sandbox's init by; no container has it, as their ids are bare."""
    return f"init-{sandbox_id}"


def config(plan: SandboxPlan, host: Host, program: str) -> spec.Json:
    """The init's ``config.json``: one static program on an empty read-only root, and nothing it could use."""
    paths = plan.namespaces
    joined = [("network", paths.network), ("ipc", paths.ipc), ("uts", paths.uts)]
    return {
        "ociVersion": spec.OCI_VERSION,
        "process": {
            "terminal": False,
            "user": {"uid": _NOBODY, "gid": _NOBODY},
            "args": [_TARGET, "-P"],
            "env": [spec.PATH],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": {},
            "oomScoreAdj": max(-998, host.lowest_oom_score_adj),
        },
        "root": {"path": f"{plan.directory}/{_BUNDLE}/rootfs", "readonly": True},
        "mounts": [
            {
                "destination": _TARGET,
                "type": "bind",
                "source": program,
                "options": ["bind", "ro", "nosuid", "nodev"],
            }
        ],
        "linux": {
            "cgroupsPath": _cgroup(plan, host),
            "namespaces": [{"type": kind, "path": path} for kind, path in joined if path]
            + [{"type": "pid"}, {"type": "mount"}],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "seccomp": seccomp.default_profile(()),
        },
    }


def _cgroup(plan: SandboxPlan, host: Host) -> str:
    return host.cgroups.container(plan.cgroup, init_id(plan.sandbox_id))


def prepare(plan: SandboxPlan, host: Host, programs: Programs, containers: Containers, deadline: Deadline) -> str:
    """Note whether the pod's cgroup is of our making, start the init if one is wanted, and pin its namespace."""
    directory = Path(plan.directory)
    if not cgroups.exists(host.cgroups, plan.cgroup):
        (directory / _PARENT_NOTE).touch()
    if not plan.shares_pid:
        return ""
    pinned = directory / _NAMESPACE
    name = init_id(plan.sandbox_id)
    if alive(plan, containers) and os.path.ismount(pinned):
        return str(pinned)
    with contextlib.ExitStack() as undo:
        undo.callback(remove, plan, host, containers)
        # What an earlier try that died half way may have left.
        _remove_init(plan, host, containers)
        bundle = directory / _BUNDLE
        (bundle / "rootfs" / _TARGET[1:]).parent.mkdir(parents=True, exist_ok=True)
        (bundle / "config.json").write_text(json.dumps(config(plan, host, programs.init)))
        argv = ["crun", *programs.crun_arguments, "run", "--detach", "-b", str(bundle), name]
        done = run(programs.crun, argv, deadline, env=programs.environment)
        held = containers.first_process(name)
        if done.code != 0 or held is None:
            raise InternalError(f"start the init of sandbox {plan.sandbox_id}: {done.text or 'it exited at once'}")
        with held:
            pinned.parent.mkdir(exist_ok=True)
            pinned.touch()
            mounts.bind(f"/proc/{held.pid}/ns/pid", pinned)
            if not _lives(held):
                raise InternalError(f"the init of sandbox {plan.sandbox_id} died at once")
        undo.pop_all()
    return str(pinned)


def _lives(held: Pidfd) -> bool:
    return not held.wait(0)


def alive(plan: SandboxPlan, containers: Containers) -> bool:
    """Whether the init lives; a sandbox without one has nothing that could die."""
    if not plan.shares_pid:
        return True
    held = containers.first_process(init_id(plan.sandbox_id))
    if held is None:
        return False
    held.close()
    return True


def remove(plan: SandboxPlan, host: Host, containers: Containers) -> None:
    """Kill the init (and with it all that is left in its namespace), let go of what :func:`prepare` made."""
    _remove_init(plan, host, containers)
    note = Path(plan.directory, _PARENT_NOTE)
    if note.exists():
        cgroups.remove_empty(host.cgroups, plan.cgroup)
        note.unlink(missing_ok=True)


def _remove_init(plan: SandboxPlan, host: Host, containers: Containers) -> None:
    name = init_id(plan.sandbox_id)
    pinned = Path(plan.directory, _NAMESPACE)
    if not plan.shares_pid and not pinned.exists() and not containers.directory(name).exists():
        return
    held = containers.first_process(name)
    if held is not None:
        with held:
            held.send(signal.SIGKILL)
            held.wait(10.0)
    cgroups.kill_all(host.cgroups, _cgroup(plan, host), timeout=10.0)
    cgroups.remove(host.cgroups, _cgroup(plan, host))
    containers.forget(name)
    mounts.unmount(pinned)
    pinned.unlink(missing_ok=True)
    bundle = Path(plan.directory, _BUNDLE)
    for path in (bundle / "config.json", bundle / "rootfs" / _TARGET[1:]):
        path.unlink(missing_ok=True)
    for path in (*((bundle / "rootfs").iterdir() if (bundle / "rootfs").is_dir() else ()), bundle / "rootfs", bundle):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.rmdir()
