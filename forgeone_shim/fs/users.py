"""Who a container's process is: CRI's security context over the image's ``USER``, looked up in the image's own files.

The rules are those of containerd's CRI plugin, so that a pod gets the same ids on either runtime.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engines.base import GroupsPolicy, Security, User
from forgeone_shim.errors import InvalidInput
from forgeone_shim.kernel.mounts import open_in_root

# The highest id that Kubernetes accepts; above it, containerd takes digits for a name.
_MAX_ID = 2**31 - 1
_MAX_FILE = 8 << 20
_MAX_LINE = 1 << 16
# Not an error of these files: the image has none, or something else in their place.
_ABSENT = (errno.ENOENT, errno.ENOTDIR)


@dataclass(frozen=True, slots=True)
class Account:
    """A line of ``passwd(5)``."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class Group:
    """A line of ``group(5)``."""

    name: str
    gid: int
    members: tuple[str, ...]


def resolve_user(rootfs: Path, image_user: str, security: Security) -> User:
    """The user and groups for a process in ``rootfs``; InvalidInput names what cannot be resolved.

    ``run_as_username`` goes before ``run_as_user``, and either, with ``run_as_group``, before the image's own user.
    Additional groups are the primary one, those of the image's group file that list the user by name (unless the policy
    is strict) and those asked for.
    """
    user, group, field = _wanted(image_user, security)
    account = _account(rootfs, user, field)
    uid = account.uid if account else _id(user, field)
    gid = account.gid if account else 0
    if group:
        gid = _group_id(rootfs, group, field)
    gids = {gid: None}
    if account and security.supplemental_groups_policy is not GroupsPolicy.STRICT:
        gids.update(dict.fromkeys(_memberships(rootfs, account.name)))
    gids.update(dict.fromkeys(_in_range(number, "supplemental_groups") for number in security.supplemental_groups))
    return User(uid=uid, gid=gid, additional_gids=tuple(gids), home=account.home if account else "/")


def _wanted(image_user: str, security: Security) -> tuple[str, str, str]:
    """User, group (empty: the user's own) and the field that named them."""
    user = ""
    field = "run_as_user"
    if security.run_as_username:
        user, field = security.run_as_username, "run_as_username"
    elif security.run_as_user is not None:
        user = str(_in_range(security.run_as_user, field))
    if security.run_as_group is not None:
        group = str(_in_range(security.run_as_group, "run_as_group"))
        if not user:
            raise InvalidInput("run_as_group", f"group {group} is given without a user")
        return user, group, field
    if user:
        return user, "", field
    user, colon, group = image_user.partition(":")
    if ":" in group:
        raise InvalidInput("image user", f"{image_user!r} has more than one colon")
    return user or "0", group if colon else "", "image user"


def _account(rootfs: Path, user: str, field: str) -> Account | None:
    """The user's line. A number needs none; a name does."""
    number = _id(user, field) if _is_number(user) else None
    for account in accounts(rootfs):
        if account.uid == number if number is not None else account.name == user:
            return account
    if number is None:
        raise InvalidInput(field, f"user {user!r} is not in the image's /etc/passwd")
    return None


def _group_id(rootfs: Path, group: str, field: str) -> int:
    if _is_number(group):
        return _id(group, field)
    for known in groups(rootfs):
        if known.name == group:
            return known.gid
    raise InvalidInput(field, f"group {group!r} is not in the image's /etc/group")


def _memberships(rootfs: Path, name: str) -> Iterator[int]:
    """Groups that list the user; the user's private group is none of them, as it is not supplemental."""
    return (group.gid for group in groups(rootfs) if group.name != name and name in group.members)


def accounts(rootfs: Path) -> Iterator[Account]:
    """The image's ``/etc/passwd``; malformed lines are passed over."""
    for line in _lines(rootfs, "etc/passwd"):
        fields = line.split(":")
        if len(fields) >= 4 and fields[0] and _fits(fields[2]) and _fits(fields[3]):
            home = fields[5] if len(fields) > 5 else ""
            yield Account(fields[0], int(fields[2]), int(fields[3]), home if home.startswith("/") else "/")


def groups(rootfs: Path) -> Iterator[Group]:
    """The image's ``/etc/group``; malformed lines are passed over."""
    for line in _lines(rootfs, "etc/group"):
        fields = line.split(":")
        if len(fields) >= 3 and fields[0] and _fits(fields[2]):
            members = fields[3].split(",") if len(fields) > 3 else []
            yield Group(fields[0], int(fields[2]), tuple(filter(None, members)))


def _lines(rootfs: Path, name: str) -> Iterator[str]:
    """Lines of a file in the rootfs, stripped; a symlink leads where it would inside the container."""
    try:
        # Whatever a hostile image has there, such as a fifo, must not block or act on being opened.
        fd = open_in_root(rootfs, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno in _ABSENT:
            return
        raise InvalidInput("image", f"its /{name} cannot be opened: {error.strerror}") from error
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidInput("image", f"its /{name} is not a regular file")
        if status.st_size > _MAX_FILE:
            raise InvalidInput("image", f"its /{name} is larger than {_MAX_FILE} bytes")
        while line := file.readline(_MAX_LINE + 1):
            if len(line) > _MAX_LINE:
                raise InvalidInput("image", f"its /{name} has a line longer than {_MAX_LINE} bytes")
            yield line.decode(errors="surrogateescape").strip()


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _fits(text: str) -> bool:
    return _is_number(text) and len(text) <= 10 and int(text) <= _MAX_ID


def _id(text: str, field: str) -> int:
    if not _fits(text):
        raise InvalidInput(field, f"id {text[:40]} is not in 0..{_MAX_ID}")
    return int(text)


def _in_range(number: int, field: str) -> int:
    if not 0 <= number <= _MAX_ID:
        raise InvalidInput(field, f"id {number} is not in 0..{_MAX_ID}")
    return number
