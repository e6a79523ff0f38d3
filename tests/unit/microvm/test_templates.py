"""Which machines have a template in common, how it is kept, and who makes it."""

from __future__ import annotations

import dataclasses
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.microvm.templates import keys, sealed, warm
from engines.microvm.templates.keys import Key
from engines.microvm.templates.store import KEPT_MAX, Store
from engines.microvm.templates.warm import Templates, save
from engines.microvm.vmm.base import Accel, Machine, Template
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import InternalError

MEMORY = 4 << 20
MACHINE = Machine(
    memory=MEMORY,
    vcpus=1,
    accel=Accel.TCG,
    kernel="/boot/a/kernel",
    initrd="/boot/a/initrd",
    cmdline="quiet tsc_early_khz=2445424 panic=-1",
    ports=("forgeone.control",),
)


def key(machine: Machine = MACHINE, boot: str = "sha256:1", monitor: str = "QEMU 7.2", processor: str = "") -> Key:
    return keys.key(machine, boot=boot, monitor=monitor, processor=processor)


def changed(**fields: object) -> Machine:
    return dataclasses.replace(MACHINE, **fields)


# -- keys


@pytest.mark.parametrize(
    "other",
    [
        key(boot="sha256:2"),
        key(monitor="QEMU 8.0"),
        key(processor="another"),
        key(changed(accel=Accel.KVM)),
        key(changed(cmdline="quiet tsc_early_khz=2445424")),
        key(changed(cmdline="quiet tsc_early_khz=2600000 panic=-1")),
        key(changed(ports=("other",))),
        key(changed(reclaim=False)),
        key(changed(memory=2 * MEMORY)),
        key(changed(vcpus=2)),
    ],
)
def test_another_machine_has_another_template(other: Key) -> None:
    assert other.name != key().name


def test_machines_of_other_sizes_are_of_one_generation() -> None:
    assert key(changed(memory=2 * MEMORY, vcpus=3)).generation == key().generation


def test_a_clock_that_was_measured_a_little_differently_is_the_same() -> None:
    assert key(changed(cmdline="quiet tsc_early_khz=2445390 panic=-1")) == key()


def test_where_the_boot_set_lies_says_nothing() -> None:
    assert key(changed(kernel="/other/kernel", initrd="/other/initrd")) == key()


def test_a_processor_matters_where_the_guest_sees_it(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nmodel name\t: A\ncpu MHz\t\t: 1.0\nflags\t\t: x y\n\nprocessor\t: 1\nmodel name\t: B\n"
    )
    assert keys.processor(Accel.TCG, cpuinfo) == ""
    assert keys.processor(Accel.KVM, cpuinfo) == "A\nx y"


# -- the store


def made(parts: dict[int, bytes], size: int = MEMORY, state: bytes = b"state") -> Template:
    memory, told = sealed.make("memory", size), sealed.make("state", 0)
    for at, data in parts.items():
        os.pwrite(memory, data, at)
    os.write(told, state)
    sealed.seal(memory)
    sealed.seal(told)
    return Template(memory=memory, state=told)


def contents(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def closed(template: Template) -> None:
    os.close(template.memory)
    os.close(template.state)


_PARTS = st.dictionaries(st.integers(0, MEMORY - 9000), st.binary(min_size=1, max_size=9000), max_size=6)


@settings(max_examples=30, deadline=None)
@given(parts=_PARTS, state=st.binary(min_size=1, max_size=70_000))
def test_what_was_kept_is_found_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, parts: dict[int, bytes], state: bytes
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    template = made(parts, state=state)
    store.save(key(), template)
    found = store.load(key())
    assert found is not None
    assert contents(found.memory) == contents(template.memory)
    assert contents(found.state) == state
    assert os.fstat(found.memory).st_blocks * 512 == MEMORY
    with pytest.raises(PermissionError):
        os.pwrite(found.memory, b"x", 0)
    closed(found)
    closed(template)


@settings(max_examples=50, deadline=None)
@given(pages=st.lists(st.sampled_from([b"", bytes(4096), b"x" * 4096, bytes(4095) + b"y"]), max_size=40))
def test_pages_of_zeros_become_holes_and_read_as_they_did(pages: list[bytes]) -> None:
    fd = sealed.make("memory", MEMORY)
    for place, page in enumerate(pages):
        os.pwrite(fd, page, place * 4096)
    before = contents(fd)
    sealed.thin(fd)
    assert contents(fd) == before
    assert sum(size for _, size in sealed.extents(fd)) == 4096 * sum(page.strip(b"\0") != b"" for page in pages)
    os.close(fd)


def test_nothing_is_found_where_nothing_was_kept(tmp_path: Path) -> None:
    assert Store(tmp_path / "none").load(key()) is None


@pytest.mark.parametrize("name", ["memory", "state", "parts"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "longer", "empty", "gone"])
def test_a_template_that_was_damaged_is_removed(tmp_path: Path, name: str, damage: str) -> None:
    store = Store(tmp_path)
    template = made({0: os.urandom(9000), 2 << 20: b"x"})
    store.save(key(), template)
    closed(template)
    path = tmp_path / key().name / name
    data = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(data[: len(data) - 5])
        case "flipped":
            path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1 :])
        case "longer":
            path.write_bytes(data + data)
        case "empty":
            path.write_bytes(b"")
        case "gone":
            path.unlink()
    before = len(os.listdir("/proc/self/fd"))
    assert store.load(key()) is None
    assert len(os.listdir("/proc/self/fd")) == before
    if damage != "gone":
        assert not path.parent.exists()


