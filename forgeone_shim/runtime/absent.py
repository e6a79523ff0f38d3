"""What stands in for an engine that is not installed: its containers are not started or looked into, only ended."""

from __future__ import annotations

import signal as signals
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Never

from engines.base import (
    Console,
    ContainerPlan,
    Engine,
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
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, InternalError
from forgeone_shim.kernel import cgroups, freezer
from forgeone_shim.kernel.cgroups import CgroupHost
from forgeone_shim.kernel.procs import Pidfd
from forgeone_shim.limits import scope

REASON = "EngineMissing"
_GONE_SECONDS = 10.0


def message(name: str) -> str:
    """For whoever looks at a pod or container of the engine ``name``."""
    return f"the {name} engine, which runs this, is not installed"


class Engines(dict[str, Engine]):
    """The installed engines, and for every other name something that can end what it ran."""

    def __init__(self, installed: Mapping[str, Engine], host: CgroupHost) -> None:
        super().__init__(installed)
        self._host = host

    def __missing__(self, name: str) -> Engine:
        """Never an error: records outlive the engines they name."""
        return AbsentEngine(name, self._host)


class AbsentEngine:
    """Implements :class:`engines.base.Engine` by cgroups alone, which every engine's containers are in."""

    def __init__(self, name: str, host: CgroupHost) -> None:
        self._name, self._host = name, host

    @property
    def name(self) -> str:
        """Of the engine that is not here."""
        return self._name

    def features(self) -> Features:
        """None."""
        return Features()

    def problems(self) -> list[Problem]:
        """That it is not here."""
        return [
            Problem(
                f"the {self._name} engine is not installed", "its pods can only be removed", fatal=False, unusable=True
            )
        ]

    def check(self, settings: HandlerSettings) -> None:
        """Refused."""
        self._refuse(settings)

    def reconfigure(self, config: Mapping[str, object]) -> Callable[[], tuple[str, ...]]:  # noqa: ARG002
        """Nothing to do."""
        return lambda: ()

    def unfit(self, _spec: SandboxSpec, _expected: Expected) -> str:
        """For every pod."""
        return f"the {self._name} engine is not installed"

    def prepare_sandbox(self, plan: SandboxPlan, deadline: Deadline) -> str:
        """Refused."""
        return self._refuse(plan, deadline)

    def connect_sandbox(self, plan: SandboxPlan, deadline: Deadline) -> None:
        """Refused."""
        self._refuse(plan, deadline)

    def sandbox_alive(self, plan: SandboxPlan) -> bool:  # noqa: ARG002
        """Nobody here can tell that it is not."""
        return True

    def sandbox_process(self, _plan: SandboxPlan) -> Pidfd | None:
        """None: its engine would know."""
        return None

    def remove_sandbox(self, plan: SandboxPlan) -> None:
        """What it had besides its containers is not known here."""

    def create(self, plan: ContainerPlan, deadline: Deadline) -> int:
        """Refused."""
        return self._refuse(plan, deadline)

    def start(self, handle: Handle, deadline: Deadline) -> None:
        """Refused."""
        self._refuse(handle, deadline)

    def kill(self, handle: Handle, signal: int, *, everything: bool = False) -> None:  # noqa: ARG002
        """Signal all of its processes: the first one is not known here."""
        if handle.cgroup:
            cgroups.kill_all(self._host, handle.cgroup, signal)

    def delete(self, handle: Handle) -> None:
        """Kill what is left and remove its cgroup."""
        if not handle.cgroup:
            return
        if not cgroups.kill_all(self._host, handle.cgroup, signals.SIGKILL, timeout=_GONE_SECONDS):
            raise InternalError(f"container {handle.container_id}: processes in {handle.cgroup} do not die")
        scope.release(self._host, handle.cgroup)
        cgroups.remove(self._host, handle.cgroup)

    def update(self, handle: Handle, resources: Resources) -> None:
        """Refused."""
        self._refuse(handle, resources)

    def pause(self, handle: Handle, deadline: Deadline) -> None:
        """Refused."""
        self._refuse(handle, deadline)

    def resume(self, handle: Handle, settled: Deadline | None = None) -> None:  # noqa: ARG002
        """Let its processes go on: its engine may have paused them."""
        freezer.thaw(self._host, handle.cgroup)

    def checkpoint(self, handle: Handle, images: str, deadline: Deadline) -> None:
        """Refused."""
        self._refuse(handle, images, deadline)

    def restore(self, plan: ContainerPlan, images: str, deadline: Deadline) -> int:
        """Refused."""
        return self._refuse(plan, images, deadline)

    def look(self, handle: Handle) -> Live:
        """Running as long as there are processes."""
        alive = bool(handle.cgroup and cgroups.processes(self._host, handle.cgroup))
        return Live(LiveState.RUNNING if alive else LiveState.MISSING)

    def exec_sync(self, handle: Handle, argv: tuple[str, ...], timeout: float | None, limit: int) -> ExecResult:
        """Refused."""
        return self._refuse(handle, argv, timeout, limit)

    def exec_console(self, handle: Handle, argv: tuple[str, ...], stdio: Stdio) -> Console:
        """Refused."""
        return self._refuse(handle, argv, stdio)

    def attach_console(self, handle: Handle, stdio: Stdio) -> Console:
        """Refused."""
        return self._refuse(handle, stdio)

    def reopen_log(self, handle: Handle) -> None:
        """Refused."""
        self._refuse(handle)

    def was_oom_killed(self, handle: Handle) -> bool:
        """As far as the kernel still tells."""
        return bool(handle.cgroup) and cgroups.oom_kills(self._host, handle.cgroup) > 0

    def told(self, _handle: Handle, _step: Step) -> None:
        """Nobody is there."""

    def trusted(self, _handle: Handle, _trust: Trust) -> None:
        """Nobody is there."""

    def host_calls(self, handle: Handle, after: int, *, ended: bool) -> HostCalls:
        """Refused."""
        self._refuse(handle, after, ended)

    def host_counts(self, _handle: Handle) -> tuple[HostCount, ...] | None:
        """None: its engine would know."""
        return None

    def measured(self, handles: Sequence[Handle], deadline: Deadline) -> Measurement | None:  # noqa: ARG002
        """None: its control group tells."""
        return None

    def dial(self, plan: SandboxPlan, port: int, deadline: Deadline) -> socket.socket | None:  # noqa: ARG002
        """None: its network namespace leads there."""
        return None

    def imprint(self, handle: Handle) -> Imprint:
        """Refused."""
        return self._refuse(handle)

    def seal(self, handle: Handle) -> str:
        """Refused."""
        return self._refuse(handle)

    def verdict(self, _handle: Handle) -> Verdict | None:
        """None: its engine would know."""
        return None

    def prepare_image(self, image: ImagePlan, deadline: Deadline) -> None:
        """Refused."""
        self._refuse(image, deadline)

    def retain_images(self, _ids: Collection[str]) -> None:
        """What was made ready for images stays: its engine may come back."""

    def close(self) -> None:
        """There is nothing to let go of."""

    def _refuse(self, *_: object) -> Never:
        raise FailedPrecondition(
            f"the {self._name} engine is not installed", fix="install it and restart forgeoned, or remove the pod"
        )
