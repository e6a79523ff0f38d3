"""The contract that a pod's annotations hold, read strictly. Pure.

``zta.forgeone.dev/FIELD`` has one field, ``zta.forgeone.dev/contract`` a whole document: JSON or YAML, plain or in a
DSSE envelope. ``.NAME`` behind either makes it one for the container of that name. All of it is joined, and each part
only takes away (:mod:`forgeone_shim.contract.merge`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from forgeone_shim.attestation import dsse
from forgeone_shim.attestation.keys import PublicKey
from forgeone_shim.contract import patterns, reader
from forgeone_shim.contract.merge import normal, tighten
from forgeone_shim.contract.model import PAYLOAD_TYPE, UNRESTRICTED, Contract
from forgeone_shim.contract.reader import Document, Scope
from forgeone_shim.contract.values import LABEL
from forgeone_shim.dropins import documents
from forgeone_shim.errors import ForgeError, InvalidInput

PREFIX: Final = "zta.forgeone.dev/"
DOCUMENT: Final = "contract"
"""JSON or YAML, plain or signed

All of these in [one document](policies.md#contracts).
"""
NOTHING: Final = "none"
"""The empty list, as the value of an annotation."""
_MAX_SHOWN: Final = 100

_TEXT, _NUMBER, _TRUTH, _LIST = "text", "number", "truth", "list"
FIELDS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "runtime_policy_id": (_TEXT, ("runtime_policy_id",)),
    "trusted_issuers": (_LIST, ("trusted_issuers",)),
    "minimum_entropy": (_NUMBER, ("minimum_entropy",)),
    "exec_mode": (_TEXT, ("exec_mode",)),
    "trust_label": (_TEXT, ("profile", "trust_label")),
    "images": (_LIST, ("profile", "images")),
    "capabilities": (_LIST, ("profile", "capabilities")),
    "privileged": (_TRUTH, ("profile", "privileged")),
    "host_network": (_TRUTH, ("profile", "host_network")),
    "host_pid": (_TRUTH, ("profile", "host_pid")),
    "host_ipc": (_TRUTH, ("profile", "host_ipc")),
    "host_paths": (_LIST, ("profile", "host_paths")),
    "volumes": (_LIST, ("profile", "volumes")),
    "memory": (_TEXT, ("profile", "resources", "memory")),
    "cpu": (_TEXT, ("profile", "resources", "cpu")),
    "pids": (_NUMBER, ("profile", "resources", "pids")),
    "egress": (_LIST, ("profile", "network", "egress")),
    "ingress": (_LIST, ("profile", "network", "ingress")),
    "node": (_TRUTH, ("profile", "network", "node")),
    "dns": (_TRUTH, ("profile", "network", "dns")),
    "bus_publish": (_LIST, ("profile", "bus", "publish")),
    "bus_subscribe": (_LIST, ("profile", "bus", "subscribe")),
    "snapshot": (_TRUTH, ("profile", "snapshot")),
    "mixed_engines": (_TRUTH, ("profile", "mixed_engines")),
    "exec": (_TRUTH, ("rbac", "exec")),
    "attach": (_TRUTH, ("rbac", "attach")),
    "port_forward": (_TRUTH, ("rbac", "port_forward")),
    "checkpoint": (_TRUTH, ("rbac", "checkpoint")),
    "update": (_TRUTH, ("rbac", "update")),
    "behaviour": (_TRUTH, ("behaviour", "watch")),
    "on_drift": (_TEXT, ("behaviour", "on_drift")),
    "baseline": (_TEXT, ("behaviour", "baseline")),
}
"""Of each annotation: how its value is read, and where the document has it."""
PACKAGE: Final = "the package's contract"
"""What errors call it."""
OF_PODS: Final = frozenset({"egress", "ingress", "node", "dns", "port_forward"})
"""Those that cannot be of one container: a pod has one network."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a pod brought, for itself or one of its containers. ``signers`` are ids of issuers that are trusted here."""

    contract: Contract = UNRESTRICTED
    given: bool = False
    signers: tuple[str, ...] = ()


NO_OFFER: Final = Offer()


@dataclass(frozen=True, slots=True)
class Pod:
    """Whose annotations they are. A name that is not known yet is empty, and in every scope."""

    namespace: str
    name: str


def offered(
    given: Mapping[str, str], container: str = "", *, pod: Pod, issuers: Sequence[PublicKey] = (), package: str = ""
) -> Offer:
    """What they say about the pod, or with ``container`` about that one.

    Everything below :data:`PREFIX` is read, of other containers too: one that cannot be understood refuses the pod.
    ``package`` is the document of the container's package, joined with theirs; empty: it has none.

    :raises InvalidInput: naming the annotation and the field in it.
    """
    ours = {key.removeprefix(PREFIX): value for key, value in given.items() if key.startswith(PREFIX)}
    found: list[Contract] = []
    if package:
        found.append(reader.document(PACKAGE, plain(PACKAGE, package.encode())).contract)
    if not ours:
        return Offer(_joined(found)) if found else NO_OFFER
    signed = UNRESTRICTED
    signers: tuple[str, ...] = ()
    singles: dict[str, dict[str, str]] = {}
    for key, value in ours.items():
        name, dot, of = key.partition(".")
        _check_key(key, name, dot, of)
        if name != DOCUMENT:
            singles.setdefault(of, {})[name] = value
            continue
        document, by = read(f"annotation {PREFIX}{key}", value.encode(errors="replace"), issuers)
        _check_scope(f"annotation {PREFIX}{key}", document.scope, pod)
        if of and document.containers:
            raise InvalidInput(f"annotation {PREFIX}{key}: containers", "is for the document of a pod alone")
        for each in (document.contract,) if of else document.containers.values():
            _check_container(f"annotation {PREFIX}{key}", each)
        if of not in {"", container}:
            continue
        said = [document.contract, *filter(None, [document.containers.get(container)])]
        found += said
        if not of and by:
            signed, signers = _joined(said), by
    for of, values in singles.items():
        contract = _single(of, values)
        if not of or of == container:
            found.append(contract)
    whole = _joined(found)
    if signers:
        _check_claims(signed, whole)
    return Offer(whole, given=True, signers=signers)


def read(where: str, data: bytes, issuers: Sequence[PublicKey]) -> tuple[Document, tuple[str, ...]]:
    """A document and the ids of the issuers who signed it; none for one that is plain, or signed by others.

    :raises InvalidInput: naming the field; also for a signature that is said to be an issuer's and is not.
    """
    return _read(where, data, tuple(issuers))


# A pod's is read for the pod, and again for each of its containers.
@lru_cache(maxsize=32)
def _read(where: str, data: bytes, issuers: tuple[PublicKey, ...]) -> tuple[Document, tuple[str, ...]]:
    if len(data) > reader.MAX_DOCUMENT:
        raise InvalidInput(where, f"is larger than {reader.MAX_DOCUMENT} bytes")
    value = plain(where, data)
    if not isinstance(value, dict) or "payloadType" not in value:
        return reader.document(where, value), ()
    try:
        envelope = dsse.parse(data, "it")
        if envelope.payload_type != PAYLOAD_TYPE:
            raise InvalidInput(where, f"holds {envelope.payload_type[:100]!r}, not {PAYLOAD_TYPE}")
        keys = dsse.signers(envelope, issuers, "it")
    except InvalidInput:
        raise
    except ForgeError as error:
        raise InvalidInput(where, error.what) from None
    return reader.document(where, documents.parse(where, envelope.payload)), tuple(sorted(key.id for key in keys))


def plain(where: str, data: bytes) -> object:
    """What JSON (it begins with a brace) or YAML says. :raises InvalidInput: naming ``where``."""
    if data.lstrip().startswith(b"{"):
        return documents.parse(where, data)
    from forgeone_shim.dropins import yamls

    try:
        return yamls.parse(where, data.decode())
    except ValueError as error:
        raise InvalidInput(where, f"is not YAML: {error}") from None


def _check_key(key: str, name: str, dot: str, of: str) -> None:
    if (name != DOCUMENT and name not in FIELDS) or (dot and not of):
        near = difflib.get_close_matches(name[:_MAX_SHOWN], [DOCUMENT, *FIELDS], n=1)
        raise InvalidInput(
            f"annotation {PREFIX}{key[:_MAX_SHOWN]}",
            "is no field of a contract",
            fix=f"did you mean {PREFIX}{near[0]}?" if near else f"fields are {', '.join(FIELDS)}, and {DOCUMENT}",
        )
    if dot and not LABEL.fullmatch(of):
        raise InvalidInput(f"annotation {PREFIX}{key[:_MAX_SHOWN]}", f"{of[:_MAX_SHOWN]!r} is no container's name")
    if dot and name in OF_PODS:
        raise InvalidInput(f"annotation {PREFIX}{key}", "is of pods, and cannot be of one container")


def _check_scope(where: str, scope: Scope, pod: Pod) -> None:
    for key, globs, name in (("namespaces", scope.namespaces, pod.namespace), ("pods", scope.pods, pod.name)):
        if globs and name and not any(patterns.matches(glob, name) for glob in globs):
            raise InvalidInput(f"{where}: scope.{key}", f"{name!r} is not among {', '.join(globs)[:200]}")


def _check_container(where: str, contract: Contract) -> None:
    """Containers of a pod have one network between them."""
    if contract.profile.network is not None:
        raise InvalidInput(f"{where}: profile.network", "is of pods, and cannot be of one container")
    if not contract.rbac.port_forward:
        raise InvalidInput(f"{where}: rbac.port_forward", "is of pods, and cannot be of one container")


def _check_claims(signed: Contract, whole: Contract) -> None:
    """What rules may take for the issuer's word has to be."""
    for field, theirs, there in (
        ("trust_label", signed.profile.trust_label, whole.profile.trust_label),
        ("runtime_policy_id", signed.runtime_policy_id, whole.runtime_policy_id),
    ):
        if theirs != there:
            raise InvalidInput(f"annotation {PREFIX}{field}", f"{there!r} is not in the contract that is signed")


def _single(of: str, values: Mapping[str, str]) -> Contract:
    """The contract of annotations with a field each, of the pod or of the container ``of``."""
    tree: dict[str, Any] = {}
    suffix = f".{of}" if of else ""
    for name, value in values.items():
        kind, path = FIELDS[name]
        at = tree
        for part in path[:-1]:
            at = at.setdefault(part, {})
        at[path[-1]] = _value(f"annotation {PREFIX}{name}{suffix}", kind, value)
    try:
        return reader.document("", tree).contract
    except InvalidInput as error:
        fault = error.field.removeprefix(": ")
        named = next((name for name in values if fault.startswith(".".join(FIELDS[name][1]))), "")
        raise InvalidInput(f"annotation {PREFIX}{named}{suffix}", error.reason, fix=error.fix) from None


def _value(where: str, kind: str, value: str) -> object:
    if kind == _TRUTH:
        if value not in {"true", "false"}:
            raise InvalidInput(where, f"{value[:100]!r} is neither true nor false")
        return value == "true"
    if kind == _NUMBER:
        if not (value.isascii() and value.isdigit() and len(value) < 16):
            raise InvalidInput(where, f"{value[:100]!r} is not a number")
        return int(value)
    if kind == _TEXT:
        return value
    if len(value) > reader.MAX_DOCUMENT:
        raise InvalidInput(where, f"is longer than {reader.MAX_DOCUMENT} characters")
    if value.strip() == NOTHING:
        return []
    if value.lstrip().startswith('["'):
        return documents.parse(where, value.encode(errors="replace"))
    items = [item.strip() for item in value.split(",")]
    if not all(items):
        raise InvalidInput(where, "has an empty member", fix=f"write {NOTHING} for an empty list")
    return items


def _joined(found: Sequence[Contract]) -> Contract:
    whole = UNRESTRICTED
    for contract in found:
        try:
            whole = tighten(whole, contract) if whole is not UNRESTRICTED else normal(contract)
        except InvalidInput as error:
            raise InvalidInput(f"annotations {PREFIX}*: {error.field}", error.reason, fix=error.fix) from None
    return whole
