"""What is said of a guest that did not end by itself."""

from __future__ import annotations

import re
from typing import Final

from engines.wasm.guest.plan import (
    CANNOT_START,
    CANNOT_START_CODE,
    CPU_BUDGET_EXCEEDED,
    TRAP,
    TRAP_CODE,
    Outcome,
)

# Within a line: names are the guest's, and one of nothing but line ends must not be gone through once for each.
_CAUSE: Final = re.compile(r"^ {0,64}(?:[0-9]{1,9}: )?wasm trap: (.+)$", re.MULTILINE)
# "    0:     0x31 - app.wasm!abort"
_FRAME: Final = re.compile(r"^ {0,64}0: {1,64}0x[0-9a-f]{1,16} - (.+)$", re.MULTILINE)
_MESSAGE_MAX: Final = 512
_TEXT_MAX: Final = 65536


def outcome(error: Exception, *, started: bool, budget: float = 0.0) -> Outcome:
    """Of the error that ended it. ``started``: its code had been entered; ``budget``: seconds that it has used up."""
    text = str(error)
    if budget > 0:
        return Outcome(TRAP_CODE, CPU_BUDGET_EXCEEDED, f"used its CPU budget of {budget:g} s")
    cause = _CAUSE.search(text)
    if cause is not None:
        frame = _FRAME.search(text)
        return Outcome(TRAP_CODE, TRAP, _line(f"{cause[1]}, in {frame[1]}" if frame else cause[1]))
    last = next((line for line in reversed(text.splitlines()) if line.strip()), type(error).__name__)
    return Outcome(CANNOT_START_CODE, TRAP if started else CANNOT_START, _line(last.strip()))


def report(error: Exception, found: Outcome) -> bytes:
    """What a reader of the guest's log is told: the message, and the backtrace with it."""
    text = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in str(error)[:_TEXT_MAX])
    return f"{found.reason}: {found.message}\n{text.rstrip()}\n".encode(errors="replace")


def _line(text: str) -> str:
    """The names in it are the guest's."""
    return "".join(c if c.isprintable() else "?" for c in text)[:_MESSAGE_MAX]
