"""Guests whose calls are recorded: the generated modules, what is in the file, and who may have written it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.base import HostCalls, HostCount
from engines.wasm.guest.plan import GuestPlan, Preopen
from engines.wasm.guest.running import prepare, run
from engines.wasm.guest.trace import Tracer
from engines.wasm.tracing import ring
from engines.wasm.tracing.calls import CALLS, ERRNO
from engines.wasm.tracing.ring import Function
from forgeone_shim.errors import InternalError
from tests.unit.wasm.guests import Guests, Ran

FILES = """(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_rename" (func $rename (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_seek" (func $seek (param i32 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "made\\"\\1b[2J")
  (data (i32.const 16) "\\20\\00\\00\\00\\06\\00\\00\\00hello\\0a")
  (data (i32.const 32) "hello\\0a")
  (func (export "_start")
    (drop (call $open (i32.const 3) (i32.const 1) (i32.const 0) (i32.const 9) (i32.const 1)
      (i64.const 0x40) (i64.const 0) (i32.const 0) (i32.const 64)))
    (drop (call $write (i32.load (i32.const 64)) (i32.const 16) (i32.const 1) (i32.const 68)))
    (drop (call $seek (i32.load (i32.const 64)) (i64.const -2) (i32.const 1) (i32.const 72)))
    (drop (call $rename (i32.const 3) (i32.const 0) (i32.const 9) (i32.const 3) (i32.const 0) (i32.const 4)))
    (drop (call $rename (i32.const 9) (i32.const 0) (i32.const 9) (i32.const 3) (i32.const 1024) (i32.const 200)))
    (call $exit (i32.const 200))))"""

SPIN = """(module
  (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
  (memory (export "memory") 1)
  (func (export "spin") (loop (drop (call $yield)) (br 0)))
  (func (export "turn") (param $n i32)
    (loop (drop (call $yield)) (br_if 0 (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))))"""


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "trace"
    ring.create(str(path))
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def _traced(guests: Guests, module: str, plan: GuestPlan, fd: int) -> tuple[Ran, HostCalls]:
    ran = guests.run(module, plan, extensions=[Tracer(fd)])
    return ran, ring.read(fd, ended=True)


def test_calls_are_told_with_their_arguments_results_and_times(guests: Guests, trace: int, tmp_path: Path) -> None:
    before = time.time_ns()
    home = tmp_path / "home"
    home.mkdir()
    ran, reading = _traced(guests, FILES, GuestPlan(argv=("x",), preopens=(Preopen(str(home), "/"),)), trace)
    assert (ran.code, ran.refused) == (200, "")
    assert (home / "made").read_text() == "hello\n"
    path = r'"made\x22\x1b[2J"'
    unread = '"' + r"\x00" * 68 + '"...'
    told = [(one.function, ", ".join(one.arguments), one.result) for one in reading.calls]
    assert told == [
        (
            "path_open",
            f"fd=3, dirflags=0x1, path={path}, oflags=0x1, rights=0x40, inheriting=0x0, fdflags=0x0",
            "success opened=4",
        ),
        ("fd_write", "fd=4, buffers=[1 buffers]", "success written=6"),
        ("fd_seek", "fd=4, offset=-2, whence=1", "success position=4"),
        ("path_rename", f'fd=3, path={path}, to=3, new="made"', "success"),
        ("path_rename", f"fd=9, path={path}, to=3, new={unread}", "badf"),
        ("proc_exit", "code=200", None),
    ]
    assert reading.lost == 0
    assert reading.next == 6
    after, slack = time.time_ns(), 10**7
    assert all(before - slack <= one.at <= after + slack for one in reading.calls)
    assert [one.duration is None for one in reading.calls] == [False, False, True, False, False, True]
    assert all(one.duration < 10**10 for one in reading.calls if one.duration is not None)


def test_of_more_calls_than_fit_the_latest_are_kept(guests: Guests, trace: int) -> None:
    calls = ring.SLOTS + 1000
    ran, reading = _traced(guests, SPIN, GuestPlan(argv=("x", str(calls)), function="turn"), trace)
    assert ran.code == 0, ran
    # One more may be under way while they are read: of a guest that has ended, none.
    assert (len(reading.calls), reading.lost, reading.next) == (ring.SLOTS, 1000, calls)
    assert [one.number for one in reading.calls] == list(range(1001, calls + 1))
    assert ring.read(trace, reading.next) == HostCalls((), 0, calls)


def test_every_call_is_counted_in_the_order_of_first_calls(guests: Guests, trace: int, tmp_path: Path) -> None:
    plan = GuestPlan(argv=("x",), preopens=(Preopen(str(tmp_path), "/"),))
    assert ring.read_counts(trace) == (), "its guest has not got so far"
    _traced(guests, FILES, plan, trace)
    wasi = "wasi_snapshot_preview1"
    assert ring.read_counts(trace) == (
        HostCount(f"{wasi} path_open", 1),
        HostCount(f"{wasi} fd_write", 1),
        HostCount(f"{wasi} fd_seek", 1),
        HostCount(f"{wasi} path_rename", 2),
        HostCount(f"{wasi} proc_exit", 1),
    )


def test_calls_are_counted_beyond_those_that_are_kept(guests: Guests, trace: int) -> None:
    calls = ring.SLOTS + 1000
    _traced(guests, SPIN, GuestPlan(argv=("x", str(calls)), function="turn"), trace)
    assert ring.read_counts(trace) == (HostCount("wasi_snapshot_preview1 sched_yield", calls),)


@given(st.binary(max_size=400), st.integers(0, 300))
@settings(max_examples=50)
def test_counts_that_somebody_has_spoilt_are_refused_or_read(noise: bytes, at: int) -> None:
    functions = [Function("m", f"f{n}", (), ()) for n in range(3)]
    content = bytearray(ring.header(functions, 0).ljust(ring.SIZE, b"\0"))
    content[ring.COUNTERS : ring.COUNTERS + len(noise)] = noise
    content[at : at + len(noise) // 8] = noise[: len(noise) // 8]
    fd = os.memfd_create("trace")
    try:
        os.write(fd, content)
        for one in ring.read_counts(fd):
            assert one.count > 0
            assert one.name.isprintable()
    except InternalError:
        pass
    finally:
        os.close(fd)


def test_what_a_killed_guest_called_can_be_read(guests: Guests, trace: int) -> None:
    loaded, plan = guests.load(SPIN), GuestPlan(argv=("x",), function="spin")
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        run(prepare(plan, loaded, [Tracer(trace)]))
        os._exit(0)
    until, after, seen = time.monotonic() + 30, 0, 0
    while after < 3 * ring.SLOTS:
        assert time.monotonic() < until
        # Read while they are written: what is told is whole, and in order.
        reading = ring.read(trace, after)
        numbers = [one.number for one in reading.calls]
        assert numbers == sorted(numbers)
        assert all(one.function == "sched_yield" and one.result == "success" for one in reading.calls)
        assert reading.next == after + reading.lost + len(numbers)
        after, seen = reading.next, seen + len(numbers)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert seen > 0
    reading = ring.read(trace, ended=True)
    assert len(reading.calls) >= ring.SLOTS - 1


def test_a_component_is_refused_with_the_reason(guests: Guests, trace: int) -> None:
    component = """(component (import "wasi:cli/environment@0.2.0" (instance (export "initial-cwd"
        (func (result (option string)))))) )"""
    ran, _ = _traced(guests, component, GuestPlan(argv=("x",)), trace)
    assert "cannot be traced: it is a component" in ran.refused


def test_a_shared_memory_is_refused_with_the_reason(guests: Guests, trace: int) -> None:
    module = """(module (import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))
        (memory (export "memory") 1 1 shared) (func (export "_start")))"""
    ran, _ = _traced(guests, module, GuestPlan(argv=("x",)), trace)
    assert "cannot be traced: its memory is shared" in ran.refused


def test_a_missing_import_is_told_as_without_a_trace(guests: Guests, trace: int) -> None:
    module = '(module (import "env" "nothing" (func)) (memory (export "memory") 1) (func (export "_start")))'
    ran, reading = _traced(guests, module, GuestPlan(argv=("x",)), trace)
    assert "env::nothing" in ran.refused
    assert reading == HostCalls((), 0, 0)


def test_a_guest_without_a_memory_or_without_imports_does_what_it_does_untraced(guests: Guests, trace: int) -> None:
    module = """(module (import "wasi_snapshot_preview1" "sched_yield" (func $y (result i32)))
        (func (export "_start") (drop (call $y))))"""
    plan = GuestPlan(argv=("x",))
    ran, reading = _traced(guests, module, plan, trace)
    assert ran.outcome == guests.run(module, plan).outcome
    assert [(one.function, one.result) for one in reading.calls] == [("sched_yield", None)]
    ran, reading = _traced(guests, '(module (func (export "_start")))', plan, trace)
    assert ran.code == 0


def test_a_trap_in_a_call_leaves_it_unfinished(guests: Guests, trace: int) -> None:
    module = """(module (import "wasi_snapshot_preview1" "random_get" (func $r (param i32 i32) (result i32)))
        (memory (export "memory") 1) (func (export "_start") (drop (call $r (i32.const -4) (i32.const 16)))))"""
    ran, reading = _traced(guests, module, GuestPlan(argv=("x",)), trace)
    assert ran.outcome.reason == "WasmTrap"
    assert [(one.function, one.result) for one in reading.calls] == [("random_get", None)]
    assert ring.read(trace) == HostCalls((), 0, 0), "of a guest that lives it may return yet"


def test_a_call_before_the_guest_is_instantiated_traps_with_the_reason(guests: Guests, trace: int) -> None:
    module = """(module (import "wasi_snapshot_preview1" "sched_yield" (func $y (result i32)))
        (memory (export "memory") 1) (func $s (drop (call $y))) (start $s) (func (export "_start")))"""
    ran, _ = _traced(guests, module, GuestPlan(argv=("x",)), trace)
    assert "calls_its_host_while_it_is_instantiated_cannot_be_traced" in ran.outcome.message


def test_a_function_that_only_has_a_known_name_is_told_by_numbers() -> None:
    function = Function("wasi_snapshot_preview1", "fd_write", ("i32", "f64"), ("f32",))
    assert function.known is None


def test_what_a_guest_calls_its_imports_is_told_within_bounds() -> None:
    functions = [Function("m\x1b" * 1000, "n" * 10_000, ("i32",) * 5000, ())]
    content = bytearray(ring.header(functions, 0).ljust(ring.SIZE, b"\0"))
    content[ring.HEAD] = 1
    content[ring.PAGE] = 1
    fd = os.memfd_create("trace")
    os.write(fd, bytes(content))
    (call,) = ring.read(fd, ended=True).calls
    os.close(fd)
    assert len(call.interface) < 500
    assert len(call.function) <= 100
    assert "\x1b" not in call.interface
    assert call.arguments == ("0",) * 9 + ("...",)


def test_every_known_call_fits_a_record() -> None:
    assert all(call.width <= ring.ARGUMENTS_MAX for call in CALLS.values())
    assert (ERRNO[0], ERRNO[8], ERRNO[76]) == ("success", "badf", "notcapable")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_file_that_a_guest_has_spoilt_is_read_or_refused(data: st.DataObject) -> None:
    functions = [Function("wasi_snapshot_preview1", "path_open", ("i32",) * 5 + ("i64",) * 2 + ("i32",) * 2, ("i32",))]
    content = bytearray(ring.header(functions, data.draw(st.integers(-(2**63), 2**63 - 1))).ljust(ring.SIZE, b"\0"))
    content[ring.HEAD : ring.HEAD + 8] = data.draw(st.integers(0, 2**64 - 1) | st.integers(0, 3)).to_bytes(8, "little")
    spoilt = data.draw(st.binary(max_size=64))
    at = data.draw(st.integers(0, 128) | st.integers(ring.PAGE, ring.PAGE + 3 * ring.RECORD_SIZE))
    content[at : at + len(spoilt)] = spoilt
    for index in range(3):
        # Else most records would not be looked at.
        where = ring.PAGE + index * ring.RECORD_SIZE
        content[where : where + 8] = (index + 1).to_bytes(8, "little")
    fd = os.memfd_create("trace")
    try:
        os.write(fd, bytes(content))
        reading = ring.read(fd, ended=True)
    except InternalError:
        return
    finally:
        os.close(fd)
    assert all(0 <= one.at < 2**63 and 0 <= (one.duration or 0) < 2**63 for one in reading.calls)
    assert all("\x1b" not in " ".join(one.arguments) for one in reading.calls)
