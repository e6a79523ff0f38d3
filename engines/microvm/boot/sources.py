"""Where the guests' kernel and its modules come from: what the configuration names, the host's own, or a package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engines.microvm.boot import kernel
from engines.microvm.boot.settings import BootSettings
from forgeone_shim.errors import FailedPrecondition, InvalidInput

BOOT: Final = Path("/boot")
MODULES: Final = Path("/lib/modules")
# Where hack/kernel puts Debian's package, which is not installed: it would become the host's own kernel.
PACKAGES: Final = Path("/var/cache/forgeone/kernel")
READY: Final = Path(__file__).resolve().parents[1] / "guest" / "kernel.deb"
"""Where a package of ForgeOne's has one for machines alone, which comes before the host's own."""
_PACKAGE: Final = ".deb"
_NONE: Final = "no kernel for guests was found"
_NUMBER: Final = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Installed:
    """A kernel's file, and the directory of its modules."""

    kernel: Path
    modules: Path


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package that holds both."""

    path: Path


def find(
    settings: BootSettings,
    *,
    ready: Path = READY,
    boot: Path = BOOT,
    modules: Path = MODULES,
    packages: Path = PACKAGES,
) -> Installed | Package:
    """What is to be used: of several the newest by its version.

    :raises InvalidInput: what the configuration names cannot be used.
    :raises FailedPrecondition: it names nothing, and there is nothing.
    """
    if settings.kernel:
        return _named(Path(settings.kernel), settings.modules_dir, modules)
    if settings.modules_dir:
        raise InvalidInput("microvm.modules_dir", "is of a kernel, and microvm.kernel names none")
    if ready.is_file():
        return Package(ready)
    images = [
        Installed(image, folder)
        for image in boot.glob("vmlinuz-*")
        if (folder := modules / image.name.removeprefix("vmlinuz-")).joinpath("modules.builtin").is_file()
    ]
    if images:
        return max(images, key=lambda found: _version(found.kernel.name))
    found = max(packages.glob(f"*{_PACKAGE}"), key=lambda path: _version(path.name), default=None)
    if found is None:
        raise FailedPrecondition(
            f"{_NONE}: neither {boot}/vmlinuz-* with its modules nor a package in {packages}",
            fix="hack/kernel, or name one in microvm.kernel",
        )
    return Package(found)


def _named(path: Path, modules_dir: str, modules: Path) -> Installed | Package:
    if not path.is_file():
        raise InvalidInput("microvm.kernel", f"{path} is no file")
    if path.suffix == _PACKAGE:
        if modules_dir:
            raise InvalidInput("microvm.modules_dir", "is of no use with a package, which brings its modules")
        return Package(path)
    if modules_dir:
        return Installed(path, Path(modules_dir))
    return Installed(path, modules / kernel.release(path.read_bytes(), str(path)))


def _version(name: str) -> list[tuple[int, str]]:
    """What names of versions are ordered by: numbers in them count as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _NUMBER.split(name) if part]
