"""Modules that mean harm: to what compiles them, to what runs them, and to what lies beside them."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from wasmtime import Engine, Linker, Module, Store, Trap, WasiConfig, WasmtimeError, wat2wasm

from engines.wasm.aot import helper
from engines.wasm.aot.cache import Cache
from engines.wasm.aot.compiler import Order
from engines.wasm.aot.target import Variant
from engines.wasm.guest import traps
from engines.wasm.guest.loading import configure
from engines.wasm.guest.plan import CANNOT_START, TRAP, GuestPlan, Preopen
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, ForgeError, InvalidInput, ResourceExhausted
from tests.unit.wasm.guests import Guests

PLAN = GuestPlan(argv=("guest",), memory_max=64 << 20)
ROUNDS = 1500
ORDER = Order(variant=Variant.METERED, fingerprint="", parent=0, empty="", memory=0, seconds=1, code_max=0)


def compile_text(directory: Path, text: str | bytes, **limits: float) -> int:
    """By the helper; the size of the code."""
    cache = Cache(
        directory / "aot",
        compile_timeout=limits.get("seconds", 60.0),
        compile_memory=int(limits.get("memory", 2 << 30)),
    )
    (directory / "module").write_bytes(text.encode() if isinstance(text, str) else text)
    with (directory / "module").open("rb") as file:
        return cache.entry(file.fileno(), Deadline.after(120)).size


# Memory


def test_memories_beyond_the_limits_are_not_given(guests: Guests) -> None:
    for memories in ("(memory 65536)", "(memory i64 1048576)", "(memory 1)" * 99 + "(memory 65536)"):
        ran = guests.run(f'(module {memories} (func (export "_start")))', PLAN)
        assert (ran.code, ran.outcome.reason) == (1, CANNOT_START), memories


def test_tables_beyond_the_limits_are_not_given(guests: Guests) -> None:
    for tables in ("(table 10000001 funcref)", "(table 0 funcref)" * 99 + "(table 10000001 externref)"):
        ran = guests.run(f'(module {tables} (func (export "_start")))', PLAN)
        assert (ran.code, ran.outcome.reason) == (1, CANNOT_START)


def test_a_guest_that_takes_all_it_can_get_is_told_when_there_is_no_more(guests: Guests) -> None:
    text = """(module (memory 1) (func (export "count") (result i32)
        (loop $again (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) (memory.size)))"""
    ran = guests.run(text, GuestPlan(argv=("x",), function="count", memory_max=64 << 20))
    assert ran.stdout == b"1024\n"


def test_data_far_away_makes_no_large_code(tmp_path: Path) -> None:
    text = '(module (memory 16384) (data (i32.const 0) "a") (data (i32.const 0x3fff0000) "b"))'
    assert compile_text(tmp_path, text) < 1 << 20


def test_a_data_segment_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "module").open("wb+") as file:
        file.write(b"\0asm\1\0\0\0\x0b\x80\x80\x80\x80\x04")
        file.truncate(1 << 30)
        with pytest.raises(InvalidInput, match="1073741824 bytes"):
            Cache(tmp_path / "aot", compile_timeout=60, compile_memory=1 << 30).entry(file.fileno(), Deadline.after(9))


# Depth and number


def test_recursion_ends_as_a_trap(guests: Guests) -> None:
    large = "(local " + "i64 " * 2000 + ")"
    wide = "".join(f"(local.set {n} (call $f))" for n in range(0, 2000, 100))
    text = f'(module (func $f (result i64) {large} {wide} (local.get 0)) (func (export "_start") (drop (call $f))))'
    ran = guests.run(text, PLAN)
    assert (ran.code, ran.outcome.reason) == (134, TRAP)
    assert ran.outcome.message.startswith("call stack exhausted")


@pytest.mark.parametrize("pair", ["block|end", "loop|end", "i32.const 1 if|end"])
def test_nesting_ends_in_code_or_in_an_error(pair: str, tmp_path: Path) -> None:
    begin, end = pair.split("|")
    depth = 3000
    try:
        compile_text(tmp_path, f'(module (func (export "_start") {f" {begin}" * depth} {f" {end}" * depth}))')
    except InvalidInput as error:
        assert "nest" in error.reason or "recursion" in error.reason


def test_a_component_of_ever_more_instances_has_no_memory_for_them(tmp_path: Path) -> None:
    """Each level instantiates the one before twice: 2^40 of them, in a kilobyte."""
    inner = "(core module $m) (core instance (instantiate $m))"
    for level in range(40):
        inner = f"(component $c{level} {inner}) (instance (instantiate $c{level})) (instance (instantiate $c{level}))"
    with pytest.raises((ResourceExhausted, DeadlineExceeded, InvalidInput)):
        compile_text(tmp_path, f"(component {inner})", seconds=5, memory=512 << 20)


def test_a_component_of_more_instances_than_are_allowed_cannot_start(guests: Guests) -> None:
    text = f"""(component (core module $m (func (export "run") (result i32) (i32.const 0)))
        (core instance $i (instantiate $m)) {"(core instance (instantiate $m))" * 1000}
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $r (export "run" (func $run))) (export "wasi:cli/run@0.2.3" (instance $r)))"""
    ran = guests.run(text, PLAN)
    assert (ran.code, ran.outcome.reason) == (1, CANNOT_START)


def test_names_that_take_more_room_than_they_have_characters_are_names(tmp_path: Path) -> None:
    exports = "".join(f'(export "{n}{(chr(92) + "02") * 98_000}" (func $f))' for n in range(10))
    assert compile_text(tmp_path, f"(module (func $f) {exports})")


@pytest.mark.parametrize(
    ("one", "text"),
    [
        ('(export "{n}" (func $f))', "(module (func $f) {all})"),
        ('(export "{n}" (global $g))', "(module (global $g i32 (i32.const 0)) {all})"),
        ('(import "m" "{n}" (func))', "(module {all})"),
        ('(export "f{n}" (func))', '(component (import "a:b/c" (instance {all})))'),
    ],
)
def test_more_names_than_anybody_needs_are_refused(one: str, text: str, tmp_path: Path) -> None:
    names = "".join(one.format(n=n) for n in range(10_001))
    with pytest.raises(InvalidInput, match="more than 10000"):
        compile_text(tmp_path, text.format(all=names))


def test_names_in_interfaces_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    exports = "".join(f'(export "f{n}" (func $f))' for n in range(10))
    text = f"""(component (core module $m (func (export "f"))) (core instance $i (instantiate $m))
        (func $f (canon lift (core func $i "f"))) (instance $many {exports}) (export "many" (instance $many)))"""

    def refused() -> None:
        with pytest.raises(ValueError, match="imports or exports"):
            helper.compiled(text.encode(), ORDER)

    monkeypatch.setattr(helper, "_NAMES_MAX", 10)
    assert in_a_child(refused) == 0


def test_names_longer_than_anybody_needs_are_refused(tmp_path: Path) -> None:
    exports = "".join(f'(export "{n}{"x" * 90_000}" (func $f))' for n in range(12))
    with pytest.raises(InvalidInput, match="1 MiB of their names"):
        compile_text(tmp_path, f"(module (func $f) {exports})")


# The host


def test_a_guest_has_no_descriptors_but_its_own(guests: Guests, tmp_path: Path) -> None:
    text = """(module (import "wasi_snapshot_preview1" "fd_fdstat_get" (func $stat (param i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "count") (result i32) (local $fd i32) (local $found i32)
          (loop $again
            (local.set $found (i32.add (local.get $found) (i32.eqz (call $stat (local.get $fd) (i32.const 64)))))
            (local.set $fd (i32.add (local.get $fd) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $fd) (i32.const 2000))))
          (local.get $found)))"""
    plan = GuestPlan(argv=("x",), function="count", preopens=(Preopen(str(tmp_path), "/"),))
    assert guests.run(text, plan).stdout == b"4\n"


@pytest.mark.parametrize("call", ["fd_write", "fd_read", "path_open", "random_get", "args_get", "poll_oneoff"])
def test_pointers_out_of_its_memory_do_a_guest_no_good(call: str, guests: Guests, tmp_path: Path) -> None:
    shapes = {
        "fd_write": ("i32 i32 i32 i32", "(i32.const 1) (i32.const -16) (i32.const 99) (i32.const -4)"),
        "fd_read": ("i32 i32 i32 i32", "(i32.const 0) (i32.const 65528) (i32.const 2) (i32.const -1)"),
        "path_open": (
            "i32 i32 i32 i32 i32 i64 i64 i32 i32",
            "(i32.const 3) (i32.const 0) (i32.const -8) (i32.const 99) (i32.const 0) (i64.const 0) (i64.const 0)"
            " (i32.const 0) (i32.const -1)",
        ),
        "random_get": ("i32 i32", "(i32.const 1) (i32.const -1)"),
        "args_get": ("i32 i32", "(i32.const -1) (i32.const -1)"),
        "poll_oneoff": ("i32 i32 i32 i32", "(i32.const -48) (i32.const -32) (i32.const 1000000) (i32.const 0)"),
    }
    kinds, given = shapes[call]
    text = f"""(module (import "wasi_snapshot_preview1" "{call}" (func $call (param {kinds}) (result i32)))
        (memory (export "memory") 1) (func (export "_start") (drop (call $call {given}))))"""
    ran = guests.run(text, GuestPlan(argv=("x",), preopens=(Preopen(str(tmp_path), "/"),)))
    assert ran.code in (0, 1, 134)
    assert not ran.refused


# Anything at all

SEEDS = (
    b'(module (memory (export "memory") 1 9) (table 4 funcref) (global (mut i64) (i64.const 5)) (elem (i32.const 0) $f)'
    b' (data (i32.const 8) "some data") (type $t (func (param i32) (result i32)))'
    b" (func $f (type $t) (local f64 v128) (if (result i32) (local.get 0) (then (call $f (i32.sub (local.get 0)"
    b" (i32.const 1)))) (else (i32.load offset=4 (local.get 0)))))"
    b' (func (export "_start") (local i32) (loop $l (drop (call_indirect (type $t) (local.get 0) (i32.const 0)))'
    b" (br_if $l (i32.lt_u (local.tee 0 (i32.add (local.get 0) (i32.const 1))) (i32.const 50))))))",
    b'(module (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))'
    b' (memory (export "memory") 1) (data (i32.const 0) "\\10\\00\\00\\00\\02\\00\\00\\00") (tag (param i32))'
    b' (func (export "_start") (drop (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))'
    b" (memory.fill (i32.const 99) (i32.const 7) (i32.const 500))))",
)


def mutated(seed: bytes, chance: random.Random) -> bytes:
    """A binary with some bytes changed, left out, doubled or moved."""
    data = bytearray(seed)
    for _ in range(chance.choice((1, 1, 1, 2, 6))):
        at, to = sorted(chance.randrange(8, len(data)) for _ in range(2))
        what = chance.choice((0, 0, 1, 1, 1, 2, 3, 4))
        if what == 0:
            data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif what == 1:
            data[at] ^= 1 << chance.randrange(8)
        elif what == 2 and len(data) > 16:
            del data[at : at + chance.randint(1, 4)]
        elif what == 3:
            data[at:at] = data[at : min(to, at + 16)]
        else:
            data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 4)))
    return bytes(data)


def in_a_child(body: Callable[[], None]) -> int:
    """How it ended: 0, or minus a signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(60)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 1)
            body()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_whatever_the_helper_is_given_it_answers() -> None:
    def fuzz() -> None:
        code = os.memfd_create("code")
        os.dup2(code, helper.CODE)
        chance = random.Random(1)
        seeds = [bytes(wat2wasm(one)) for one in SEEDS] + [bytes(wat2wasm("(component (core module (func)))"))]
        for _ in range(ROUNDS):
            try:
                helper.compiled(mutated(chance.choice(seeds), chance), ORDER)
            except (WasmtimeError, ValueError):
                continue

    assert in_a_child(fuzz) == 0


