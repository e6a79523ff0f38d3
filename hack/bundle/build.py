"""The tree that every artifact is made of, step by step in an empty directory."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.version import VERSION
from hack.bundle import debian, layout, manifest, programs, python, sbom
from hack.bundle.artifacts import Stamp
from hack.bundle.commands import run
from hack.bundle.debian import Files, Package
from hack.bundle.layout import Arch
from hack.bundle.manifest import Component, Contents

_NATIVE: Final = Path(__file__).resolve().parent / "native"
_COMPILER: Final = ("musl-gcc", "-std=gnu11", "-Os", "-static", "-s", "-Wall", "-Wextra", "-Wl,--build-id=none")
_UNIT: Final = "hack/systemd/forgeoned.service"
_UNIT_COMMENT: Final = "# Where `make setup` or pip has put it.\n"
_VENV: Final = "/opt/forgeone/.venv"
_DOCS: Final = "/opt/forgeone/docs"
_MUSL: Final = "musl-dev"
_LICENSES: Final = Path("/usr/share/common-licenses")
_CERTIFI: Final = f"{layout.SITE}/certifi/cacert.pem"


@dataclass(frozen=True, slots=True)
class Bundle:
    """The finished tree, as it is to be packed."""

    root: Path
    stamp: Stamp


def build(work: Path, epoch: int, flavour: str = layout.STANDARD) -> Bundle:
    """Make the tree below ``work``, an empty directory.

    :param epoch: seconds, the time of everything in it.
    :param flavour: :data:`~hack.bundle.layout.MICROVM` has QEMU and a kernel for virtual machines, too.
    :raises ForgeError: what is missing for it, or fails.
    """
    stamp = Stamp(VERSION, layout.arch(debian.architecture()), epoch, flavour)
    machines = flavour == layout.MICROVM
    if machines and stamp.arch.debian != "amd64":
        raise FailedPrecondition(f"virtual machines run on amd64; this host is {stamp.arch.debian}")
    root = work / f"{layout.NAME}-{VERSION}"
    (root / "bin").mkdir(parents=True)
    arch = stamp.arch
    wanted = (*python.PACKAGES, *programs.PACKAGES, *(programs.MACHINES_PACKAGES if machines else ()))
    # The one waits for registries while the others compute.
    with ThreadPoolExecutor() as pool:
        project, agent = pool.submit(python.build_project, work), pool.submit(python.build_agent, work)
        files = Files(debian.packages(wanted, work), arch.multiarch)
        interpreter = python.place_interpreter(files, root)
        wheels = python.place_wheels(interpreter, files, arch, root)
    python.strip(root)
    commands = python.place_project(project.result(), root)
    python.place_agent(agent.result(), root)
    python.place_commands(commands, interpreter, root)
    owners = [*interpreter.owners, *programs.place_programs(programs.PROGRAMS, files, root)]
    if machines:
        owners += programs.place_programs(programs.MACHINES, files, root)
    owners += programs.place_libraries(root, files, arch)
    relocated = programs.relocatable(root, arch)
    place_native(root, arch, commands)
    place_shared(root, VERSION)
    place_licenses(root / "share" / "licenses", _unique(owners), files)
    # Where it lies now it is run once, to compile its modules; then it is made to lie on a node.
    run([root / layout.RELOCATE])
    python.place_bytecode(root, VERSION)
    run([root / layout.RELOCATE, layout.prefix(VERSION)])
    kernel = (python.place_kernel(root, work),) if machines else ()
    components = (
        Component("forgeone", layout.NAME, VERSION),
        *(Component("debian", owner.name, owner.version, owner.source) for owner in _unique(owners)),
        # In what is static.
        Component("debian", *debian.installed(_MUSL)),
        *wheels,
        *kernel,
    )
    system = platform.freedesktop_os_release()
    scanned = sbom.System(system["ID"], system.get("VERSION_ID", ""), arch.debian)
    (root / sbom.PLACE).write_text(sbom.encode(components[1:], VERSION, scanned, epoch))
    said = Contents(
        version=VERSION,
        arch=arch.machine,
        flavour=flavour,
        python=interpreter.version,
        commands=tuple(sorted(commands)),
        relocated=relocated,
        components=components,
    )
    (root / layout.MANIFEST).write_text(manifest.encode(root, said))
    return Bundle(root, stamp)


def place_native(root: Path, arch: Arch, commands: Iterable[str]) -> None:
    """Compile ``relocate``, and a launcher for each command and for Python."""
    field = (f"-DFIELD={layout.FIELD}", f'-DLOADER="{arch.loader}"')
    run([*_COMPILER, *field, "-o", root / layout.RELOCATE, _NATIVE / "relocate.c"])
    for name in ("python3", *commands):
        run([*_COMPILER, f'-DCOMMAND="{name}"', "-o", root / "bin" / name, _NATIVE / "launcher.c"])


def place_shared(root: Path, version: str) -> None:
    """The unit, the documentation, and authorities for hosts that have none."""
    share = root / "share"
    (root / layout.UNIT).parent.mkdir(parents=True)
    (root / layout.UNIT).write_text(unit((layout.REPOSITORY / _UNIT).read_text(), version))
    shutil.copytree(layout.REPOSITORY / "docs", share / "doc")
    for name in ("README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copyfile(layout.REPOSITORY / name, share / "doc" / name)
    shutil.copyfile(root / _CERTIFI, root / layout.AUTHORITIES)


def place_licenses(place: Path, owners: Iterable[Package], files: Files) -> None:
    """Each package's, musl's, and in ``common`` the texts that Debian has once and these refer to.

    :raises FailedPrecondition: one of a package is missing.
    """
    place.mkdir()
    for owner in owners:
        shutil.copyfile(files.license(owner), place / owner.name)
    shutil.copyfile(Path("/usr/share/doc", _MUSL, "copyright"), place / _MUSL)
    shutil.copytree(_LICENSES, place / "common", symlinks=True)


def unit(text: str, version: str) -> str:
    """The service for a bundle of this version, out of the one for a checkout.

    It names the version's own directory, so that a command of the unit is always of the daemon's version.
    """
    prefix = layout.prefix(version)
    return text.replace(_UNIT_COMMENT, "").replace(_VENV, prefix).replace(_DOCS, f"{prefix}/share/doc")


def _unique(packages: Iterable[Package]) -> tuple[Package, ...]:
    return tuple({package.name: package for package in packages}.values())
