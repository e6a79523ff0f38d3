"""How answers look: aligned tables, JSON, sizes and ages."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict

ID_LENGTH = 13
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_UNPLAIN = re.compile(r"[^\n -~]")
_SPANS = ((86400 * 365, "y"), (86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns two spaces apart, no trailing blanks; control characters from outside are shown, not obeyed."""
    cells = [list(headers), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "".join(line.rstrip() + "\n" for line in lines)


def printable(text: str) -> str:
    """``text`` with everything a terminal would act upon escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(count: float) -> str:
    """Bytes in decimal units with three significant digits."""
    for unit in _UNITS[:-1]:
        if count < 999.5:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}{_UNITS[-1]}"


def age(nanoseconds: int, now: float | None = None) -> str:
    """How long ago a CRI time was, in its two largest units; ``-`` for a time that has not come."""
    if not nanoseconds:
        return "-"
    left = max(0, int((time.time() if now is None else now) - nanoseconds / 1e9))
    parts: list[str] = []
    for seconds, unit in _SPANS:
        if left >= seconds and len(parts) < 2:
            parts.append(f"{left // seconds}{unit}")
            left %= seconds
        elif parts:
            break
    return "".join(parts) or "0s"


def short(identifier: str) -> str:
    """An id as far as people read it."""
    return identifier.removeprefix("sha256:")[:ID_LENGTH]


def enum_name(kind: Any, number: int, prefix: str) -> str:
    """A CRI enum member for people: ``CONTAINER_RUNNING`` is ``Running``."""
    name = kind.Name(number) if number in kind.values() else str(number)
    return str(name.removeprefix(prefix).capitalize())


def print_json(value: object) -> None:
    """A value or protobuf message (with the interface's own field names) as indented JSON.

    What a terminal would act upon is escaped: JSON itself demands that of the characters below U+0020 alone.
    """
    text = json.dumps(plain(value), indent=2, ensure_ascii=False)
    sys.stdout.write(_UNPLAIN.sub(_escaped, text) + "\n")


def _escaped(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]


def plain(value: object) -> object:
    """Protobuf messages inside ``value`` as JSON objects; absent fields are shown with their defaults."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if hasattr(value, "DESCRIPTOR"):
        return MessageToDict(
            value,  # type: ignore[arg-type]
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
    return value
