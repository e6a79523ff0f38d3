"""What is required of an image, as whoever asks about it sees it; what verifies comes with the rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from forgeone_shim.attestation.evidence import Endorsement, Evidence, Kind, Subject


class Rule(Protocol):
    """One thing that is required of an image; all of them have to be met."""

    @property
    def wanted(self) -> frozenset[Kind]:
        """What evidence could meet it; empty: none is looked at."""

    def check(self, subject: Subject, evidence: Evidence, now: datetime) -> Endorsement:
        """Why it is met. :raises UntrustedImage: it is not."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """What is required of one image: every rule that is about it."""

    rules: Sequence[Rule] = ()

    @property
    def wanted(self) -> frozenset[Kind]:
        """What has to be fetched before :meth:`check`; empty: nothing."""
        return frozenset(kind for rule in self.rules for kind in rule.wanted)

    def check(self, subject: Subject, evidence: Evidence, now: datetime | None = None) -> Endorsement:
        """Who stands behind the image.

        :param now: what certificates and expiry dates are compared with.
        :raises UntrustedImage: naming the policy, and what was wrong with each piece of evidence.
        """
        at = now or datetime.now(UTC)
        return merged([rule.check(subject, evidence, at) for rule in self.rules])


def merged(all_: Sequence[Endorsement]) -> Endorsement:
    """What all of these say together."""
    expiries = [one.expires for one in all_ if one.expires is not None]
    statements = [statement for one in all_ for statement in one.attestations]
    return Endorsement(
        tuple(dict.fromkeys(signer for one in all_ for signer in one.signers)),
        # A predicate is plain data, which cannot be a key.
        tuple(one for i, one in enumerate(statements) if one not in statements[:i]),
        tuple(dict.fromkeys(warning for one in all_ for warning in one.warnings)),
        min(expiries) if expiries else None,
    )
