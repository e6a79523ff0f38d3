"""``manifest.json``: what a bundle consists of, for whoever lays it out, checks it or asks what is in it.

``{"manifest": 1, "name", "version", "arch", "flavour", "prefix", "python", "commands": [...], "unit": "share/...",
"files": {path: {"mode": "0755", "size": 1, "sha256": "..."}}, "links": {path: target}, "relocated": [path, ...],
"packages": [{"name", "version", "origin": "debian|pypi|forgeone"}]}``; paths are relative to the manifest's directory.
The programs in ``relocated`` have these hashes where the bundle lies in ``prefix``, and others after ``relocate``.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from forgeone_shim.errors import InternalError
from hack.bundle import layout

_FORMAT: Final = 1
EXECUTABLE: Final = 0o755
PLAIN: Final = 0o644


@dataclass(frozen=True, slots=True, order=True)
class Component:
    """A package that something of the bundle is from; ``origin`` is ``debian``, ``pypi`` or ``forgeone``.

    ``source`` is Debian's source package, whose name its advisories have: ``NAME`` or ``NAME@VERSION``.
    """

    origin: str
    name: str
    version: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Contents:
    """What the manifest says beside what the tree itself tells."""

    version: str
    arch: str
    flavour: str
    python: str
    commands: tuple[str, ...]
    relocated: tuple[str, ...]
    components: tuple[Component, ...]


def mode(path: Path) -> int:
    """The mode that a file has in every artifact, whatever the builder's umask."""
    return EXECUTABLE if path.lstat().st_mode & stat.S_IXUSR else PLAIN


def walk(root: Path) -> Iterator[tuple[str, Path]]:
    """All below ``root`` by its relative path, sorted; directories come before what is in them."""
    for path in sorted(root.rglob("*"), key=lambda found: found.relative_to(root).parts):
        yield path.relative_to(root).as_posix(), path


def encode(root: Path, contents: Contents) -> str:
    """The manifest of the tree below ``root``, in which there is none yet.

    :raises InternalError: a link leads out of the tree: it would lead to a file of some host's.
    """
    files: dict[str, Any] = {}
    links: dict[str, str] = {}
    for name, path in walk(root):
        if path.is_symlink():
            if not path.resolve().is_relative_to(root.resolve()) or not path.exists():
                raise InternalError(f"{name} leads to {path.readlink()}, out of the bundle")
            links[name] = str(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            files[name] = {"mode": f"{mode(path):04o}", "size": len(content), "sha256": digest}
    said = {
        "manifest": _FORMAT,
        "name": layout.NAME,
        "version": contents.version,
        "arch": contents.arch,
        "flavour": contents.flavour,
        "prefix": layout.prefix(contents.version),
        "python": contents.python,
        "commands": list(contents.commands),
        "unit": layout.UNIT,
        "files": files,
        "links": links,
        "relocated": list(contents.relocated),
        "packages": _listed(contents.components),
    }
    return json.dumps(said, indent=1) + "\n"


def _listed(components: Iterable[Component]) -> list[dict[str, str]]:
    return [{"name": one.name, "version": one.version, "origin": one.origin} for one in sorted(components)]
