"""The fingerprint of a container: one digest of everything that decides what will run. Pure.

The digest is SHA-256 over the canonical JSON (RFC 8785) of a :class:`Genome`. What differs between two replicas of one
pod and decides nothing is left out of it, or taken out by :func:`place`: ids, addresses, values of variables. So
replicas have one fingerprint, and a fingerprint can be pinned.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import msgspec

from engines.base import ContainerPlan, Imprint, Mount, Namespaces, Resources
from forgeone_shim.errors import FailedPrecondition

FORMAT: Final = 1
"""Raised when the meaning of a genome changes, or its fields do: digests of two formats are not alike by chance, and
of another one no digest is computed."""

_SAFE: Final = 2**53 - 1
_LACKING: Final = object()
# What a kubelet puts into the paths of a pod's volumes besides the pod's uid, and anew for each pod or attempt. Below
# the pod's own directory only: elsewhere on the host such names are those of other files.
_TOKEN: Final = re.compile(r"^(/volumes/kubernetes\.io~projected/kube-api-access-)[a-z0-9]{5}(?=/|$)")
_TERMINATION: Final = re.compile(r"^(/containers/[^/]+/)[0-9a-f]{8}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerDNA:
    """Who a container is.

    :param hash: ``sha256:`` and 64 digits, of its genome.
    :param signer: those who signed its image and were believed, none where nobody was asked.
    :param resource_limits: as they are now; memory in bytes, CPU times in microseconds, 0: none.
    :param trust_label: its contract's, or empty.
    :param runtime_entropy: bits of fresh seed since its state could last have been duplicated
        (:mod:`forgeone_shim.dna.entropy`).
    """

    hash: str
    signer: tuple[str, ...] = ()
    resource_limits: Resources = field(default_factory=Resources)
    trust_label: str = ""
    runtime_entropy: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MountGene:
    """A mount; ``source`` as :func:`place` has it, or the id of an image."""

    destination: str
    source: str
    readonly: bool = False
    recursive_read_only: bool = False
    propagation: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceGene:
    """A device of the host's."""

    destination: str
    source: str
    permissions: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Genome:
    """Everything that decides what will run. Every list whose order decides nothing is sorted.

    ``image`` is the digest of the image's config, ``layers`` those of its unpacked layers, lowest first. ``env`` are
    names: values may be secrets. ``namespaces`` says of each kind whether it is the host's, the pod's or the
    container's own. ``capabilities`` are those it can ever have. ``seccomp`` is the digest of the filter it runs under,
    empty: none. ``edits`` is the digest of what its devices bring along, hooks among it. ``engine_facts`` is what its
    engine counts besides. ``policy`` and ``contract`` are digests, empty where there is none.
    """

    format: int = FORMAT
    image: str
    layers: tuple[str, ...]
    engine: str
    engine_version: str
    argv: tuple[str, ...]
    cwd: str
    env: tuple[str, ...]
    uid: int
    gid: int
    groups: tuple[int, ...]
    mounts: tuple[MountGene, ...]
    devices: tuple[DeviceGene, ...]
    namespaces: Mapping[str, str]
    privileged: bool
    no_new_privileges: bool
    readonly_rootfs: bool
    masked_paths: tuple[str, ...]
    readonly_paths: tuple[str, ...]
    capabilities: tuple[str, ...]
    seccomp: str
    apparmor: str
    edits: str
    limits: Resources
    engine_facts: Mapping[str, str]
    policy: str = ""
    contract: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """One field of two genomes; a side that lacks it is ``None``."""

    field: str
    before: Any
    after: Any


def genome(
    plan: ContainerPlan,
    imprint: Imprint,
    *,
    engine: str,
    layers: Sequence[str],
    pod_uid: str,
    policy: str = "",
    contract: str = "",
    restored: bool = False,
) -> Genome:
    """What an engine was told (``plan``) and has made of it (``imprint``), as a genome.

    :param layers: digests of the image's unpacked layers.
    :param pod_uid: what paths of the pod's volumes have in them.
    :param restored: what runs is a checkpoint's, whatever the command says: nobody takes it for the image's.
    """
    security, user = plan.spec.security, plan.process.user
    return Genome(
        image=plan.image_id,
        layers=tuple(layers),
        engine=engine,
        engine_version=imprint.version,
        argv=plan.process.args,
        cwd=plan.process.cwd,
        env=tuple(sorted({entry.partition("=")[0] for entry in (*plan.process.env, *plan.edits.env)})),
        uid=user.uid,
        gid=user.gid,
        groups=tuple(sorted(user.additional_gids)),
        mounts=tuple(_mount(one, pod_uid) for one in plan.spec.mounts),
        devices=tuple(
            DeviceGene(destination=one.destination, source=one.source, permissions=one.permissions)
            for one in plan.spec.devices
        ),
        namespaces=_namespaces(plan.namespaces),
        privileged=security.privileged,
        no_new_privileges=security.no_new_privs,
        readonly_rootfs=security.readonly_rootfs,
        masked_paths=tuple(sorted(security.masked_paths)),
        readonly_paths=tuple(sorted(security.readonly_paths)),
        capabilities=tuple(sorted(imprint.capabilities)),
        seccomp=imprint.seccomp,
        apparmor=imprint.apparmor,
        edits=_digest(_canonical(msgspec.to_builtins(plan.edits))) if plan.edits else "",
        limits=plan.spec.resources,
        engine_facts={**imprint.facts, "restored": "true"} if restored else dict(imprint.facts),
        policy=policy,
        contract=contract,
    )


