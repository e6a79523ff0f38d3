"""The bundle's Python: Debian's interpreter and standard library, the lock file's wheels, and this project."""

from __future__ import annotations

import configparser
import re
import shutil
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engines.microvm.boot import agent, sources
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition
from hack.bundle import debian, layout, programs
from hack.bundle.commands import run
from hack.bundle.debian import Files, Package
from hack.bundle.layout import Arch
from hack.bundle.manifest import Component

PACKAGES: Final = ("python3-minimal", "libpython3-stdlib")
_LOCK: Final = "requirements/runtime.lock"
_ROOMS: Final = ("cri", "forgeone_shim", "engines")
# Of no use on a node. sitecustomize is a link to a file of the host's. The modules for NIS and DBM alone need Kerberos,
# RPC and Berkeley DB, whose advisories a bundle need not follow.
_UNUSED: Final = (
    *("__pycache__", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tests", "tkinter", "turtledemo"),
    *("sitecustomize.py", "EXTERNALLY-MANAGED", "nis.*.so", "_dbm.*.so"),
)
# Kubernetes' second client, for asyncio, has half of all bytecode; CEL's extensions are large, and nobody loads them.
_UNUSED_SITE: Final = ("bin", "kubernetes/aio", "cel_expr_python/ext", "*/tests", "*/io/tests")
# The glibc 2.x that wheels are made for. Half of pip's time is comparing each file of an index with each tag.
_MANYLINUX: Final = (5, 12, 17, *range(24, 29), 31, 34)
_COMPILE_SECONDS: Final = 300.0
_NAME: Final = re.compile(r"[-_.]+")
_COMMAND: Final = """\
import sys

from {module} import {function}

sys.exit({function}())
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """``version`` is Debian's, ``minor`` as in ``python3.11``."""

    name: str
    version: str
    owners: tuple[Package, ...]

    @property
    def minor(self) -> str:
        """``3.11``."""
        return self.name.removeprefix("python")


def place_interpreter(files: Files, root: Path) -> Interpreter:
    """The interpreter, and its library without what a node has no use for."""
    found = files.find("bin/python3.[0-9]*")
    name = found.path.name
    target = root / layout.PROGRAMS / name
    target.parent.mkdir(parents=True)
    shutil.copyfile(found.path, target)
    target.chmod(0o755)
    owners = [found.package]
    for package in (files.package(f"lib{name}-minimal"), files.package(f"lib{name}-stdlib")):
        source = package.tree / "usr" / "lib" / name
        shutil.copytree(
            source, root / "lib" / name, symlinks=True, ignore=shutil.ignore_patterns(*_UNUSED), dirs_exist_ok=True
        )
        owners.append(package)
    return Interpreter(name, found.package.version, tuple(owners))


def place_wheels(interpreter: Interpreter, files: Files, arch: Arch, root: Path) -> tuple[Component, ...]:
    """The lock file's wheels, for the bundle's Python and libc, each checked against its hash; returns which."""
    site = root / layout.SITE
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "--quiet",
        "install",
    ]
    glibc = int(files.package("libc6").version.split("-")[0].split(".")[1])
    platforms = platform_tags(glibc, arch.machine)
    tags = ["--python-version", interpreter.minor, "--implementation", "cp", "--only-binary", ":all:"]
    for platform in platforms:
        tags += ["--platform", platform]
    exact: list[str | Path] = [
        "--no-deps",
        "--no-compile",
        "--require-hashes",
        "--requirement",
        layout.REPOSITORY / _LOCK,
    ]
    run([*pip, "--target", site, *tags, *exact], env={"PIP_USER": "0"})
    for pattern in _UNUSED_SITE:
        for path in list(site.glob(pattern)):
            shutil.rmtree(path)
    for path in [*site.rglob("direct_url.json"), *site.rglob("REQUESTED")]:
        path.unlink()
    return tuple(
        Component("pypi", _NAME.sub("-", name).lower(), version)
        for name, version in (
            path.name.removesuffix(".dist-info").rsplit("-", 1) for path in sorted(site.glob("*.dist-info"))
        )
    )


def platform_tags(glibc: int, machine: str) -> list[str]:
    """What wheels may be made for, the newest first, where glibc is ``2.glibc``."""
    minors = sorted({glibc, *(minor for minor in _MANYLINUX if minor < glibc)}, reverse=True)
    # Pip takes this old name for the older ones, too.
    return [*(f"manylinux_2_{minor}_{machine}" for minor in minors), f"manylinux2014_{machine}"]


def strip(root: Path) -> None:
    """Take away what wheels' libraries have for debuggers, half of some."""
    found = [path for path in sorted((root / layout.SITE).rglob("*.so")) if path.is_file()]
    run(["strip", "--strip-debug", *found])


def build_project(work: Path) -> Path:
    """This project's wheel, built from a copy. :raises InternalError: pip's reason."""
    source, wheels = work / "source", work / "wheels"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copyfile(layout.REPOSITORY / name, source / name)
    for name in _ROOMS:
        shutil.copytree(
            layout.REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*_pb2*.py*")
        )
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "--quiet",
        "wheel",
    ]
    run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source], cwd=work)
    [wheel] = wheels.glob("*.whl")
    return wheel


def place_project(wheel: Path, root: Path) -> Mapping[str, str]:
    """Unpack it; returns its commands, each with its ``module:function``."""
    site = root / layout.SITE
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        [listed] = [name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")]
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.read_string((site / listed).read_text())
    return dict(parser["console_scripts"])


def place_commands(commands: Mapping[str, str], interpreter: Interpreter, root: Path) -> None:
    """Each command's script, and the interpreter under its name; ``bin`` has the launchers."""
    scripts, names = root / layout.PROGRAMS / "commands", root / layout.PROGRAMS / "programs"
    scripts.mkdir()
    names.mkdir()
    for command, target in commands.items():
        module, _, function = target.partition(":")
        if not function.isidentifier():
            raise FailedPrecondition(f"the command {command} is {target}, not a function of a module")
        (scripts / command).write_text(_COMMAND.format(module=module, function=function))
    for name in ("python3", *commands):
        (names / name).symlink_to(f"../{interpreter.name}")


def build_agent(work: Path) -> bytes:
    """The guest agent for virtual machines, compiled: a node has no compiler."""
    return agent.build(agent.sources(), work, Deadline.after(_COMPILE_SECONDS))


def place_agent(made: bytes, root: Path) -> None:
    """Where forgeoned looks for it before it would compile one."""
    ready = root / layout.SITE / "engines" / "microvm" / "guest" / agent.READY.name
    ready.write_bytes(made)
    ready.chmod(0o755)


def place_kernel(root: Path, work: Path) -> Component:
    """Debian's kernel for virtual machines, as its package: what is needed of it is taken out on the node."""
    archive, (name, version, source) = debian.archive(programs.KERNEL, work)
    shutil.copyfile(archive, root / layout.SITE / "engines" / "microvm" / "guest" / sources.READY.name)
    return Component("debian", name, version, source)


def place_bytecode(root: Path, version: str) -> None:
    """Compile all modules by the bundle's own interpreter, which can run where the bundle lies now.

    Nobody looks whether a source is newer: what is in a bundle never changes.
    """
    options: list[str | Path] = [
        "-q",
        "-q",
        "-f",
        "--invalidation-mode",
        "unchecked-hash",
        "-s",
        root,
        "-p",
        layout.prefix(version),
    ]
    run([root / "bin" / "python3", "-m", "compileall", *options, "-j", "0", root / "lib"])
