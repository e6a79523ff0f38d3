"""Strings of a command line as the parameters of an exported function, and its results as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

from wasmtime import FuncType
from wasmtime import component as components

from forgeone_shim.errors import InvalidInput

FIELD: Final = "args"


def of_module(kind: FuncType, given: Sequence[str]) -> list[int | float]:
    """For a core function: whole numbers (``0x`` too) and floats. One that takes nothing is given nothing.

    :raises InvalidInput: they do not fit.
    """
    wanted = [str(one) for one in kind.params]
    _count(wanted, given)
    return [_number(name, text) for name, text in zip(wanted, given, strict=False)]


def of_component(kind: components.FuncType, given: Sequence[str]) -> list[Any]:
    """For a component's function: numbers, truths, characters and strings; a last ``list<string>`` takes the rest.

    :raises InvalidInput: they do not fit.
    """
    types = [one for _, one in kind.params]
    rest: list[list[str]] = []
    if types and isinstance(types[-1], components.ListType) and isinstance(types[-1].element, components.String):
        types.pop()
        rest.append(list(given[len(types) :]))
        given = given[: len(types)]
    _count([type(one).__name__ for one in types], given)
    return [*(_value(one, text) for one, text in zip(types, given, strict=False)), *rest]


def told(kind: components.FuncType, result: object) -> tuple[bool, object]:
    """Whether a component's function returned an error, and what it returned.

    The library names the case of a ``result`` only where the types of what is in it do not.
    """
    of = kind.result
    if not isinstance(of, components.ResultType):
        return False, result
    if of._tagged():
        variant = cast(components.Variant, result)
        return variant.tag == "err", variant.payload
    if of.ok is None:
        return result is not None, result
    classes: set[type] = set()
    of.ok.add_classes(classes)
    return type(result) not in classes, result


def shown(result: object) -> str:
    """A function's result, or the results of one that has several, one a line; nothing for none."""
    if result is None:
        return ""
    if isinstance(result, bool):
        return "true\n" if result else "false\n"
    if isinstance(result, list):
        return "".join(map(shown, result))
    return f"{result}\n"


def _count(wanted: Sequence[str], given: Sequence[str]) -> None:
    if wanted and len(wanted) != len(given):
        raise InvalidInput(FIELD, f"the function takes {len(wanted)} ({', '.join(wanted)}), {len(given)} were given")


_RANGES: Final[Mapping[str, tuple[int, int]]] = {
    "i32": (-(1 << 31), (1 << 32) - 1),
    "i64": (-(1 << 63), (1 << 64) - 1),
    **{f"S{bits}": (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) for bits in (8, 16, 32, 64)},
    **{f"U{bits}": (0, (1 << bits) - 1) for bits in (8, 16, 32, 64)},
}


def _number(name: str, text: str) -> int | float:
    if name in ("f32", "f64", "F32", "F64"):
        return _parsed(float, name, text)
    if name not in _RANGES:
        raise InvalidInput(FIELD, f"a parameter of type {name} cannot be given as text")
    value = _parsed(_whole, name, text)
    low, high = _RANGES[name]
    if not low <= value <= high:
        raise InvalidInput(FIELD, f"{text!r} is outside of {name}")
    # Core numbers have no sign; the upper half may be written either way.
    if name in ("i32", "i64") and value > high >> 1:
        value -= high + 1
    return value


def _whole(text: str) -> int:
    return int(text, 0)


_T = TypeVar("_T", int, float)


def _parsed(parse: Callable[[str], _T], name: str, text: str) -> _T:
    try:
        return parse(text)
    except ValueError as error:
        raise InvalidInput(FIELD, f"{text!r} is no {name}") from error


def _value(kind: components.ValType, text: str) -> Any:
    if isinstance(kind, components.String):
        return text
    if isinstance(kind, components.Char):
        if len(text) != 1:
            raise InvalidInput(FIELD, f"{text!r} is not one character")
        return text
    if isinstance(kind, components.Bool):
        if text not in ("true", "false"):
            raise InvalidInput(FIELD, f"{text!r} is neither 'true' nor 'false'")
        return text == "true"
    return _number(type(kind).__name__, text)
