"""The versions that lie on a node. Each comes and goes by one rename: under its own name one is whole, or not there.

``.VERSION.new`` is being copied, ``.VERSION.old`` was in the place of one that is laid out again, ``.VERSION.gone`` is
being removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import InternalError, syscall_error
from forgeone_shim.fs.sync import syncfs
from forgeone_shim.fs.trees import remove_tree
from forgeone_shim.kernel import mounts, spawn
from forgeone_shim.node import bundle, files, layout
from forgeone_shim.node.bundle import Bundle
from forgeone_shim.node.layout import Layout

_NEW: Final = "new"
_OLD: Final = "old"
_GONE: Final = "gone"


def lay_out(node: Layout, source: Bundle, *, replaces: bool, deadline: Deadline) -> None:
    """Copy a bundle to its version's place, made that place's and checked byte by byte.

    :raises InternalError: it cannot be written, or is not what its manifest says.
    """
    place = node.at(layout.version_directory(source.version))
    new = _beside(place, _NEW)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        remove(new)
        _copy(source, new, deadline)
        _relocate(source, new, deadline)
        if wrong := bundle.problem(source, new, relocated=False):
            raise InternalError(f"the bundle {source.directory} cannot be used: {wrong}", fix="unpack it again")
        syncfs(new)
        if replaces:
            place.rename(_beside(place, _OLD))
        new.rename(place)
        files.sync(place.parent)
    except OSError as error:
        raise syscall_error("lay out", error.filename or place, error) from None


def stage(node: Layout, source: Bundle, directory: str, deadline: Deadline) -> None:
    """Copy a bundle to a directory of the node's so that it runs from there.

    :raises InternalError: it cannot be written, or is not what its manifest says.
    """
    place = node.at(directory)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        remove(place)
        _copy(source, place, deadline)
        if source.relocated:
            _relocated(source, place, directory, deadline)
    except OSError as error:
        raise syscall_error("lay out", error.filename or place, error) from None


def take_back(node: Layout, version: str, *, replaces: bool) -> None:
    """The inverse of :func:`lay_out`, however far that has come.

    :raises InternalError: something cannot be removed.
    """
    place = node.at(layout.version_directory(version))
    remove(_beside(place, _NEW))
    old = _beside(place, _OLD)
    # Pods that it has started meanwhile have supervisors of it, which go on; the next installation removes it.
    if not old.exists() if replaces else _in_use(node, f"{layout.version_directory(version)}/"):
        return
    remove(place)
    if replaces:
        try:
            old.rename(place)
            files.sync(place.parent)
        except OSError as error:
            raise syscall_error("put back", place, error) from None


def present(node: Layout) -> tuple[str, ...]:
    """What lies there, the oldest first, also what is not under its name (any more)."""
    return tuple(path.name for path in _directories(node))


def superfluous(node: Layout, current: str, keep: int) -> tuple[str, ...]:
    """What may be removed, as the node's paths: versions beyond the newest ``keep``, and what was left half done.

    Not the current one, none that a process still runs from, as supervisors of pods outlive an upgrade, and none that
    Debian's package manager looks after.
    """
    others = [path for path in _directories(node) if path.name != current]
    whole = [path for path in others if not path.name.startswith(".")]
    old = whole[: max(0, len(whole) - (keep - 1))]
    hidden = [path for path in others if path.name.startswith(".") and path.suffix[1:] in {_NEW, _OLD, _GONE}]
    kept = packaged(node)
    return tuple(
        f"{layout.VERSIONS}/{path.name}"
        for path in (*old, *hidden)
        if path.name not in kept and not _in_use(node, f"{layout.VERSIONS}/{path.name}/")
    )


def forget_replaced(node: Layout) -> None:
    """Remove what a finished installation has replaced: :func:`take_back` would take it for what the next one has.

    :raises InternalError: it cannot be removed.
    """
    for path in _directories(node):
        if path.name.startswith(".") and path.suffix == f".{_OLD}":
            remove(path)


def processes(node: Layout, directory: str) -> tuple[str, ...]:
    """Processes of the node's, but this one, that execute something in a directory of its; how a path begins depends on
    who looks, and a container may have the same path of its own.
    """
    return tuple(_executing(node, directory))


def packaged(node: Layout) -> frozenset[str]:
    """The versions that are dpkg's, of the package of either flavour."""
    lists = (f"/var/lib/dpkg/info/{package}.list" for package in ("forgeone", "forgeone-microvm"))
    listed = b"\n".join(files.read(node.at(path, follow=True)) or b"" for path in lists)
    lines = (line for line in listed.decode(errors="replace").splitlines() if line.startswith(f"{layout.VERSIONS}/"))
    return frozenset(line.removeprefix(f"{layout.VERSIONS}/").split("/")[0] for line in lines)


