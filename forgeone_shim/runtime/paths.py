"""Where everything lies on disk: each path is built here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from engines.base import Handle


@dataclass(frozen=True, slots=True)
class Paths:
    """``root`` survives a reboot, ``state`` (a tmpfs) does not.

    In ``exits`` supervisors leave exit files. ``sandboxes`` and ``containers`` are the parents of all sandboxes'
    directories and containers' bundles, ``writable`` of the containers' writable layers.
    """

    root: Path
    state: Path
    # Made once: every step of every pod asks for one of them.
    exits: Path = field(init=False)
    sandboxes: Path = field(init=False)
    containers: Path = field(init=False)
    writable: Path = field(init=False)

    def __post_init__(self) -> None:
        for name, path in (
            ("exits", self.state / "exits"),
            ("sandboxes", self.state / "sandboxes"),
            ("containers", self.state / "containers"),
            ("writable", self.root / "containers"),
        ):
            object.__setattr__(self, name, path)

    @property
    def database(self) -> Path:
        """The state store."""
        return self.root / "forgeone.db"

    @property
    def locks(self) -> tuple[Path, Path]:
        """Held by the process that owns root and state."""
        return self.root / "lock", self.state / "lock"

    @property
    def audit(self) -> Path:
        """The audit log."""
        return self.root / "audit"

    @property
    def keys(self) -> Path:
        """The node's own keys."""
        return self.root / "keys"

    @property
    def cluster(self) -> Path:
        """The last known policies of the cluster."""
        return self.root / "cluster"

    @property
    def cluster_scratch(self) -> Path:
        """Files that the watch of the cluster needs while it runs."""
        return self.state / "cluster"

    @property
    def layers(self) -> Path:
        """Unpacked image layers."""
        return self.root / "layers"

    @property
    def shim(self) -> Path:
        """Where the fork server is found, once there is one."""
        return self.state / "shim"

    @property
    def behaviour(self) -> Path:
        """Where what counts system calls is pinned, while some container is watched: a bpf file system."""
        return self.state / "bpf"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are put together."""
        return self.root / "checkpoints"

    def sandbox(self, sandbox_id: str) -> Path:
        """A sandbox's own directory."""
        return self.sandboxes / sandbox_id

    def namespaces(self, sandbox_id: str) -> Path:
        """Where a sandbox's namespaces are pinned."""
        return self.sandboxes / sandbox_id / "ns"

    def shm(self, sandbox_id: str) -> Path:
        """The pod's /dev/shm."""
        return self.sandboxes / sandbox_id / "shm"

    def handle(self, container_id: str, sandbox_id: str, cgroup: str) -> Handle:
        """How an engine finds a container."""
        return Handle(
            container_id=container_id,
            sandbox_id=sandbox_id,
            bundle=str(self.bundle(container_id)),
            exits=str(self.exits),
            cgroup=cgroup,
        )

    def bundle(self, container_id: str) -> Path:
        """A container's own directory."""
        return self.containers / container_id

    def checkpoint(self, container_id: str) -> Path:
        """The processes that a container will be restored with; goes with its writable layer."""
        return self.writable / container_id / "checkpoint"

    def exit_file(self, container_id: str) -> Path:
        """A container's exit file."""
        return self.exits / container_id

    def prepare(self) -> None:
        """Make the directories that must exist before anything else."""
        for path in (self.root, self.state, self.exits, self.sandboxes, self.containers):
            path.mkdir(parents=True, exist_ok=True, mode=0o711)
