"""Words as parameters, results as text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmtime import FuncType, ValType

from engines.wasm.guest import arguments, traps
from engines.wasm.guest.plan import CANNOT_START, CPU_BUDGET_EXCEEDED, TRAP, Outcome
from forgeone_shim.errors import InvalidInput


def kind(*names: str) -> FuncType:
    return FuncType([getattr(ValType, name)() for name in names], [])


@pytest.mark.parametrize(
    ("names", "words", "values"),
    [
        ((), (), []),
        ((), ("ignored",), []),
        (("i32",), ("0x10",), [16]),
        (("i32",), ("4294967295",), [-1]),
        (("i64",), ("-9223372036854775808",), [-(1 << 63)]),
        (("i64",), (str((1 << 64) - 1),), [-1]),
        (("f32", "f64"), ("0.5", "inf"), [0.5, float("inf")]),
    ],
)
def test_numbers_are_read(names: tuple[str, ...], words: tuple[str, ...], values: list[Any]) -> None:
    assert arguments.of_module(kind(*names), words) == values


@pytest.mark.parametrize(
    ("names", "words", "why"),
    [
        (("i32",), (), "takes 1"),
        (("i32",), ("1", "2"), "takes 1"),
        (("i32",), ("-2147483649",), "outside"),
        (("i64",), ("18446744073709551616",), "outside"),
        (("i32",), ("1.5",), "no i32"),
        (("f64",), ("much",), "no f64"),
        (("externref",), ("x",), "cannot be given"),
    ],
)
def test_what_is_no_number_is_refused(names: tuple[str, ...], words: tuple[str, ...], why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        arguments.of_module(kind(*names), words)


@given(st.text(max_size=40))
def test_any_word_is_a_number_or_refused(word: str) -> None:
    for name in ("i32", "f64"):
        try:
            assert isinstance(arguments.of_module(kind(name), [word])[0], int | float)
        except InvalidInput:
            continue


@pytest.mark.parametrize(
    ("result", "text"), [(None, ""), (True, "true\n"), (-3, "-3\n"), ("ü", "ü\n"), ([1, "a"], "1\na\n"), (0.5, "0.5\n")]
)
def test_results_are_shown(result: object, text: str) -> None:
    assert arguments.shown(result) == text


TRAPPED = """error while executing at wasm backtrace:
    0:   0x1a2b - app.wasm!abort
    1:   0x1a2c - app.wasm!main

Caused by:
    wasm trap: out of bounds memory access
"""


@pytest.mark.parametrize(
    ("text", "started", "budget", "outcome"),
    [
        (TRAPPED, True, 0.0, Outcome(134, TRAP, "out of bounds memory access, in app.wasm!abort")),
        (TRAPPED, False, 0.0, Outcome(134, TRAP, "out of bounds memory access, in app.wasm!abort")),
        (TRAPPED, True, 1.5, Outcome(134, CPU_BUDGET_EXCEEDED, "used its CPU budget of 1.5 s")),
        ("memory is too large", False, 0.0, Outcome(1, CANNOT_START, "memory is too large")),
        ("first\n\nCaused by:\n    last\n\n", True, 0.0, Outcome(1, TRAP, "last")),
        ("", False, 0.0, Outcome(1, CANNOT_START, "ValueError")),
    ],
)
def test_an_error_is_told_in_a_line(text: str, started: bool, budget: float, outcome: Outcome) -> None:
    assert traps.outcome(ValueError(text), started=started, budget=budget) == outcome


@given(st.text(max_size=2000))
def test_a_line_is_short_and_printable_whatever_the_error_says(text: str) -> None:
    error = ValueError(text)
    found = traps.outcome(error, started=True)
    assert len(found.message) <= 512
    assert found.message.isprintable()
    assert traps.report(error, found).decode().replace("\n", "").replace("\t", "").isprintable()
