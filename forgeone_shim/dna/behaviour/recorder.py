"""What the kernel counts: the program loaded and attached while some control group is watched, and read.

Program and maps are pinned in a bpf file system of ForgeOne's own, so that they go on counting when forgeoned is
killed or replaced. With the last watched group all of it goes, and no system call of this host costs more than before.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import mmap
import os
import select
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final

import structlog

from forgeone_shim.dna.behaviour import program
from forgeone_shim.dna.behaviour.program import ENTRY, LEVELS, SLOTS, Maps
from forgeone_shim.errors import FailedPrecondition, ResourceExhausted, syscall_error
from forgeone_shim.kernel import ebpf, mounts
from forgeone_shim.kernel.ebpf import MapType

#: Groups that can be watched at one time.
CAPACITY: Final = 1024
_NEWS_BYTES: Final = 64 * 1024
# Made before somebody needs them: to put a map into an array of maps takes the kernel a grace period (RCU), some 10 ms.
_SPARES: Final = 2
# News of one start are many at once: they are looked at together, so many seconds after the last look.
_PAUSE: Final = 0.05
# After a look that failed: nobody is told of its news again.
_AGAIN: Final = 1.0
_KEY: Final = struct.Struct("<Q")
_ONE: Final = struct.Struct("<I")
_FIRST: Final = bytes(4)
_LINK, _NEW = "link", "new"
# The first control group namespace (include/linux/proc_ns.h): in another, paths do not tell a group's depth.
_INITIAL: Final = 0xEFFFFFFB


@dataclass(frozen=True, slots=True)
class Group:
    """A control group of the unified hierarchy; ``level`` is its depth, 0 that of the root."""

    id: int
    level: int


@dataclass(frozen=True, slots=True)
class Counts:
    """What a group did, by slot (:mod:`~forgeone_shim.dna.behaviour.program`): how often, and in which order first."""

    counts: tuple[int, ...]
    order: tuple[int, ...]


def group_at(mount: str, directory: str) -> Group:
    """The group of a directory of the hierarchy mounted at ``mount``. Raises OSError."""
    # On 64-bit machines a group's id is the number of its directory's inode.
    level = len([part for part in directory.removeprefix(mount).split("/") if part])
    return Group(Path(directory).stat().st_ino, level)


class Recorder:
    """Thread-safe. Nothing is loaded before the first :meth:`watch`, or where an earlier one left something."""

    def __init__(
        self, directory: Path, told: Callable[[], None], later: Callable[[Callable[[], None]], object]
    ) -> None:
        """``directory`` is where the bpf file system is mounted. ``told`` is called, in a thread of the recorder's,
        when some group has made a call that it had not made before; ``later`` runs a job beside other work."""
        self._directory, self._told, self._later = directory, told, later
        self._lock = threading.RLock()
        self._loaded: _Loaded | None = None
        self._spares: list[int] = []
        self._listener: _Listener | None = None
        self._log = structlog.get_logger("behaviour")

    # -- what is watched

    def check(self) -> None:
        """Have all ready that a :meth:`watch` needs; whoever does not watch after all says so by :meth:`settle`.

        :raises FailedPrecondition: this host cannot watch what containers do, and why.
        """
        with self._lock:
            self._open()
            if not self._spares:
                self._later(self._prepare)

    def watch(self, group: Group) -> None:
        """Count the calls of a group from now on; one that is watched already is no error.

        :raises FailedPrecondition: this host cannot.
        :raises ResourceExhausted: too many are watched, or at too many depths.
        """
        with self._lock:
            loaded = self._open()
            watched = loaded.watched()
            if group.id in watched:
                return
            levels = {group.level, *(level for _, level in watched.values())}
            if len(levels) > LEVELS:
                raise ResourceExhausted(f"containers at more than {LEVELS} depths of control groups cannot be watched")
            try:
                place = self._spares.pop() if self._spares else self._fresh(loaded, {at for at, _ in watched.values()})
                loaded.look_at(levels)
                ebpf.update(loaded.maps.groups, _KEY.pack(group.id), ENTRY.pack(place, group.level))
            except OSError as error:
                raise syscall_error("bpf: watch control group", group.id, error) from error
            if not self._spares:
                self._later(self._prepare)

    def watched(self) -> set[int]:
        """The ids of the groups, of those too that an earlier process watched."""
        with self._lock:
            if self._loaded is None and not (self._directory.is_dir() and (self._directory / _version()).is_dir()):
                return set()
            return set(self._open().watched())

    def read(self, group_id: int) -> Counts | None:
        """What a group did until now; ``None`` where it is not watched."""
        with self._lock:
            entry = self._entry(group_id)
            if entry is None or self._loaded is None:
                return None
            return Counts(self._loaded.counts(entry), self._loaded.order(entry)[:SLOTS])

    def order(self, group_id: int) -> tuple[int, ...] | None:
        """By slot, when it was called first (from 1), 0: never; cheaper than :meth:`read`."""
        with self._lock:
            entry = self._entry(group_id)
            return None if entry is None or self._loaded is None else self._loaded.order(entry)[:SLOTS]

    def forget(self, group_id: int) -> None:
        """Count no more of a group; one that is not watched is no error. After the last, all is unloaded."""
        with self._lock:
            if self._entry(group_id) is None or self._loaded is None:
                return
            ebpf.delete(self._loaded.maps.groups, _KEY.pack(group_id))
            self.settle()

    def keep(self, groups: set[int]) -> None:
        """Of what an earlier process left, keep these groups alone; without any, nothing."""
        with self._lock:
            if not self._directory.is_dir():
                return
            for stranger in self.watched() - groups:
                self.forget(stranger)
            self.settle()
            if self._loaded is None:
                # Another version's, or what one that was killed had begun.
                _remove(self._directory)

    def settle(self) -> None:
        """Unload all if no group is watched (any more)."""
        with self._lock:
            if self._loaded is not None and not self._loaded.watched():
                self._unload()
            elif self._loaded is not None:
                self._later(self._prepare)

    def close(self) -> None:
        """Let go of it; what is watched goes on being counted."""
        with self._lock:
            if self._loaded is not None and not self._loaded.watched():
                self._unload()
            self._let_go()

    # -- in the kernel

    def _entry(self, group_id: int) -> int | None:
        if self._loaded is None and group_id not in self.watched():
            return None
        return None if self._loaded is None else self._loaded.place(group_id)

    def _open(self) -> _Loaded:
        if self._loaded is None:
            reason = _unfit()
            if reason:
                raise FailedPrecondition(f"what containers do cannot be watched on this host: {reason}")
            try:
                loaded = _load(self._directory)
            except OSError as error:
                raise FailedPrecondition(
                    f"what containers do cannot be watched on this host: bpf: {error.strerror or error}",
                    fix="run forgeoned with CAP_BPF and CAP_PERFMON, on Linux 5.12 or later",
                ) from error
            try:
                self._listener = _Listener(loaded.maps.news, self._told)
            except (OSError, RuntimeError) as error:
                # To count where nobody listens would be to let drift pass.
                unused = not loaded.watched()
                loaded.close()
                if unused:
                    _remove(self._directory)
                raise FailedPrecondition(f"nobody could be told of what containers do: {error}") from error
            self._loaded = loaded
        return self._loaded

    def _unload(self) -> None:
        self._let_go()
        _remove(self._directory)

    def _let_go(self) -> None:
        self._spares.clear()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None

    def _prepare(self) -> None:
        """Have places ready for groups to come, and let go of the maps of those that went."""
        try:
            while self._prepare_one():
                pass
        except OSError as error:
            # Whoever needs one makes it then, and is told.
            self._log.warning("no room was made ready", error=str(error))

    def _prepare_one(self) -> bool:
        """The kernel takes its time for it, in which nobody is kept waiting."""
        with self._lock:
            loaded = self._loaded
            if loaded is None:
                return False
            used = {at for at, _ in loaded.watched().values()}.union(self._spares, loaded.busy)
            stale = loaded.filled - used
            place = stale.pop() if stale else _free(used)
            wanted = len(self._spares) + len(loaded.busy) < _SPARES
            if place is None or not (place in loaded.filled or wanted):
                return False
            fill = place not in loaded.filled
            loaded.busy.add(place)
            # Their own, as all may be unloaded meanwhile.
            outers = [os.dup(fd) for fd in (loaded.maps.orders, loaded.maps.counts)]
        done = False
        try:
            (_fill if fill else _empty)(outers, place)
            done = True
        finally:
            for fd in outers:
                os.close(fd)
            with self._lock:
                loaded.busy.discard(place)
                if done and fill:
                    loaded.filled.add(place)
                    self._spares += [place] if self._loaded is loaded else []
                elif done:
                    loaded.filled.discard(place)
        return True

    @staticmethod
    def _fresh(loaded: _Loaded, used: set[int]) -> int:
        place = _free(used | loaded.busy)
        if place is None:
            raise ResourceExhausted(f"{CAPACITY} containers are watched, and no more can be")
        _fill((loaded.maps.orders, loaded.maps.counts), place)
        loaded.filled.add(place)
        return place


def _free(used: set[int]) -> int | None:
    return next((place for place in range(CAPACITY) if place not in used), None)


class _Loaded:
    """The maps, as descriptors, and the link that keeps the program attached (its pin does, once there is one)."""

    def __init__(self, maps: Maps, link: int) -> None:
        self.maps, self._link = maps, link
        self._cpus = ebpf.possible_cpus()
        # Places that have maps, and those that are being given some or rid of them.
        self.filled = {place for place, _ in self.watched().values()}
        self.busy: set[int] = set()

    def watched(self) -> dict[int, tuple[int, int]]:
        """Groups by id: their places and levels."""
        found: dict[int, tuple[int, int]] = {}
        for key in ebpf.keys(self.maps.groups, _KEY.size):
            value = ebpf.lookup(self.maps.groups, key, ENTRY.size)
            if value is not None:
                place, level = ENTRY.unpack(value)
                found[_KEY.unpack(key)[0]] = (place, level)
        return found

    def place(self, group_id: int) -> int | None:
        """Where a group is counted; ``None``: it is not watched."""
        value = ebpf.lookup(self.maps.groups, _KEY.pack(group_id), ENTRY.size)
        return None if value is None else int(ENTRY.unpack(value)[0])

    def look_at(self, levels: set[int]) -> None:
        """Have the program look for groups at these depths."""
        given = [*sorted(levels), *[0] * (LEVELS - len(levels))]
        ebpf.update(self.maps.control, _FIRST, struct.pack(f"<{LEVELS}I", *given))

    def counts(self, place: int) -> tuple[int, ...]:
        """All processors' together."""
        value = self._inner(self.maps.counts, place, program.COUNTS_SIZE * self._cpus)
        each = [struct.unpack_from(f"<{SLOTS}Q", value, cpu * program.COUNTS_SIZE) for cpu in range(self._cpus)]
        return tuple(map(sum, zip(*each, strict=True)))

    def order(self, place: int) -> tuple[int, ...]:
        """By slot, and at last how many there are."""
        return struct.unpack(f"<{SLOTS + 1}Q", self._inner(self.maps.orders, place, program.ORDER_SIZE))

    @staticmethod
    def _inner(outer: int, place: int, size: int) -> bytes:
        found = ebpf.lookup(outer, _ONE.pack(place), _ONE.size)
        if found is None:
            return bytes(size)
        inner = ebpf.map_by_id(_ONE.unpack(found)[0])
        try:
            return ebpf.lookup(inner, _FIRST, size) or bytes(size)
        finally:
            os.close(inner)

    def close(self) -> None:
        """Give the descriptors back."""
        for fd in (*astuple(self.maps), self._link):
            os.close(fd)


