"""What a trace costs: nanoseconds of a host call with and without it, and what it takes to make a guest ready.

``python -m hack.bench.wasm_trace``. The quickest of several rounds: others are at work on the machine too.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from typing import cast

from wasmtime import Func, FuncType, Instance, Module, Store, WasiConfig

from engines.wasm.aot.target import Variant
from engines.wasm.guest.commands import ModuleSetup
from engines.wasm.guest.loading import EngineSet, LoadedModule
from engines.wasm.guest.plan import GuestPlan
from engines.wasm.guest.trace import Tracer
from engines.wasm.tracing import ring

ROUNDS = 7
# Of each: its import, and how it is called.
CALLS = {
    "sched_yield": ("(result i32)", ""),
    "clock_time_get": ("(param i32 i64 i32) (result i32)", "(i32.const 1) (i64.const 0) (i32.const 64)"),
    "random_get": ("(param i32 i32) (result i32)", "(i32.const 64) (i32.const 8)"),
    "fd_write": ("(param i32 i32 i32 i32) (result i32)", "(i32.const 1) (i32.const 16) (i32.const 1) (i32.const 80)"),
    "path_filestat_get": (
        "(param i32 i32 i32 i32 i32) (result i32)",
        "(i32.const 3) (i32.const 0) (i32.const 40) (i32.const 3) (i32.const 128)",
    ),
}
TIMES = {"fd_write": 50_000, "path_filestat_get": 5_000}


def guest() -> str:
    """One function for each call, which makes it so often."""
    imports = [f'(import "wasi_snapshot_preview1" "{name}" (func ${name} {of}))' for name, (of, _) in CALLS.items()]
    functions = [
        f'(func (export "{name}") (param $n i32) (loop (drop (call ${name} {given}))'
        " (br_if 0 (local.tee $n (i32.sub (local.get $n) (i32.const 1))))))"
        for name, (_, given) in CALLS.items()
    ]
    data = r'(data (i32.const 16) "\20\00\00\00\01\00\00\00") (data (i32.const 40) "tmp")'
    return "\n".join(["(module", *imports, '(memory (export "memory") 1)', data, *functions, ")"])


def instance(engines: EngineSet, fd: int | None) -> tuple[Store, Instance, float]:
    """A guest, with a trace if there is a file for one, and the milliseconds that making it ready took."""
    engine, linker = engines.engine(Variant.PLAIN), engines.linker(Variant.PLAIN)
    module = Module(engine, guest())
    names = frozenset(one.name for one in module.exports if isinstance(one.type, FuncType))
    loaded = LoadedModule(Variant.PLAIN, engine, linker, module, names, None)
    store = Store(engine)
    wasi = WasiConfig()
    wasi.stdout_file = os.devnull
    wasi.preopen_dir("/", "/")
    store.set_wasi(wasi)
    setup = ModuleSetup(GuestPlan(argv=("x",)), loaded, store, linker)
    began = time.perf_counter()
    tracers = [] if fd is None else [Tracer(fd)]
    for tracer in tracers:
        tracer.link_module(setup)
    made = linker.instantiate_pre(module).instantiate(store)
    for tracer in tracers:
        tracer.started(setup, made)
    return store, made, (time.perf_counter() - began) * 1e3


def nanoseconds(store: Store, made: Instance) -> list[float]:
    """Of each call."""
    exports = made.exports(store)
    return [_best(store, cast(Func, exports[name]), TIMES.get(name, 200_000)) for name in CALLS]


def _best(store: Store, call: Func, times: int) -> float:
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter_ns()
        call(store, times)
        found.append((time.perf_counter_ns() - began) / times)
    return min(found)


def main() -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory() as directory:
        ring.create(f"{directory}/trace")
        fd = os.open(f"{directory}/trace", os.O_RDWR | os.O_CLOEXEC)
        plain_store, plain, plain_ready = instance(EngineSet(), None)
        traced_store, traced, traced_ready = instance(EngineSet(), fd)
        _row("ns a call", list(CALLS))
        _row("untraced", [f"{one:.0f}" for one in nanoseconds(plain_store, plain)])
        _row("traced", [f"{one:.0f}" for one in nanoseconds(traced_store, traced)])
        print(f"ready in {plain_ready:.1f} ms untraced, {traced_ready:.1f} ms traced")


def _row(name: str, cells: Sequence[str]) -> None:
    print(name.ljust(10), *(cell.rjust(18) for cell in cells))


if __name__ == "__main__":
    main()
