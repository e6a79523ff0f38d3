"""A pod as its manifest describes it, as the facts that policies would be asked about: before it is anywhere. Pure.

What only a node knows (the user of an image, its digest behind a tag, who signed it) is assumed, and told by whoever
asks (:class:`Assumed`). Fields that no fact comes of are left alone: the API server has seen to them.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Final

from forgeone_shim.contract import volumes
from forgeone_shim.contract.facts import (
    Bound,
    ContainerFacts,
    Facts,
    ImageFacts,
    MountFacts,
    PodFacts,
    Point,
    RuntimeFacts,
)
from forgeone_shim.contract.judge import Ruling
from forgeone_shim.contract.objects import Node
from forgeone_shim.contract.parse import plain
from forgeone_shim.contract.policies import Policies
from forgeone_shim.errors import InvalidInput
from forgeone_shim.kernel import capabilities
from forgeone_shim.registry.reference import Reference

OF_PODS: Final = (Point.SANDBOX, Point.PORT_FORWARD)
"""Points at which a pod is asked about, and none of its containers."""

_KINDS: Final = {
    "configMap": "config-map",
    "csi": "csi",
    "downwardAPI": "downward-api",
    "emptyDir": "empty-dir",
    "ephemeral": "csi",
    "hostPath": "host-path",
    "image": "image",
    "persistentVolumeClaim": "csi",
    "projected": "projected",
    "secret": "secret",
}
_PROPAGATION: Final = {"HostToContainer": "rslave", "Bidirectional": "rshared"}
_PROFILES: Final = {"RuntimeDefault": "runtime-default", "Localhost": "localhost", "Unconfined": "unconfined"}
TEMPLATES: Final[Mapping[str, tuple[str, ...]]] = {
    "Pod": (),
    "PodTemplate": ("template",),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
    **dict.fromkeys(
        ("DaemonSet", "Deployment", "Job", "ReplicaSet", "ReplicationController", "StatefulSet"), ("spec", "template")
    ),
}
"""Where each kind that makes pods has their template; a pod is its own."""
_SUFFIXES: Final = {
    "": Decimal(1),
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", 1)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)},
    "m": Decimal("0.001"),
}
_QUANTITY: Final = re.compile(r"([0-9.]+(?:[eE][+-]?[0-9]{1,2})?)([KMGTPE]i|[kMGTPEm])?")
_DOCUMENTS: Final = re.compile(rb"^---(?:[ \t].*)?$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What a manifest does not say. ``user`` is that of images whose containers ask for none; ``digest`` of tags."""

    engine: str = "native"
    user: int = 0
    digest: str = ""
    signers: tuple[str, ...] = ()
    entropy: int = 256
    trust_score: int = 100
    defaults: frozenset[str] = frozenset(name.removeprefix("CAP_") for name in capabilities.DEFAULT)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A pod that is to be: what its author wrote, and what is known of it and of its containers without a contract.

    ``raw`` are the containers that ask for packet sockets.
    """

    name: str
    annotations: Mapping[str, str]
    pod: Facts
    containers: tuple[Facts, ...]
    raw: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Answer:
    """What would be said at a point; ``container`` is empty where the pod is asked about."""

    pod: str
    container: str
    point: Point
    ruling: Ruling


def answers(policies: Policies, manifest: Manifest, points: Sequence[Point]) -> Iterator[Answer]:
    """What the policies would say of it, point by point."""
    for facts in (manifest.pod, *manifest.containers):
        container = facts.container.name if facts.container is not None else ""
        try:
            bound: Bound | None = policies.bind(
                manifest.annotations, container, namespace=facts.pod.namespace, name=facts.pod.name
            )
            refused = Ruling(allowed=False)
        except InvalidInput as error:
            why = error.reason + (f" ({error.fix})" if error.fix else "")
            bound, refused = None, Ruling(allowed=False, rule=error.field, reason=why)
        for point in points:
            if (point in OF_PODS) is (facts.container is None):
                ruling = policies.judge(point, held_to(facts, bound, manifest)) if bound is not None else refused
                yield Answer(manifest.name, container, point, ruling)


def held_to(facts: Facts, bound: Bound, manifest: Manifest) -> Facts:
    """The facts of a pod or a container under a contract, as a node would make it so.

    It has a limit of processes then, and no packet sockets that nobody asked for.
    """
    container, profile = facts.container, bound.contract.profile
    if container is not None and profile.resources.pids:
        container = replace(container, pids=profile.resources.pids)
    if container is not None and profile.network is not None and profile.network.restricts:
        kept = container.privileged or container.name in manifest.raw
        held = container.capabilities
        container = replace(container, capabilities=tuple(one for one in held if kept or one != "NET_RAW"))
    return replace(facts, contract=bound, container=container)


def read(where: str, data: bytes, assumed: Assumed, namespace: str = "") -> tuple[Manifest, ...]:
    """The pods of a file with manifests: pods themselves, and what makes pods.

    :param namespace: of those that say none; empty: ``default``.
    :raises InvalidInput: naming the file and the field.
    """
    found: list[Manifest] = []
    for value in documents(where, data):
        found += _pods(where, value, assumed, namespace or "default")
    if not found:
        raise InvalidInput(where, "has no pod, and nothing that makes pods")
    return tuple(found)


def documents(where: str, data: bytes) -> Iterator[object]:
    """The documents of a file, those that say nothing left out. :raises InvalidInput: naming the file."""
    for document in [data] if data.lstrip().startswith(b"{") else _DOCUMENTS.split(data):
        if document.strip() and (value := plain(where, document)) is not None:
            yield value


def is_manifest(value: object) -> bool:
    """Whether a value is a Kubernetes object, and no contract."""
    return isinstance(value, dict) and "kind" in value


def _pods(where: str, value: object, assumed: Assumed, namespace: str) -> Iterator[Manifest]:
    top = Node(where, value)
    kind = top.text("kind")
    if kind == "List":
        for item in top.nodes("items"):
            yield from _pods(item.where, item.value, assumed, namespace)
    elif kind in TEMPLATES:
        template = template_of(top, kind)
        name = template.node("metadata").text("name") or top.node("metadata").text("name") or "unnamed"
        space = top.node("metadata").text("namespace") or namespace
        yield described(f"{kind}/{name}" if template is not top else name, name, space, template, assumed)


def template_of(top: Node, kind: str) -> Node:
    """Where an object of one of :data:`TEMPLATES` says what its pods are."""
    for part in TEMPLATES[kind]:
        top = top.node(part)
    return top


def described(title: str, name: str, namespace: str, template: Node, assumed: Assumed) -> Manifest:
    """The pod of a template. ``title`` is what answers call it. :raises InvalidInput: naming the field."""
    metadata, spec = template.node("metadata"), template.node("spec")
    context = spec.node("securityContext")
    given = [*spec.nodes("initContainers"), *spec.nodes("containers"), *spec.nodes("ephemeralContainers")]
    if not given:
        raise InvalidInput(f"{spec.where}.containers", "is missing")
    privileged = [one.node("securityContext").truth("privileged") for one in given]
    pod = PodFacts(
        namespace=namespace,
        name=name,
        labels=metadata.texts("labels"),
        annotations=metadata.texts("annotations"),
        runtime_handler=spec.text("runtimeClassName"),
        host_network=spec.truth("hostNetwork"),
        host_pid=spec.truth("hostPID"),
        host_ipc=spec.truth("hostIPC"),
        user_namespace=spec.get("hostUsers", bool, default=True) is False,
        privileged=any(privileged),
        sysctls={one.text("name"): one.text("value") for one in context.nodes("sysctls")},
        host_ports=tuple(
            f"{port.number('hostPort')}/{(port.text('protocol') or 'TCP').lower()}"
            for one in given
            for port in one.nodes("ports")
            if port.number("hostPort")
        ),
        engines=(assumed.engine,),
    )
    runtime = RuntimeFacts(engine=assumed.engine, entropy=assumed.entropy, trust_score=assumed.trust_score)
    sources = {one.text("name"): one for one in spec.nodes("volumes")}
    containers = tuple(
        Facts(
            pod=replace(pod, privileged=False),
            container=_container(one, context, sources, assumed),
            image=_image(one, assumed),
            runtime=runtime,
        )
        for one in given
    )
    raw = frozenset(
        one.text("name")
        for one in given
        if {"ALL", "NET_RAW"}
        & {name.upper().removeprefix("CAP_") for name in one.node("securityContext").node("capabilities").words("add")}
    )
    return Manifest(title, pod.annotations, Facts(pod=pod, runtime=replace(runtime, entropy=0)), containers, raw)


def _container(one: Node, of_pod: Node, sources: Mapping[str, Node], assumed: Assumed) -> ContainerFacts:
    context, limits = one.node("securityContext"), one.node("resources").node("limits")
    privileged = context.truth("privileged")
    user = context.number("runAsUser", of_pod.number("runAsUser", assumed.user))
    seccomp = context.node("seccompProfile").text("type") or of_pod.node("seccompProfile").text("type")
    apparmor = context.node("appArmorProfile").text("type") or of_pod.node("appArmorProfile").text("type")
    mounts = [*one.nodes("volumeMounts"), *one.nodes("volumeDevices")]
    return ContainerFacts(
        name=one.text("name"),
        argv=(*one.words("command"), *one.words("args")),
        env=tuple(each.text("name") for each in one.nodes("env")),
        user=user,
        group=context.number("runAsGroup", of_pod.number("runAsGroup", 0)),
        privileged=privileged,
        capabilities=_capabilities(context, assumed.defaults, privileged=privileged)
        if assumed.engine != "wasm"
        else (),
        no_new_privs=context.get("allowPrivilegeEscalation", bool, default=True) is False,
        readonly_rootfs=context.truth("readOnlyRootFilesystem"),
        seccomp="unconfined" if privileged else _PROFILES.get(seccomp, "unconfined"),
        apparmor="unconfined" if privileged else _PROFILES.get(apparmor, "unconfined"),
        unmasked=assumed.engine != "wasm" and (privileged or context.text("procMount") == "Unmasked"),
        mounts=tuple(_mount(mount, sources) for mount in mounts),
        memory=int(_quantity(limits, "memory")),
        cpu=int(_quantity(limits, "cpu") * 1000),
        tty=one.truth("tty"),
    )


def _capabilities(context: Node, defaults: frozenset[str], *, privileged: bool) -> tuple[str, ...]:
    every = {name.removeprefix("CAP_") for name in capabilities.KNOWN}
    if privileged:
        return tuple(sorted(every))
    given = context.node("capabilities")
    add, drop = ({name.upper().removeprefix("CAP_") for name in given.words(key)} for key in ("add", "drop"))
    base = every if "ALL" in add else set() if "ALL" in drop else {*defaults}
    return tuple(sorted(((base | add) - drop) - {"ALL"}))


def _mount(mount: Node, sources: Mapping[str, Node]) -> MountFacts:
    name = mount.text("name")
    source = sources.get(name)
    if source is None:
        raise InvalidInput(f"{mount.where}.name", f"there is no volume {name!r}")
    kind = next((kind for key, kind in _KINDS.items() if key in source.given), "persistent")
    path = f"volume:{name}"
    if kind == volumes.HOST_PATH:
        path = posixpath.normpath("/" + source.node("hostPath").text("path").lstrip("/"))
        if sub := mount.text("subPath"):
            path = posixpath.normpath(f"{path}/{sub}")
    elif kind == "image":
        path = source.node("image").text("reference")
    return MountFacts(
        destination=mount.text("mountPath") or mount.text("devicePath"),
        source=path,
        readonly=mount.truth("readOnly") or kind == "image",
        kind=kind,
        propagation=_PROPAGATION.get(mount.text("mountPropagation"), "rprivate"),
    )


def _image(one: Node, assumed: Assumed) -> ImageFacts:
    name = one.text("image")
    repository, digest = "", ""
    with suppress(InvalidInput):
        reference = Reference.parse(name)
        repository, digest = reference.name, reference.digest
    return ImageFacts(name=name, repository=repository, digest=digest or assumed.digest, verified_by=assumed.signers)


def _quantity(limits: Node, key: str) -> Decimal:
    """A limit in its base unit; 0: none. https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity"""
    value = limits.given.get(key)
    if value is None:
        return Decimal(0)
    parts = _QUANTITY.fullmatch(str(value)) if isinstance(value, str | int | float) else None
    with suppress(InvalidOperation):
        if parts:
            return Decimal(parts[1]) * _SUFFIXES[parts[2] or ""]
    raise InvalidInput(f"{limits.where}.{key}", f"{value!r} is not a quantity")
