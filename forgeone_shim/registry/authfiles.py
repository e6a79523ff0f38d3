"""Credentials from files in the format of Docker's ``config.json``, for pulls that bring none of their own.

https://github.com/containers/image/blob/main/docs/containers-auth.json.5.md: a key of ``auths`` is a registry
(``quay.io``), or a registry with the beginning of a repository's path (``quay.io/team``); the longest that fits counts.
Of other keys none is read, and no credential helper is run.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Annotated, Final

import msgspec

from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.registry.model import Credentials
from forgeone_shim.registry.reference import DEFAULT_REGISTRY, Reference

_MAX_BYTES: Final = 1 << 20
# A Kubernetes namespace is an RFC 1123 label, so its name is that of a file too.
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# What Docker's clients call their hub.
_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_Text = Annotated[str, msgspec.Meta(max_length=65536)]


class _Entry(msgspec.Struct, frozen=True):
    auth: _Text = ""
    username: _Text = ""
    password: _Text = ""
    identitytoken: _Text = ""
    registrytoken: _Text = ""


class _File(msgspec.Struct, frozen=True):
    auths: dict[str, _Entry] = {}


def find(reference: Reference, namespace: str, *, namespaces: str, node: str) -> Credentials | None:
    """What to pull ``reference`` with for a pod of ``namespace`` (empty: not known).

    ``namespaces`` is a directory with a file ``NAMESPACE.json`` for those that have one, ``node`` a file for all; where
    they are empty there is none. The namespace's own credentials come first.

    :raises FailedPrecondition: a file cannot be used: nobody is let in with less than was meant.
    """
    files = [Path(node)] if node else []
    if namespaces and _NAMESPACE.fullmatch(namespace):
        files.insert(0, Path(namespaces, f"{namespace}.json"))
    for file in files:
        text = _read(file)
        found = parse(text, str(file), reference) if text is not None else None
        # An entry may say no more than that somebody once logged in elsewhere.
        if found:
            return found
    return None


def parse(text: bytes, name: str, reference: Reference) -> Credentials | None:
    """What a file says about ``reference``.

    :raises FailedPrecondition: the file is malformed.
    """
    try:
        auths = msgspec.json.decode(text, type=_File).auths
    except (msgspec.MsgspecError, ValueError, RecursionError):
        # The decoder's own words may quote a secret.
        raise FailedPrecondition(f"{name}: is not a file of registry credentials (Docker's config.json)") from None
    wanted = f"{reference.registry}/{reference.repository}"
    fitting = [
        (len(scope), entry) for key, entry in auths.items() if _fits(scope := _scope(key), wanted, reference.registry)
    ]
    if not fitting:
        return None
    entry = max(fitting, key=lambda pair: pair[0])[1]
    return Credentials(
        username=entry.username,
        password=entry.password,
        auth=entry.auth,
        identity_token=entry.identitytoken,
        registry_token=entry.registrytoken,
    )


def _scope(key: str) -> str:
    """A key without what old clients put around it (``https://index.docker.io/v1/``)."""
    _, _, rest = key.rpartition("://")
    host, slash, path = rest.strip("/").partition("/")
    if host in _HUB:
        host, path = DEFAULT_REGISTRY, "" if path in {"v1", "v2"} else path
    return f"{host}/{path}" if slash and path else host


def _fits(scope: str, wanted: str, registry: str) -> bool:
    return scope in {registry, wanted} or wanted.startswith(f"{scope}/")


def _read(path: Path) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FailedPrecondition(f"{path}: {error.strerror}") from error
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise FailedPrecondition(f"{path}: is not a file")
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            what = f"{path}: holds credentials and others than its owner can read it"
            raise FailedPrecondition(what, fix=f"chmod 600 {path}")
        if status.st_size > _MAX_BYTES:
            raise FailedPrecondition(f"{path}: is larger than {_MAX_BYTES} bytes")
        return file.read(_MAX_BYTES)
