"""The pair of modules that stands between a guest and its imports, as WebAssembly text.

The *front* is instantiated before the guest and has a function for each of its imports, which calls what is in a table.
The *recorder* is instantiated after it, for it imports the guest's memory and exports it as ``memory``: there WASI
looks for what it is given addresses of. It fills the table with functions that record the call in the ring (a second
linear memory, :mod:`engines.wasm.tracing.ring`), call the host's function, and record what it returned.

The clock belongs to the front: WASI writes the time into the memory that its caller exports, which is the ring there.

Names of the guest's imports are not part of either module: whoever instantiates them gives their imports in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engines.wasm.tracing import ring
from engines.wasm.tracing.ring import Function

_MONOTONIC = 1
# Told by the backtrace: before the recorder is there, nothing can be done for a call but to say this.
_TOO_EARLY = "a_guest_that_calls_its_host_while_it_is_instantiated_cannot_be_traced"
# To an i64 of the record; others (v128, references) are not recorded.
_WIDEN = {
    "i32": "(i64.extend_i32_u {})",
    "i64": "{}",
    "f32": "(i64.extend_i32_u (i32.reinterpret_f32 {}))",
    "f64": "(i64.reinterpret_f64 {})",
}


def front(functions: Sequence[Function]) -> str:
    """Imports: the ring, the host's ``clock_time_get``. Exports: ``t`` (the table), ``now``, ``f0`` and so on."""
    lines = [
        "(module",
        f'(import "" "ring" (memory {ring.PAGES} {ring.PAGES}))',
        '(import "" "clock" (func $clock (param i32 i64 i32) (result i32)))',
        '(export "memory" (memory 0))',
        f'(table $t (export "t") {len(functions)} {len(functions)} funcref)',
        f"(func ${_TOO_EARLY} unreachable)",
        '(func (export "now") (param i32)',
        f"  (drop (call $clock (i32.const {_MONOTONIC}) (i64.const 0) (local.get 0))))",
    ]
    for index, function in enumerate(functions):
        lines += [
            f"(type $t{index} (func {_signature(function)}))",
            f'(func (export "f{index}") (type $t{index})',
            f"  (if (ref.is_null (table.get $t (i32.const {index}))) (then (call ${_TOO_EARLY})))",
            f"  {_given(function)} (call_indirect (type $t{index}) (i32.const {index})))",
        ]
    return "\n".join([*lines, ")"])


def recorder(functions: Sequence[Function], *, memory: bool) -> str:
    """Imports: the guest's memory if it has one, the ring, the front's table and ``now``, the host's functions.

    Nothing is exported but the guest's memory: the table is filled as this is instantiated.
    """
    lines = ["(module"]
    if memory:
        lines.append('(import "" "memory" (memory $guest 0))')
    lines += [
        f'(import "" "ring" (memory $ring {ring.PAGES} {ring.PAGES}))',
        f'(import "" "t" (table {len(functions)} {len(functions)} funcref))',
        '(import "" "now" (func $now (param i32)))',
        *(f'(import "" "n{index}" (func $n{index} {_signature(one)}))' for index, one in enumerate(functions)),
        *(('(export "memory" (memory $guest))', _COPY, _LOOK) if memory else ()),
        _BEGIN,
    ]
    for index, function in enumerate(functions):
        lines += _recording(index, function, memory=memory)
    targets = " ".join(f"$f{index}" for index in range(len(functions)))
    return "\n".join([*lines, f"(elem (i32.const 0) func {targets})", ")"])


_BEGIN = f"""
(func $begin (param $function i32) (result i32) (local $n i64) (local $at i32) (local $counter i32)
  (local.set $n (i64.load $ring offset={ring.HEAD} (i32.const 0)))
  (i64.store $ring offset={ring.HEAD} (i32.const 0) (i64.add (local.get $n) (i64.const 1)))
  (local.set $counter (i32.add (i32.const {ring.COUNTERS})
    (i32.shl (local.get $function) (i32.const {ring.COUNTER_SHIFT}))))
  (if (i64.eqz (i64.load $ring (local.get $counter)))
    (then (i64.store $ring offset=8 (local.get $counter) (i64.add (local.get $n) (i64.const 1)))))
  (i64.store $ring (local.get $counter) (i64.add (i64.load $ring (local.get $counter)) (i64.const 1)))
  (local.set $at (i32.add (i32.const {ring.PAGE}) (i32.shl
    (i32.and (i32.wrap_i64 (local.get $n)) (i32.const {ring.SLOTS - 1})) (i32.const {ring.RECORD_SHIFT}))))
  (i64.store $ring offset={ring.NUMBER} (local.get $at) (i64.const 0))
  (i64.store $ring offset={ring.ENDED} (local.get $at) (i64.const 0))
  (i32.store $ring offset={ring.FUNCTION} (local.get $at) (local.get $function))
  (i32.store $ring offset={ring.TEXT_LENGTHS} (local.get $at) (i32.const 0))
  (i64.store $ring offset={ring.OUT} (local.get $at) (i64.const 0))
  (call $now (i32.add (local.get $at) (i32.const {ring.STARTED})))
  (local.get $at))
(func $whole (param $at i32)
  (i64.store $ring offset={ring.NUMBER} (local.get $at) (i64.load $ring offset={ring.HEAD} (i32.const 0))))"""

