"""How far to trust a container, 0 to 100: points for what is known of it, less for drift. Pure.

The formula is in ``docs/dna.md``; a test holds that page to :data:`WEIGHTS`. It is a summary for people and a number
for rules, and no proof: a rule that matters asks for the fact itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from forgeone_shim.dna.entropy import FULL

WEIGHTS: Final = MappingProxyType({"attestation": 30, "contract": 20, "isolation": 30, "entropy": 10, "behaviour": 10})
"""The most points for each part."""

_ENGINES: Final = MappingProxyType({"microvm": 30, "wasm": 26, "native": 8})
_NATIVE: Final = MappingProxyType(
    {
        "user_namespace": 5,
        "seccomp": 4,
        "no_new_privileges": 3,
        "own_namespaces": 2,
        "readonly_rootfs": 2,
        "no_added_capabilities": 2,
    }
)


class Contract(StrEnum):
    """What a container's contract is worth."""

    NONE = "none"
    PLAIN = "plain"
    SIGNED = "signed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What is known of a container's behaviour.

    ``watched``: what it does is recorded. ``baseline``: and compared with one of its image. ``drift`` is how far the
    two differ, 0 (not at all) to 1.
    """

    watched: bool = False
    baseline: bool = False
    drift: float = 0.0


UNWATCHED: Final = Watched()


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known of a container.

    :param signers: how many signers of its image were believed.
    :param attestations: how many attestations of it were verified (provenance, a bill of materials).
    :param own_namespaces: it shares neither network, processes nor IPC with the host.
    :param no_added_capabilities: it can have none besides those that every container can.
    :param entropy: bits (:func:`forgeone_shim.dna.entropy.bits`).
    """

    engine: str
    signers: int = 0
    attestations: int = 0
    contract: Contract = Contract.NONE
    privileged: bool = False
    user_namespace: bool = False
    seccomp: bool = False
    no_new_privileges: bool = False
    own_namespaces: bool = False
    readonly_rootfs: bool = False
    no_added_capabilities: bool = False
    entropy: int = 0
    watched: Watched = UNWATCHED


@dataclass(frozen=True, slots=True)
class Score:
    """``total`` and the points of each part (:data:`WEIGHTS` has the most of them), before drift takes its share."""

    total: int
    attestation: int
    contract: int
    isolation: int
    entropy: int
    behaviour: int


def score(of: Standing) -> Score:
    """The sum of the parts, times one minus the drift, rounded down."""
    attestation = (20 if of.signers else 0) + (10 if of.attestations else 0)
    contract = {Contract.NONE: 0, Contract.PLAIN: 10, Contract.SIGNED: 20}[of.contract]
    entropy = WEIGHTS["entropy"] * max(0, min(of.entropy, FULL)) // FULL
    isolation = _isolation(of)
    seen = of.watched
    behaviour = (5 if seen.watched else 0) + (5 if seen.watched and seen.baseline else 0)
    whole = attestation + contract + isolation + entropy + behaviour
    total = int(whole * (1 - min(1.0, max(0.0, seen.drift))))
    return Score(total, attestation, contract, isolation, entropy, behaviour)


def _isolation(of: Standing) -> int:
    """Nothing is between a privileged container and the host, whatever its engine says."""
    if of.privileged:
        return 0
    points = _ENGINES.get(of.engine, 0)
    if of.engine == "native":
        points += sum(worth for name, worth in _NATIVE.items() if getattr(of, name))
    return points
