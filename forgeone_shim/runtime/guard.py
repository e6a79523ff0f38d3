"""The one place that asks whether something may be done: facts are gathered, policies judge, a denial is recorded.

Nothing is made, changed or reached into before its verb has asked here. What cannot be decided is denied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, Protocol

from engines.base import Resources, SandboxSpec
from forgeone_shim.attestation.evidence import Endorsement
from forgeone_shim.config.handlers import ISOLATING_ENGINE
from forgeone_shim.contract.facts import Bound, Facts, PodFacts, Point, RequestFacts, RuntimeFacts
from forgeone_shim.contract.judge import Ruling
from forgeone_shim.contract.model import Contract, NetworkRule
from forgeone_shim.contract.parse import PREFIX
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import (
    Denied,
    FailedPrecondition,
    ForgeError,
    InvalidInput,
    Kind,
    NotFound,
    PermissionDenied,
)
from forgeone_shim.network.policy import withheld
from forgeone_shim.package import image as packaged
from forgeone_shim.registry.model import Image
from forgeone_shim.runtime import facts, suggested
from forgeone_shim.runtime.records import ContainerRecord, SandboxRecord

NO_REQUEST: Final = RequestFacts()

# Where what lies on disk of a container decides what is run.
_GENUINE: Final = frozenset({Point.START, Point.RECOVER, Point.EXEC})

# An event of Kubernetes has 1024 characters, and the entry's id comes last.
_REASON_MAX: Final = 600
# The path of a field has names in it that the pod's author wrote.
_RULE_MAX: Final = 250

# Answers, and not the lack of one: a deadline that passed, or a registry that cannot be reached, is told as it is.
_REFUSALS: Final = (InvalidInput, PermissionDenied, FailedPrecondition, NotFound)


class Judge(Protocol):
    """The policies of this node (:class:`forgeone_shim.contract.policies.Policies`)."""

    @property
    def digest(self) -> str:
        """Of everything that they decide by."""

    def bind(
        self, annotations: Mapping[str, str], container: str = "", *, namespace: str, name: str, package: str = ""
    ) -> Bound:
        """The contract that holds for the pod of that namespace and name, or for its container.

        ``package`` is the contract that the container's package asks for.

        :raises ForgeError: what it says is no contract, or not one that the policies accept.
        """

    def rebind(self, bound: Bound) -> Bound:
        """The same under the policies of now: at least as tight as it was.

        :raises ForgeError: a policy that it names is gone, or contradicts it.
        """

    def concerned(self, point: Point, bound: Bound) -> bool:
        """Whether anything could be denied at that point: otherwise no facts are gathered."""

    def mark(self, bound: Bound) -> str:
        """The digest of the policies that apply; empty where none do."""

    def judge(self, point: Point, of: Facts) -> Ruling:
        """Whether it may be done."""


class Witness(Protocol):
    """Where denials are recorded (:class:`forgeone_shim.runtime.chronicle.Chronicle`)."""

    def denied(self, point: str, subject: str, deadline: Deadline, *, rule: str, reason: str, **data: Any) -> str:
        """Durable when this returns: the entry's id, ``audit:17``."""

    def about(self, record: object) -> dict[str, Any]:
        """What each entry of a pod or a container says of it."""


class Endorser(Protocol):
    """Who knows who stands behind the images of this node (the registry room)."""

    def endorsement(self, image: Image, name: str, namespace: str, deadline: Deadline) -> Endorsement:
        """Of ``image``, which a pod of ``namespace`` calls ``name``.

        :raises UntrustedImage: a policy demands more than there is.
        """


class Surroundings(Protocol):
    """What the guard asks about pods and containers that it was not told."""

    def pod_of(self, record: ContainerRecord) -> SandboxRecord:
        """The pod of a container; NotFound where it is gone."""

    def engines_of(self, sandbox_id: str) -> Sequence[str]:
        """The engines of the containers of a pod that have not ended."""

    def runtime(self, record: ContainerRecord) -> RuntimeFacts:
        """How it runs: engine, entropy, trust."""

    def changed(self, record: ContainerRecord) -> str:
        """What is not as it was when the container was created, in one clause; empty: nothing."""

    @property
    def host(self) -> facts.Host:
        """What counts for every container."""


