"""Root file systems of containers: an image's layers under a writable one.

``root/containers/<id>/{upper,work}`` is the writable layer, ``state/containers/<id>/rootfs`` the mount. That no more is
remembered makes everything here idempotent and repeatable after a crash.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from forgeone_shim.errors import ForgeError, InvalidInput, syscall_error
from forgeone_shim.fs import moved, parents
from forgeone_shim.fs.layers import LayerStore, Lower
from forgeone_shim.fs.trees import remove_tree, tree_usage
from forgeone_shim.kernel.mounts import mount_overlay, unmount

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class RootfsStore:
    """Thread-safe for different containers; calls for one container are the caller's to order."""

    def __init__(self, root: Path, state: Path, layers: LayerStore) -> None:
        self._writable = root / "containers"
        self._mounts = state / "containers"
        self._layers = layers
        try:
            self._writable.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise syscall_error("mkdir", self._writable, error) from error

    def mount(self, container_id: str, layers: Sequence[str], readonly: bool = False) -> Path:  # noqa: ARG002
        """Mount the layers (diffIDs, base first) and return where; a rootfs that is mounted stays as it is.

        ``readonly`` changes nothing here: the engine makes the mount points in it first, then turns it read-only.

        :raises NotFound: a layer is not here.
        :raises InvalidInput: more layers than an overlay takes.
        """
        target = self._target(container_id)
        if os.path.ismount(target):
            return target
        stacked = self._stacked(layers)
        home = self._writable / container_id
        is_new = not home.exists()
        try:
            try:
                lowers = self._prepare(home, stacked)
                target.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise syscall_error("prepare the root file system", home, error) from error
            mount_overlay(target, lowers, home / "upper", home / "work")
        except ForgeError:
            if is_new:
                self.remove(container_id)
            raise
        return target

    def unmount(self, container_id: str) -> None:
        """Unmount; the writable layer stays. Nothing mounted is no error."""
        unmount(self._target(container_id))

    def remove(self, container_id: str) -> None:
        """Unmount and remove the writable layer; what is not here is no error."""
        unmount(self._target(container_id))
        try:
            _remove(self._writable, container_id)
        except OSError as error:
            raise syscall_error("remove", self._writable / container_id, error) from error

    def usage(self, container_id: str) -> tuple[int, int]:
        """Bytes and inodes of the writable layer; nothing when there is none."""
        self._target(container_id)
        try:
            fd = os.open(self._writable / container_id / "upper", _DIRECTORY)
        except FileNotFoundError:
            return 0, 0
        except OSError as error:
            raise syscall_error("open", self._writable / container_id, error) from error
        try:
            return tree_usage(fd)
        finally:
            os.close(fd)

    def _target(self, container_id: str) -> Path:
        if not _ID.fullmatch(container_id):
            raise InvalidInput("container_id", f"{container_id[:200]!r} is not an id")
        return self._mounts / container_id / "rootfs"

    def _stacked(self, layers: Sequence[str]) -> list[Lower]:
        """Topmost first, without what cannot show: a layer that comes again above, and all below an opaque root."""
        stacked = []
        for diff_id in dict.fromkeys(reversed(layers)):
            stacked.append(self._layers.lower(diff_id))
            if stacked[-1].opaque_root:
                break
        return stacked

    @staticmethod
    def _prepare(home: Path, stacked: Sequence[Lower]) -> list[Path]:
        """Make the writable layer and its work directory; the lower directories to mount."""
        upper, work = home / "upper", home / "work"
        upper.mkdir(parents=True, exist_ok=True)
        # It is the container's own "/", whatever this process's umask.
        upper.chmod(0o755)
        # A volatile overlay leaves a mark in its work directory that forbids to mount it again.
        _remove(home, work.name)
        work.mkdir(mode=0o700)
        if any(layer.implied for layer in stacked):
            _remove(home, "moved")
            stacked = moved.follow(stacked, home / "moved")
            parents.mend(stacked, upper)
        if stacked:
            return [layer.tree for layer in stacked]
        empty = home / "empty"
        empty.mkdir(exist_ok=True)
        return [empty]


def _remove(parent: Path, name: str) -> None:
    fd = os.open(parent, _DIRECTORY)
    try:
        remove_tree(fd, name)
    finally:
        os.close(fd)
