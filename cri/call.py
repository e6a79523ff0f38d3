"""What a servicer's method learns of a call beside its message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from forgeone_shim.deadline import Deadline


@dataclass(frozen=True, slots=True)
class Call:
    """One RPC under way. ``id`` is in every log line written for it; ``deadline`` is the client's.

    ``begin`` sends the headers of a stream ahead of its first message.
    """

    id: str
    deadline: Deadline
    begin: Callable[[], None] = lambda: None