def _fill(outers: Sequence[int], place: int) -> None:
    """Put maps with nothing counted there, in the arrays of orders and of counts."""
    for outer, make in zip(outers, (_order_map, _count_map), strict=True):
        made = make()
        try:
            ebpf.update(outer, _ONE.pack(place), _ONE.pack(made))
        finally:
            os.close(made)


def _empty(outers: Sequence[int], place: int) -> None:
    """Give back the memory of what was counted there."""
    for outer in outers:
        ebpf.delete(outer, _ONE.pack(place))


def _unfit() -> str:
    """Why a group's depth cannot be told here; empty where it can."""
    if not program.supported():
        return "this kind of machine is not known"
    if Path("/proc/self/ns/cgroup").stat().st_ino != _INITIAL:
        return "forgeoned is in a control group namespace of its own"
    return ""


def _load(directory: Path) -> _Loaded:
    """What an earlier process has pinned, or all anew. Raises OSError."""
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.stat().st_dev == directory.parent.stat().st_dev:
        mounts.mount_bpf(directory)
    here = directory / _version()
    try:
        return _pinned(here)
    except FileNotFoundError:
        pass
    # Another version's, or what one that was killed had begun.
    for path in _directories(directory):
        _clear(path)
    try:
        return _made(directory / _NEW, here)
    except BaseException:
        _remove(directory)
        raise


