"""What a servicer's method learns of a call beside its message."""

from __future__ import annotations

from dataclasses import dataclass

from forgeone_shim.deadline import Deadline


@dataclass(frozen=True, slots=True)
class Call:
    """One RPC under way. ``id`` is in every log line written for it; ``deadline`` is the client's."""

    id: str
    deadline: Deadline

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, as ``grpc.ServicerContext`` says it, for servicers that know only that."""
        return self.deadline.remaining()
