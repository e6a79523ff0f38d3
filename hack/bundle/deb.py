"""The bundle as a Debian package: the tree in its version's directory, the unit, ``/usr/bin/forge``, what dpkg is told.

A version's directory goes when its package is replaced. Processes of running pods may still need it, so the outgoing
package keeps a second name of every file, and the incoming one puts back what is still in use (see ``maintainer/``).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from hack.bundle import artifacts, layout, manifest
from hack.bundle.artifacts import Stamp
from hack.bundle.commands import run

MAINTAINER: Final = "ForgeOne maintainers <maintainers@forgeone.dev>"

_SCRIPTS: Final = Path(__file__).resolve().parent / "maintainer"
_NAMES: Final = ("postinst", "prerm", "postrm")
_UNIT: Final = "lib/systemd/system/forgeoned.service"
_COMMANDS: Final = ("forge",)
_CONFIG: Final = """\
# Configuration of forgeoned. What is not said here is as /opt/forgeone/current/bin/forgeoned --print-config shows it;
# /opt/forgeone/current/share/doc/configuration.md has every key.
"""
_CONTROL: Final = """\
Package: {name}{suffix}
Version: {version}
Architecture: {arch}
Maintainer: {maintainer}
Installed-Size: {size}
Section: admin
Priority: optional
Depends: init-system-helpers (>= 1.54~)
Recommends: kmod
{relations}Description: Kubernetes container runtime for native, wasm and microVM pods
 A kubelet speaks CRI to forgeoned, which runs each container on one of three
 engines under a zero-trust contract. This package has a Python, libraries and
 programs of its own below /opt/forgeone and uses none of the system's.
"""


def write(root: Path, target: Path, stamp: Stamp) -> None:
    """``forgeone_VERSION_ARCH.deb``, by dpkg-deb.

    :raises ForgeError: dpkg-deb is missing, or fails.
    """
    tree = target.parent / "deb"
    place = tree / layout.prefix(stamp.version)[1:]
    place.parent.mkdir(parents=True)
    # Not copies: dpkg-deb alone reads them.
    shutil.copytree(root, place, symlinks=True, copy_function=_link)
    unit = tree / _UNIT
    unit.parent.mkdir(parents=True)
    shutil.copyfile(root / layout.UNIT, unit)
    for name in _COMMANDS:
        command = tree / "usr" / "bin" / name
        command.parent.mkdir(parents=True, exist_ok=True)
        # Not by way of ``current``, which `forge node uninstall` takes away.
        command.symlink_to(f"{layout.prefix(stamp.version)}/bin/{name}")
    config = tree / "etc" / "forgeone" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(_CONFIG)
    _normalize(tree)
    size = sum(path.lstat().st_size for path in tree.rglob("*") if path.is_file()) // 1024
    _control(tree / "DEBIAN", stamp, size)
    # An older dpkg, as on the oldest systems served, knows no zstd; xz takes two minutes.
    options = ["--root-owner-group", "-Zgzip", f"-z{artifacts.LEVEL}"]
    run(["dpkg-deb", *options, "--build", tree, target], env={"SOURCE_DATE_EPOCH": str(stamp.epoch)})
    shutil.rmtree(tree)


def _control(folder: Path, stamp: Stamp, size: int) -> None:
    folder.mkdir(mode=0o755)
    values = {"name": layout.NAME, "version": stamp.version, "arch": stamp.arch.debian, "maintainer": MAINTAINER}
    other = layout.NAME if stamp.suffix else f"{layout.NAME}-{layout.MICROVM}"
    relations = f"Conflicts: {other}\nReplaces: {other}\n"
    relations += f"Provides: {layout.NAME} (= {stamp.version})\n" if stamp.suffix else "Suggests: qemu-system-x86\n"
    (folder / "control").write_text(_CONTROL.format(**values, suffix=stamp.suffix, relations=relations, size=size))
    (folder / "conffiles").write_text("/etc/forgeone/config.toml\n")
    for name in _NAMES:
        text = (_SCRIPTS / name).read_text().replace("@VERSION@", stamp.version)
        (folder / name).write_text(text)
    _normalize(folder)


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def _normalize(tree: Path) -> None:
    tree.chmod(0o755)
    for _, path in manifest.walk(tree):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
        elif not path.is_symlink():
            path.chmod(0o755 if path.parent.name == "DEBIAN" and path.name in _NAMES else manifest.mode(path))
