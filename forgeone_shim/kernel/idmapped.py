"""Mounts whose files show other owners: those of a user namespace (``MOUNT_ATTR_IDMAP``, mount_setattr(2)).

Nothing is changed on disk, so that one copy of a layer serves every pod, whatever its ids. An overlay as such cannot be
id-mapped; its lower layers can (Linux 5.19).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from forgeone_shim.errors import FailedPrecondition, syscall_error
from forgeone_shim.kernel import mounts, syscalls
from forgeone_shim.kernel.mounts import StrPath
from forgeone_shim.kernel.namespaces import in_thread

_CLONE_NEWNS = 0x20000
_MS_PRIVATE = 1 << 18
_OLDEST = (5, 19)
# clone_private_mount() in fs/namespace.c: from then on a layer may be a mount that is attached nowhere.
_DETACHED = (6, 15)
_RELEASE = re.compile(r"(\d+)\.(\d+)")


def supported() -> bool:
    """Whether this kernel has user namespaces, and overlays of id-mapped layers; executes nothing."""
    if _release() < _OLDEST:
        return False
    try:
        return int(Path("/proc/sys/user/max_user_namespaces").read_text()) > 0
    except (OSError, ValueError):
        return False


def _release() -> tuple[int, int]:
    found = _RELEASE.match(os.uname().release)
    return (0, 0) if found is None else (int(found[1]), int(found[2]))


def takes_detached_layers() -> bool:
    """Whether an overlay takes layers that are mounted nowhere.

    By the kernel's version, as to try means to fail late: a volatile overlay has then marked its work directory.
    """
    return _release() >= _DETACHED


def mount_overlay(
    target: StrPath,
    lowers: Sequence[StrPath],
    upper: StrPath = "",
    work: StrPath = "",
    *,
    userns: StrPath,
    readonly: bool = False,
    context: str = "",
) -> None:
    """As :func:`mounts.mount_overlay`, with the lower layers owned as the user namespace pinned at ``userns`` sees it.

    What is written to ``upper`` is owned by the ids that the namespace has on the host.

    :raises FailedPrecondition: the file system of a layer cannot be id-mapped.
    :raises InternalError: a kernel call failed.
    """
    with ExitStack() as stack:
        layers = _mapped(stack, lowers, userns)
        try:
            if takes_detached_layers():
                names = [f"/proc/self/fd/{fd}" for fd in layers]
                mounts.attach_overlay(target, names, upper, work, readonly=readonly, context=context)
            else:
                _through_private_namespace(target, layers, upper, work, readonly=readonly, context=context)
        except OSError as error:
            raise syscall_error("mount overlay on", target, error) from error


def _mapped(stack: ExitStack, paths: Sequence[StrPath], userns: StrPath) -> list[int]:
    try:
        namespace = os.open(userns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise syscall_error("open", userns, error) from error
    stack.callback(os.close, namespace)
    found = []
    for path in paths:
        try:
            found.append(mounts.clone(path))
        except OSError as error:
            raise syscall_error("open_tree", path, error) from error
        stack.callback(os.close, found[-1])
        try:
            mounts.set_owners(found[-1], namespace)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise syscall_error("mount_setattr", path, error) from error
            raise FailedPrecondition(
                f"the file system of {path} cannot be id-mapped, which a pod with a user namespace needs",
                fix="keep root on ext4, xfs or btrfs",
            ) from error
    return found


def _through_private_namespace(
    target: StrPath, layers: Sequence[int], upper: StrPath, work: StrPath, *, readonly: bool, context: str
) -> None:
    """Mount where nobody sees it, and bring only the finished overlay: whatever ends this leaves nothing behind.

    Raises OSError.
    """

    def make() -> int:
        """In a thread that never returns to the host's mount namespace."""
        place = os.fsencode(target)
        syscalls.syscall(syscalls.number("unshare"), _CLONE_NEWNS)
        syscalls.syscall(syscalls.number("mount"), None, b"/", None, mounts.MS_REC | _MS_PRIVATE, None)
        mounts.mount_tmpfs(target, 0)
        points = [Path(os.fsdecode(place), str(number)) for number in range(len(layers))]
        for point, layer in zip(points, layers, strict=True):
            point.mkdir()
            mounts.attach(layer, point)
        whole = Path(os.fsdecode(place), "whole")
        whole.mkdir()
        mounts.attach_overlay(whole, points, upper, work, readonly=readonly, context=context)
        return mounts.clone(whole)

    made = in_thread(make)
    try:
        mounts.attach(made, target)
    finally:
        os.close(made)
