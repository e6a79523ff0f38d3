"""System calls as the kernel counts them: whose, whose not, and what outlives the process that asked for it."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from forgeone_shim.dna.behaviour import names, recorder
from forgeone_shim.dna.behaviour.program import LEVELS
from forgeone_shim.dna.behaviour.recorder import Group, Recorder, group_at
from forgeone_shim.errors import FailedPrecondition, ResourceExhausted
from forgeone_shim.kernel import cgroups, ebpf, mounts
from forgeone_shim.kernel.syscalls import number, syscall
from hack.lab.settings import patient

pytestmark = pytest.mark.root

_CLONE_NEWCGROUP = 0x02000000
_GETPPID = 110 if platform.machine() == "x86_64" else 173


def _later(job: Callable[[], None]) -> None:
    threading.Thread(target=job, daemon=True).start()


@pytest.fixture(scope="module")
def unified() -> str:
    """The unified hierarchy; skips where nothing can be counted, and says why."""
    mount = cgroups.detect().unified
    if not mount:
        pytest.skip("this host has no unified control group hierarchy")
    if reason := recorder.problem():
        pytest.skip(f"nothing can be counted here: {reason}")
    return mount


class Nest:
    """A control group and processes in it."""

    def __init__(self, mount: str) -> None:
        self.mount, self.path = mount, Path(f"{mount}/forgeone-recorder-{os.getpid()}-{os.urandom(3).hex()}")
        self.path.mkdir()

    def group(self, below: str = "") -> Group:
        return group_at(self.mount, str(self.path / below))

    def run(self, work: Callable[[], object], below: str = "") -> None:
        """``work`` in a process of the group."""
        (self.path / below).mkdir(exist_ok=True, parents=True)
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                cgroups.write(f"{self.path / below}/cgroup.procs", "0")
                work()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0


@pytest.fixture
def nest(unified: str) -> Iterator[Nest]:
    made = Nest(unified)
    yield made
    cgroups.remove_tree(str(made.path))


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "bpf"
    assert not mounts.mounts_below(tmp_path), "it was left mounted"


@pytest.fixture
def watcher(directory: Path, unified: str) -> Iterator[Recorder]:
    made = Recorder(directory, lambda: None, _later)
    yield made
    for group in made.watched():
        made.forget(group)
    made.close()


def _parents(count: int) -> None:
    libc = ctypes.CDLL(None)
    for _ in range(count):
        libc.syscall(_GETPPID)


def _count(found: Recorder, group: Group, name: str = "getppid") -> int:
    read = found.read(group.id)
    assert read is not None
    return sum(count for slot, count in enumerate(read.counts) if count and names.name(slot) == name)


def test_the_verifier_takes_the_program_and_calls_are_counted(watcher: Recorder, nest: Nest) -> None:
    group = nest.group()
    watcher.watch(group)
    nest.run(lambda: _parents(1000))
    assert _count(watcher, group) == 1000


def test_only_calls_of_watched_groups_are_counted(watcher: Recorder, nest: Nest) -> None:
    (nest.path / "watched").mkdir()
    group = nest.group("watched")
    watcher.watch(group)
    _parents(50)
    nest.run(lambda: _parents(50))
    nest.run(lambda: _parents(50), "beside")
    assert _count(watcher, group) == 0
    nest.run(lambda: _parents(7), "watched")
    assert _count(watcher, group) == 7


def test_what_a_group_makes_below_itself_counts_as_its_own(watcher: Recorder, nest: Nest) -> None:
    group = nest.group()
    watcher.watch(group)
    nest.run(lambda: _parents(5), "its/own")
    assert _count(watcher, group) == 5


def test_calls_on_all_processors_are_counted_together(watcher: Recorder, nest: Nest) -> None:
    group = nest.group()
    watcher.watch(group)

    def work() -> None:
        threads = [threading.Thread(target=_parents, args=(20_000,)) for _ in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()

    nest.run(work)
    assert _count(watcher, group) == 80_000


def test_the_order_of_first_calls_is_kept(watcher: Recorder, nest: Nest) -> None:
    group = nest.group()
    watcher.watch(group)

    def work() -> None:
        for _ in range(3):
            _parents(1)
            os.sched_yield()
            os.getpgid(0)

    nest.run(work)
    order = watcher.order(group.id)
    assert order is not None
    places = {names.name(slot): place for slot, place in enumerate(order) if place}
    assert 0 < places["getppid"] < places["sched_yield"] < places["getpgid"]
    assert len(set(places.values())) == len(places)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="int 0x80 is x86's")
def test_a_32_bit_call_is_not_taken_for_the_call_of_that_number(watcher: Recorder, nest: Nest) -> None:
    group = nest.group()
    watcher.watch(group)

    def work() -> None:
        # mov eax, 24 (getuid there, sched_yield here); int 0x80; ret
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\xb8\x18\x00\x00\x00\xcd\x80\xc3")
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()

    nest.run(work)
    if not (found := _count(watcher, group, "32-bit:getuid")):
        pytest.skip("this kernel takes no 32-bit calls")
    assert (found, _count(watcher, group, "sched_yield")) == (1, 0)


def test_a_call_without_a_number_is_counted_as_another(watcher: Recorder, nest: Nest) -> None:
    group = nest.group()
    watcher.watch(group)
    nest.run(lambda: ctypes.CDLL(None).syscall(2000))
    assert _count(watcher, group, names.UNKNOWN) == 1


def test_somebody_is_told_of_calls_that_were_not_made_before(directory: Path, nest: Nest) -> None:
    told = threading.Event()
    watcher, group = Recorder(directory, told.set, _later), nest.group()
    try:
        watcher.watch(group)
        nest.run(lambda: _parents(1))
        assert told.wait(patient(5))
        # Its own news are looked at together, and more of the same is none.
        time.sleep(0.2)
        told.clear()
        nest.run(lambda: _parents(1))
        nest.run(os.sched_yield)
        assert told.wait(patient(5))
    finally:
        watcher.forget(group.id)
        watcher.close()


def test_a_look_that_failed_is_repeated_without_news(directory: Path, nest: Nest) -> None:
    failed, room, again = threading.Event(), threading.Event(), threading.Event()

    def look() -> None:
        if not room.is_set():
            failed.set()
            raise OSError("the disk is full")
        again.set()

    watcher, group = Recorder(directory, look, _later), nest.group()
    try:
        watcher.watch(group)
        nest.run(lambda: _parents(1))
        assert failed.wait(patient(5))
        # Nothing is new any more.
        time.sleep(0.3)
        room.set()
        assert again.wait(patient(10))
    finally:
        watcher.forget(group.id)
        watcher.close()


def test_nobody_is_counted_where_nobody_could_be_told(
    directory: Path, nest: Nest, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher, before = Recorder(directory, lambda: None, _later), len(os.listdir("/proc/self/fd"))
    for name, error in (("eventfd", OSError(24, "Too many open files")), ("dup", OSError(24, "Too many open files"))):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, Mock(side_effect=error))
            with pytest.raises(FailedPrecondition, match="nobody could be told"):
                watcher.check()
        assert not directory.exists(), name
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
        with pytest.raises(FailedPrecondition, match="nobody could be told"):
            watcher.watch(nest.group())
    assert (directory.exists(), len(os.listdir("/proc/self/fd"))) == (False, before)


def test_counting_goes_on_without_anybody_and_is_found_again(directory: Path, nest: Nest) -> None:
    first, group = Recorder(directory, lambda: None, _later), nest.group()
    first.watch(group)
    nest.run(lambda: _parents(3))
    first.close()
    nest.run(lambda: _parents(4))
    again = Recorder(directory, lambda: None, _later)
    try:
        assert again.watched() == {group.id}
        assert _count(again, group) == 7
        again.watch(group)
        assert _count(again, group) == 7, "it was watched already"
    finally:
        again.forget(group.id)
        again.close()
    assert not directory.exists()


def test_what_a_killed_process_had_begun_is_in_nobodys_way(directory: Path, watcher: Recorder, nest: Nest) -> None:
    directory.mkdir()
    mounts.mount_bpf(directory)
    for name in ("new", "0123456789abcdef"):
        (directory / name).mkdir()
        half = ebpf.create_map(ebpf.MapType.ARRAY, 4, 8, 1)
        ebpf.pin(half, directory / name / "control")
        os.close(half)
    group = nest.group()
    watcher.watch(group)
    nest.run(lambda: _parents(1))
    assert _count(watcher, group) == 1
    assert [path.name for path in directory.iterdir() if path.is_dir()] == [recorder._version()]


def test_of_what_an_earlier_process_left_only_what_is_known_is_kept(directory: Path, nest: Nest) -> None:
    for name in ("one", "other"):
        (nest.path / name).mkdir()
    one, other = nest.group("one"), nest.group("other")
    first = Recorder(directory, lambda: None, _later)
    first.watch(one)
    first.watch(other)
    first.close()
    again = Recorder(directory, lambda: None, _later)
    again.keep({other.id})
    assert again.watched() == {other.id}
    again.close()
    last = Recorder(directory, lambda: None, _later)
    last.keep(set())
    assert (last.watched(), directory.exists()) == (set(), False)
    directory.mkdir()
    mounts.mount_bpf(directory)
    (directory / "0123456789abcdef").mkdir()
    last.keep(set())
    assert not directory.exists(), "another version's"


def test_nothing_of_one_group_is_seen_by_the_next(watcher: Recorder, nest: Nest) -> None:
    for name in ("one", "other", "third", "fourth"):
        (nest.path / name).mkdir()
    other, one = nest.group("other"), nest.group("one")
    watcher.watch(other)
    watcher.watch(one)
    nest.run(lambda: _parents(9), "one")
    watcher.forget(one.id)
    assert watcher.read(one.id) is None
    for name in ("third", "fourth"):
        after = nest.group(name)
        watcher.watch(after)
        assert _count(watcher, after) == 0


def test_with_the_last_group_everything_goes(directory: Path, watcher: Recorder, nest: Nest) -> None:
    group = nest.group()
    watcher.check()
    watcher.watch(group)
    assert mounts.mounts_below(directory)
    watcher.forget(group.id)
    assert (watcher.watched(), directory.exists()) == (set(), False)
    watcher.forget(group.id)
    watcher.settle()


def test_what_was_made_ready_for_nobody_goes_too(directory: Path, watcher: Recorder) -> None:
    watcher.check()
    assert directory.exists()
    watcher.settle()
    assert not directory.exists()


def test_only_so_many_depths_can_be_looked_at(watcher: Recorder, nest: Nest) -> None:
    path = nest.path
    for level in range(LEVELS):
        path /= str(level)
        path.mkdir()
        watcher.watch(group_at(nest.mount, str(path)))
    with pytest.raises(ResourceExhausted, match="depths"):
        watcher.watch(nest.group())
    nest.run(lambda: _parents(2), "/".join(str(level) for level in range(LEVELS)))
    # Of groups in each other the outermost counts.
    assert _count(watcher, nest.group("0")) == 2


def test_where_bpf_is_not_allowed_that_is_said(directory: Path, unified: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(ebpf, "create_map", refuse)
    blind = Recorder(directory, lambda: None, _later)
    with pytest.raises(FailedPrecondition, match="cannot be watched on this host: bpf: Operation not permitted"):
        blind.check()
    blind.close()
    assert not directory.exists()


def test_in_a_control_group_namespace_depths_cannot_be_told(unified: str) -> None:
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            syscall(number("unshare"), _CLONE_NEWCGROUP)
            os._exit(0 if "control group namespace" in recorder.problem() else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
