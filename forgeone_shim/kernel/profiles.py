"""Seccomp profiles of the type ``Localhost``: files of the node."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from forgeone_shim.errors import InvalidInput

_MAX_PROFILE = 4 << 20


def local_profile(root: str, reference: str) -> dict[str, object]:
    """Read the profile file that a CRI ``localhost_ref`` names: an absolute path, as the kubelet sends it.

    With a ``root`` the file must be below that, wherever symlinks lead, and a relative path is taken from there.
    Clients of the deprecated fields leave ``localhost/`` in front.
    """
    field = "linux.security_context.seccomp.localhost_ref"
    path = reference.removeprefix("localhost/")
    if not path or "\0" in path:
        raise InvalidInput(field, f"{path!r} is not a path")
    if root and not path.startswith("/"):
        path = f"{root.rstrip('/')}/{path}"
    if not path.startswith("/") or path.startswith("//") or os.path.normpath(path) != path:
        raise InvalidInput(field, f"{path!r} is not an absolute path without '.', '..' or empty parts")
    try:
        text = _content(field, path, os.path.realpath(root, strict=True) if root else "/")
    except OSError as error:
        raise InvalidInput(field, f"read {path!r}: {error.strerror}") from error
    return parse_profile(field, text)


def _content(field: str, path: str, root: str) -> bytes:
    """All of a regular file below ``root``; anything else is not even opened, as that alone may block or do harm."""
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        real = f"/proc/self/fd/{found}"
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise InvalidInput(field, f"{path!r} is not a regular file")
        if not Path(real).readlink().is_relative_to(root):
            raise InvalidInput(field, f"{path!r} is not below {root}, where native.seccomp_profile_root wants profiles")
        with open(real, "rb") as file:
            text = file.read(_MAX_PROFILE + 1)
    finally:
        os.close(found)
    if len(text) > _MAX_PROFILE:
        raise InvalidInput(field, f"{path!r} is larger than {_MAX_PROFILE} bytes")
    return text


def parse_profile(field: str, text: bytes) -> dict[str, object]:
    """Check the outline of a profile; crun and libseccomp check the rest."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InvalidInput(field, f"is not JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("defaultAction"), str):
        raise InvalidInput(field, "is not a seccomp profile: it has no defaultAction")
    if not isinstance(found.get("syscalls", []), list) or not all(
        isinstance(rule, dict) and isinstance(rule.get("action"), str) for rule in found.get("syscalls", [])
    ):
        raise InvalidInput(field, "syscalls is not a list of rules")
    known = ("defaultAction", "defaultErrnoRet", "architectures", "flags", "syscalls")
    profile = {key: found[key] for key in known if key in found}
    # A listener would be handed every system call to decide: no file may ask for one.
    profile["syscalls"] = [_normal_rule(field, rule) for rule in found.get("syscalls", [])]
    return profile


def _normal_rule(field: str, rule: Mapping[str, object]) -> dict[str, object]:
    """The OCI form of a rule; docker's older form has ``name`` for ``names`` and may have nulls."""
    normal = {key: rule[key] for key in ("names", "action", "errnoRet", "args") if rule.get(key) is not None}
    if "names" not in normal and isinstance(rule.get("name"), str):
        normal["names"] = [rule["name"]]
    names = normal.get("names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InvalidInput(field, f"a rule has no list of names: {normal}")
    return normal
