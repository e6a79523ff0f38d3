"""How a session ended, as each version of the remote-command protocol says it on the error stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

STATUS_VERSION: Final = 4
"""The first version that sends a metav1.Status; before it an error is plain text, and success is nothing at all."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """An exit code, or (where ``error`` is not empty) why there is none."""

    code: int = 0
    error: str = ""


def encode(outcome: Outcome, version: int) -> bytes:
    """What the error stream carries; empty for nothing."""
    if version >= STATUS_VERSION:
        return msgspec.json.encode(_status(outcome))
    if outcome.error:
        return outcome.error.encode()
    return _exit_text(outcome.code).encode() if outcome.code else b""


def _status(outcome: Outcome) -> dict[str, object]:
    if outcome.error:
        return {
            "metadata": {},
            "status": "Failure",
            "message": outcome.error,
            "reason": "InternalError",
            "details": {"causes": [{"message": outcome.error}]},
            "code": 500,
        }
    if outcome.code:
        return {
            "metadata": {},
            "status": "Failure",
            "message": _exit_text(outcome.code),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": str(outcome.code)}]},
        }
    return {"metadata": {}, "status": "Success"}


def _exit_text(code: int) -> str:
    return f"command terminated with non-zero exit code: {code}"
