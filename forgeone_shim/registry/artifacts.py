"""OCI artifacts: manifests whose layers are files, not filesystems, mounted as volumes.

https://github.com/opencontainers/image-spec/blob/main/manifest.md#guidelines-for-artifact-usage

A layer is a file with the name that its title annotation says, or, as ORAS packs a directory, an archive to unpack.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Final

from forgeone_shim.registry.digest import encoded, is_digest

TITLE: Final = "org.opencontainers.image.title"
CREATED: Final = "org.opencontainers.image.created"
EMPTY_CONFIG: Final = "application/vnd.oci.empty.v1+json"
# https://github.com/oras-project/oras-go, content/file: a directory is an archive, whose digest stands beside it.
_UNPACK, _ARCHIVE = "io.deis.oras.content.unpack", "io.deis.oras.content.digest"
_NAME_MAX, _PATH_MAX = 255, 4000


@dataclass(frozen=True, slots=True)
class Part:
    """One layer of an artifact. ``layer_id`` names it in the store of layers; ``file`` is empty for an archive."""

    layer_id: str
    file: str = ""


def part(digest: str, annotations: Mapping[str, str]) -> Part:
    """What the layer of this digest is.

    :raises ValueError: its title is no name that a file may have, or its archive has no digest.
    """
    if annotations.get(_UNPACK) == "true":
        archive = annotations.get(_ARCHIVE, "")
        if not is_digest(archive) or not archive.startswith("sha256:"):
            raise ValueError(f"is to be unpacked, but its {_ARCHIVE} is no sha256 digest")
        return Part(archive)
    file = annotations.get(TITLE) or encoded(digest)
    _check(file)
    # The same bytes under another name are another directory. No archive hashes to this but by breaking SHA-256.
    return Part("sha256:" + sha256(f"artifact file\0{digest}\0{file}".encode()).hexdigest(), file)


def clash(parts: Iterable[Part]) -> str:
    """A file that another file is, or is in; empty when there is none."""
    files = [found.file for found in parts if found.file]
    folders = {str(folder) for file in files for folder in PurePosixPath(file).parents}
    seen: set[str] = set()
    for file in files:
        if file in seen or file in folders:
            return file
        seen.add(file)
    return ""


def _check(file: str) -> None:
    parts = file.split("/")
    if (
        normpath(file) != file
        or file.startswith("/")
        or ".." in parts
        or file == "."
        or not file.isprintable()
        or len(file.encode()) > _PATH_MAX
        or any(len(name.encode()) > _NAME_MAX for name in parts)
    ):
        raise ValueError(f"has the title {file[:100]!r}, which is no relative path of a file")