def _mount(one: Mount, pod_uid: str) -> MountGene:
    source = one.image_ref or one.image
    if source and one.image_sub_path:
        source = f"{source}:{one.image_sub_path}"
    return MountGene(
        destination=one.destination,
        source=source or place(one.source, pod_uid),
        readonly=one.readonly,
        recursive_read_only=one.recursive_read_only,
        propagation=one.propagation,
        options=one.options,
    )


def place(source: str, pod_uid: str) -> str:
    """A path of the host without what is anew for each pod: its uid, the random part of what a kubelet mounts."""
    above, own, below = source.partition(f"/{pod_uid}/")
    if not (pod_uid and own):
        return source
    below = _TERMINATION.sub(r"\1*", _TOKEN.sub(r"\1*", f"/{below}"))
    return f"{above}/*{below}".replace(f"/{pod_uid}/", "/*/")


def _namespaces(given: Namespaces) -> Mapping[str, str]:
    kinds = {"network": given.network, "ipc": given.ipc, "uts": given.uts, "pid": given.pid, "user": given.user}
    return {kind: "host" if path is None else "pod" if path else "container" for kind, path in kinds.items()}


def canonical(one: Genome) -> bytes:
    """The genome as the bytes that are hashed (RFC 8785).

    :raises FailedPrecondition: a text in it is no Unicode.
    """
    plain = msgspec.to_builtins(one)
    plain["limits"] = _safe(plain["limits"])
    names = (plain["namespaces"], plain["engine_facts"], plain["limits"]["unified"])
    if not all(str(name).isascii() for part in names for name in part):
        return _canonical(plain)
    # Of texts, whole numbers and truth values under ASCII names this is RFC 8785, in a tenth of the time.
    try:
        return json.dumps(plain, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise _unfit(error) from error


def digest(one: Genome) -> str:
    """``sha256:`` and 64 digits: what :attr:`ContainerDNA.hash` is.

    :raises FailedPrecondition: a text in it is no Unicode.
    """
    return _digest(canonical(one))


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _canonical(plain: Any) -> bytes:
    # Not above: hardly a container needs it.
    import rfc8785

    try:
        return rfc8785.dumps(_safe(plain))
    except ValueError as error:
        raise _unfit(error) from error


def _unfit(error: ValueError) -> FailedPrecondition:
    return FailedPrecondition(f"the container has no fingerprint: {error}")


def _safe(value: Any) -> Any:
    """Numbers that JSON's readers may round are written as text (RFC 8785, appendix D)."""
    if isinstance(value, Mapping):
        return {str(key): _safe(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(one) for one in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _SAFE:
        return str(value)
    return value


def compare(before: Genome, after: Genome) -> tuple[Difference, ...]:
    """The fields that differ, by their paths (``limits.memory_limit``, ``mounts[/data].readonly``), sorted.

    None do only where the digests are alike, too: of lists whose order alone differs it is the order that is told.
    """
    one, other = dict(_flat("", asdict(before))), dict(_flat("", asdict(after)))
    found = [
        Difference(name, one.get(name), other.get(name))
        for name in {*one, *other}
        if one.get(name, _LACKING) != other.get(name, _LACKING)
    ]
    for name in ("mounts", "devices"):
        order = tuple(tuple(each.destination for each in getattr(side, name)) for side in (before, after))
        if order[0] != order[1] and sorted(order[0]) == sorted(order[1]):
            found.append(Difference(name, *order))
    return tuple(sorted(found, key=lambda difference: difference.field))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Mappings, and lists of what has a destination, by their parts; all else is one value."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        seen: Counter[str] = Counter()
        for number, inner in enumerate(value):
            key = str(inner.get("destination", number))
            seen[key] += 1
            # Of several at one place each counts.
            key = key if seen[key] == 1 else f"{key}#{seen[key]}"
            yield from _flat(f"{name}[{key}]", {part: it for part, it in inner.items() if part != "destination"})
    else:
        yield name, value
