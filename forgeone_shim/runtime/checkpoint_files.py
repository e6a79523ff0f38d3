"""What a checkpoint consists of on disk.

A container's archive has the names that CRI-O and containerd use, so that checkpointctl reads it: ``checkpoint/`` (the
images of CRIU), ``spec.dump``, ``config.dump``, ``rootfs-diff.tar``, ``deleted.files``, ``dump.log``, ``stats-dump``. A
pod's checkpoint is a directory with ``pod.json`` and, for each container, ``containers/NUMBER/`` with ``images/``,
``rootfs-diff.tar`` and ``deleted.files``.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import msgspec

from engines.base import Profile, Security
from forgeone_shim.deadline import Deadline, Punctual
from forgeone_shim.dropins.files import replaceable, untrusted
from forgeone_shim.errors import FailedPrecondition, InvalidInput, syscall_error

FORMAT = 1
IMAGES, DIFF, DELETED, POD = "images", "rootfs-diff.tar", "deleted.files", "pod.json"
CONTAINERS = "containers"
_POD_MAX = 16 << 20
_PACKED = "while a checkpoint was packed"
_LOGS = ("dump.log", "stats-dump")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedContainer:
    """One container of a pod's checkpoint, and what must be the same when it is restored."""

    name: str
    directory: str
    image_id: str
    args: tuple[str, ...]
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    confined: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPod:
    """``pod.json``: format, engine, and the containers in the order of their creation."""

    format: int
    engine: str
    name: str
    namespace: str
    containers: tuple[SavedContainer, ...]


def confinement(security: Security) -> dict[str, tuple[str, ...]]:
    """What a process has with it wherever it is restored: CRIU gives it the privileges that it was saved with."""
    return {
        "privileged": (str(security.privileged),),
        "no_new_privs": (str(security.no_new_privs),),
        "capabilities.add_capabilities": tuple(sorted(security.add_capabilities)),
        "capabilities.drop_capabilities": tuple(sorted(security.drop_capabilities)),
        "capabilities.add_ambient_capabilities": tuple(sorted(security.add_ambient_capabilities)),
        "seccomp": _profile(security.seccomp),
        "apparmor": _profile(security.apparmor),
        "namespace_options.userns_options": (security.namespaces.user.name,),
    }


def _profile(profile: Profile | None) -> tuple[str, ...]:
    return () if profile is None else (profile.type, profile.localhost_ref)


def check_trusted(directory: Path, pod: SavedPod) -> None:
    """Refuse a checkpoint that others than root could have written.

    It says what its processes may do, whatever the pod is given: whoever can write one could be root.

    :raises FailedPrecondition: naming what is not root's alone.
    """
    homes = [directory / CONTAINERS / one.directory for one in pod.containers]
    paths = [directory, directory / POD, directory / CONTAINERS]
    paths += [path for home in homes for path in (home, home / IMAGES, home / DIFF, *sorted((home / IMAGES).iterdir()))]
    fault = replaceable(str(directory))
    for path in paths:
        if not fault and (why := untrusted(path.lstat())):
            fault = f"{path} {why}"
    if fault:
        raise FailedPrecondition(f"checkpoint_path: {fault}", fix="a checkpoint must be root's alone to change")


def write_pod(directory: Path, pod: SavedPod) -> None:
    """Last of all: without it there is no checkpoint."""
    fd = os.open(directory / POD, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(msgspec.json.encode(pod))
        file.flush()
        os.fsync(fd)


def read_pod(directory: Path) -> SavedPod:
    """The checkpoint's contents.

    :raises InvalidInput: there is no checkpoint of a pod there, or it is not sound.
    :raises FailedPrecondition: others than root could have written it.
    """
    field = "checkpoint_path"
    try:
        fd = os.open(directory / POD, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidInput(field, f"{directory / POD} is not a file")
            found = msgspec.json.decode(file.read(_POD_MAX), type=SavedPod)
    except OSError as error:
        raise InvalidInput(field, f"{directory} holds no checkpoint of a pod: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidInput(field, f"{directory / POD} is not sound: {str(error)[:200]}") from error
    if found.format != FORMAT:
        raise InvalidInput(field, f"{directory} has format {found.format}; this is for format {FORMAT}")
    for one in found.containers:
        if one.directory.strip("0123456789") or not one.directory:
            raise InvalidInput(field, f"{directory / POD} names a directory {one.directory[:100]!r}")
    try:
        check_trusted(directory, found)
    except OSError as error:
        raise InvalidInput(field, f"{directory} is not whole: {error.filename}: {error.strerror}") from error
    return found


def copy(source: Path, target: Path, deadline: Deadline) -> None:
    """Copy the plain files of a directory (a checkpoint's images have nothing else) into a new one.

    :raises FailedPrecondition: there is something else in it.
    """
    try:
        target.mkdir(mode=0o700)
        for entry in sorted(os.scandir(source), key=lambda one: one.name):
            deadline.check("while a checkpoint was copied")
            if not entry.is_file(follow_symlinks=False):
                raise FailedPrecondition(f"{entry.path} does not belong into a checkpoint: it is not a file")
            copy_file(Path(entry.path), target / entry.name, deadline)
    except OSError as error:
        raise syscall_error("copy the checkpoint", source, error) from error


def copy_file(source: Path, target: Path, deadline: Deadline) -> None:
    """Copy a plain file; a symlink is an OSError."""
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as content, target.open("xb") as out:
        shutil.copyfileobj(Punctual(content, deadline, "while a checkpoint was copied"), out, 1 << 20)
    target.chmod(0o600)


def pack(work: Path, location: Path, deadline: Deadline) -> None:
    """Make the archive of a container's checkpoint from its parts in ``work``; it appears whole or not at all."""
    folder = os.open(location.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = os.open(location.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as out, tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for path, name in _members(work):
                deadline.check(_PACKED)
                info = archive.gettarinfo(path, name)
                if not info.isreg():
                    archive.addfile(info)
                    continue
                with path.open("rb") as content:
                    archive.addfile(info, cast(IO[bytes], Punctual(content, deadline, _PACKED)))
            archive.close()
            out.flush()
            location.unlink(missing_ok=True)
            # Given a folder, Python follows the link to the open file; the path itself is absolute.
            os.link(f"/proc/self/fd/{fd}", location, src_dir_fd=folder, follow_symlinks=True)
    except OSError as error:
        raise syscall_error("write the checkpoint", location, error) from error
    finally:
        os.close(folder)


def _members(work: Path) -> list[tuple[Path, str]]:
    images = work / IMAGES
    found = [
        (path, path.name if path.name in _LOGS else f"checkpoint/{path.name}") for path in sorted(images.iterdir())
    ]
    return [(images, "checkpoint"), *found] + [(path, path.name) for path in sorted(work.iterdir()) if path != images]
