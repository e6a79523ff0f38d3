"""Entropy as something that can be demanded: bits of fresh seed since a container's state could last be duplicated.

Statistics of output show nothing of this kind (a hashed counter passes them all), so none are made of images or of
what containers write. What counts is where the state of a random number generator came from: a container that was just
created drew from the kernel's, one restored from a checkpoint has the same state as every other copy of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

FULL: Final = 256
"""Bits that one seeding counts for at most: the key of the kernel's generator has no more."""


class Cause(StrEnum):
    """What happened to the state of a container's random number generators."""

    CREATE = "create"
    RESTORE = "restore"
    FORK = "fork"
    MIGRATE = "migrate"
    RESEED = "reseed"


DUPLICATING: Final = frozenset({Cause.CREATE, Cause.RESTORE, Cause.FORK, Cause.MIGRATE})
"""After one of these somebody else may have the state that was there before: it counts for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeding:
    """One event. ``at`` in nanoseconds since the epoch; ``bits`` of ``source`` were drawn by the container's side.

    ``healthy`` says whether the source was, when it happened; what an unhealthy one gave counts for nothing.
    """

    at: int
    cause: Cause
    bits: int = 0
    source: str = ""
    healthy: bool = True


def bits(events: Iterable[Seeding]) -> int:
    """What :attr:`~forgeone_shim.dna.fingerprint.ContainerDNA.runtime_entropy` is, and ``minimum_entropy`` asks for."""
    total = 0
    for event in events:
        if event.cause in DUPLICATING:
            total = 0
        if event.healthy:
            total += max(0, min(event.bits, FULL))
    return total


def seeded(cause: Cause, *, source: str, healthy: bool, drawn: int = FULL) -> Seeding:
    """A seeding of now, with ``drawn`` bits."""
    return Seeding(at=time.time_ns(), cause=cause, bits=drawn if healthy else 0, source=source, healthy=healthy)


def duplicated(cause: Cause) -> Seeding:
    """What happened now left the container with a state that is not its alone."""
    return Seeding(at=time.time_ns(), cause=cause)
