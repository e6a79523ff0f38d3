"""SELinux: what the host's policy says about containers, labels in their parts, and files labelled anew.

The files: selinux(8), lxc_contexts as libselinux reads it, and the extended attribute ``security.selinux`` (xattr(7)).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import InvalidInput, PermissionDenied, syscall_error
from forgeone_shim.kernel.mounts import RESOLVE_NO_SYMLINKS, openat2

FILESYSTEM = Path("/sys/fs/selinux")
CONFIGURATION = Path("/etc/selinux")
_ATTRIBUTE = "security.selinux"
_AT_FDCWD = -100
# Each level holds a descriptor.
_DEPTH_MAX = 200
_WORD = re.compile(r"[A-Za-z0-9_.$-]{1,128}")
_LEVEL = re.compile(r"s\d{1,4}(-s\d{1,4})?(:c\d{1,4}(\.c\d{1,4})?(,c\d{1,4}(\.c\d{1,4})?)*)?")
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Whoever labels one of these for a container takes it from the whole host.
_SYSTEM = frozenset(
    {
        "/",
        *(
            f"/{name}"
            for name in [
                "bin",
                "boot",
                "dev",
                "etc",
                "home",
                "lib",
                "lib32",
                "lib64",
                "libx32",
                "media",
                "mnt",
                "opt",
                "proc",
                "root",
                "run",
            ]
        ),
    }
    | {
        f"/{name}"
        for name in [
            "sbin",
            "srv",
            "sys",
            "tmp",
            "usr",
            "usr/bin",
            "usr/lib",
            "usr/lib64",
            "usr/sbin",
            "var",
            "var/lib",
            "var/log",
        ]
    }
    | {"/etc/passwd", "/etc/pki", "/etc/shadow", "/usr/local", "/usr/share", "/var/tmp"}  # noqa: S108
)


@dataclass(frozen=True, slots=True)
class Context:
    """A label in its parts; ``level`` is empty where the policy has no levels."""

    user: str
    role: str
    type: str
    level: str = ""

    @classmethod
    def parse(cls, text: str) -> Context:
        """``user:role:type[:level]``; ValueError for anything else."""
        parts = text.split(":", 3)
        if len(parts) < 3 or not all(_WORD.fullmatch(part) for part in parts[:3]):
            raise ValueError(f"{text!r} is not user:role:type[:level]")
        if len(parts) == 4 and not _LEVEL.fullmatch(parts[3]):
            raise ValueError(f"{parts[3]!r} is not a level such as s0:c1,c2")
        return cls(*parts)

    def __str__(self) -> str:
        parts = (self.user, self.role, self.type, self.level)
        return ":".join(part for part in parts if part)

    def changed(self, field: str, *, user: str = "", role: str = "", type_: str = "", level: str = "") -> Context:
        """With the parts that are given in place of its own; InvalidInput below ``field`` for one that cannot be."""
        for name, text in (("user", user), ("role", role), ("type", type_)):
            if text and not _WORD.fullmatch(text):
                raise InvalidInput(f"{field}.{name}", f"{text!r} is not a word of an SELinux policy")
        if level and not _LEVEL.fullmatch(level):
            raise InvalidInput(f"{field}.level", f"{level!r} is not a level such as s0:c1,c2")
        return replace(
            self,
            user=user or self.user,
            role=role or self.role,
            type=type_ or self.type,
            level=level or self.level,
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """What the loaded policy has for containers: the labels of their processes and of their files."""

    process: Context
    file: Context
    filesystem: Path = FILESYSTEM

    def check(self, field: str, context: Context) -> None:
        """InvalidInput where the kernel's policy knows no such label."""
        try:
            fd = os.open(self.filesystem / "context", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise syscall_error("open", self.filesystem / "context", error) from error
        try:
            os.write(fd, str(context).encode())
        except OSError as error:
            raise InvalidInput(field, f"{context} is no label of the loaded policy: {error.strerror}") from error
        finally:
            os.close(fd)


def detect(filesystem: Path = FILESYSTEM, configuration: Path = CONFIGURATION) -> Policy | None:
    """The policy in force; ``None`` where SELinux is off, or its policy has nothing for containers."""
    if not (filesystem / "enforce").exists():
        return None
    kind = _settings(configuration / "config").get("SELINUXTYPE", "")
    if not _WORD.fullmatch(kind):
        return None
    found = _settings(configuration / kind / "contexts" / "lxc_contexts")
    try:
        return Policy(Context.parse(found["process"]), Context.parse(found["file"]), filesystem)
    except (KeyError, ValueError):
        return None


def _settings(path: Path) -> dict[str, str]:
    """``name = "value"`` a line, as libselinux reads them."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        return {}
    lines = (line.strip() for line in text.splitlines())
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith(("#", ";")))
    return {name.strip(): value.strip().strip('"') for name, _, value in pairs}


def relabel(path: str, label: str, deadline: Deadline = NEVER) -> None:
    """Give a file, or a directory with all below it, a label: the path itself last, so that it tells that all is done.

    No symlink is followed below ``path``, and no other file system that cannot keep labels is an error. What disappears
    meanwhile is left out. What was labelled when the deadline passed is not looked at for long by the next call.

    :raises PermissionDenied: it is a directory of the system's.
    :raises DeadlineExceeded: there was too much below it.
    :raises InternalError: the kernel refuses, or a part of the path has become a symlink meanwhile.
    """
    real = os.path.realpath(path)
    if real in _SYSTEM:
        raise PermissionDenied(
            f"{path} is the system's: it is not labelled for a container", fix="mount what is below it"
        )
    try:
        # Whoever can write to a directory on the way must not lead this elsewhere after the look at the path.
        fd = openat2(_AT_FDCWD, real, os.O_PATH | os.O_NOFOLLOW, RESOLVE_NO_SYMLINKS)
        try:
            if os.path.isdir(f"/proc/self/fd/{fd}"):  # noqa: PTH112
                _label_below(
                    os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), label, deadline
                )
            _label(f"/proc/self/fd/{fd}", label, follow=True)
        finally:
            os.close(fd)
    except OSError as error:
        raise syscall_error("label", path, error) from error


def _label_below(fd: int, label: str, deadline: Deadline, depth: int = 0) -> None:
    """All below a directory, which is closed in the end."""
    try:
        deadline.check("while a volume was labelled")
        if depth > _DEPTH_MAX:
            raise OSError(errno.ENAMETOOLONG, f"directories are nested more than {_DEPTH_MAX} deep")
        for name, is_directory in _entries(fd):
            if is_directory:
                try:
                    below = os.open(name, _OPEN, dir_fd=fd)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    if error.errno not in {errno.ELOOP, errno.ENOTDIR}:
                        raise
                else:
                    _label_below(below, label, deadline, depth + 1)
            _label(f"/proc/self/fd/{fd}/{name}", label, follow=False)
    finally:
        os.close(fd)


def _entries(fd: int) -> Iterator[tuple[str, bool]]:
    with os.scandir(fd) as entries:
        for entry in entries:
            yield entry.name, entry.is_dir(follow_symlinks=False)


def _label(path: str, label: str, *, follow: bool) -> None:
    value = label.encode()
    try:
        # Most have it already: a read costs no write to a journal.
        if os.getxattr(path, _ATTRIBUTE, follow_symlinks=follow).rstrip(b"\0") == value:
            return
    except OSError:
        pass
    try:
        os.setxattr(path, _ATTRIBUTE, value, follow_symlinks=follow)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ENOTSUP}:
            raise