def _pinned(here: Path) -> _Loaded:
    with ExitStack() as undo:
        opened = []
        for name in (*_MAP_NAMES, _LINK):
            opened.append(ebpf.get(here / name))
            undo.callback(os.close, opened[-1])
        loaded = _Loaded(Maps(*opened[:-1]), opened[-1])
        undo.pop_all()
        return loaded


_MAP_NAMES: Final = tuple(one.name for one in fields(Maps))


def _made(new: Path, here: Path) -> _Loaded:
    """Pinned under its own name once all of it is there, and attached."""
    with ExitStack() as undo, ExitStack() as held:
        maps, code = _create(undo, held)
        link = ebpf.attach_raw_tracepoint(code, program.TRACEPOINT)
        undo.callback(os.close, link)
        new.mkdir(mode=0o700)
        undo.callback(_clear, new)
        for name, fd in (*zip(_MAP_NAMES, astuple(maps), strict=True), (_LINK, link)):
            ebpf.pin(fd, new / name)
        new.rename(here)
        undo.pop_all()
        return _Loaded(maps, link)


def _create(kept: ExitStack, passing: ExitStack) -> tuple[Maps, int]:
    """The maps, and the program that works with them, attached to nothing; each stack closes what is its own."""

    def made(kind: MapType, sizes: tuple[int, int], entries: int, name: str, inner: int = 0) -> int:
        fd = ebpf.create_map(kind, *sizes, entries, inner=inner, name=name)
        kept.callback(os.close, fd)
        return fd

    count, order = _count_map(), _order_map()
    for fd in (count, order):
        passing.callback(os.close, fd)
    maps = Maps(
        control=made(MapType.ARRAY, (4, program.CONTROL_SIZE), 1, "forge_control"),
        groups=made(MapType.HASH, (_KEY.size, ENTRY.size), CAPACITY, "forge_groups"),
        counts=made(MapType.ARRAY_OF_MAPS, (4, 4), CAPACITY, "forge_counts", count),
        orders=made(MapType.ARRAY_OF_MAPS, (4, 4), CAPACITY, "forge_orders", order),
        news=made(MapType.RINGBUF, (0, 0), _NEWS_BYTES, "forge_news"),
    )
    code = ebpf.load_program(program.assemble(maps), program.LICENCE, "forge_calls")
    passing.callback(os.close, code)
    return maps, code


