"""The one question of this room: may this be done?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from forgeone_shim.contract.facts import (
    AttestationFacts,
    Bound,
    ContainerFacts,
    Facts,
    ImageFacts,
    MountFacts,
    NodeFacts,
    PodFacts,
    Point,
    RequestFacts,
    RuntimeFacts,
)

__all__ = (
    "AttestationFacts",
    "Bound",
    "ContainerFacts",
    "Facts",
    "ImageFacts",
    "MountFacts",
    "NodeFacts",
    "PodFacts",
    "Point",
    "RequestFacts",
    "Ruling",
    "RuntimeFacts",
)


@dataclass(frozen=True, slots=True)
class Ruling:
    """What was decided; where it was denied, by which policy's which rule and why (one clause).

    ``policy`` is empty, and ``rule`` the field, where the pod's own contract denied.
    """

    allowed: bool
    policy: str = ""
    rule: str = ""
    reason: str = ""

    @property
    def by(self) -> str:
        """What denied: ``POLICY/RULE``, or the contract's field."""
        return f"{self.policy}/{self.rule}" if self.policy else self.rule


ALLOWED: Final = Ruling(allowed=True)
