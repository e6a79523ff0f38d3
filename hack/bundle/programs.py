"""Programs of Debian's, with the loader and the libraries that they were made with, as they lie in the bundle."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forgeone_shim.errors import FailedPrecondition
from hack.bundle import layout, manifest
from hack.bundle.blind import blinded
from hack.bundle.commands import run
from hack.bundle.debian import Files, Found, Package
from hack.bundle.layout import Arch

_LOADED_LATER: Final = ("libgcc_s.so.1", "libnss_compat.so.2")
"""What libc opens by name: for a thread that is cancelled, and for a host whose nsswitch.conf says ``compat``."""


_NEEDED: Final = re.compile(r"\(NEEDED\)\s+Shared library: \[([^]]+)]")


@dataclass(frozen=True, slots=True)
class Program:
    """What is taken from where.

    :param place: in the bundle.
    :param pattern: as :meth:`~hack.bundle.debian.Files.find` has it.
    """

    place: str
    pattern: str


PROGRAMS: Final = (
    Program("bin/crun", "bin/crun"),
    Program("bin/conmon", "bin/conmon"),
    Program("bin/catatonit", "bin/catatonit"),
    Program("bin/mkfs.erofs", "bin/mkfs.erofs"),
    Program("bin/nft", "sbin/nft"),
)
MACHINES: Final = (
    Program("bin/qemu-system-x86_64", "bin/qemu-system-x86_64"),
    # QEMU looks for these beside its own directory: firmware, what enters a kernel, the emulated processor.
    *(
        Program(f"share/qemu/{name}", f"share/qemu/{name}")
        for name in ("bios-microvm.bin", "linuxboot_dma.bin", "pvh.bin")
    ),
    Program("lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so", "lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so"),
)
"""What virtual machines run by."""
PACKAGES: Final = ("crun", "conmon", "catatonit", "erofs-utils", "nftables", "libgcc-s1", "libstdc++6")
MACHINES_PACKAGES: Final = ("qemu-system-x86",)
KERNEL: Final = "linux-image-cloud-amd64"


def needed(paths: Iterable[Path]) -> Mapping[Path, tuple[str, ...]]:
    """Of the ELF files among ``paths``, the libraries that each names; a static program names none."""
    elves = [path for path in paths if _is_elf(path)]
    found: dict[Path, tuple[str, ...]] = dict.fromkeys(elves, ())
    # Of a single file readelf does not say which it is.
    for text in run(["readelf", "--wide", "--dynamic", *elves[:1], *elves]).split("File: ") if elves else ():
        name, _, listed = text.partition("\n")
        if Path(name) in found:
            found[Path(name)] = tuple(_NEEDED.findall(listed))
    return found


def closure(
    roots: Mapping[str, Sequence[str]], available: Callable[[str], bool], needs: Callable[[str], Sequence[str]]
) -> tuple[str, ...]:
    """All libraries that ``roots`` (what needs them, by name) come to need.

    :param available: whether a library can be had.
    :param needs: what one needs itself.
    :raises FailedPrecondition: one cannot be had; names who needs it.
    """
    found: dict[str, None] = {}
    waiting = [(root, name) for root, names in roots.items() for name in names]
    while waiting:
        root, name = waiting.pop()
        if name in found:
            continue
        if not available(name):
            raise FailedPrecondition(f"{root} needs {name}, which is in none of Debian's packages that were brought")
        found[name] = None
        waiting += [(name, other) for other in needs(name)]
    return tuple(sorted(found))


def place_programs(programs: Iterable[Program], files: Files, root: Path) -> tuple[Package, ...]:
    """Copy them; returns whose they are."""
    owners = []
    for program in programs:
        found = files.find(program.pattern)
        _copy(found.path, root / program.place)
        owners.append(found.package)
    return tuple(owners)


def place_libraries(root: Path, files: Files, arch: Arch) -> tuple[Package, ...]:
    """Copy the loader, and all libraries that the ELF files below ``root`` need; returns whose they are."""
    inside = needed(path for _, path in manifest.walk(root) if path.is_file() and not path.is_symlink())
    roots = {str(path.relative_to(root)): names for path, names in inside.items()}
    roots["libc"] = (arch.loader, *_LOADED_LATER)
    libraries = files.libraries
    every = needed(found.path for found in libraries.values())
    names = closure(roots, libraries.__contains__, lambda name: every[libraries[name].path])
    owners = []
    for name in names:
        found: Found = libraries[name]
        target = root / "lib" / name
        target.write_bytes(blinded(name, found.path.read_bytes(), arch))
        target.chmod(0o755 if name == arch.loader else 0o644)
        owners.append(found.package)
    return tuple(owners)


def relocatable(root: Path, arch: Arch) -> tuple[str, ...]:
    """Give each program that has a loader the fields that ``relocate`` writes; returns which."""
    made = []
    tail = f"/lib/{arch.loader}"
    interpreter = f"/{'/' * (layout.FIELD - len(tail) - 1)}{tail}"
    # Older than DT_RUNPATH, and what is wanted: it comes before LD_LIBRARY_PATH, and holds for libraries of libraries.
    libraries = f"{'/' * (layout.FIELD - 4)}/lib"
    for folder in ("bin", layout.PROGRAMS):
        for path in sorted((root / folder).iterdir()):
            if path.is_symlink() or not path.is_file() or not needed([path]).get(path):
                continue
            run(["patchelf", "--set-interpreter", interpreter, "--force-rpath", "--set-rpath", libraries, path])
            made.append(str(path.relative_to(root)))
    return tuple(made)


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if target.parent.name == "bin" else 0o644)
