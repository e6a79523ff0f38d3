"""Who containers are: their fingerprints, their entropy, and how far to trust them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from engines.base import ContainerPlan, Engine, Handle, NamespaceMode, ProfileType, Trust
from forgeone_shim.config.handlers import DEFAULT_ENGINE
from forgeone_shim.contract.facts import RuntimeFacts
from forgeone_shim.dna import entropy, fingerprint
from forgeone_shim.dna import score as scores
from forgeone_shim.dna.entropy import Cause, Seeding
from forgeone_shim.dna.fingerprint import ContainerDNA, Genome
from forgeone_shim.dna.score import Contract, Score, Standing, Watched
from forgeone_shim.dna.source import Source
from forgeone_shim.errors import NotFound
from forgeone_shim.kernel import capabilities
from forgeone_shim.runtime.paths import Paths
from forgeone_shim.runtime.records import ContainerRecord, SandboxRecord
from forgeone_shim.runtime.suggested import filled

_PREFIX = "CAP_"


class Seeded(TypedDict):
    """Fields of a container's record, from when it is planned on."""

    seedings: tuple[Seeding, ...]
    entropy: int


class Born(TypedDict):
    """Fields of a container's record, from when its engine has made it on."""

    dna: str
    genome: Genome | None
    seal: str


class Identity:
    """Thread-safe."""

    def __init__(self, engines: Mapping[str, Engine], paths: Paths, source: Source) -> None:
        self._engines, self._paths, self.source = engines, paths, source
        self._watched: Callable[[ContainerRecord], Watched] = lambda _: scores.UNWATCHED

    def watched_by(self, look: Callable[[ContainerRecord], Watched]) -> None:
        """Whom to ask what is known of the behaviour of a container: quick, and it does not fail."""
        self._watched = look

    def seeded(self, *, restored: bool) -> Seeded:
        """Of a container that is to be made: what its first process can draw from.

        One of a checkpoint goes on with the state that every other copy of it has, until it is seeded anew.
        """
        seedings = (entropy.duplicated(Cause.RESTORE) if restored else self.source.seeded(Cause.CREATE),)
        return Seeded(seedings=seedings, entropy=entropy.bits(seedings))

    def born(self, record: ContainerRecord, pod: SandboxRecord, plan: ContainerPlan, policy: str) -> Born:
        """Of a container that its engine has just made. ``policy`` is the digest of the policies that apply to it.

        :raises ForgeError: what was made cannot be read.
        """
        imprint = self._engines[record.engine].imprint(self._handle(record))
        genome = fingerprint.genome(
            plan,
            imprint,
            engine=record.engine,
            layers=record.layers,
            pod_uid=pod.spec.uid,
            policy=policy,
            contract=record.contract.digest if _bound(record) else "",
            restored=record.restored,
        )
        return Born(dna=fingerprint.digest(genome), genome=genome, seal=imprint.seal)

    def changed(self, record: ContainerRecord) -> str:
        """What is not as it was when the container was created, in one clause; empty: nothing.

        Its record, and what its engine keeps of it on disk: from there commands are executed in it. Nothing is read
        for a container that has no contract and no policy.
        """
        if not _bound(record) or record.unstarted:
            return ""
        if record.genome is None:
            return "it has no fingerprint"
        # One of another format would be hashed otherwise than it was: its container outlives a newer forgeoned.
        found = fingerprint.digest(record.genome) if record.genome.format == fingerprint.FORMAT else record.dna
        if found != record.dna:
            return f"its fingerprint is {found}, and was {record.dna}"
        try:
            seal = self._engines[record.engine].seal(self._handle(record))
        except NotFound:
            return "what its engine keeps of it is gone"
        return "" if seal == record.seal else f"what its engine keeps of it is {seal}, and was {record.seal}"

    def dna(self, record: ContainerRecord) -> ContainerDNA:
        """What a container's record says of it; ``hash`` is empty where it never had a process."""
        return ContainerDNA(
            hash=record.dna,
            signer=record.verified_by,
            resource_limits=filled(record.resources or record.spec.resources, record.suggested),
            trust_label=record.contract.profile.trust_label,
            runtime_entropy=record.entropy,
        )

    def trust(self, record: ContainerRecord) -> Trust:
        """What it may know of that itself."""
        genome = record.genome
        return Trust(
            fingerprint=record.dna,
            contract="" if genome is None else genome.contract,
            entropy=record.entropy,
            score=self.score(record).total,
        )

    def score(self, record: ContainerRecord) -> Score:
        """How far to trust it, as of now."""
        return scores.score(self._standing(record))

    def facts(self, record: ContainerRecord) -> RuntimeFacts:
        """What policies may ask of how it runs."""
        genome = record.genome
        return RuntimeFacts(
            engine=record.engine,
            version="" if genome is None else genome.engine_version,
            entropy=record.entropy,
            trust_score=self.score(record).total,
            drifted=self._watched(record).drift > 0,
        )

    def _handle(self, record: ContainerRecord) -> Handle:
        return self._paths.handle(record.id, record.sandbox_id, record.cgroup)

    def _standing(self, record: ContainerRecord) -> Standing:
        trusted, bound, watched = record.trusted, record.bound, self._watched(record)
        contract = Contract.SIGNED if bound.signers else Contract.PLAIN if bound.given else Contract.NONE
        return Standing(
            engine=record.engine,
            signers=len(record.verified_by),
            attestations=0 if trusted is None else len(trusted.attestations),
            contract=contract,
            entropy=record.entropy,
            watched=watched,
            **self._isolation(record),
        )

    def _isolation(self, record: ContainerRecord) -> dict[str, Any]:
        security, genome = record.spec.security, record.genome
        if record.engine != DEFAULT_ENGINE:
            return {"privileged": security.privileged}
        own, host = security.namespaces, NamespaceMode.NODE
        seccomp = security.seccomp is not None and security.seccomp.type is not ProfileType.UNCONFINED
        held = frozenset(_PREFIX + name.removeprefix(_PREFIX) for name in security.add_capabilities)
        if genome is not None:
            seccomp, held = bool(genome.seccomp), frozenset(genome.capabilities)
        return {
            "privileged": security.privileged,
            "user_namespace": own.user is not host,
            "seccomp": seccomp,
            "no_new_privileges": security.no_new_privs,
            "own_namespaces": host not in {own.network, own.pid, own.ipc},
            "readonly_rootfs": security.readonly_rootfs,
            "no_added_capabilities": held <= capabilities.DEFAULT,
        }


def _bound(record: ContainerRecord) -> bool:
    """Whether its pod brought a contract, or a policy of this node applies to it."""
    return record.bound.given or bool(record.bound.policies)
