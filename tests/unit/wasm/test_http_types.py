"""Components that tell other types of their imports than these have: a guest may tell anything."""

from __future__ import annotations

import time
from functools import reduce

import pytest
from wasmtime import Engine
from wasmtime.component import Component

from engines.wasm.guest.http import cells, linking
from engines.wasm.guest.http.interfaces import SERVER
from forgeone_shim.errors import FailedPrecondition
from hack.lab import http_guest
from tests.unit.wasm.guests import Guests
from tests.unit.wasm.test_http_server import body_of, serving

NOW = '(import "clock" "now" (func $now (param i32)))'


def telling(kind: str) -> str:
    """The usual guest, that says that the time is of another type, and asks for it before it answers."""
    text = http_guest.guest()
    text = text.replace(
        '(export "subscribe-duration"', f'(export "now" (func (result {kind})))\n(export "subscribe-duration"', 1
    )
    lowered = '(core func $now (canon lower (func $clock "now") (memory (core memory $m "memory"))'
    text = text.replace("(core module $main", f"{lowered} (realloc (core func $realloc))))\n(core module $main", 1)
    text = text.replace('(import "m" "reset"', f'{NOW}\n(import "m" "reset"', 1)
    text = text.replace('(with "clock" (instance ', '(with "clock" (instance (export "now" (func $now)) ', 1)
    return text.replace("(local.set $fields", "(call $now (i32.const 200000)) (local.set $fields", 1)


def nested(kind: str, levels: int) -> str:
    return reduce(lambda inner, _: f"(option {inner})", range(levels), kind)


def doubled(levels: int, functions: int) -> str:
    """The usual guest, with one import more: of few bytes, and of types without number."""
    types = "".join(f"(type $w{level + 1} (tuple $w{level} $w{level}))" for level in range(levels))
    made = "".join(f'(export "f{each}" (func (param "a" $w{levels})))' for each in range(functions))
    more = f'(import "wasi:clocks/wall-clock@0.2.0" (instance (type $w0 u8) {types} {made}))'
    return http_guest.guest().replace("(component\n", f"(component\n{more}\n", 1)


def resources(count: int) -> str:
    made = "".join(f'(export "r{each}" (type (sub resource)))' for each in range(count))
    more = f'(import "wasi:clocks/wall-clock@0.2.0" (instance {made}))'
    return http_guest.guest().replace("(component\n", f"(component\n{more}\n", 1)


def link(text: str) -> linking.Linked:
    engine = Engine()
    return linking.link(engine, Component(engine, text), SERVER)


@pytest.mark.parametrize("kind", [nested("u64", 32), "string", "(list u8)", "(tuple u64 string)", "(tuple char bool)"])
def test_a_function_of_another_type_ends_the_request_and_nothing_else(kind: str, guests: Guests) -> None:
    loaded = guests.load(telling(kind))
    with serving(loaded) as served:  # type: ignore[arg-type]
        answers = [served.get("/h") for _ in range(20)]
        assert not served.ended()
        if kind.startswith("(option"):
            assert body_of(answers[-1]) == b"Hello\n"
        else:
            assert all(answer.startswith((b"HTTP/1.1 500 ", b"HTTP/1.1 200 ")) for answer in answers)


@pytest.mark.parametrize(
    "text", [telling(nested("u64", 33)), telling(nested("u64", 90)), doubled(16, 1), doubled(10, 20), resources(2000)]
)
def test_types_too_deep_or_too_many_are_refused_at_once(text: str) -> None:
    engine = Engine()
    component = Component(engine, text)
    began = time.monotonic()
    with pytest.raises(FailedPrecondition, match="cannot be bound"):
        linking.link(engine, component, SERVER)
    assert time.monotonic() - began < 2


def test_what_a_guest_with_all_of_wasi_has_is_far_from_too_much() -> None:
    assert link(http_guest.guest()).missing == ()


def test_the_scratch_memory_is_enough_for_the_deepest_type() -> None:
    assert cells.SCRATCH // cells.CELL == cells._DEPTH_MAX + 1
