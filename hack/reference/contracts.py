"""The annotations of a contract, each with what its value looks like and what it takes away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

from forgeone_shim.contract import model, parse
from hack.reference.texts import Undocumented, constants, sections


def rows() -> str:
    """A row for each, in the order in which they are read."""
    known = sections(model)
    found = [_row(parse.DOCUMENT, *_split("parse.DOCUMENT", constants(parse).get("DOCUMENT", "")))]
    for name, (_, path) in parse.FIELDS.items():
        owner, field = _owner(model.Contract, path)
        found.append(_row(name, *_split(f"{owner}.{field}", known[owner].text(field))))
    return "\n".join(("| annotation | value | meaning |", "|---|---|---|", *found))


def _owner(section: Any, path: Sequence[str]) -> tuple[str, str]:
    """The class that has the field at the end of a path, and the field's name."""
    for name in path[:-1]:
        hint = get_type_hints(section)[name]
        # A section that need not be there: ``NetworkRule | None``.
        section = next((one for one in get_args(hint) if is_dataclass(one)), hint)
    return section.__name__, path[-1]


def _split(name: str, text: str) -> tuple[str, str]:
    value, line, meaning = text.partition("\n")
    if not line:
        raise Undocumented(
            f"{name} has one paragraph: what its value looks like is the first, what it means the second; "
            "then run `make reference`"
        )
    return value, meaning


def _row(name: str, value: str, meaning: str) -> str:
    return f"| `{parse.PREFIX}{name}` | {value} | {meaning} |"