def remove(path: Path) -> None:
    """Remove a tree, or a file; what is mounted in it is unmounted first. A missing one is no error.

    :raises InternalError: it cannot be removed.
    """
    try:
        for point in _mounted(path):
            mounts.unmount(point)
        if path.is_dir() and not path.is_symlink() and not path.name.endswith(f".{_GONE}"):
            gone = _beside(path, _GONE)
            with files.opened(path.parent) as parent:
                remove_tree(parent, gone.name)
            with contextlib.suppress(OSError):  # a mount point, a file system's root: emptied where it is
                path.rename(gone)
                path = gone
        if path.is_symlink() or path.exists():
            with files.opened(path.parent) as parent:
                remove_tree(parent, path.name)
    except OSError as error:
        raise syscall_error("remove", path, error) from None


def _beside(place: Path, what: str) -> Path:
    return place.with_name(f".{place.name.removeprefix('.')}.{what}")


def _copy(source: Bundle, target: Path, deadline: Deadline) -> None:
    target.mkdir(mode=0o755)
    target.chmod(0o755)
    made = {target}
    for name, file in (*sorted(source.files.items()), (bundle.MANIFEST, None)):
        deadline.check("while the bundle was copied")
        path = target / name
        _directories_of(path.parent, made)
        shutil.copyfile(source.directory / name, path, follow_symlinks=False)
        path.chmod(int(file.mode, 8) if file else 0o644)
    for name, leads in source.links.items():
        path = target / name
        _directories_of(path.parent, made)
        path.symlink_to(leads)


def _directories_of(directory: Path, made: set[Path]) -> None:
    """Readable for all, whatever the umask."""
    if directory in made:
        return
    _directories_of(directory.parent, made)
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    made.add(directory)


def _relocate(source: Bundle, new: Path, deadline: Deadline) -> None:
    """A bundle that was unpacked elsewhere was made that directory's; its own program makes the copy the prefix's."""
    if source.relocated and bundle.problem(source, new, relocated=False):
        _relocated(source, new, layout.version_directory(source.version), deadline)


def _relocated(source: Bundle, copy: Path, directory: str, deadline: Deadline) -> None:
    if wrong := bundle.problem(source, copy, relocated=True):
        raise InternalError(f"the bundle {source.directory} cannot be used: {wrong}", fix="unpack it again")
    program = str(copy / bundle.RELOCATE)
    done = spawn.run(program, [program, directory], deadline)
    if done.code:
        raise InternalError(f"{program}: {done.text or f'exit code {done.code}'}")


def _directories(node: Layout) -> list[Path]:
    directory = node.at(layout.VERSIONS)
    try:
        found = [path for path in directory.iterdir() if path.is_dir() and not path.is_symlink()]
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise syscall_error("read", directory, error) from None


def _in_use(node: Layout, directory: str) -> bool:
    return bool(processes(node, directory))


def _executing(node: Layout, directory: str) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in os.scandir(node.at("/proc")):
            if not entry.name.isdecimal() or entry.name == str(os.getpid()):
                continue
            with contextlib.suppress(OSError):
                exe = Path(entry.path, "exe")
                program = str(exe.readlink())
                _, found, rest = program.partition(directory)
                if found and _of(exe, node.at(f"{directory}{rest}"), node.at(directory)):
                    yield f"{entry.name} ({Path(program).name})"


def _of(exe: Path, place: Path, directory: Path) -> bool:
    """Whether what is executed is, or has been, what is in this place of the node's."""
    try:
        executed = exe.stat()
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(executed, place.stat())
        return executed.st_dev == directory.stat().st_dev
    except OSError:
        return True


def _mounted(path: Path) -> list[str]:
    """What is mounted in a tree, the innermost first; not what is mounted on its top."""
    points = (line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    decoded = (point.encode().decode("unicode_escape") for point in points)
    return sorted((point for point in decoded if point.startswith(f"{path}/")), reverse=True)
