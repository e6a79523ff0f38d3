"""What is known of a pod and a container, in the words that policies are written over. Nothing is decided here."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from engines.base import ContainerSpec, NamespaceMode, Profile, ProfileType, Resources, SandboxSpec, Security
from forgeone_shim.attestation.evidence import Endorsement
from forgeone_shim.config.handlers import WASM_ENGINE
from forgeone_shim.contract import volumes
from forgeone_shim.contract.facts import (
    AttestationFacts,
    ContainerFacts,
    ImageFacts,
    MountFacts,
    NodeFacts,
    PodFacts,
    RequestFacts,
)
from forgeone_shim.devices.cdi import requested
from forgeone_shim.devices.names import HOST_ANNOTATION
from forgeone_shim.errors import InvalidInput
from forgeone_shim.kernel import capabilities
from forgeone_shim.registry.model import Image
from forgeone_shim.registry.reference import Reference
from forgeone_shim.runtime.records import ContainerRecord
from forgeone_shim.runtime.suggested import filled
from forgeone_shim.version import VERSION

_ALL = frozenset({"ALL", "CAP_ALL"})
_HOST = NamespaceMode.NODE
# Of numbers that fit 63 bits.
_DIGITS = 19


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What counts for every container of this host.

    ``capabilities`` are those that one need not ask for; ``apparmor`` says whether a profile of AppArmor's is such,
    too. ``kubelet`` is where the kubelet keeps the volumes of pods, without symlinks.
    """

    capabilities: frozenset[str] = frozenset()
    apparmor: bool = False
    kubelet: str = volumes.ROOT


def node() -> NodeFacts:
    """This host."""
    name = os.uname()
    return NodeFacts(name=name.nodename, kernel=name.release, version=VERSION)


def pod(spec: SandboxSpec, engines: Iterable[str], container: Security | None = None) -> PodFacts:
    """A pod whose containers run on ``engines``; what ``container`` shares of the host counts as the pod's."""
    shared = spec.security.namespaces
    own = shared if container is None else container.namespaces
    return PodFacts(
        namespace=spec.namespace,
        name=spec.name,
        uid=spec.uid,
        labels=spec.labels,
        annotations=spec.annotations,
        runtime_handler=spec.runtime_handler,
        host_network=_HOST in {shared.network, own.network},
        host_pid=_HOST in {shared.pid, own.pid},
        host_ipc=_HOST in {shared.ipc, own.ipc},
        user_namespace=shared.user is not _HOST,
        privileged=spec.security.privileged,
        sysctls=spec.sysctls,
        host_ports=tuple(f"{one.host_port}/{one.protocol}" for one in spec.port_mappings if one.host_port),
        engines=tuple(dict.fromkeys(engines)),
    )


def container(record: ContainerRecord, image: Image | None, *, pod: SandboxSpec, host: Host) -> ContainerFacts:
    """A container that exists, or (with its ``image``) is about to.

    What its engine has made of what was asked for counts for more, once it is known.
    """
    spec, security, made = record.spec, record.spec.security, record.genome
    limits = filled(record.resources or spec.resources, record.suggested)
    return ContainerFacts(
        name=spec.name,
        id=record.id,
        attempt=spec.attempt,
        argv=record.argv,
        env=tuple(name for name, _ in spec.envs),
        user=record.user.uid if image is None else _user(security, image),
        group=record.user.gid if image is None else security.run_as_group or 0,
        privileged=security.privileged,
        capabilities=_capabilities(record, host.capabilities)
        if made is None
        else tuple(sorted(_plain(made.capabilities))),
        no_new_privs=security.no_new_privs,
        readonly_rootfs=security.readonly_rootfs,
        seccomp=_profile(security.seccomp, _filtered(record) if made is None else bool(made.seccomp)),
        apparmor=_profile(
            security.apparmor, _confined(security, host.apparmor) if made is None else bool(made.apparmor)
        ),
        unmasked=record.engine != WASM_ENGINE and not (security.masked_paths and security.readonly_paths),
        mounts=tuple(_mounts(record, pod.uid, host.kubelet)),
        devices=_devices(spec, pod.annotations),
        memory=limits.memory_limit or _number(limits, "memory.max"),
        cpu=cpu(limits),
        pids=limits.pids_limit or _number(limits, "pids.max"),
        labels=spec.labels,
        annotations=spec.annotations,
        tty=spec.tty,
        restored=record.restored,
    )


def image(found: Image, name: str, endorsement: Endorsement, *, volume: bool = False) -> ImageFacts:
    """An image of this node that a pod calls ``name``."""
    known = [*found.repo_tags, *found.repo_digests]
    repositories = tuple(dict.fromkeys(Reference.parse(one).name for one in known))
    repository, digest = _asked(name, found, repositories)
    return ImageFacts(
        name=name,
        repository=repository,
        digest=digest,
        verified_by=endorsement.signers,
        attestations=tuple(
            AttestationFacts(predicate_type=one.predicate_type, signer=one.signer) for one in endorsement.attestations
        ),
        volume=volume,
    )


def update(asked: Resources) -> RequestFacts:
    """The limits that somebody wants a container to have."""
    return RequestFacts(memory=asked.memory_limit or _number(asked, "memory.max"), cpu=cpu(asked))


