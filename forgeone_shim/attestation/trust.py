"""Which images are trusted, by the policy files of this node, and why.

Reading the files and verifying evidence are pure: nothing is fetched, and nothing but the named files is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from forgeone_shim.attestation.evidence import Endorsement, Evidence, Kind, Subject
from forgeone_shim.registry.reference import Reference


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the policies are; ``None`` and what does not exist: none of that kind, but a missing ``policy`` or
    ``notation`` file that was named is an error.

    :param policy: a containers-policy.json(5).
    :param namespaces: a directory of ``NAMESPACE.json``: the same, in place of ``policy`` for pods of a namespace.
    :param images: a directory of ClusterImagePolicy documents (``*.yaml``, ``*.yml``, ``*.json``).
    :param notation: a trust policy of the Notary Project (``trustpolicy.json``).
    :param roots: a directory of sigstore's trusted roots (``NAME.json``) and, below ``x509``, the Notary Project's
        trust stores (``x509/ca/NAME/*.crt``).
    :param unmatched: what happens to an image that no policy is about: ``allow``, ``warn`` or ``deny``.
    """

    policy: Path | None = None
    namespaces: Path | None = None
    images: Path | None = None
    notation: Path | None = None
    roots: Path | None = None
    unmatched: str = "deny"


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


class TrustPolicy:
    """All policies of this node, read once; a change of the files needs a new one."""

    def __init__(self, digest: str = "") -> None:
        self.digest = digest
        """``sha256:`` over all that was read; what :meth:`Requirements.check` said holds while this is the same."""

    @classmethod
    def load(cls, sources: Sources) -> TrustPolicy:
        """Read all files.

        :raises InvalidInput: naming file and field.
        :raises FailedPrecondition: a file cannot be read, or others than root could have written it.
        """
        raise NotImplementedError

    def required(self, reference: Reference, namespace: str = "") -> Requirements:
        """What is required of an image that is asked for by this name; ``namespace`` is the pod's, ``""`` for none."""
        raise NotImplementedError


def merged(all_: Sequence[Endorsement]) -> Endorsement:
    """What all of these say together."""
    expiries = [one.expires for one in all_ if one.expires is not None]
    return Endorsement(
        tuple(dict.fromkeys(signer for one in all_ for signer in one.signers)),
        tuple(statement for one in all_ for statement in one.attestations),
        tuple(dict.fromkeys(warning for one in all_ for warning in one.warnings)),
        min(expiries) if expiries else None,
    )
