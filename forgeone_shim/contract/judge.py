"""Facts held against a contract, field by field. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from forgeone_shim.contract import merge, patterns, volumes
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
from forgeone_shim.contract.model import UNRESTRICTED, Contract, HostPath
from forgeone_shim.network.policy import unenforceable

__all__ = (
    "ALLOWED",
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
    "violated",
)

Finding = tuple[str, str]
_MIXING: Final = ("wasm", "native")
"""The engine of pods that may have containers of another, and that other (see ``runtime.choose``)."""


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


def violated(point: Point, facts: Facts, contract: Contract | None = None) -> Finding:
    """The first field of the contract (that of the facts, unless another is given) that does not allow this, and why.

    Two empty texts where all do.
    """
    held = facts.contract.contract if contract is None else contract
    if held == UNRESTRICTED:
        return "", ""
    return next((found for check in _CHECKS[point] for found in check(facts, held)), ("", ""))


def _sharing(facts: Facts, held: Contract) -> Iterator[Finding]:
    """What the pod shares with its host."""
    pod, profile = facts.pod, held.profile
    container = facts.container
    if (pod.privileged or (container is not None and container.privileged)) and not profile.privileged:
        yield "profile.privileged", "it is privileged"
    for field, shared, allowed in (
        ("host_network", pod.host_network, profile.host_network),
        ("host_pid", pod.host_pid, profile.host_pid),
        ("host_ipc", pod.host_ipc, profile.host_ipc),
    ):
        if shared and not allowed:
            yield f"profile.{field}", f"it uses the host's {field.removeprefix('host_').replace('pid', 'processes')}"


def _network(facts: Facts, held: Contract) -> Iterator[Finding]:
    container = facts.container
    why = unenforceable(
        held.profile.network,
        host_network=facts.pod.host_network,
        host_pid=facts.pod.host_pid,
        privileged=facts.pod.privileged or (container is not None and container.privileged),
        capabilities=container.capabilities if container is not None else (),
        engine=facts.runtime.engine,
    )
    if why:
        yield "profile.network", f"it cannot be enforced: {why}"


def _pod_engine(facts: Facts, held: Contract) -> Iterator[Finding]:
    engine = facts.runtime.engine
    if engine and held.exec_mode not in {"", engine} and (engine, held.exec_mode) != _MIXING:
        yield "exec_mode", f"the pod's engine is {engine}, and {held.exec_mode} is demanded"


def _engine(facts: Facts, held: Contract) -> Iterator[Finding]:
    engine = facts.runtime.engine
    if held.exec_mode and engine != held.exec_mode:
        yield "exec_mode", f"it is run by {engine or 'an unknown engine'}, and {held.exec_mode} is demanded"
    engines = sorted({*facts.pod.engines, engine} - {""})
    if len(engines) > 1 and not held.profile.mixed_engines:
        yield "profile.mixed_engines", f"the pod has containers of {' and '.join(engines)}"


def _image(facts: Facts, held: Contract) -> Iterator[Finding]:
    image, rules, issuers = facts.image, held.profile.images, held.trusted_issuers
    if image is None:
        if rules is not None or issuers is not None:
            yield "profile.images", "its image is not known"
        return
    if rules is not None:
        named = [one for one in rules if all(patterns.matches(glob, image.repository) for glob in one.repositories)]
        if not image.repository or not named:
            allowed = ", ".join(" and ".join(one.repositories) for one in rules)[:300] or "none at all"
            yield "profile.images", f"{image.repository or image.name!r} is not among those allowed: {allowed}"
        elif not any(not one.digests or image.digest in one.digests for one in named):
            yield "profile.images", f"{image.repository} is {image.digest}, which is none of the digests allowed"
    if issuers is not None and not {*image.verified_by} & {*issuers}:
        by = ", ".join(image.verified_by)[:300]
        yield "trusted_issuers", f"{image.name} is signed by {by or 'nobody'}, and none of them is trusted for it"


def _capabilities(facts: Facts, held: Contract) -> Iterator[Finding]:
    container, ceiling = facts.container, held.profile.capabilities
    if container is not None and ceiling is not None:
        above = [name for name in container.capabilities if name not in ceiling]
        if above:
            yield "profile.capabilities", f"it could have {', '.join(above)}, and the most is {_or_none(ceiling)}"


def _mounts(facts: Facts, held: Contract) -> Iterator[Finding]:
    profile = held.profile
    for one in facts.container.mounts if facts.container is not None else ():
        if one.kind == volumes.KUBELET:
            continue
        if profile.volumes is not None and one.kind not in profile.volumes:
            yield (
                "profile.volumes",
                f"{one.destination} is of kind {one.kind!r}, and allowed is {_or_none(profile.volumes)}",
            )
        if (
            profile.host_paths is not None
            and one.kind in {volumes.HOST_PATH, ""}
            and not _among(profile.host_paths, one)
        ):
            how = "to read" if one.readonly else "to write"
            paths = tuple(f"{path.path}:ro" if path.readonly else path.path for path in profile.host_paths)
            yield "profile.host_paths", f"it mounts {one.source} {how}, and allowed is {_or_none(paths)}"


def _among(allowed: tuple[HostPath, ...], one: MountFacts) -> bool:
    return any(merge.path_covers(path, HostPath(one.source, one.readonly)) for path in allowed)


def _limits(facts: Facts, held: Contract) -> Iterator[Finding]:
    container, most = facts.container, held.profile.resources
    if container is None:
        return
    for name, limit, ceiling, unit in (
        ("memory", container.memory, most.memory, "bytes"),
        ("cpu", container.cpu, most.cpu, "thousandths of a CPU"),
        ("pids", container.pids, most.pids, "processes"),
    ):
        if ceiling is not None and not 0 < limit <= ceiling:
            found = f"its limit is {limit}" if limit else "it has no limit"
            yield f"profile.resources.{name}", f"{found}, and the most is {ceiling} {unit}"


def _entropy(facts: Facts, held: Contract) -> Iterator[Finding]:
    if facts.runtime.entropy < held.minimum_entropy:
        yield (
            "minimum_entropy",
            f"it has {facts.runtime.entropy} bits of fresh seed, and {held.minimum_entropy} are demanded",
        )


def _snapshot(_: Facts, held: Contract) -> Iterator[Finding]:
    if not held.profile.snapshot:
        yield "profile.snapshot", "it may not be written to a file, nor come from one"


def _verb(name: str) -> Callable[[Facts, Contract], Iterator[Finding]]:
    def check(_: Facts, held: Contract) -> Iterator[Finding]:
        if not getattr(held.rbac, name):
            yield f"rbac.{name}", f"{name.replace('_', '-')} is not allowed"

    return check


def _or_none(allowed: tuple[str, ...]) -> str:
    return ", ".join(allowed)[:300] or "none"


_POD: Final = (_sharing, _network)
_CONTAINER: Final = (*_POD, _engine, _image, _capabilities, _mounts, _limits)
_CHECKS: Final[dict[Point, tuple[Callable[[Facts, Contract], Iterator[Finding]], ...]]] = {
    Point.SANDBOX: (*_POD, _pod_engine),
    Point.CREATE: _CONTAINER,
    Point.START: (*_CONTAINER, _entropy),
    Point.RECOVER: _CONTAINER,
    Point.EXEC: (_verb("exec"),),
    Point.ATTACH: (_verb("attach"),),
    Point.PORT_FORWARD: (_verb("port_forward"),),
    Point.CHECKPOINT: (_verb("checkpoint"), _snapshot),
    Point.RESTORE: (*_POD, _snapshot),
    Point.UPDATE: (_verb("update"), _limits),
    Point.RESUME: (_entropy,),
}
"""What is looked at where. Each point that a pod passes is asked again: facts change, and so do policies."""
