"""What the runtime shows of its sandboxes and containers: immutable snapshots, safe to keep and to cache."""

from __future__ import annotations

from dataclasses import dataclass

from engines.base import ContainerSpec, Features, SandboxSpec, User
from forgeone_shim.lifecycle.machine import LIVE, State


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxView:
    """A sandbox as it is now; times in nanoseconds since the epoch. ``ready`` is CRI's SANDBOX_READY.

    ``placed`` says why it has its ``engine``, where that was chosen for it. ``unknown`` says why nobody here can tell
    how it is: its engine is not installed.
    """

    id: str
    spec: SandboxSpec
    created_at: int
    state: State
    ips: tuple[str, ...]
    handler: str
    netns: str
    cgroup: str
    engine: str = ""
    placed: str = ""
    unknown: str = ""

    @property
    def ready(self) -> bool:
        """Whether containers can be created in it."""
        return self.state is State.BOOTED and not self.unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerView:
    """A container as it is now; times in nanoseconds since the epoch, 0 where it has not happened yet.

    ``engine`` is what runs it. ``unknown``: nobody here can tell how it is, for the ``reason`` given.
    """

    id: str
    sandbox_id: str
    spec: ContainerSpec
    image_id: str
    image_ref: str
    user: User
    state: State
    created_at: int
    started_at: int
    finished_at: int
    exit_code: int
    reason: str
    message: str
    log_path: str
    stop_signal: str
    bundle: str
    pid: int
    cgroup: str
    engine: str = ""
    unknown: bool = False

    @property
    def live(self) -> bool:
        """Whether it runs: CRI's CONTAINER_RUNNING."""
        return self.state in LIVE


@dataclass(frozen=True, slots=True)
class Condition:
    """A node condition in the kubelet's sense."""

    ready: bool
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class HandlerStatus:
    """A runtime handler and what its engine can do; the empty name is the default handler."""

    name: str
    features: Features


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """Answer to CRI Status. ``configuration`` is not ready when the last reload was refused.

    ``audit`` is not ready while the audit log cannot be written, or after it was found damaged. ``cluster`` is not
    ready while policies of the cluster do not come, or cannot be used; without a cluster there is none.
    """

    runtime: Condition
    network: Condition
    handlers: tuple[HandlerStatus, ...]
    configuration: Condition = Condition(ready=True)
    audit: Condition = Condition(ready=True)
    cluster: Condition | None = None


@dataclass(frozen=True, slots=True)
class FilesystemUsage:
    """How much of a filesystem ForgeOne uses, in bytes and inodes, at ``at`` (ns since the epoch)."""

    mountpoint: str
    used_bytes: int
    used_inodes: int
    at: int
