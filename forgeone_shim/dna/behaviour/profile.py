"""What was seen of one container: its calls in the order in which each came first, and how often. Pure."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass

from forgeone_shim.dna.behaviour import names
from forgeone_shim.dna.behaviour.recorder import Counts


@dataclass(frozen=True, slots=True)
class Seen:
    """A call and how often it was made."""

    name: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Calls in the order in which each came first.

    :param machine: whose system calls they are (``x86_64``).
    :param system: system calls, by name.
    :param host: of a WebAssembly guest: its calls to its host, ``MODULE FUNCTION``.
    :param whole: whether it was watched from its first instruction on.
    """

    machine: str
    system: tuple[Seen, ...] = ()
    host: tuple[Seen, ...] = ()
    whole: bool = True

    @property
    def calls(self) -> int:
        """System calls in all."""
        return sum(one.count for one in self.system)


def profile(counts: Counts | None, host: Sequence[Seen] = (), *, whole: bool = True) -> Profile:
    """What the kernel counted, in words."""
    found: list[Seen] = []
    if counts is not None:
        slots = [slot for slot, count in enumerate(counts.counts) if count]
        # One that was counted and has no place yet has been made this very moment.
        slots.sort(key=lambda slot: (counts.order[slot] == 0, counts.order[slot]))
        found = [Seen(names.name(slot), counts.counts[slot]) for slot in slots]
    return Profile(machine=platform.machine(), system=tuple(found), host=tuple(host), whole=whole)
