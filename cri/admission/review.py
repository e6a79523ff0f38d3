"""An AdmissionReview answered: bytes in, bytes out, decided by the code that nodes decide with. Pure.

Refused is what no node would take, as far as that is certain before there is a pod. What is likely is a warning, which
``kubectl`` shows. A question that cannot be read is an error, and the webhook's ``failurePolicy`` says what becomes of
it.

https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from cri.admission import forecast
from cri.admission.known import OTHERS, Known
from cri.admission.options import ANY
from cri.admission.policy import MIRROR
from forgeone_shim.cluster import objects
from forgeone_shim.contract import judge, manifest, parse
from forgeone_shim.contract.facts import Bound, Facts, PodFacts, Point, RuntimeFacts
from forgeone_shim.contract.manifest import Manifest
from forgeone_shim.contract.objects import Node
from forgeone_shim.contract.parse import PREFIX, Pod
from forgeone_shim.errors import InvalidInput

API_VERSION: Final = "admission.k8s.io/v1"
KIND: Final = "AdmissionReview"
MAX_CONTAINERS: Final = 100
"""Of a pod that is looked at; API servers have no limit, and each is looked at while others wait."""
MAX_UID: Final = 128
MAX_WARNINGS: Final = 8
# https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/#response: shorter ones are
# not cut, as long as there are few.
MAX_WARNING: Final = 250
MAX_MESSAGE: Final = 2000
_KUBELET: Final = "system:node:"
_GROUPS: Final = frozenset({"", "apps", "batch"})
# What of a refusal is told to logs and metrics: what kind of thing it was, and no word of the object's author.
_CAUSES: Final[Sequence[tuple[str, tuple[str, ...]]]] = (
    ("engine", ("exec_mode", "runtimeClassName")),
    ("signature", ("requireSignedContract",)),
    ("policy-id", ("runtime_policy_id",)),
    ("contract", ("annotation", objects.PLURAL)),
)


class _Kind(msgspec.Struct, frozen=True):
    group: str = ""
    version: str = ""
    kind: str = ""


class _User(msgspec.Struct, frozen=True):
    username: str = ""


class _Request(msgspec.Struct, frozen=True, rename="camel"):
    uid: str
    kind: _Kind
    operation: str
    namespace: str = ""
    object: dict[str, Any] | None = None
    old_object: dict[str, Any] | None = None
    user_info: _User = msgspec.field(default_factory=_User)


class _Review(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str
    kind: str
    request: _Request


_DECODER: Final = msgspec.json.Decoder(_Review)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is made of an object. ``by`` is what refused it; empty: nothing did. ``patch`` is a JSONPatch."""

    by: str = ""
    reason: str = ""
    warnings: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    absent: str = ""
    patch: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """``body`` goes to the API server; the rest, but for ``absent``, has nothing of the object.

    ``absent`` is the policy that a contract names and that is not known: it may just have been made.
    """

    body: bytes
    uid: str
    kind: str
    allowed: bool
    cause: str = ""
    absent: str = ""


@dataclass(frozen=True, slots=True)
class _Subject:
    """A pod that is, or would be made: where it is said, and whose it is."""

    kind: str
    namespace: str
    name: str
    annotations: Mapping[str, str]
    template: Node

    @property
    def is_pod(self) -> bool:
        return self.kind == "Pod"

    @property
    def ours(self) -> Mapping[str, str]:
        """The contract that it brings."""
        return {key: value for key, value in self.annotations.items() if key.startswith(PREFIX)}

    def about(self, container: str) -> Mapping[str, str]:
        """The part of the contract that is about that container, or the whole pod."""
        return {key: value for key, value in self.ours.items() if _whose(key) in {"", container}}

    @property
    def runtime_class(self) -> str:
        return self.template.node("spec").text("runtimeClassName")


def validate(data: bytes, known: Known) -> Answer:
    """The answer to a question of ``/validate``.

    :raises InvalidInput: it is no such question.
    """
    request = _read(data)
    return _answer(request, _validated(request, known))


def mutate(data: bytes, known: Known) -> Answer:
    """The answer to a question of ``/mutate``: never a refusal.

    :raises InvalidInput: it is no such question.
    """
    request = _read(data)
    return _answer(request, _filled(request, known))


def _read(data: bytes) -> _Request:
    try:
        found = _DECODER.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        # What msgspec tells is the path and the type, and nothing of what was there.
        raise InvalidInput("AdmissionReview", str(error)[:200]) from None
    if (found.api_version, found.kind) != (API_VERSION, KIND) or not 0 < len(found.request.uid) <= MAX_UID:
        raise InvalidInput("AdmissionReview", f"is not {KIND} of {API_VERSION} with a uid")
    return found.request


def _validated(request: _Request, known: Known) -> Verdict:
    if (request.kind.group, request.kind.kind) == (objects.GROUP, objects.KIND):
        return _policy(request)
    subject = _subject(request)
    if subject is None or _settled(request, subject):
        return Verdict()
    try:
        return _judged(subject, _supposing(subject, known))
    except InvalidInput as error:
        return replace(_refused(error.field, error.reason, error.fix), absent=_absent(error, subject, known))


