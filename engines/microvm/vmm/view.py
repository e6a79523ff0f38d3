"""The files that a monitor is loaded from, and an empty file system besides.

All of them lie below one mount of its file system, :data:`FILES`, so that one call takes them away.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from engines.microvm.vmm.base import Confinement
from forgeone_shim.errors import syscall_error
from forgeone_shim.kernel import mounts, trees

FILES: Final = "/files"
# Where a monitor's sockets are, and what becomes its disks; it stays.
PLACE: Final = "/place"
# What programs and their libraries lie in, on hosts of whatever kind; a link stays one.
_SYSTEM: Final = ("usr", "bin", "lib", "lib32", "lib64", "libx32")
_LINKER_CACHE: Final = "etc/ld.so.cache"
_SAFE: Final = trees.RDONLY | trees.NOSUID
_TMPFS: Final = {"mode": "755", "size": "64k"}
_KVM: Final = os.makedev(10, 232)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is there besides the system's programs and libraries, until it is taken away.

    ``files`` are paths of the host's by their names below :data:`FILES`; the monitor's user must be allowed to read
    them. ``kvm``: there is /dev/kvm. ``devices`` are character devices by their names below /dev. ``place`` is a tree
    (:mod:`engines.microvm.vmm.place`), -1: none.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    kvm: bool = False
    devices: Mapping[str, int] = field(default_factory=dict)
    place: int = -1


def enter(seen: View, path: str, who: Confinement) -> None:
    """Make that the root of this process, whose mount namespace is its own, to execute ``path`` in it.

    :raises InternalError: it cannot be made.
    """
    with ExitStack() as stack:
        loaded = {name: _tree(source, stack) for name, source in sources(seen, path).items()}
        proc = _new("proc", {"subset": "pid"}, _SAFE | trees.NOEXEC, stack)
        with step("mount", "an empty root"):
            root = _new("tmpfs", _TMPFS, trees.NOSUID | trees.NODEV, stack)
            below = _new("tmpfs", _TMPFS, trees.NOSUID, stack)
            trees.keep_to_itself()
            trees.stage(root, "/")
            _mount(below, FILES[1:], root)
        for name, tree in {**loaded, "proc": proc}.items():
            with step("mount on", name):
                _mount(tree, name, below)
        if seen.place >= 0:
            with step("mount on", PLACE):
                _mount(seen.place, PLACE[1:], root)
        for name in {name.partition("/")[0] for name in (*loaded, "proc", "dev")}:
            os.symlink(f"files/{name}", name, dir_fd=root)
        for name in _SYSTEM:
            link = Path("/", name)
            if link.is_symlink():
                os.symlink(link.readlink(), name, dir_fd=root)
        for name, device in {**({"kvm": _KVM} if seen.kvm else {}), **seen.devices}.items():
            with step("mknod", f"/dev/{name}"):
                _parents(f"dev/{name}", below)
                os.mknod(f"dev/{name}", stat.S_IFCHR | 0o600, device, dir_fd=below)
                os.chown(f"dev/{name}", who.uid, who.gid, dir_fd=below)
        with step("remount", "the root"):
            trees.change(below, trees.RDONLY)
            trees.change(root, trees.RDONLY)
            trees.become_root()


def sources(seen: View, path: str) -> dict[str, str]:
    """Which files of the host's there are for ``path``: their names below :data:`FILES`, and their paths."""
    here = [(name, Path("/", name)) for name in _SYSTEM]
    found = {name: str(place) for name, place in here if place.is_dir() and not place.is_symlink()}
    if Path("/", _LINKER_CACHE).exists():
        found[_LINKER_CACHE] = f"/{_LINKER_CACHE}"
    if path.split("/")[1] not in found:
        # What comes with a monitor that was not installed by the system lies beside its bin, if it has one.
        beside = Path(path).parent.parent if Path(path).parent.name == "bin" else Path(path)
        home = path if beside == Path("/") else str(beside)
        found[home[1:]] = home
    return {**found, **seen.files}


def _tree(source: str, stack: ExitStack) -> int:
    with step("open_tree", source):
        tree = mounts.clone(source, recursive=True)
        stack.callback(os.close, tree)
        trees.change(tree, _SAFE | trees.NODEV, below=True, propagation="rprivate")
    return tree


def _new(kind: str, options: Mapping[str, str], attributes: int, stack: ExitStack) -> int:
    with step("mount", kind):
        tree = trees.new(kind, options, attributes)
    stack.callback(os.close, tree)
    return tree


def _mount(tree: int, name: str, root: int) -> None:
    """On a place that is made for it in ``root``, which is nobody else's."""
    _parents(name, root)
    if stat.S_ISDIR(os.fstat(tree).st_mode):
        os.mkdir(name, 0o755, dir_fd=root)
    else:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444, dir_fd=root))
    target = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    try:
        trees.attach(tree, target)
    finally:
        os.close(target)


def _parents(name: str, root: int) -> None:
    parts = name.split("/")
    for depth in range(1, len(parts)):
        with contextlib.suppress(FileExistsError):
            os.mkdir("/".join(parts[:depth]), 0o755, dir_fd=root)


@contextmanager
def step(call: str, what: str) -> Iterator[None]:
    """An OSError in it is an InternalError that says what failed."""
    try:
        yield
    except OSError as error:
        raise syscall_error(call, what, error) from error
