"""A boot set put together: planned from what there is, made beside its place, and there whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Final

from engines.microvm.boot import agent, bootset, cmdline, cpio, kernel, modules, package, sources
from engines.microvm.boot import manifest as manifests
from engines.microvm.boot.bootset import BootSet
from engines.microvm.boot.manifest import Item, Manifest
from engines.microvm.boot.modules import Module
from engines.microvm.boot.settings import BootSettings
from engines.microvm.boot.sources import Installed, Package
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import syscall_error

# Another number, another directory: for when the same files would be put together in another way.
_RECIPE: Final = 3
_WORK: Final = ".making-"
# So many sets stay, 55 MB each.
_KEPT: Final = 3


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a boot set is made from; ``key`` is the same for what will be the same."""

    source: Installed | Package
    agent: agent.Sources | Path
    urgent: tuple[str, ...]
    modules: tuple[str, ...]
    key: str


def folder(root: Path) -> Path:
    """Where boot sets are."""
    return root / "microvm" / "boot"


def plan(settings: BootSettings) -> Recipe:
    """What is to be done. :raises ForgeError: what is missing for it."""
    source = sources.find(settings)
    program = agent.find(settings.agent)
    urgent, wanted = modules.urgent(settings.vmm), modules.wanted(settings.vmm)
    hashed = sha256(f"{_RECIPE} {urgent} {wanted} {modules.LATER} {cmdline.LINES}\n".encode())
    for line in (*_said(source), program.digest if isinstance(program, agent.Sources) else _digest(program)):
        hashed.update(line.encode() + b"\n")
    return Recipe(source, program, urgent, wanted, hashed.hexdigest())


def assemble(settings: BootSettings, root: Path, deadline: Deadline) -> BootSet:
    """The boot set that the configuration means, made below ``root`` if it is not there yet, and checked whole.

    :raises ForgeError: what is missing, or what is not as it must be.
    """
    if settings.boot_set:
        return bootset.load(Path(settings.boot_set), settings)
    recipe = plan(settings)
    place = folder(root) / recipe.key
    if not place.is_dir():
        make(recipe, place, deadline)
        _prune(place)
    return bootset.load(place, settings)


def make(recipe: Recipe, place: Path, deadline: Deadline) -> None:
    """Make the directory ``place``; somebody else who makes the same at this time is no error.

    :raises ForgeError: nothing is left of it then.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep(place.parent)
        with _work(place.parent) as work:
            ready = work / "set"
            ready.mkdir(mode=0o755)
            for name, content in _contents(recipe, work, deadline).items():
                _write(ready / name, content)
            _sync(ready)
            # A directory that is not empty is never replaced: it would be the same.
            with contextlib.suppress(FileExistsError):
                _rename(ready, place)
            _sync(place.parent)
    except OSError as error:
        raise syscall_error("make", place, error) from None


def initrd(
    program: bytes,
    found: Sequence[Module],
    later: Sequence[Module] = (),
    asked: Sequence[tuple[str, ...]] = (),
    *,
    urgent: int,
) -> bytes:
    """The agent as ``/init``, the modules, and their paths in the order to load them in.

    The first ``urgent`` are listed in ``/modules``, the others in ``/rest``, and those for ``later`` in ``/later``, by
    the words that are ``asked`` with.
    """
    paths = [f"/{_path(module.name)}\n" for module in found]
    words = "".join(f"{word} {' '.join(f'/{_path(name)}' for name in names)}\n" for word, *names in asked).encode()
    return cpio.archive(
        (
            *(cpio.directory(path) for path in ("dev", "lib", "lib/modules", "proc", "run", "sys")),
            cpio.file("init", program, 0o755),
            cpio.file("modules", "".join(paths[:urgent]).encode()),
            cpio.file("rest", "".join(paths[urgent:]).encode()),
            cpio.file("later", words),
            *(cpio.file(_path(module.name), module.image) for module in (*found, *later)),
        )
    )


def _path(name: str) -> str:
    return f"lib/modules/{name}.ko"


def _contents(recipe: Recipe, work: Path, deadline: Deadline) -> dict[str, bytes]:
    source = recipe.source
    if isinstance(source, Package):
        source = package.unpack(source.path, work / "package", deadline)
    program = (
        agent.checked(recipe.agent) if isinstance(recipe.agent, Path) else agent.build(recipe.agent, work, deadline)
    )
    found = kernel.extract(source.kernel.read_bytes(), str(source.kernel))
    deadline.check("the kernel was unpacked")
    tree = modules.scan(source.modules)
    loaded = modules.resolve(recipe.modules, tree)
    # What the urgent ones depend on comes first, too.
    urgent = len(modules.resolve(recipe.urgent, tree))
    archive = initrd(program, loaded, *modules.later(modules.LATER, loaded, tree), urgent=urgent)
    said = Manifest(
        release=found.release,
        kernel=_item(found.image),
        initrd=_item(archive),
        agent=_item(program),
        cmdline=cmdline.LINES,
    )
    return {bootset.KERNEL: found.image, bootset.INITRD: archive, bootset.MANIFEST: manifests.encode(said)}


def _item(content: bytes) -> Item:
    return Item(digest=f"sha256:{sha256(content).hexdigest()}", size=len(content))


def _said(source: Installed | Package) -> tuple[str, ...]:
    """The source by its content; modules by how many bytes each has and when it changed, for there are thousands."""
    if isinstance(source, Package):
        return ("package", _digest(source.path))
    tree = modules.scan(source.modules)
    status = [(name, path.stat()) for name, path in sorted(tree.files.items())]
    return ("installed", _digest(source.kernel), *(f"{name} {one.st_size} {one.st_mtime_ns}" for name, one in status))


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise syscall_error("read", path, error) from None


@contextlib.contextmanager
def _work(parent: Path) -> Iterator[Path]:
    """A directory that ends with the block, and is known to be in use until then."""
    while (held := _hold(path := Path(tempfile.mkdtemp(prefix=_WORK, dir=parent)))) < 0:
        pass
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def _hold(path: Path) -> int:
    """A locked descriptor of the directory; -1 where somebody who swept took it for left behind."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    fcntl.flock(fd, fcntl.LOCK_EX)
    if path.exists():
        return fd
    os.close(fd)
    return -1


def _sweep(parent: Path) -> None:
    """Remove what was left by those who did not come to their end."""
    for path in parent.glob(f"{_WORK}*"):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(fd)


def _prune(newest: Path) -> None:
    """Remove the oldest sets but a few: another forgeoned, which this one replaces, may still use its own."""
    parent = newest.parent
    with contextlib.suppress(OSError):
        others = [path for path in parent.iterdir() if path != newest and not path.name.startswith(_WORK)]
        for path in sorted(others, key=lambda one: one.stat().st_mtime, reverse=True)[_KEPT - 1 :]:
            # Half a set must not have its name.
            gone = parent / f"{_WORK}{path.name}"
            path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _rename(ready: Path, place: Path) -> None:
    try:
        ready.rename(place)
    except OSError as error:
        if not place.is_dir():
            raise
        raise FileExistsError(place) from error


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        os.fchmod(file.fileno(), 0o444)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
