"""Where everything lies on disk: each path is built here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Paths:
    """``root`` survives a reboot, ``state`` (a tmpfs) does not."""

    root: Path
    state: Path

    @property
    def database(self) -> Path:
        """The state store."""
        return self.root / "forgeone.db"

    @property
    def locks(self) -> tuple[Path, Path]:
        """Held by the process that owns root and state."""
        return self.root / "lock", self.state / "lock"

    @property
    def layers(self) -> Path:
        """Unpacked image layers."""
        return self.root / "layers"

    @property
    def exits(self) -> Path:
        """Where supervisors leave exit files."""
        return self.state / "exits"

    @property
    def sandboxes(self) -> Path:
        """Parent of all sandbox directories."""
        return self.state / "sandboxes"

    @property
    def containers(self) -> Path:
        """Parent of all container bundles."""
        return self.state / "containers"

    @property
    def shim(self) -> Path:
        """Where the fork server is found, once there is one."""
        return self.state / "shim"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are put together."""
        return self.root / "checkpoints"

    @property
    def writable(self) -> Path:
        """Parent of the containers' writable layers."""
        return self.root / "containers"

    def sandbox(self, sandbox_id: str) -> Path:
        """A sandbox's own directory."""
        return self.sandboxes / sandbox_id

    def namespaces(self, sandbox_id: str) -> Path:
        """Where a sandbox's namespaces are pinned."""
        return self.sandboxes / sandbox_id / "ns"

    def shm(self, sandbox_id: str) -> Path:
        """The pod's /dev/shm."""
        return self.sandboxes / sandbox_id / "shm"

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
