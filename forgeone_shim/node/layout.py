"""Where things are on a node: every path of the installer's is built here.

A path is a node's own (``/opt/forgeone``); :meth:`Layout.at` tells where this process sees it, which is elsewhere when
the node's file system is mounted in a container (``/host/opt/forgeone``).
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forgeone_shim.errors import InvalidInput

PREFIX: Final = "/opt/forgeone"
VERSIONS: Final = f"{PREFIX}/versions"
CURRENT: Final = f"{PREFIX}/current"
CONFIG: Final = "/etc/forgeone/config.toml"
SOCKET: Final = "/run/forgeone/forgeone.sock"
ENDPOINT: Final = f"unix://{SOCKET}"
UNITS: Final = "/etc/systemd/system"
UNIT: Final = "forgeoned.service"
PREPARE_UNIT: Final = "forgeone-prepare.service"
STATE: Final = "/var/lib/forgeone-node"
JOURNAL: Final = f"{STATE}/journal.json"
RECORD: Final = f"{STATE}/installed.json"
OUTCOME: Final = f"{STATE}/outcome.json"
GIVEN: Final = f"{STATE}/config.toml"
STAGING: Final = f"{PREFIX}/staging"
INSTALLING_UNIT: Final = "forgeone-install.service"
LOCK: Final = f"{STATE}/lock"
FINDINGS: Final = "/run/forgeone-node/host.json"

_LINKS: Final = 40
_VERSION: Final = re.compile(r"[0-9][0-9A-Za-z.+~_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Layout:
    """A node's file system as this process sees it; ``root`` is where its ``/`` is."""

    root: Path

    def __post_init__(self) -> None:
        if not self.root.is_absolute() or not self.root.is_dir():
            raise InvalidInput("--host-root", f"{self.root} is not a directory", fix="give an absolute path")

    def at(self, path: str, *, follow: bool = False) -> Path:
        """Where a path of the node's is seen, its symlinks taken as the node takes them; the last one if ``follow``.

        :raises InvalidInput: the path is not absolute, or its links go round.
        """
        if not path.startswith("/"):
            raise InvalidInput("path", f"{path!r} is not an absolute path of the node")
        rest, found, links = [part for part in reversed(path.split("/")) if part not in {"", "."}], list[str](), 0
        while rest:
            part = rest.pop()
            if part in {"", "."}:
                continue
            if part == "..":
                found = found[:-1]
                continue
            here = self.root.joinpath(*found, part)
            if (rest or follow) and here.is_symlink():
                links += 1
                if links > _LINKS:
                    raise InvalidInput("path", f"{path!r}: its symlinks go round")
                target = str(here.readlink())
                found = [] if target.startswith("/") else found
                rest += reversed(target.split("/"))
                continue
            found.append(part)
        return self.root.joinpath(*found)

    @property
    def foreign(self) -> bool:
        """Whether the node's file system is not this process's own."""
        return self.root != Path("/")


def plain(path: str) -> str:
    """A path of ``/run`` by that name, so that the two names of one socket are one (file-hierarchy(7))."""
    path = posixpath.normpath(path) if path else ""
    return path.removeprefix("/var") if path.startswith("/var/run/") else path


def version_directory(version: str) -> str:
    """Where a version's bundle lies on a node.

    :raises InvalidInput: no version is called so.
    """
    if not _VERSION.fullmatch(version) or ".." in version:
        raise InvalidInput("version", f"{version!r} is not one")
    return f"{VERSIONS}/{version}"
