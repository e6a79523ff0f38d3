"""Whether an image may be used, by this node's policies and verifiers: evidence is judged, and the verdict remembered.

A verdict is remembered for a name, a namespace and a digest, for as long as the policies stay what they are. Only good
ones are: whoever was refused may have been signed since.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from forgeone_shim.attestation.evidence import Endorsement, Evidence, Kind, Subject
from forgeone_shim.attestation.requirements import Requirements
from forgeone_shim.config.model import SignaturesConfig
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import Unavailable, UntrustedImage
from forgeone_shim.registry.evidence import Found
from forgeone_shim.registry.reference import Reference
from forgeone_shim.registry.verifiers import Target, Verifiers

MAX_VERDICTS: Final = 4096
WARNED_SECONDS: Final = 300.0
"""How long a verdict with a warning is remembered: whoever was missed may sign tomorrow."""

_MAX_PROBLEMS: Final = 4

Search = Callable[[frozenset[Kind]], Found | None]
"""Looks for evidence of these kinds in one place; ``None``: there is nothing to look at."""


class Policy(Protocol):
    """All policies of this node (:class:`~forgeone_shim.attestation.trust.TrustPolicy`)."""

    @property
    def digest(self) -> str:
        """Of all that they say."""

    def required(self, reference: Reference, namespace: str = "") -> Requirements:
        """What is required of an image that is asked for by this name."""


@dataclass(frozen=True, slots=True)
class Case:
    """An image that is asked for.

    :param namespace: of the pod that it is for, ``""`` for none.
    :param signers: who signed it as a package that this node trusts; that meets the policies' demands for evidence.
    """

    subject: Subject
    namespace: str = ""
    signers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Vetted:
    """A verdict (its attestations without predicates), and the evidence that it is by, unless there was no need."""

    endorsement: Endorsement
    evidence: Evidence | None = None


class Vetting:
    """Thread-safe. Made anew when policies or verifiers change."""

    def __init__(self, policy: Policy | None, verifiers: Verifiers | None) -> None:
        self._policy, self._verifiers = policy, verifiers
        self._lock = threading.Lock()
        self._known: OrderedDict[Case, Endorsement] = OrderedDict()

    @classmethod
    def open(cls, config: SignaturesConfig, before: Vetting | None = None) -> Vetting | None:
        """As the configuration has it; ``None`` where nothing is asked of images. ``before`` if nothing has changed.

        :raises ForgeError: a file cannot be used; it is named.
        """
        policy: Policy | None = None
        if config.policies:
            # Its rules bring what verifies signatures along.
            from forgeone_shim.attestation.trust import Sources, TrustPolicy

            policy = TrustPolicy.load(
                Sources(
                    policy=_path(config.policy),
                    namespaces=_path(config.namespaces_dir),
                    images=_path(config.images_dir),
                    notation=_path(config.notation),
                    roots=_path(config.roots_dir),
                    unmatched=config.unmatched,
                )
            )
        programs = _path(config.verifiers_dir)
        verifiers = None if programs is None else Verifiers(programs, config.verifier_timeout)
        if policy is None and verifiers is None:
            return None
        made = cls(policy, verifiers)
        # A program may have changed with nobody knowing: its verdicts do not outlive a reload.
        return before if before is not None and verifiers is None and made.digest == before.digest else made

    @property
    def digest(self) -> str:
        """Of what is asked, as far as it is known here."""
        return f"{self._policy.digest if self._policy else ''} {self._verifiers}"

    def known(self, case: Case) -> Endorsement | None:
        """The verdict that is remembered."""
        with self._lock:
            found = self._known.get(case)
            if found is not None and found.expires is not None and found.expires <= time.time():
                del self._known[case]
                return None
            return found

    def vet(
        self,
        case: Case,
        searches: Iterable[Search],
        target: Callable[[], Target],
        auth: Callable[[], bytes | None],
        deadline: Deadline,
    ) -> Vetted:
        """Judge an image by what the first of the ``searches`` finds that is enough, and remember a good verdict.

        :param target: what the image's name stands for in its registry, for the verifiers.
        :param auth: what they may tell the registry, as containers-auth.json(5).
        :raises UntrustedImage: nobody found enough. Unavailable: nor could all be asked.
        """
        vetted = Vetted(Endorsement()) if self._policy is None else self._judge(self._policy, case, searches)
        signers = (*vetted.endorsement.signers, *case.signers)
        if self._verifiers is not None:
            programs = self._verifiers.check(case.subject.reference, target(), auth(), deadline)
            signers = (*signers, *(f"verifier:{name}" for name in programs))
        # What is attested may be a whole bill of materials, and is not for remembering.
        said = tuple(replace(statement, predicate=None) for statement in vetted.endorsement.attestations)
        endorsement = replace(vetted.endorsement, signers=tuple(dict.fromkeys(signers)), attestations=said)
        remembered = endorsement
        if endorsement.warnings:
            soon = time.time() + WARNED_SECONDS
            remembered = replace(endorsement, expires=min(soon, endorsement.expires or soon))
        with self._lock:
            self._known[case] = remembered
            self._known.move_to_end(case)
            if len(self._known) > MAX_VERDICTS:
                self._known.popitem(last=False)
        return replace(vetted, endorsement=endorsement)

    def _judge(self, policy: Policy, case: Case, searches: Iterable[Search]) -> Vetted:
        requirements = policy.required(case.subject.reference, case.namespace)
        if case.signers:
            requirements = Requirements(tuple(rule for rule in requirements.rules if not rule.wanted))
        wanted = requirements.wanted
        if not wanted:
            return Vetted(requirements.check(case.subject, Evidence()))
        failure: UntrustedImage | None = None
        tolerated: Vetted | None = None
        problems: list[str] = []
        unreached = False
        for search in searches:
            found = search(wanted)
            if found is None:
                continue
            problems += found.problems
            unreached = unreached or found.unreached
            try:
                vetted = Vetted(requirements.check(case.subject, found.evidence), found.evidence)
            except UntrustedImage as error:
                failure = error
                continue
            if not vetted.endorsement.warnings:
                return vetted
            tolerated = vetted
        if tolerated is not None:
            return tolerated
        raise _refusal(case, failure, tuple(dict.fromkeys(problems)), unreached=unreached)


def _refusal(
    case: Case, failure: UntrustedImage | None, problems: tuple[str, ...], *, unreached: bool
) -> UntrustedImage | Unavailable:
    why = (
        failure.reason if failure is not None else f"{case.subject.reference}: there was nowhere to look for signatures"
    )
    fix = failure.fix if failure is not None else ""
    text = "; ".join((why, *problems[:_MAX_PROBLEMS]))
    return Unavailable(text, fix=fix) if unreached else UntrustedImage(text, fix=fix)


def _path(text: str) -> Path | None:
    return Path(text) if text else None
