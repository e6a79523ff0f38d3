"""What the engine keeps in a container's bundle: what it asked of the guest, for execs and for a fingerprint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from engines.microvm.wire.messages import Program
from forgeone_shim.errors import InternalError, NotFound, syscall_error

NAME: Final = "microvm.json"


class Note(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """``program`` is the first process's, and ``disk`` the file of a writable layer on disk (or empty).

    ``version`` and ``facts`` are those of a fingerprint, besides its capabilities and filter.
    """

    sandbox_id: str
    log_path: str
    program: Program
    version: str
    facts: dict[str, str]
    disk: str = ""


_DECODER: Final = msgspec.json.Decoder(Note)


def write(bundle: str, note: Note) -> None:
    """Whole or not at all, and readable for root alone: an environment holds secrets."""
    path, draft = Path(bundle, NAME), f"{bundle}/.{NAME}"
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(msgspec.json.encode(note))
        Path(draft).replace(path)
    except OSError as error:
        raise syscall_error("write", path, error) from error


def content(bundle: str, container_id: str) -> bytes:
    """The note as it lies there. :raises NotFound: there is no such container (any more)."""
    try:
        return Path(bundle, NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("container", container_id) from None
    except OSError as error:
        raise syscall_error("read", f"{bundle}/{NAME}", error) from error


def decoded(bundle: str, data: bytes) -> Note:
    """:raises InternalError: it is none."""
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InternalError(f"{bundle}/{NAME} is not as known: {error}") from error


def read(bundle: str, container_id: str) -> Note:
    """:raises NotFound: there is no such container (any more)."""
    return decoded(bundle, content(bundle, container_id))
