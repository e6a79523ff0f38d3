"""Debian's packages and all that they depend on, as files: downloaded and verified by apt, unpacked, never installed.

Apt is given a state of its own, so that nothing has to be root's, nothing of this host's is changed, and what this host
has installed does not count. Its sources and keys are the host's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forgeone_shim.errors import FailedPrecondition
from hack.bundle.commands import run

_FORMAT: Final = "${Package}\\t${Version}\\t${source:Package}\\t${source:Version}\\n"


@dataclass(frozen=True, slots=True)
class Package:
    """One of Debian's, unpacked below ``tree``.

    ``source`` is what it was built from: ``NAME``, or ``NAME@VERSION`` where that version is another.
    """

    name: str
    version: str
    source: str
    tree: Path


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a package's."""

    package: Package
    path: Path


def architecture() -> str:
    """This host's, by Debian's name. :raises FailedPrecondition: it is no Debian or derivative."""
    return run(["dpkg", "--print-architecture"]).strip()


def packages(names: Iterable[str], work: Path) -> tuple[Package, ...]:
    """``names`` and what they depend on, of this host's release, unpacked below the directory ``work``.

    :raises InternalError: apt's or dpkg's reason.
    """
    archives = _downloaded(names, work / "apt")
    found = []
    for archive in archives:
        name, version, source = told(run(["dpkg-deb", "--show", f"--showformat={_FORMAT}", archive]))
        tree = work / "packages" / name
        tree.mkdir(parents=True)
        run(["dpkg-deb", "--extract", archive, tree])
        found.append(Package(name, version, source, tree))
    return tuple(found)


def installed(name: str) -> tuple[str, str, str]:
    """As :func:`told`, of a package of this host's. :raises InternalError: it is not installed."""
    return told(run(["dpkg-query", "--show", f"--showformat={_FORMAT}", name]))


def told(line: str) -> tuple[str, str, str]:
    """Name, version and source, from a line of dpkg's; a source of the same version is named without it."""
    name, version, source, of = line.strip().split("\t")
    return name, version, source if of == version else f"{source}@{of}"


def archive(name: str, work: Path) -> tuple[Path, tuple[str, str, str]]:
    """The file of the one package that ``name``, which has no content, depends on; and what :func:`told` says of it.

    :raises InternalError: apt's reason. :raises FailedPrecondition: there is no such package.
    """
    home = work / "apt"
    listed = run(["apt-cache", *_options(home), "depends", name])
    found = next((words[1] for line in listed.splitlines() if (words := line.split())[:1] == ["Depends:"]), "")
    if not found:
        raise FailedPrecondition(f"the package {name} depends on none")
    place = work / "archive"
    place.mkdir()
    run(["apt-get", "--quiet", *_options(home), "download", found], cwd=place)
    [file] = place.glob("*.deb")
    return file, told(run(["dpkg-deb", "--show", f"--showformat={_FORMAT}", file]))


def _downloaded(names: Iterable[str], home: Path) -> Sequence[Path]:
    archives = home / "cache" / "archives"
    for folder in (home / "state" / "lists" / "partial", archives / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    (home / "status").touch()
    apt = ["apt-get", "--quiet", "--yes", *_options(home)]
    run([*apt, "update"])
    run([*apt, "--download-only", "install", *names])
    return sorted(archives.glob("*.deb"))


def _options(home: Path) -> list[str]:
    options = {
        "Dir::State": home / "state",
        "Dir::State::status": home / "status",
        "Dir::Cache": home / "cache",
        # Apt's own user could not write here, and root need not be there.
        "APT::Sandbox::User": "root",
        "APT::Install-Recommends": "false",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
    }
    return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]


class Files:
    """All packages' files, found by where they would be installed; ``/usr`` before a path makes no difference."""

    def __init__(self, found: Iterable[Package], multiarch: str) -> None:
        self._packages = tuple(found)
        self._libraries = self._index((f"lib/{multiarch}", f"usr/lib/{multiarch}"))

    @property
    def libraries(self) -> Mapping[str, Found]:
        """Shared libraries by the name that others need them by."""
        return self._libraries

    def package(self, name: str) -> Package:
        """:raises FailedPrecondition: it is not among them."""
        for one in self._packages:
            if one.name == name:
                return one
        raise FailedPrecondition(f"the package {name} is not among those that apt has brought")

    def license(self, package: Package) -> Path:
        """What it says of its licence. Of several packages from one source, Debian lets one have it for the others.

        :raises FailedPrecondition: it says nothing, or who does is not among these packages.
        """
        place = package.tree / "usr" / "share" / "doc" / package.name
        holder = self.package(place.readlink().name) if place.is_symlink() else package
        found = holder.tree / "usr" / "share" / "doc" / holder.name / "copyright"
        if not found.is_file():
            raise FailedPrecondition(f"the package {holder.name} has no copyright file")
        return found

    def find(self, pattern: str) -> Found:
        """The one file that is installed at ``pattern`` (a glob, without ``/usr``).

        :raises FailedPrecondition: there is none, or there are several.
        """
        found = [
            Found(package, path)
            for package in self._packages
            for top in (package.tree, package.tree / "usr")
            for path in top.glob(pattern)
        ]
        if len(found) != 1:
            raise FailedPrecondition(f"{len(found)} files of Debian's packages are {pattern}: one is needed")
        return found[0]

    def _index(self, folders: Iterable[str]) -> Mapping[str, Found]:
        return {
            path.name: Found(package, path)
            for package in self._packages
            for folder in folders
            for path in sorted((package.tree / folder).glob("*.so*"))
            if path.is_file()
        }
