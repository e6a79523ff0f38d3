"""What an engine remembers of a container beside what its supervisor keeps: enough to run one more guest in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from engines.wasm.guest.plan import GuestPlan
from engines.wasm.jail.plan import JailPlan
from engines.wasm.messages import Code, Insight
from forgeone_shim.errors import InternalError, NotFound, syscall_error

NAME: Final = "wasm.json"
_Kind = TypeVar("_Kind", bound=msgspec.Struct)


class Note(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """``module`` is the path of the container's module in it, ``exports`` are what an exec may name."""

    log_path: str
    code: Code
    image_id: str
    module: str
    exports: tuple[str, ...]
    guest: GuestPlan
    jail: JailPlan
    insight: Insight


class _Log(msgspec.Struct, frozen=True):
    """What is needed of a note whoever wrote it: logs are rotated beyond an upgrade."""

    log_path: str


def write(bundle: str, note: Note) -> None:
    """Keep it; for root alone, as the container's environment is in it."""
    path = f"{bundle}/{NAME}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(note))
    except OSError as error:
        raise syscall_error("write", path, error) from error


def read(bundle: str, container_id: str) -> Note:
    """:raises NotFound: there is no such container (any more)."""
    return _read(bundle, container_id, Note)


def log_path(bundle: str, container_id: str) -> str:
    """Of a note of any version; errors as :func:`read`."""
    return _read(bundle, container_id, _Log).log_path


def content(bundle: str, container_id: str) -> bytes:
    """The note as it lies there; errors as :func:`read`."""
    path = Path(bundle, NAME)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound("container", container_id) from error
    except OSError as error:
        raise syscall_error("read", path, error) from error


def decoded(bundle: str, written: bytes) -> Note:
    """The note that was written so; InternalError: it is none."""
    return _decoded(bundle, written, Note)


def _read(bundle: str, container_id: str, kind: type[_Kind]) -> _Kind:
    return _decoded(bundle, content(bundle, container_id), kind)


def _decoded(bundle: str, written: bytes, kind: type[_Kind]) -> _Kind:
    try:
        return msgspec.json.decode(written, type=kind)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InternalError(f"{bundle}/{NAME} is not as it was written: {error}") from error