def problem() -> str:
    """Why nobody can be watched on this host, in one clause; empty where everybody can. Attaches nothing."""
    reason = _unfit()
    if reason:
        return reason
    try:
        with ExitStack() as stack:
            _create(stack, stack)
    except OSError as error:
        return f"bpf: {error.strerror or error}"
    return ""


def _count_map() -> int:
    return ebpf.create_map(MapType.PERCPU_ARRAY, 4, program.COUNTS_SIZE, 1, name="forge_count")


def _order_map() -> int:
    return ebpf.create_map(MapType.ARRAY, 4, program.ORDER_SIZE, 1, name="forge_order")


def _clear(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        for pin in list(path.iterdir()):
            pin.unlink()
        path.rmdir()


def _directories(directory: Path) -> list[Path]:
    """Some kernels put files of their own beside them (bpf_preload)."""
    return [path for path in directory.iterdir() if path.is_dir()]


def _remove(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        for path in _directories(directory):
            _clear(path)
        mounts.unmount(directory)
        directory.rmdir()


@functools.cache
def _version() -> str:
    """Of the program and its maps: another forgeone's are no use to this one."""
    code = program.assemble(Maps(0, 0, 0, 0, 0))
    return hashlib.sha256(code + f"{CAPACITY} {_NEWS_BYTES}".encode()).hexdigest()[:16]


class _Listener:
    """Waits for news in a thread of its own. What they are is looked up in the maps: here it only matters that there
    are some."""

    def __init__(self, news: int, told: Callable[[], None]) -> None:
        self._told, self._held = told, ExitStack()
        try:
            self._news = self._fd(os.dup(news))
            # bpf(2), ring buffer: a page that says how far a reader is, one that says how far the writers are.
            self._reader = self._page(0, mmap.PROT_READ | mmap.PROT_WRITE)
            self._writers = self._page(mmap.PAGESIZE, mmap.PROT_READ)
            self._stop = self._fd(os.eventfd(0, os.EFD_CLOEXEC))
            threading.Thread(target=self._run, name="behaviour", daemon=True).start()
        except BaseException:
            self._held.close()
            raise

    def _fd(self, fd: int) -> int:
        self._held.callback(os.close, fd)
        return fd

    def _page(self, offset: int, how: int) -> mmap.mmap:
        return self._held.enter_context(mmap.mmap(self._news, mmap.PAGESIZE, prot=how, offset=offset))

    def _run(self) -> None:
        log = structlog.get_logger("behaviour")
        both, only = select.poll(), select.poll()
        both.register(self._news, select.POLLIN)
        both.register(self._stop, select.POLLIN)
        only.register(self._stop, select.POLLIN)
        waits: int | None = None
        with self._held:
            while not any(fd == self._stop for fd, _ in both.poll(waits)):
                self._reader[:8] = self._writers[:8]
                try:
                    self._told()
                    waits = None
                except Exception:
                    log.exception("what containers do was not looked at")
                    waits = int(_AGAIN * 1000)
                if only.poll(_PAUSE * 1000):
                    break

    def close(self) -> None:
        """It ends by itself: whoever closes may hold what it waits for."""
        os.eventfd_write(self._stop, 1)