class Guard:
    """Thread-safe. Every question is answered under the policies of that moment."""

    def __init__(
        self,
        judge: Judge,
        witness: Witness,
        endorser: Endorser,
        around: Surroundings,
        waiting: Callable[[Mapping[str, str]], str] = lambda _: "",
        *,
        isolated: Callable[[Contract], str] = lambda _: "",
    ) -> None:
        """Of ``judge`` and those it asks.

        :param waiting: why a pod with these annotations may not be judged yet; empty: it may.
        :param isolated: why a pod under that contract has a machine or none, if its engine is chosen; empty: any.
        """
        self._judge, self._witness, self._endorser, self._around = judge, witness, endorser, around
        self._waiting, self._isolated = waiting, isolated
        self._node = facts.node()

    def follow(self, judge: Judge) -> bool:
        """From now on these are the policies. Says whether they differ from those before."""
        before, self._judge = self._judge, judge
        return before.digest != judge.digest

    @property
    def policies(self) -> str:
        """The digest of all that is decided by at this moment."""
        return self._judge.digest

    def mark(self, record: SandboxRecord | ContainerRecord) -> str:
        """The digest of the policies that apply to it; empty where none do."""
        return self._judge.mark(record.bound)

    # -- what is to be made

    def sandbox(self, record: SandboxRecord, deadline: Deadline) -> SandboxRecord:
        """RunPodSandbox: the record with the contract that holds for the pod.

        :raises Denied: it may not be started.
        """
        return self._pod(Point.SANDBOX, record, deadline)

    def bound(self, record: SandboxRecord, deadline: Deadline) -> SandboxRecord:
        """RunPodSandbox, before an engine is chosen: the record with the contract that holds for the pod.

        :raises Denied: there is none that could hold.
        """
        try:
            return replace(record, bound=_bound(self._judge, record.spec))
        except _REFUSALS as error:
            raise self._denied(Point.SANDBOX, record, _refusal(error), deadline) from error

    def would_start(self, record: SandboxRecord) -> bool:
        """Whether a pod with a contract would be allowed to start with that engine. Nothing is recorded."""
        judge = self._judge
        if not judge.concerned(Point.SANDBOX, record.bound):
            return True
        return judge.judge(Point.SANDBOX, self._pod_facts(record, NO_REQUEST)).allowed

    def unplaced(self, record: SandboxRecord, error: ForgeError, deadline: Deadline) -> Denied:
        """There is no engine for the pod: as a denial, which is recorded."""
        return self._denied(Point.SANDBOX, record, Ruling(allowed=False, rule="scheduler", reason=str(error)), deadline)

    def restore(self, record: SandboxRecord, deadline: Deadline) -> None:
        """RestorePod, before anything of the pod is made. Its containers are asked about when they are.

        :raises Denied: it may not be made from a checkpoint.
        """
        self._pod(Point.RESTORE, record, deadline)

    def _pod(self, point: Point, record: SandboxRecord, deadline: Deadline) -> SandboxRecord:
        if why := self._waiting(record.spec.annotations):
            ruling = Ruling(allowed=False, rule="cluster.required", reason=why)
            raise self._denied(point, record, ruling, deadline)
        # Only now: they may just have come.
        judge = self._judge
        try:
            record = replace(record, bound=_bound(judge, record.spec))
        except _REFUSALS as error:
            raise self._denied(point, record, _refusal(error), deadline) from error
        self._judged(judge, point, record, deadline, NO_REQUEST)
        return record

    def create(
        self,
        pod: SandboxRecord,
        record: ContainerRecord,
        image: Image,
        volumes: Sequence[tuple[str, Image]],
        deadline: Deadline,
    ) -> ContainerRecord:
        """CreateContainer: the record with the contract that holds for it, and what is known of its images.

        :param volumes: the images that its mounts name, in their order, each after that name.
        :raises Denied: it may not be created, or (with ``restored``) not from a checkpoint.
        """
        judge, spec = self._judge, record.spec
        try:
            _no_contract_of_its_own(spec.annotations)
            record = replace(record, bound=_bound(judge, pod.spec, spec.name, packaged.contract(image)))
            record = replace(record, suggested=suggested.capped(record.suggested, record.contract))
            named = ((spec.user_specified_image or spec.image, image), *volumes)
            found = []
            for number, (name, one) in enumerate(named):
                endorsement = self._endorser.endorsement(one, name, pod.spec.namespace, deadline)
                found.append(facts.image(one, name, endorsement, volume=number > 0))
        except _REFUSALS as error:
            raise self._denied(Point.CREATE, record, _refusal(error), deadline) from error
        if why := self._misplaced(record, pod):
            raise self._denied(Point.CREATE, record, Ruling(allowed=False, rule="scheduler", reason=why), deadline)
        # What a checkpoint's processes have they keep.
        taken = () if record.restored else withheld(record.contract.profile.network, spec.security, record.engine)
        record = replace(record, trusted=found[0], trusted_volumes=tuple(found[1:]), withheld=taken)
        for point in (Point.CREATE, Point.RESTORE) if record.restored else (Point.CREATE,):
            if not judge.concerned(point, record.bound):
                continue
            whole = self._facts(pod, record, NO_REQUEST, image)
            for known in found:
                self._rule(judge, point, record, replace(whole, image=known), deadline)
        return record

    # -- what is there

    def container(
        self, point: Point, record: ContainerRecord, deadline: Deadline, request: RequestFacts = NO_REQUEST
    ) -> None:
        """Something is to be done to a container, as its record is or is to be.

        :raises Denied: it may not.
        """
        self._again(point, record, deadline, request)

    def forward(self, record: SandboxRecord, ports: tuple[int, ...], deadline: Deadline) -> None:
        """Ports of a pod are to be reached; none named: all of them.

        :raises Denied: they may not.
        """
        self._again(Point.PORT_FORWARD, record, deadline, RequestFacts(ports=ports))

    def update(self, record: ContainerRecord, asked: Resources, deadline: Deadline) -> None:
        """The limits of a container are to change; ``record`` has the new ones.

        :raises Denied: they may not.
        """
        self._again(Point.UPDATE, record, deadline, facts.update(asked))

    def _again(
        self, point: Point, record: SandboxRecord | ContainerRecord, deadline: Deadline, request: RequestFacts
    ) -> None:
        judge = self._judge
        try:
            record = replace(record, bound=judge.rebind(record.bound))
        except _REFUSALS as error:
            raise self._denied(point, record, _refusal(error), deadline) from error
        if isinstance(record, ContainerRecord) and point in _GENUINE:
            changed = self._around.changed(record)
            if changed:
                raise self._denied(point, record, Ruling(allowed=False, rule="dna", reason=changed), deadline)
            if why := self._misplaced(record):
                raise self._denied(point, record, Ruling(allowed=False, rule="scheduler", reason=why), deadline)
        self._judged(judge, point, record, deadline, request)

    def _misplaced(self, record: ContainerRecord, pod: SandboxRecord | None = None) -> str:
        """Why the engine that was chosen for a pod is not one for what is demanded now; empty: it is."""
        why = self._isolated(record.contract)
        if not why:
            return ""
        pod = pod or self._around.pod_of(record)
        if not pod.handler.chooses or pod.engine == ISOLATING_ENGINE:
            return ""
        return f"{why}, and the engine chosen for the pod is {pod.engine}"

    def _judged(
        self,
        judge: Judge,
        point: Point,
        record: SandboxRecord | ContainerRecord,
        deadline: Deadline,
        request: RequestFacts,
    ) -> None:
        if not judge.concerned(point, record.bound):
            return
        if isinstance(record, SandboxRecord):
            self._rule(judge, point, record, self._pod_facts(record, request), deadline)
            return
        whole = self._facts(self._around.pod_of(record), record, request)
        for one in (record.trusted, *record.trusted_volumes):
            self._rule(judge, point, record, replace(whole, image=one), deadline)

    def _pod_facts(self, record: SandboxRecord, request: RequestFacts) -> Facts:
        engines = (record.engine, *self._around.engines_of(record.id))
        return Facts(
            pod=facts.pod(record.spec, engines[1:] or engines),
            contract=record.bound,
            runtime=RuntimeFacts(engine=record.engine),
            node=self._node,
            request=request,
        )

    def _facts(
        self, pod: SandboxRecord, record: ContainerRecord, request: RequestFacts, image: Image | None = None
    ) -> Facts:
        return Facts(
            pod=self._pod_of(pod, record),
            contract=record.bound,
            container=facts.container(record, image, pod=pod.spec, host=self._around.host),
            runtime=self._around.runtime(record),
            node=self._node,
            request=request,
        )

    def _pod_of(self, pod: SandboxRecord, record: ContainerRecord) -> PodFacts:
        return facts.pod(pod.spec, (*self._around.engines_of(pod.id), record.engine), record.spec.security)

    def network(self, record: SandboxRecord) -> NetworkRule | None:
        """The network rule that a pod is to be kept to now."""
        return self._now(record).profile.network

    def on_drift(self, record: ContainerRecord) -> str:
        """What is to be done now when a container does what is not usual for its image."""
        return self._now(record).behaviour.on_drift

    def _now(self, record: SandboxRecord | ContainerRecord) -> Contract:
        bound = record.bound
        with suppress(*_REFUSALS):
            # Where a policy is gone whatever is asked about its containers is denied; the rest stays as it is.
            bound = self._judge.rebind(bound)
        return bound.contract

    # -- denials

    def _rule(
        self, judge: Judge, point: Point, record: SandboxRecord | ContainerRecord, of: Facts, deadline: Deadline
    ) -> None:
        ruling = judge.judge(point, of)
        if not ruling.allowed:
            raise self._denied(point, record, ruling, deadline)

    def _denied(
        self, point: Point, record: SandboxRecord | ContainerRecord, ruling: Ruling, deadline: Deadline
    ) -> Denied:
        kind = "sandbox" if isinstance(record, SandboxRecord) else "container"
        told: dict[str, Any] = dict(self._witness.about(record))
        if record.bound.given:
            told["contract"] = record.contract.digest
        entry = self._witness.denied(
            str(point), f"{kind}/{record.id}", deadline, rule=ruling.by, reason=ruling.reason, **told
        )
        # The log has all of it.
        rule, reason = _short(ruling.by, _RULE_MAX), _short(ruling.reason, _REASON_MAX)
        return Denied(rule, reason, entry, starts=point.starts)


def _short(text: str, at_most: int) -> str:
    return text if len(text) <= at_most else f"{text[:at_most]}…"


def _bound(judge: Judge, pod: SandboxSpec, container: str = "", package: str = "") -> Bound:
    return judge.bind(pod.annotations, container, namespace=pod.namespace, name=pod.name, package=package)


def _refusal(error: ForgeError) -> Ruling:
    """Why there is nothing that could be judged."""
    if isinstance(error, InvalidInput):
        return Ruling(allowed=False, rule=error.field, reason=str(error).removeprefix(f"{error.field}: "))
    return Ruling(allowed=False, rule="signatures" if error.kind is Kind.UNTRUSTED else "contract", reason=str(error))


def _no_contract_of_its_own(annotations: Mapping[str, str]) -> None:
    for key in annotations:
        if key.startswith(PREFIX):
            raise InvalidInput(f"annotations[{key}]", "is for pods, and this is a container's", fix=f"{key}.CONTAINER")
