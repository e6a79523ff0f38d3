"""An unpacked bundle: what its manifest says of it, and whether that is what is there."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from pathlib import Path
from typing import Annotated, Final

import msgspec

from forgeone_shim.errors import FailedPrecondition, InvalidInput, syscall_error
from forgeone_shim.node import layout

MANIFEST: Final = "manifest.json"
RELOCATE: Final = "relocate"
_FORMAT: Final = 1
_CHUNK: Final = 1 << 20
_CLI: Final = "bin/forge"


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a bundle: octal mode, bytes, SHA-256 in hexadecimal digits."""

    mode: Annotated[str, msgspec.Meta(pattern="^0[0-7]{3}$")]
    size: int
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class _Manifest(msgspec.Struct, frozen=True):
    manifest: int
    name: str
    version: str
    arch: str
    prefix: str
    unit: str
    files: dict[str, File]
    links: dict[str, str]
    relocated: tuple[str, ...] = ()


class Bundle(msgspec.Struct, frozen=True):
    """``directory`` is where this process sees it; ``digest`` is the manifest's, and so that of all that is in it.

    ``service`` is forgeoned's unit.
    """

    directory: Path
    version: str
    arch: str
    files: dict[str, File]
    links: dict[str, str]
    relocated: frozenset[str]
    digest: str
    service: bytes


def running() -> Path:
    """The bundle that this process runs from.

    :raises FailedPrecondition: it runs from none.
    """
    for directory in Path(sys.executable).absolute().parents:
        if (directory / MANIFEST).is_file() and (directory / _CLI).exists():
            return directory
    raise FailedPrecondition("this forge does not run from a bundle", fix="--bundle DIR names an unpacked one")


def read(directory: Path) -> Bundle:
    """What a bundle says of itself.

    :raises InvalidInput: there is none, or its manifest cannot be used.
    """
    path = directory / MANIFEST
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInput("--bundle", f"{path}: {error.strerror}") from None
    try:
        said = msgspec.json.decode(content, type=_Manifest)
    except msgspec.DecodeError as error:
        raise InvalidInput("--bundle", f"{path}: {error}") from None
    if said.manifest != _FORMAT or said.name != "forgeone":
        raise InvalidInput(
            "--bundle", f"{path} is of {said.name!r} in format {said.manifest}, not forgeone's {_FORMAT}"
        )
    if said.prefix != layout.version_directory(said.version):
        raise InvalidInput("--bundle", f"{path}: it is for {said.prefix!r}")
    for name in (*said.files, *said.links):
        if name.startswith("/") or not set(name.split("/")).isdisjoint({"", ".", ".."}):
            raise InvalidInput("--bundle", f"{path}: {name!r} is not a path in it")
    if (machine := os.uname().machine) != said.arch:
        raise InvalidInput("--bundle", f"it is for {said.arch}, and this node is {machine}")
    try:
        service = (directory / said.unit).read_bytes() if said.unit in said.files else b""
    except OSError as error:
        raise InvalidInput("--bundle", f"{directory / said.unit}: {error.strerror}") from None
    if not service:
        raise InvalidInput("--bundle", f"{path}: the unit {said.unit!r} is not in it")
    return Bundle(
        directory=directory,
        version=said.version,
        arch=said.arch,
        files=said.files,
        links=said.links,
        relocated=frozenset(said.relocated),
        digest=hashlib.sha256(content).hexdigest(),
        service=service,
    )


def problem(bundle: Bundle, directory: Path, *, relocated: bool) -> str:
    """What of a bundle is not in ``directory`` as its manifest has it, or can be changed by others; empty: nothing.

    :param relocated: its programs may have been made another directory's, and so have other hashes.
    """
    if stamp(directory) != bundle.digest:
        return f"{directory / MANIFEST} is not the one that was read"
    for path in _folders(bundle, directory):
        try:
            owned = _own(path.lstat())
        except OSError as error:
            return f"{path}: {error.strerror}"
        if not owned:
            return f"{path} can be changed by others"
    for name, target in bundle.links.items():
        path = directory / name
        try:
            found = str(path.readlink())
        except OSError as error:
            return f"{path}: {error.strerror}"
        if found != target:
            return f"{path} leads to {found}, not {target}"
    for name, file in bundle.files.items():
        path = directory / name
        try:
            with path.open("rb") as opened:
                status = os.fstat(opened.fileno())
                size, mode = status.st_size, f"0{status.st_mode & 0o777:03o}"
                told = file.sha256 if relocated and name in bundle.relocated else _digest(opened)
        except OSError as error:
            return f"{path}: {error.strerror}"
        if (size, mode, told) != (file.size, file.mode, file.sha256):
            return f"{path} is not what {MANIFEST} says"
        if status.st_uid != os.geteuid():
            return f"{path} can be changed by others"
    return ""


def stamp(directory: Path) -> str:
    """The digest of the manifest that lies there; empty: there is none.

    :raises InternalError: it cannot be read.
    """
    try:
        return hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise syscall_error("read", directory / MANIFEST, error) from None


def _folders(bundle: Bundle, directory: Path) -> tuple[Path, ...]:
    parents = {parent for name in (*bundle.files, *bundle.links) for parent in Path(name).parents}
    return tuple(directory / parent for parent in sorted(parents))


def _own(status: os.stat_result) -> bool:
    """Ours (root's, on a node) alone to change; a link to a directory, which the mode of a link denies, is not."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _digest(file: object) -> str:
    digest = hashlib.sha256()
    while piece := file.read(_CHUNK):  # type: ignore[attr-defined]
        digest.update(piece)
    return digest.hexdigest()