@pytest.mark.parametrize(
    "parts",
    [
        b'{"memory_size":4194304,"state_size":5,"memory":[[0,4194305]],"state":[]}',
        b'{"memory_size":4194304,"state_size":5,"memory":[[4096,4096],[0,4096]],"state":[]}',
        b'{"memory_size":4194304,"state_size":5,"memory":[[-4096,4096]],"state":[]}',
        b'{"memory_size":4194304,"state_size":0,"memory":[],"state":[]}',
        b'{"memory_size":4194304,"state_size":99999999999,"memory":[],"state":[]}',
        b'{"memory_size":8388608,"state_size":5,"memory":[],"state":[]}',
        b'{"memory_size":4194304,"state_size":5,"memory":[],"state":[],"more":1}',
        b"[]",
    ],
)
def test_parts_that_cannot_be_are_refused(tmp_path: Path, parts: bytes) -> None:
    store = Store(tmp_path)
    template = made({0: b"x"})
    store.save(key(), template)
    closed(template)
    (tmp_path / key().name / "parts").write_bytes(parts)
    assert store.load(key()) is None


def test_other_generations_and_drafts_of_the_dead_are_removed(tmp_path: Path) -> None:
    store, template = Store(tmp_path), made({0: b"x"})
    for one in (key(), key(changed(vcpus=2)), key(boot="sha256:old")):
        store.save(one, template)
    closed(template)
    dead, living = tmp_path / ".x.999999999", tmp_path / f".x.{os.getpid()}"
    dead.mkdir()
    living.mkdir()
    store.retain(key().generation)
    left = {key().name, key(changed(vcpus=2)).name, living.name}
    assert {entry.name for entry in tmp_path.iterdir()} == left


def test_a_template_is_kept_once_and_only_for_root(tmp_path: Path) -> None:
    store, template = Store(tmp_path / "templates"), made({0: b"x"})
    store.save(key(), template)
    store.save(key(), template)
    closed(template)
    assert [entry.name for entry in (tmp_path / "templates").iterdir()] == [key().name]
    assert (tmp_path / "templates").stat().st_mode & 0o077 == 0


# -- those at hand


class Builder:
    """Builds as long as it is let."""

    def __init__(self, *, wrong: Exception | None = None, at_once: bool = True) -> None:
        self.built: list[Machine] = []
        self.wrong = wrong
        self.go = threading.Event()
        if at_once:
            self.go.set()

    def __call__(self, machine: Machine, memory: int, state: int, deadline: Deadline) -> None:
        self.built.append(machine)
        while not self.go.wait(0.01):
            deadline.check("building")
        if self.wrong is not None:
            raise self.wrong
        os.pwrite(memory, b"guest", 100)
        os.write(state, b"devices")


@contextmanager
def having(directory: Path, builder: Builder) -> Iterator[tuple[Templates, list[tuple[str, str]]]]:
    said: list[tuple[str, str]] = []
    before = len(os.listdir("/proc/self/fd"))
    templates = Templates(directory, builder, lambda name, wrong: said.append((name, wrong)), most=8 * MEMORY)
    try:
        yield templates, said
    finally:
        templates.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_first_machine_boots_and_later_ones_begin_from_its_template(tmp_path: Path) -> None:
    with having(tmp_path, Builder()) as (templates, said):
        with templates.take(MACHINE, key()) as found:
            assert found is None
        assert templates.wait(key(), 10)
        with templates.take(MACHINE, key()) as found:
            assert found is not None
            assert os.pread(found.memory, 5, 100) == b"guest" and contents(found.state) == b"devices"
            with pytest.raises(PermissionError):
                os.pwrite(found.state, b"x", 0)
        assert said == []


def test_a_template_is_built_once_whoever_waits(tmp_path: Path) -> None:
    builder = Builder(at_once=False)
    with having(tmp_path, builder) as (templates, _):
        for _ in range(5):
            with templates.take(MACHINE, key()) as found:
                assert found is None
        builder.go.set()
        assert templates.wait(key(), 10)
        assert builder.built == [MACHINE]


def test_the_next_daemon_finds_it_on_disk(tmp_path: Path) -> None:
    with having(tmp_path, Builder()) as (templates, _):
        with templates.take(MACHINE, key()):
            pass
        assert templates.wait(key(), 10)
    builder = Builder()
    with having(tmp_path, builder) as (templates, _), templates.take(MACHINE, key()) as found:
        assert found is not None and os.pread(found.memory, 5, 100) == b"guest"
    assert builder.built == []