# An address that is not in the guest's memory is the host function's to refuse.
_COPY = """
(func $copy (param $to i32) (param $from i32) (param $length i32) (param $room i32) (result i32)
  (if (i32.gt_u (local.get $length) (local.get $room)) (then (local.set $length (local.get $room))))
  (if (i64.gt_u (i64.add (i64.extend_i32_u (local.get $from)) (i64.extend_i32_u (local.get $length)))
                (i64.shl (i64.extend_i32_u (memory.size $guest)) (i64.const 16)))
    (then (return (i32.const 0))))
  (memory.copy $ring $guest (local.get $to) (local.get $from) (local.get $length))
  (local.get $length))"""
_LOOK = f"""
(func $look4 (param $at i32) (param $from i32)
  (if (i64.le_u (i64.add (i64.extend_i32_u (local.get $from)) (i64.const 4))
                (i64.shl (i64.extend_i32_u (memory.size $guest)) (i64.const 16)))
    (then (i64.store $ring offset={ring.OUT} (local.get $at) (i64.load32_u $guest (local.get $from))))))
(func $look8 (param $at i32) (param $from i32)
  (if (i64.le_u (i64.add (i64.extend_i32_u (local.get $from)) (i64.const 8))
                (i64.shl (i64.extend_i32_u (memory.size $guest)) (i64.const 16)))
    (then (i64.store $ring offset={ring.OUT} (local.get $at) (i64.load $guest (local.get $from))))))"""


def _recording(index: int, function: Function, *, memory: bool) -> Iterator[str]:
    yield f"(func $f{index} {_signature(function)} (local $at i32)"
    for place, kind in enumerate(function.results):
        yield f"  (local $r{place} {kind})"
    yield f"  (local.set $at (call $begin (i32.const {index})))"
    for place, kind in enumerate(function.params[: ring.ARGUMENTS_MAX]):
        if kind in _WIDEN:
            yield _store(ring.ARGUMENTS + 8 * place, _WIDEN[kind].format(f"(local.get {place})"))
    call = function.known if memory else None
    yield from _texts(() if call is None else call.texts)
    yield "  (call $whole (local.get $at))"
    yield f"  (call $n{index} {_given(function)})"
    for place in reversed(range(len(function.results))):
        yield f"  (local.set $r{place})"
    if call is not None and call.out is not None:
        address, size = call.out
        yield f"  (call $look{size} (local.get $at) (local.get {address}))"
    if function.results and function.results[0] in _WIDEN:
        yield _store(ring.RESULT, _WIDEN[function.results[0]].format("(local.get $r0)"))
    if function.known is not None and function.known.brief:
        yield _store(ring.ENDED, f"(i64.const {ring.UNTIMED})")
    else:
        yield f"  (call $now (i32.add (local.get $at) (i32.const {ring.ENDED})))"
    yield from (f"  (local.get $r{place})" for place in range(len(function.results)))
    yield ")"


def _texts(addresses: Sequence[int]) -> Iterator[str]:
    room = ring.text_room(len(addresses))
    for place, address in enumerate(addresses):
        to = f"(i32.add (local.get $at) (i32.const {ring.TEXTS + place * room}))"
        given = f"(local.get {address}) (local.get {address + 1}) (i32.const {room})"
        where = ring.TEXT_LENGTHS + 2 * place
        yield f"  (i32.store16 $ring offset={where} (local.get $at) (call $copy {to} {given}))"


def _store(offset: int, value: str) -> str:
    return f"  (i64.store $ring offset={offset} (local.get $at) {value})"


def _signature(function: Function) -> str:
    params = f"(param {' '.join(function.params)})" if function.params else ""
    results = f"(result {' '.join(function.results)})" if function.results else ""
    return f"{params} {results}".strip()


def _given(function: Function) -> str:
    return " ".join(f"(local.get {place})" for place in range(len(function.params)))
