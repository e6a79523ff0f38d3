"""What a servicer's method learns of a call beside its message, and the one answer that is not its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from forgeone_shim.deadline import Deadline

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Call:
    """One RPC under way. ``id`` is in every log line written for it; ``deadline`` is the client's.

    ``begin`` sends the headers of a stream ahead of its first message. ``metadata`` is what the client sent along.
    """

    id: str
    deadline: Deadline
    begin: Callable[[], None] = lambda: None
    metadata: Callable[[], Metadata] = tuple


class Relayed(Exception):
    """Another server's failure, which the client is to see as it is: code, words, and trailing metadata."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing: Metadata = ()) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code, self.details, self.trailing = code, details, trailing