def _supposing(subject: _Subject, known: Known) -> Known:
    """What is known, with the policies that the contract names where nodes alone know which there are."""
    return known if known.all_named else known.supposing(_policies_of(subject))


def _absent(error: InvalidInput, subject: _Subject, known: Known) -> str:
    if error.field != "runtime_policy_id":
        return ""
    named, here = _policies_of(subject), {one.name for one in known.certain.all}
    return next((one for one in named if one not in here), next(iter(named), ""))


def _policies_of(subject: _Subject) -> Mapping[str, None]:
    """Those that the contract names, for the pod and for its containers."""
    pod, there = Pod(subject.namespace, subject.name), _containers(subject)
    # Of all that is said the first has read every word.
    found = {parse.offered(subject.ours, pod=pod).contract.runtime_policy_id: None}
    for name in there.intersection(_named(subject)) if len(there) <= MAX_CONTAINERS else ():
        # What contradicts the pod's is told when it is held to it.
        with suppress(InvalidInput):
            found[parse.offered(subject.about(name), name, pod=pod).contract.runtime_policy_id] = None
    found.pop("", None)
    return found


def _policy(request: _Request) -> Verdict:
    """A ZTAPolicy, as every node would read it."""
    if request.object is not None:
        try:
            objects.policy_of(request.object)
        except InvalidInput as error:
            return _refused(error.field, error.reason, error.fix)
    return Verdict()


def _subject(request: _Request) -> _Subject | None:
    """``None`` for what has no pod in it, nor makes any."""
    if request.object is None or request.kind.kind not in manifest.TEMPLATES or request.kind.group not in _GROUPS:
        return None
    return _pod_of(request.kind.kind, request.object, request.namespace)


def _pod_of(kind: str, value: Mapping[str, Any], namespace: str) -> _Subject:
    top = Node(kind, value)
    template = manifest.template_of(top, kind)
    name = top.node("metadata").text("name") if kind == "Pod" else ""
    return _Subject(kind, namespace, name, template.node("metadata").texts("annotations"), template)


def _settled(request: _Request, subject: _Subject) -> bool:
    """Whether nothing changed that is looked at, or it is on its way out, or a kubelet's picture of a static pod."""
    if subject.is_pod and MIRROR in subject.annotations and request.user_info.username.startswith(_KUBELET):
        return True
    if request.operation != "UPDATE" or request.old_object is None or request.object is None:
        return False
    if "deletionTimestamp" in Node(subject.kind, request.object).node("metadata").given:
        return True
    before = _pod_of(subject.kind, request.old_object, request.namespace)
    if subject.is_pod:
        # Networks and controllers write what is theirs to pods that run, whatever has become of policies since.
        return before.ours == subject.ours
    return before.template.value == subject.template.value


def _judged(subject: _Subject, known: Known) -> Verdict:
    engine = _engine(subject, known)
    if engine is None or engine == OTHERS:
        return _elsewhere(subject, known)
    bound = known.certain.bind(subject.annotations, namespace=subject.namespace, name=subject.name)
    wanted = _fits(bound, subject, engine, known)
    if engine == ANY:
        engine = bound.contract.exec_mode
    there, named = _containers(subject), _named(subject)
    if len(there) > MAX_CONTAINERS:
        return _crowded(wanted)
    described = _described(subject, engine)
    bounds = {name: _of_container(known, subject, name, engine) for name in named if name in there}
    refused = wanted or _refused_by(known, bound, described)
    notes = {"engine": engine or ANY, "policies": ",".join(bound.policies), "signers": ",".join(bound.signers)}
    notes = {key: value for key, value in notes.items() if value}
    if refused is not None:
        return Verdict(by=refused.by, reason=refused.reason, notes=notes)
    absent = [name for name in named if name not in there]
    warnings = [f"{PREFIX}*.{name}: the pod has no container {name!r} yet" for name in absent[:MAX_WARNINGS]]
    if described is not None:
        warnings += forecast.of(known.foreseen, described, bound, bounds, engine)
    return Verdict(warnings=tuple(warnings), notes=notes)


def _elsewhere(subject: _Subject, known: Known) -> Verdict:
    """Of a pod that another runtime has, or may have."""
    if not subject.ours:
        return Verdict()
    pod = Pod(subject.namespace, subject.name)
    parse.offered(subject.annotations, pod=pod, issuers=known.certain.issuers)
    if not subject.runtime_class:
        return _refused(
            "spec.runtimeClassName",
            "is missing: pods without are another runtime's, which keeps no contract",
            "name a RuntimeClass of ForgeOne",
        )
    told = f"nothing is known here of RuntimeClass {subject.runtime_class!r}: another runtime keeps no contract"
    return Verdict(warnings=(told,))


def _engine(subject: _Subject, known: Known) -> str | None:
    if subject.runtime_class:
        return known.engine(subject.runtime_class)
    if known.fill and not subject.is_pod:
        # As its pods will have it.
        name = _demanded_class(subject, known)
        return known.engine(name) if name else known.default
    return known.default


