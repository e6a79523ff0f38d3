"""How guests run and end. Their texts are WAT."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import cast

import pytest
from wasmtime import Func, FuncType, Store, Trap, WasmtimeError

from engines.wasm.aot.target import Kind, Variant
from engines.wasm.guest.budget import Budget
from engines.wasm.guest.commands import ComponentSetup, ModuleSetup
from engines.wasm.guest.loading import EngineSet, LoadedModule, load
from engines.wasm.guest.plan import CANNOT_START, CPU_BUDGET_EXCEEDED, TRAP, GuestPlan, Outcome, Preopen
from engines.wasm.guest.running import prepare
from forgeone_shim.errors import FailedPrecondition
from tests.unit.wasm.guests import Guests

PLAN = GuestPlan(argv=("guest",))


def exiting(code: int) -> str:
    return f"""(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1) (func (export "_start") (call $exit (i32.const {code})) unreachable))"""


def command(imports: str, body: str, instances: str) -> str:
    """A component that runs ``body`` (core instructions that leave an i32: 0 is success)."""
    return f"""(component {imports}
        (core module $m {body})
        {instances}
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $r (export "run" (func $run)))
        (export "wasi:cli/run@0.2.3" (instance $r)))"""


def exiting_component(call: str, code: int) -> str:
    kind = "u8" if call == "exit-with-code" else "(result)"
    return command(
        f"""(import "wasi:cli/exit@0.2.3" (instance $e (export "{call}" (func (param "x" {kind})))))
            (core func $x (canon lower (func $e "{call}")))""".replace('"x" u8', '"status-code" u8').replace(
            '"x" (result)', '"status" (result)'
        ),
        f"""(import "e" "exit" (func $x (param i32)))
            (func (export "run") (result i32) (call $x (i32.const {code})) (i32.const 0))""",
        '(core instance $i (instantiate $m (with "e" (instance (export "exit" (func $x))))))',
    )


@pytest.mark.parametrize("code", [0, 1, 125, 126, 127, 134, 200, 255])
def test_every_exit_code_of_a_module_arrives(code: int, guests: Guests) -> None:
    assert guests.run(exiting(code), PLAN).outcome == Outcome(code)


def test_an_exit_code_has_eight_bits(guests: Guests) -> None:
    assert guests.run(exiting(0x1234), PLAN).code == 0x34


@pytest.mark.parametrize(("call", "given", "code"), [("exit", 0, 0), ("exit", 1, 1), ("exit-with-code", 200, 200)])
def test_every_exit_code_of_a_component_arrives(call: str, given: int, code: int, guests: Guests) -> None:
    assert guests.run(exiting_component(call, given), PLAN).outcome == Outcome(code)


@pytest.mark.parametrize(("left", "code"), [(0, 0), (1, 1)])
def test_what_a_component_returns_is_its_exit_code(left: int, code: int, guests: Guests) -> None:
    text = command("", f'(func (export "run") (result i32) (i32.const {left}))', "(core instance $i (instantiate $m))")
    assert guests.run(text, PLAN).outcome == Outcome(code)


TRAPS = {
    "unreachable": "wasm `unreachable` instruction executed",
    "(drop (i32.div_s (i32.const 1) (i32.const 0)))": "integer divide by zero",
    "(drop (i32.load (i32.const -4)))": "out of bounds memory access",
    "(call $main)": "call stack exhausted",
    "(drop (i32.trunc_f32_s (f32.const nan)))": "invalid conversion to integer",
}


@pytest.mark.parametrize("body", TRAPS)
def test_a_trap_has_a_code_a_reason_and_a_backtrace(body: str, guests: Guests) -> None:
    ran = guests.run(f'(module $m (memory 1) (func $main (export "_start") {body}))', PLAN)
    assert (ran.code, ran.outcome.reason) == (134, TRAP)
    assert ran.outcome.message.startswith(TRAPS[body])
    assert b"wasm backtrace:" in ran.stderr
    assert b"m!main" in ran.stderr


def test_a_trap_of_a_component_has_them_too(guests: Guests) -> None:
    text = command("", '(func (export "run") (result i32) unreachable)', "(core instance $i (instantiate $m))")
    ran = guests.run(text, PLAN)
    assert (ran.code, ran.outcome.reason) == (134, TRAP)
    assert ran.outcome.message.startswith("wasm `unreachable` instruction executed")


def test_a_start_function_runs_with_the_guest_and_not_before(guests: Guests) -> None:
    text = '(module (func $early unreachable) (start $early) (func (export "_start")))'
    ran = guests.run(text, PLAN)
    assert (ran.refused, ran.code, ran.outcome.reason) == ("", 134, TRAP)


def test_names_in_a_message_are_printable(guests: Guests) -> None:
    ran = guests.run('(module $"a\\u{1b}[31m\\u{a}b" (func (export "_start") unreachable))', PLAN)
    assert ran.outcome.message.isprintable()
    assert b"\x1b" not in ran.stderr


ADD = """(module (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
    (func (export "pair") (result i32 f64) (i32.const 7) (f64.const 0.5)) (memory (export "memory") 1))"""


@pytest.mark.parametrize(
    ("argv", "stdout"),
    [(("add", "2", "0x28"), b"42\n"), (("add", "-1", "4294967295"), b"-2\n"), (("pair",), b"7\n0.5\n")],
)
def test_a_function_is_called_with_its_arguments(argv: tuple[str, ...], stdout: bytes, guests: Guests) -> None:
    ran = guests.run(ADD, GuestPlan(argv=argv, function=argv[0]))
    assert (ran.outcome, ran.stdout) == (Outcome(0), stdout)


@pytest.mark.parametrize(
    ("function", "words", "why"),
    [
        ("add", ("1",), "takes 2 (i32, i32), 1 were given"),
        ("add", ("1", "two"), "'two' is no i32"),
        ("add", ("1", "4294967296"), "outside of i32"),
        ("memory", (), "exports no function 'memory'"),
        ("none", (), "exports no function 'none'"),
        ("", (), "exports no _start"),
    ],
)
def test_what_cannot_be_called_is_refused_at_creation(
    function: str, words: tuple[str, ...], why: str, guests: Guests
) -> None:
    assert why in guests.run(ADD, GuestPlan(argv=("x", *words), function=function)).refused


def test_a_reactor_is_initialized_first(guests: Guests) -> None:
    text = """(module (global $ready (mut i32) (i32.const 0))
        (func (export "_initialize") (global.set $ready (i32.const 5)))
        (func (export "value") (result i32) (global.get $ready)))"""
    assert guests.run(text, GuestPlan(argv=("x",), function="value")).stdout == b"5\n"


FUNCTIONS = """(component
    (core module $m (memory (export "memory") 1) (global $at (mut i32) (i32.const 1024))
      (func (export "realloc") (param i32 i32 i32 i32) (result i32)
        (global.get $at) (global.set $at (i32.add (global.get $at) (local.get 3))))
      (func (export "echo") (param i32 i32) (result i32)
        (i32.store (i32.const 0) (local.get 0)) (i32.store (i32.const 4) (local.get 1)) (i32.const 0))
      (func (export "not") (param i32) (result i32) (i32.eqz (local.get 0))))
    (core instance $i (instantiate $m))
    (func $echo (param "text" string) (result string) (canon lift (core func $i "echo")
      (memory (core memory $i "memory")) (realloc (core func $i "realloc"))))
    (func $not (param "value" bool) (result bool) (canon lift (core func $i "not")))
    (export "echo" (func $echo))
    (instance $inner (export "not" (func $not)))
    (export "test:test/logic@1.2.3" (instance $inner)))"""


@pytest.mark.parametrize(
    ("function", "word", "stdout"),
    [
        ("echo", "ünï", "ünï\n"),
        ("test:test/logic@1.2.3#not", "true", "false\n"),
        ("test:test/logic#not", "false", "true\n"),
    ],
)
def test_a_function_of_a_component_is_called(function: str, word: str, stdout: str, guests: Guests) -> None:
    ran = guests.run(FUNCTIONS, GuestPlan(argv=("x", word), function=function))
    assert (ran.outcome, ran.stdout.decode()) == (Outcome(0), stdout)


@pytest.mark.parametrize(
    ("kinds", "left", "outcome", "stdout", "stderr"),
    [
        ("u32 (error bool)", 0, Outcome(0), b"7\n", b""),
        ("u32 (error bool)", 1, Outcome(1), b"", b"true\n"),
        ("u32 (error u32)", 0, Outcome(0), b"7\n", b""),
        ("u32 (error u32)", 1, Outcome(1), b"", b"7\n"),
        ("(error u32)", 0, Outcome(0), b"", b""),
        ("(error u32)", 1, Outcome(1), b"", b"7\n"),
        ("u32", 0, Outcome(0), b"7\n", b""),
        ("u32", 1, Outcome(1), b"", b""),
    ],
)
def test_a_result_that_is_an_error_is_one(
    kinds: str, left: int, outcome: Outcome, stdout: bytes, stderr: bytes, guests: Guests
) -> None:
    text = f"""(component (core module $m (memory (export "memory") 1)
        (func (export "f") (result i32) (i32.store (i32.const 8) (i32.const {left}))
          (i32.store (i32.const 12) (i32.const 7)) (i32.const 8)))
        (core instance $i (instantiate $m))
        (func (export "f") (result (result {kinds}))
          (canon lift (core func $i "f") (memory (core memory $i "memory")))))"""
    ran = guests.run(text, GuestPlan(argv=("f",), function="f"))
    assert (ran.outcome, ran.stdout, ran.stderr) == (outcome, stdout, stderr)


def test_arguments_that_do_not_fit_a_component_end_it(guests: Guests) -> None:
    ran = guests.run(FUNCTIONS, GuestPlan(argv=("x", "maybe"), function="test:test/logic#not"))
    assert ran.code == 1
    assert b"neither 'true' nor 'false'" in ran.stderr


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('(module (import "env" "thing" (func)) (func (export "_start")))', "env::thing"),
        (
            '(component (import "acme:thing/it@1.0.0" (instance)))',
            "imports acme:thing/it@1.0.0, which nothing here provides",
        ),
        ("(component)", "exports no wasi:cli/run"),
        ('(component (import "wasi:cli/stdin@0.3.0" (instance)))', "imports wasi:cli/stdin@0.3.0"),
    ],
)
def test_what_nobody_provides_is_refused_at_creation(text: str, why: str, guests: Guests) -> None:
    assert why in guests.run(text, PLAN).refused


def test_a_directory_that_is_not_there_is_refused_at_creation(guests: Guests, tmp_path: Path) -> None:
    plan = GuestPlan(argv=("x",), preopens=(Preopen(str(tmp_path / "none"), "/"),))
    assert "cannot be opened" in guests.run(exiting(0), plan).refused


def test_memory_beyond_the_limit_is_not_given(guests: Guests) -> None:
    text = """(module (memory (export "memory") 2) (func (export "grow") (param i32) (result i32)
        (memory.grow (local.get 0))))"""
    given = [
        guests.run(text, GuestPlan(argv=("x", pages), function="grow", memory_max=4 * 65536)).stdout
        for pages in ("2", "3", "65000")
    ]
    assert given == [b"2\n", b"-1\n", b"-1\n"]


def test_a_module_that_begins_beyond_its_limit_cannot_start(guests: Guests) -> None:
    text = '(module (memory 100) (func (export "_start")))'
    ran = guests.run(text, GuestPlan(argv=("x",), memory_max=65536))
    assert (ran.code, ran.outcome.reason) == (1, CANNOT_START)
    assert "exceeds memory limits" in ran.outcome.message


SPIN = '(module (func (export "_start") (loop $again (br $again))))'


def test_a_guest_that_has_used_its_budget_is_ended(guests: Guests) -> None:
    ran = guests.run(SPIN, GuestPlan(argv=("x",), cpu_budget=50_000))
    assert ran.outcome == Outcome(134, CPU_BUDGET_EXCEEDED, "used its CPU budget of 0.05 s")


def test_a_guest_within_its_budget_ends_by_itself(guests: Guests) -> None:
    assert guests.run(exiting(3), GuestPlan(argv=("x",), cpu_budget=5_000_000)).outcome == Outcome(3)


def test_a_guest_that_sleeps_uses_no_budget(guests: Guests) -> None:
    text = """(module (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "_start") (i32.store (i32.const 16) (i32.const 1))
          (i64.store (i32.const 24) (i64.const 150000000))
          (drop (call $poll (i32.const 0) (i32.const 128) (i32.const 1) (i32.const 200)))))"""
    assert guests.run(text, GuestPlan(argv=("x",), cpu_budget=100_000)).outcome == Outcome(0)


def test_a_guest_with_a_slice_gives_up_the_processor_and_goes_on(guests: Guests) -> None:
    counts = """(module (func (export "f") (param $n i32) (result i32) (local $i i32)
        (loop (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br_if 0 (i32.lt_u (local.get $i) (local.get $n)))) (local.get $i)))"""
    ran = guests.run(counts, GuestPlan(argv=("x", "200000000"), function="f", cpu_slice=1000))
    assert (ran.outcome, ran.stdout) == (Outcome(0), b"200000000\n")


def test_a_guest_with_slices_is_ended_by_its_budget_nonetheless(guests: Guests) -> None:
    ran = guests.run(SPIN, GuestPlan(argv=("x",), cpu_budget=100_000, cpu_slice=5_000))
    assert ran.outcome == Outcome(134, CPU_BUDGET_EXCEEDED, "used its CPU budget of 0.1 s")


def test_every_slice_of_processor_time_ends_in_a_turn_of_others(guests: Guests) -> None:
    loaded = guests.load(SPIN, Variant.METERED)
    assert isinstance(loaded, LoadedModule)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        store = Store(loaded.engine)
        budget = Budget(loaded.engine, store, 0.2, 0.01)
        with contextlib.suppress(WasmtimeError, Trap), budget:
            instance = loaded.linker.instantiate(store, loaded.module)
            cast(Func, instance.exports(store)["_start"])(store)
        os.write(write, b"%d" % budget.turns)
        os._exit(0)
    os.waitpid(pid, 0)
    # The kernel counts in ticks, which may be as long as a slice.
    assert 5 <= int(os.read(read, 16)) <= 20
    os.close(read)
    os.close(write)


def test_a_budget_needs_metered_code(guests: Guests) -> None:
    loaded = guests.load(SPIN)
    with pytest.raises(FailedPrecondition, match="metered"):
        prepare(GuestPlan(argv=("x",), cpu_budget=1), loaded)


SOCKETS = """(component
    (import "wasi:sockets/network@0.2.3" (instance $n
      (type $code (enum "unknown" "access-denied" "not-supported" "invalid-argument" "out-of-memory" "timeout"
        "concurrency-conflict" "not-in-progress" "would-block" "invalid-state" "new-socket-limit" "address-not-bindable"
        "address-in-use" "remote-unreachable" "connection-refused" "connection-reset" "connection-aborted"
        "datagram-too-large" "name-unresolvable" "temporary-resolver-failure" "permanent-resolver-failure"))
      (export "error-code" (type (eq $code)))
      (type $family (enum "ipv4" "ipv6"))
      (export "ip-address-family" (type (eq $family)))))
    (alias export $n "error-code" (type $code))
    (alias export $n "ip-address-family" (type $family))
    (import "wasi:sockets/tcp@0.2.3" (instance $t (export "tcp-socket" (type (sub resource)))))
    (alias export $t "tcp-socket" (type $socket))
    (import "wasi:sockets/tcp-create-socket@0.2.3" (instance $c
      (alias outer 1 $code (type $oc)) (export "error-code" (type $code2 (eq $oc)))
      (alias outer 1 $family (type $of)) (export "ip-address-family" (type $family2 (eq $of)))
      (alias outer 1 $socket (type $os)) (export "tcp-socket" (type $socket2 (eq $os)))
      (export "create-tcp-socket" (func (param "address-family" $family2)
        (result (result (own $socket2) (error $code2)))))))
    (core module $memory (memory (export "memory") 1))
    (core instance $mem (instantiate $memory))
    (core func $create (canon lower (func $c "create-tcp-socket") (memory (core memory $mem "memory"))))
    (core module $m (import "c" "create" (func $create (param i32 i32))) (import "m" "memory" (memory 1))
      (func (export "run") (result i32) (call $create (i32.const 0) (i32.const 16)) (i32.load8_u (i32.const 16))))
    (core instance $i (instantiate $m (with "c" (instance (export "create" (func $create))))
      (with "m" (instance $mem))))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance $r (export "run" (func $run)))
    (export "wasi:cli/run@0.2.3" (instance $r)))"""


@pytest.mark.parametrize(("network", "code"), [(True, 0), (False, 1)])
def test_a_component_gets_sockets_where_it_may(network: bool, code: int, guests: Guests) -> None:
    assert guests.run(SOCKETS, GuestPlan(argv=("x",), network=network)).outcome == Outcome(code)


class Adding:
    """An extension with one function, that says what it saw."""

    def provides(self, name: str) -> bool:
        return name in ("adding", "test:adding/it@0.1.0")

    def link_module(self, setup: ModuleSetup) -> None:
        module = setup.loaded.module
        kind = next(one.type for one in module.imports if one.module == "adding")
        assert isinstance(kind, FuncType)
        setup.linker.define_func("adding", "add", kind, lambda a, b: a + b)

    def link_component(self, setup: ComponentSetup) -> None:
        with setup.linker.root() as root, root.add_instance("test:adding/it@0.1.0") as instance:
            instance.add_func("add", lambda _store, a, b: a + b)

    def started(self, setup: ModuleSetup, instance: object) -> None:
        os.write(1, b"started\n")


def test_an_extension_gives_a_module_its_imports(guests: Guests) -> None:
    text = """(module (import "adding" "add" (func $add (param i32 i32) (result i32)))
        (func (export "sum") (param i32) (result i32) (call $add (local.get 0) (i32.const 40))))"""
    ran = guests.run(text, GuestPlan(argv=("x", "2"), function="sum"), extensions=[Adding()])
    assert (ran.outcome, ran.stdout) == (Outcome(0), b"started\n42\n")


def test_an_extension_gives_a_component_its_imports(guests: Guests) -> None:
    text = """(component
        (import "test:adding/it@0.1.0" (instance $a
          (export "add" (func (param "a" u32) (param "b" u32) (result u32)))))
        (core func $add (canon lower (func $a "add")))
        (core module $m (import "a" "add" (func $add (param i32 i32) (result i32)))
          (func (export "sum") (param i32) (result i32) (call $add (local.get 0) (i32.const 40))))
        (core instance $i (instantiate $m (with "a" (instance (export "add" (func $add))))))
        (func (export "sum") (param "x" u32) (result u32) (canon lift (core func $i "sum"))))"""
    ran = guests.run(text, GuestPlan(argv=("x", "2"), function="sum"), extensions=[Adding()])
    assert (ran.outcome, ran.stdout) == (Outcome(0), b"42\n")


def test_code_of_another_variant_is_not_loaded(guests: Guests, tmp_path: Path) -> None:
    with guests.compiled(exiting(0), Variant.METERED) as code:
        with pytest.raises(FailedPrecondition, match="cannot be loaded"):
            load(EngineSet(), code, Kind.MODULE, Variant.PLAIN)
        assert load(EngineSet(), code, Kind.MODULE, Variant.METERED)


def test_what_is_no_code_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "code").write_bytes(b"\0asm\1\0\0\0")
    with (tmp_path / "code").open("rb") as file, pytest.raises(FailedPrecondition, match="cannot be loaded"):
        load(EngineSet(), file.fileno(), Kind.MODULE)
