"""Root file systems of containers: an image's layers under a writable one.

``root/containers/<id>/{upper,work}`` is the writable layer, ``state/containers/<id>/rootfs`` the mount. Images that are
volumes of the container are mounted on ``state/containers/<id>/images/<name>``. That no more is remembered makes
everything here idempotent and repeatable after a crash.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ForgeError, InvalidInput, syscall_error
from forgeone_shim.fs import diff, moved, parents
from forgeone_shim.fs.layers import LayerStore, Lower
from forgeone_shim.fs.owners import Owners
from forgeone_shim.fs.trees import remove_tree, tree_usage
from forgeone_shim.fs.unpack import unpack
from forgeone_shim.fs.unpack_worker import IMPLIED, TREE
from forgeone_shim.kernel import idmapped
from forgeone_shim.kernel.mounts import StrPath, mount_overlay, open_in_root, unmount

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

    def mount(
        self,
        container_id: str,
        layers: Sequence[str],
        readonly: bool = False,  # noqa: ARG002
        context: str = "",
        owners: Owners | None = None,
    ) -> Path:
        """Mount the layers (diffIDs, base first) and return where; a rootfs that is mounted stays as it is.

        ``readonly`` changes nothing here: the engine makes the mount points in it first, then turns it read-only.
        ``context`` is the SELinux label of its files, where there is one.
        ``owners`` are those of a pod with a user namespace: files belong to them as the image says, without a change on
        disk, and what is written belongs to their ids on the host.

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
                lowers = self._prepare(home, stacked, owners)
                target.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise syscall_error("prepare the root file system", home, error) from error
            _overlay(owners, target, lowers, home / "upper", home / "work", context=context)
        except ForgeError:
            if is_new:
                self.remove(container_id)
            raise
        return target

    def mount_image(
        self,
        container_id: str,
        name: str,
        layers: Sequence[str],
        sub_path: str = "",
        context: str = "",
        *,
        owners: Owners | None = None,
    ) -> Path:
        """Mount the layers of a volume, which nobody can write to; returns where ``sub_path`` is in it.

        A symlink in ``sub_path`` leads where it would to a process whose root the image is.

        :raises NotFound: a layer is not here.
        :raises InvalidInput: more layers than an overlay takes, or the image has no such path.
        """
        target = self._target(container_id).parent / "images" / name
        if not os.path.ismount(target):
            stacked = self._stacked(layers)
            home = self._writable / container_id / "images" / name
            try:
                lowers = self._prepare_image(home, stacked)
                target.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise syscall_error("prepare the image volume", home, error) from error
            _overlay(owners, target, lowers, readonly=True, context=context)
        return _inside(target, sub_path)

    @contextlib.contextmanager
    def merged(self, layers: Sequence[str]) -> Iterator[Path]:
        """Where the layers are mounted together, for nobody to write to, as long as the block lasts.

        Errors as :meth:`mount_image`.
        """
        # As a container's, so that what a daemon leaves that is killed here is found and removed.
        id_ = os.urandom(32).hex()
        try:
            yield self.mount_image(id_, "merged", layers)
        finally:
            self.remove(id_)
            shutil.rmtree(self._mounts / id_, ignore_errors=True)

    def save(self, container_id: str, out: IO[bytes], deadline: Deadline) -> list[str]:
        """Write the writable layer as a layer archive; returns the paths that are deleted in it."""
        self._target(container_id)
        upper = self._writable / container_id / "upper"
        try:
            return diff.write(upper, out, deadline)
        except OSError as error:
            raise syscall_error("read", upper, error) from error

    def load(self, container_id: str, archive: Path, deadline: Deadline) -> None:
        """Make the writable layer of a container, not mounted yet, from what :meth:`save` wrote.

        :raises InvalidInput: the archive is malformed, or points outside its root.
        """
        self._target(container_id)
        home = self._writable / container_id
        with contextlib.ExitStack() as stack:
            try:
                home.mkdir(parents=True, exist_ok=True)
                stack.callback(os.close, fd := os.open(home, _DIRECTORY))
                source = os.open(archive, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                stream = stack.enter_context(os.fdopen(source, "rb", buffering=0))
                unpack(fd, stream, deadline)
                (home / TREE).rename(home / "upper")
                (home / IMPLIED).unlink(missing_ok=True)
            except OSError as error:
                raise syscall_error("unpack", archive, error) from error

    def unmount(self, container_id: str) -> None:
        """Unmount; the writable layer stays. Nothing mounted is no error."""
        target = self._target(container_id)
        unmount(target)
        try:
            volumes = list((target.parent / "images").iterdir())
        except FileNotFoundError:
            return
        for volume in volumes:
            unmount(volume)

    def remove(self, container_id: str) -> None:
        """Unmount and remove the writable layer; what is not here is no error."""
        self.unmount(container_id)
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
    def _prepare(home: Path, stacked: Sequence[Lower], owners: Owners | None) -> list[Path]:
        """Make the writable layer and its work directory; the lower directories to mount."""
        upper, work = home / "upper", home / "work"
        upper.mkdir(parents=True, exist_ok=True)
        # It is the container's own "/", whatever this process's umask.
        upper.chmod(0o755)
        if owners is not None:
            os.chown(upper, *owners.root)
        # A volatile overlay leaves a mark in its work directory that forbids to mount it again.
        _remove(home, work.name)
        work.mkdir(mode=0o700)
        stacked = _mended(home, stacked, upper, owners)
        if stacked:
            return [layer.tree for layer in stacked]
        empty = home / "empty"
        empty.mkdir(exist_ok=True)
        return [empty]

    @staticmethod
    def _prepare_image(home: Path, stacked: Sequence[Lower]) -> list[Path]:
        """The lower directories to mount; the topmost has what the writable layer of a container would have."""
        top, empty = home / "top", home / "empty"
        for path in (top, empty):
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o755)
        return [top, *(layer.tree for layer in _mended(home, stacked, top)), empty]


def _overlay(
    owners: Owners | None,
    target: StrPath,
    lowers: Sequence[StrPath],
    upper: StrPath = "",
    work: StrPath = "",
    *,
    readonly: bool = False,
    context: str,
) -> None:
    if owners is None:
        mount_overlay(target, lowers, upper, work, readonly=readonly, context=context)
    else:
        idmapped.mount_overlay(target, lowers, upper, work, readonly=readonly, context=context, userns=owners.userns)


def _mended(home: Path, stacked: Sequence[Lower], upper: Path, owners: Owners | None = None) -> Sequence[Lower]:
    """The layers with what directories that some only imply need, between them and in ``upper``."""
    if any(layer.implied for layer in stacked):
        _remove(home, "moved")
        stacked = moved.follow(stacked, home / "moved")
        parents.mend(stacked, upper, owners)
    return stacked


def _inside(root: Path, path: str) -> Path:
    """The path in a mounted image, by its name on the host."""
    if not path:
        return root
    try:
        fd = open_in_root(root, path, os.O_PATH)
    except OSError as error:
        raise InvalidInput("mounts.image_sub_path", f"{path!r} is not in the image: {error.strerror}") from error
    try:
        return Path(f"/proc/self/fd/{fd}").readlink()
    finally:
        os.close(fd)


def _remove(parent: Path, name: str) -> None:
    fd = os.open(parent, _DIRECTORY)
    try:
        remove_tree(fd, name)
    finally:
        os.close(fd)