def held(security: Security, defaults: Collection[str]) -> tuple[str, ...]:
    """The capabilities that a program could have that is given ``defaults`` without asking; names without ``CAP_``."""
    if security.privileged:
        return _plain(capabilities.KNOWN)
    add, ambient, drop = (
        {name.upper() for name in names}
        for names in (security.add_capabilities, security.add_ambient_capabilities, security.drop_capabilities)
    )
    # As engines read it: single names count after ALL.
    base: Iterable[str] = defaults
    if ambient & _ALL or (add & _ALL and not drop & _ALL):
        base = capabilities.KNOWN
    elif drop & _ALL:
        base = ()
    return tuple(sorted({*_plain(base), *_plain((add | ambient) - _ALL)} - {*_plain(drop - _ALL)}))


def cpu(limits: Resources) -> int:
    """Thousandths of a processor, a broken one for a whole; 0: no limit."""
    if limits.cpu_quota > 0:
        return math.ceil(limits.cpu_quota * 1000 / (limits.cpu_period or 100_000))
    quota, _, period = limits.unified.get("cpu.max", "").partition(" ")
    whole = _decimal(period or "100000")
    return math.ceil(_decimal(quota) * 1000 / whole) if whole else 0


def _plain(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name.removeprefix("CAP_") for name in names)


def _number(limits: Resources, key: str) -> int:
    """``max``, and what is no number, is no limit."""
    return _decimal(limits.unified.get(key, "").strip())


def _decimal(text: str) -> int:
    """Of what anybody may have written; 0 where it is no number that a limit could be."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < _DIGITS else 0


def _user(security: Security, image: Image) -> int:
    """Before its files are there a name is a number nobody knows: root, as far as rules are concerned."""
    if security.run_as_user is not None:
        return security.run_as_user
    return 0 if security.run_as_username else image.uid or 0


def _capabilities(record: ContainerRecord, defaults: Collection[str]) -> tuple[str, ...]:
    """A guest has none, whatever it asks for."""
    return () if record.engine == WASM_ENGINE else held(record.security, defaults)


def _profile(asked: Profile | None, there: bool) -> str:
    if not there:
        return str(ProfileType.UNCONFINED)
    local = asked is not None and asked.type is ProfileType.LOCALHOST
    return str(ProfileType.LOCALHOST if local else ProfileType.RUNTIME_DEFAULT)


def _filtered(record: ContainerRecord) -> bool:
    """Whether there is a seccomp filter. A guest always has one; of a program CRI's "not given" is unconfined."""
    asked, privileged = record.spec.security.seccomp, record.spec.security.privileged
    if record.engine == WASM_ENGINE:
        return True
    return not privileged and asked is not None and asked.type is not ProfileType.UNCONFINED


def _confined(security: Security, default: bool) -> bool:
    """Whether there is an AppArmor profile. Not for a privileged container, but for one that names its own."""
    asked = security.apparmor
    if asked is not None and asked.type is ProfileType.LOCALHOST:
        return True
    return default and not security.privileged and (asked is None or asked.type is not ProfileType.UNCONFINED)


def _devices(spec: ContainerSpec, of_pod: Mapping[str, str]) -> tuple[str, ...]:
    """Paths on the host, and names of the Container Device Interface, whoever asked for them."""
    offered = filter(None, (one.strip().partition(":")[0] for one in of_pod.get(HOST_ANNOTATION, "").split(",")))
    return (*(one.source for one in spec.devices), *offered, *requested(spec.cdi_devices, spec.annotations))


def _mounts(record: ContainerRecord, pod_uid: str, kubelet: str) -> Iterable[MountFacts]:
    for one in record.spec.mounts:
        source = one.image if one.image else os.path.realpath(one.source)
        yield MountFacts(
            destination=one.destination,
            source=source,
            readonly=one.readonly or bool(one.image),
            kind="image" if one.image else volumes.kind(source, pod_uid, kubelet),
            propagation=str(one.propagation),
        )
    for device in record.spec.devices:
        # A volume that is a device. What else there is of devices are no volumes.
        directory, name = os.path.split(device.source)
        source = f"{os.path.realpath(directory)}/{name}"
        kind = volumes.kind(source, pod_uid, kubelet)
        if kind not in {volumes.HOST_PATH, volumes.KUBELET}:
            readonly = "w" not in device.permissions
            yield MountFacts(destination=device.destination, source=source, readonly=readonly, kind=kind)


def _asked(name: str, found: Image, repositories: Sequence[str]) -> tuple[str, str]:
    """Repository and digest of the image by the name that the pod has for it; a name that is not its own is none."""
    repository, wanted = "", ""
    with suppress(InvalidInput):
        reference = Reference.parse(name)
        repository, wanted = (reference.name if reference.name in repositories else ""), reference.digest
    if not repository and repositories and found.id.startswith((name, f"sha256:{name}")):
        # By its id it is all that it is called here.
        repository = repositories[0]
    digests = []
    for one in found.repo_digests:
        with suppress(InvalidInput):
            reference = Reference.parse(one)
            if reference.name == repository:
                digests.append(reference.digest)
    if wanted in digests:
        return repository, wanted
    return repository, next(iter(digests), found.manifest_digest or found.id)