@pytest.mark.parametrize("wrong", [InternalError("no agent"), RuntimeError("no agent")])
def test_what_went_wrong_is_told_and_not_tried_with_each_pod(tmp_path: Path, wrong: Exception) -> None:
    builder = Builder(wrong=wrong)
    with having(tmp_path, builder) as (templates, said):
        with templates.take(MACHINE, key()):
            pass
        assert not templates.wait(key(), 10)
        with templates.take(MACHINE, key()) as found:
            assert found is None
        assert len(builder.built) == 1
        assert [name for name, _ in said] == [key().name] and "no agent" in said[0][1]
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_saves_nothing_is_no_template() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InternalError, match="nothing of it"):
        save(MACHINE, lambda memory, state: None)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_end_of_the_daemon_gives_up_what_is_being_built(tmp_path: Path) -> None:
    builder = Builder(at_once=False)
    with having(tmp_path, builder) as (templates, said), templates.take(MACHINE, key()):
        pass
    assert said == []


def test_few_are_held_and_the_others_are_on_disk(tmp_path: Path) -> None:
    builder = Builder()
    machines = [changed(vcpus=number) for number in range(1, warm._HELD_MAX + 2)]
    with having(tmp_path, builder) as (templates, _):
        for machine in machines:
            with templates.take(machine, key(machine)):
                pass
            assert templates.wait(key(machine), 10)
        with templates.take(machines[0], key(machines[0])) as found:
            assert found is not None
        assert builder.built == machines


def test_a_new_boot_set_ends_templates_of_the_old_one(tmp_path: Path) -> None:
    with having(tmp_path, Builder()) as (templates, _):
        with templates.take(MACHINE, key()):
            pass
        assert templates.wait(key(), 10)
        with templates.take(MACHINE, key(boot="sha256:new")) as found:
            assert found is None
        assert not (tmp_path / key().name).exists()


def test_one_that_is_no_good_is_made_anew(tmp_path: Path) -> None:
    builder = Builder()
    with having(tmp_path, builder) as (templates, _):
        with templates.take(MACHINE, key()):
            pass
        assert templates.wait(key(), 10)
        templates.drop(key())
        with templates.take(MACHINE, key()) as found:
            assert found is None
        assert templates.wait(key(), 10)
        assert len(builder.built) == 2


def test_one_that_is_no_good_twice_is_not_made_for_a_while(tmp_path: Path) -> None:
    builder = Builder()
    with having(tmp_path, builder) as (templates, _):
        for _ in range(2):
            with templates.take(MACHINE, key()):
                pass
            assert templates.wait(key(), 10)
            templates.drop(key())
        with templates.take(MACHINE, key()) as found:
            assert found is None
        assert len(builder.built) == 2


def test_what_machines_have_is_not_paid_for_twice(tmp_path: Path) -> None:
    """A page of a hole would become one of the template, and its first reader's to pay for."""
    with having(tmp_path, Builder()) as (templates, _):
        with templates.take(MACHINE, key()):
            pass
        assert templates.wait(key(), 10)
        with templates.take(MACHINE, key()) as found:
            assert found is not None
            assert os.fstat(found.memory).st_blocks * 512 == MEMORY
            with mmap.mmap(found.memory, MEMORY, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
                mapped[:] = b"x" * MEMORY
            assert os.fstat(found.memory).st_blocks * 512 == MEMORY
            assert os.pread(found.memory, 6, 99) == b"\0guest"
    # On disk are no empty pages.
    assert b'"memory":[[0,4096]]' in (tmp_path / key().name / "parts").read_bytes()


def test_templates_take_no_more_of_the_host_than_they_may(tmp_path: Path) -> None:
    builder, large, small = Builder(), changed(memory=6 * MEMORY), changed(memory=3 * MEMORY)
    with having(tmp_path, builder) as (templates, _):
        for machine in (large, small):
            with templates.take(machine, key(machine)):
                pass
            assert templates.wait(key(machine), 10)
        assert not templates.wait(key(large), 0)
        huge = changed(memory=9 * MEMORY)
        with templates.take(huge, key(huge)) as found:
            assert found is None
        assert builder.built == [large, small]


def test_one_template_is_built_at_a_time(tmp_path: Path) -> None:
    builder, other = Builder(at_once=False), changed(vcpus=2)
    with having(tmp_path, builder) as (templates, _):
        for machine in (MACHINE, other):
            with templates.take(machine, key(machine)):
                pass
        builder.go.set()
        assert templates.wait(key(), 10) and not templates.wait(key(other), 0)
        with templates.take(other, key(other)):
            pass
        assert templates.wait(key(other), 10)


def test_of_many_sizes_the_last_used_are_kept(tmp_path: Path) -> None:
    directory, template = tmp_path / "templates", made({0: b"x"})
    several = [key(changed(vcpus=number)) for number in range(1, KEPT_MAX + 2)]
    for age, one in enumerate(several[:-1]):
        Store(directory).save(one, template)
        os.utime(directory / one.name, (age, age))
    found = Store(directory).load(several[0])
    assert found is not None
    closed(found)
    Store(directory).save(several[-1], template)
    closed(template)
    assert {entry.name for entry in directory.iterdir()} == {one.name for one in several} - {several[1].name}