def test_whatever_compiles_runs_to_some_end() -> None:
    def fuzz() -> None:
        engine = Engine(configure(Variant.METERED))
        linker = Linker(engine)
        linker.define_wasi()
        chance = random.Random(2)
        seeds = [bytes(wat2wasm(one)) for one in SEEDS]
        ended = threading.Event()

        def tick() -> None:
            while not ended.wait(0.005):
                engine.increment_epoch()

        threading.Thread(target=tick, daemon=True).start()
        for _ in range(ROUNDS):
            try:
                module = Module(engine, mutated(chance.choice(seeds), chance))
                store = Store(engine)
                store.set_epoch_deadline(2)
                store.set_limits(8 << 20, 10_000, 10, 10, 10)
                config = WasiConfig()
                config.inherit_stdout()
                store.set_wasi(config)
                start = linker.instantiate(store, module).exports(store).get("_start")
                if start is not None:
                    start(store)
            except (WasmtimeError, Trap, TypeError):
                continue

    assert in_a_child(fuzz) == 0


@pytest.mark.parametrize("seed", range(3))
def test_garbage_is_refused_by_the_helper(seed: int, tmp_path: Path) -> None:
    data = b"\0asm\1\0\0\0" + random.Random(seed).randbytes(5000)
    with pytest.raises(ForgeError, match="module"):
        compile_text(tmp_path, data)


@pytest.mark.parametrize("filling", ["\n", " ", "0", "\n ", "0: "])
def test_a_name_of_whatever_does_not_hold_up_the_end(filling: str) -> None:
    error = Exception("error while executing\n    0:     0x31 - a!" + filling * 100_000 + "\n1: wasm trap: x" + filling)
    began = time.monotonic()
    assert traps.outcome(error, started=True).reason == TRAP
    assert time.monotonic() - began < 1