def _crowded(wanted: Verdict | None) -> Verdict:
    told = f"it has more than {MAX_CONTAINERS} containers: what becomes of them is left to nodes"
    return wanted or Verdict(warnings=(told,))


def _of_container(known: Known, subject: _Subject, name: str, engine: str) -> Bound:
    # All have been read for the pod, and each is once more for what it is about.
    bound = known.certain.bind(subject.about(name), name, namespace=subject.namespace, name=subject.name)
    refused = _fits(bound, subject, engine, known)
    if refused is not None:
        raise InvalidInput(f"container {name}: {refused.by}", refused.reason)
    return bound


def _fits(bound: Bound, subject: _Subject, engine: str, known: Known) -> Verdict | None:
    """Refused where the pod's engine is none that the contract could be kept on."""
    facts = Facts(
        pod=PodFacts(namespace=subject.namespace, name=subject.name),
        runtime=RuntimeFacts(engine="" if engine == ANY else engine),
        contract=bound,
    )
    name, why = judge.violated(Point.SANDBOX, facts)
    if name != "exec_mode":
        return None
    given = f"has the RuntimeClass {subject.runtime_class!r}" if subject.runtime_class else "names no RuntimeClass"
    right = known.runtime_class(bound.contract.exec_mode)
    return Verdict(by=name, reason=f"{why}; the pod {given}" + (f", and {right!r} has that engine" if right else ""))


def _refused_by(known: Known, bound: Bound, described: Manifest | None) -> Verdict | None:
    if described is None or not known.certain.concerned(Point.SANDBOX, bound):
        return None
    ruling = known.certain.judge(Point.SANDBOX, manifest.held_to(described.pod, bound, described))
    return None if ruling.allowed else Verdict(by=ruling.by, reason=ruling.reason)


def _described(subject: _Subject, engine: str) -> Manifest | None:
    """The pod as a node would see it; ``None`` where that cannot be told, and only a node can."""
    try:
        assumed = manifest.Assumed(engine=engine)
        return manifest.described("", subject.name, subject.namespace, subject.template, assumed)
    except InvalidInput:
        return None


def _containers(subject: _Subject) -> frozenset[str]:
    """The names of its containers."""
    spec = subject.template.node("spec")
    keys = ("initContainers", "containers", "ephemeralContainers")
    return frozenset(one.text("name") for key in keys for one in spec.nodes(key))


def _whose(key: str) -> str:
    """The container that an annotation is about; empty: the pod."""
    return key.removeprefix(PREFIX).partition(".")[2]


def _named(subject: _Subject) -> tuple[str, ...]:
    """The containers that the contract names."""
    found = {_whose(key) for key in subject.ours}
    document = subject.annotations.get(f"{PREFIX}{parse.DOCUMENT}")
    if document is not None:
        found |= {*parse.read("", document.encode(errors="replace"), ())[0].containers}
    return tuple(sorted(found - {""}))


def _demanded_class(subject: _Subject, known: Known) -> str:
    """The RuntimeClass of the engine that its contract and the policies demand; empty: none is, or there is none."""
    bound = known.certain.bind(subject.annotations, namespace=subject.namespace, name=subject.name)
    return known.runtime_class(bound.contract.exec_mode) if bound.contract.exec_mode else ""


def _filled(request: _Request, known: Known) -> Verdict:
    subject = _subject(request)
    if not known.fill or subject is None or not subject.is_pod or request.operation != "CREATE":
        return Verdict()
    if MIRROR in subject.annotations or subject.runtime_class:
        return Verdict()
    try:
        name = _demanded_class(subject, _supposing(subject, known))
    except InvalidInput as error:
        # It is refused when it is validated.
        return Verdict(absent=_absent(error, subject, known))
    if not name:
        return Verdict()
    return Verdict(
        patch=({"op": "add", "path": "/spec/runtimeClassName", "value": name},), notes={"runtime-class": name}
    )


def _refused(by: str, reason: str, fix: str = "") -> Verdict:
    return Verdict(by=by, reason=f"{reason} ({fix})" if fix else reason)


def _answer(request: _Request, verdict: Verdict) -> Answer:
    allowed = not verdict.by
    response: dict[str, Any] = {"uid": request.uid, "allowed": allowed}
    if not allowed:
        message = f"{verdict.by}: {verdict.reason}"[:MAX_MESSAGE]
        response["status"] = {"message": message, "reason": "Forbidden", "code": 403}
    if verdict.warnings:
        response["warnings"] = [one[:MAX_WARNING] for one in verdict.warnings[:MAX_WARNINGS]]
    notes = dict(verdict.notes) | ({} if allowed else {"denied-by": verdict.by[:MAX_WARNING]})
    if notes:
        response["auditAnnotations"] = notes
    if verdict.patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(msgspec.json.encode(verdict.patch)).decode()
    body = msgspec.json.encode({"apiVersion": API_VERSION, "kind": KIND, "response": response})
    cause = "" if allowed else _cause(verdict.by)
    return Answer(body, request.uid, request.kind.kind, allowed, cause, verdict.absent)


def _cause(by: str) -> str:
    return next((cause for cause, words in _CAUSES if any(word in by for word in words)), "policy")
