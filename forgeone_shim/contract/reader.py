"""Contracts as documents: plain values taken apart strictly, every error with the path of the field. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

from forgeone_shim.contract import values
from forgeone_shim.contract.model import (
    DRIFTS,
    EXEC_MODES,
    PROTOCOLS,
    UNRESTRICTED,
    Behaviour,
    BusRule,
    Ceilings,
    Contract,
    HostPath,
    ImageRule,
    NetworkRule,
    Peer,
    Rbac,
    TrustProfile,
)
from forgeone_shim.dropins.table import Table
from forgeone_shim.errors import InvalidInput

MAX_DOCUMENT: Final = 64 * 1024
"""Bytes: all annotations of a pod together may have 256 KiB (k8s.io/apimachinery, TotalAnnotationSizeLimitB)."""
MAX_LIST: Final = 64
MAX_TEXT: Final = 1024
_MAX_VALUES: Final = 4096
_MAX_DEPTH: Final = 12
MAX_ENTROPY: Final = 65536
ROOT: Final = "$"
"""What the paths of fields begin with while they are read."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scope:
    """Which pods a document is for: names, or names with ``*``. Empty: any."""

    namespaces: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A contract as it is written down: for whom, and what single containers of the pod have besides."""

    contract: Contract = UNRESTRICTED
    scope: Scope = Scope()
    containers: Mapping[str, Contract] = field(default_factory=dict)


def document(where: str, value: object) -> Document:
    """A whole document. :raises InvalidInput: naming ``where`` and the field."""
    with located(where):
        bounded(ROOT, value)
        with Table(ROOT, value) as table:
            scope = table.table("scope", _scope) or Scope()
            containers = table.table("containers", _containers) or {}
            return Document(_contract(table), scope, containers)


def policy_contract(table: Table) -> Contract:
    """A policy's. It names no policy, being one. :raises InvalidInput: naming the field."""
    if "runtime_policy_id" in table.given:
        raise table.wrong("runtime_policy_id", "is of contracts that pods bring")
    return _contract(table)


@contextmanager
def located(where: str) -> Iterator[None]:
    """Errors about :data:`ROOT` become errors about ``where``."""
    try:
        yield
    except InvalidInput as error:
        path = error.field.removeprefix(ROOT).removeprefix(".")
        raise InvalidInput(f"{where}: {path}" if path else where, error.reason, fix=error.fix) from None


def bounded(where: str, value: object, *, max_text: int = MAX_TEXT, lines: bool = False) -> None:
    """Refuse what no field can be: nothing at all, fractions, and whatever is too large or too deep.

    :param lines: texts may have several.
    """
    left: list[tuple[str, object, int]] = [(where, value, 0)]
    seen = 0
    while left:
        at, one, depth = left.pop()
        seen += 1
        if depth > _MAX_DEPTH or seen > _MAX_VALUES:
            raise InvalidInput(where, f"has more than {_MAX_VALUES} values, or is nested deeper than {_MAX_DEPTH}")
        if isinstance(one, dict):
            for key in one:
                if not isinstance(key, str) or not 0 < len(key) <= MAX_TEXT or not key.isprintable():
                    raise InvalidInput(at, f"{str(key)[:40]!r} is no name")
            left += [(f"{at}.{key}", item, depth + 1) for key, item in one.items()]
        elif isinstance(one, list):
            if len(one) > MAX_LIST:
                raise InvalidInput(at, f"has {len(one)} members, more than {MAX_LIST}")
            left += [(f"{at}[{index}]", item, depth + 1) for index, item in enumerate(one)]
        else:
            _plain(at, one, max_text, lines=lines)


def _plain(at: str, one: object, max_text: int, *, lines: bool) -> None:
    if isinstance(one, str):
        shown = one.replace("\n", "").replace("\t", "") if lines else one
        if not 0 < len(one) <= max_text or not shown.isprintable():
            raise InvalidInput(at, f"is not a text of 1 to {max_text} printable characters")
    elif isinstance(one, int):
        if abs(one) > values.MAX_NUMBER:
            raise InvalidInput(at, "is too large a number")
    elif one is None:
        raise InvalidInput(at, "says nothing", fix="leave the key out, or write [] for none")
    else:
        raise InvalidInput(at, "is neither a text, a whole number, a truth value, a list nor an object")


def _contract(table: Table) -> Contract:
    return Contract(
        runtime_policy_id=_checked(table, "runtime_policy_id", values.policy),
        trusted_issuers=_texts(table, "trusted_issuers", values.issuer),
        minimum_entropy=table.number("minimum_entropy", 0, MAX_ENTROPY) or 0,
        exec_mode=_choice(table, "exec_mode", EXEC_MODES[1:], ""),
        profile=table.table("profile", _profile) or TrustProfile(),
        rbac=table.table("rbac", _rbac) or Rbac(),
        behaviour=table.table("behaviour", _behaviour) or Behaviour(),
    )


def _profile(table: Table) -> TrustProfile:
    return TrustProfile(
        trust_label=_checked(table, "trust_label", values.label),
        images=_items(table, "images", _image),
        capabilities=_texts(table, "capabilities", values.capability),
        privileged=_truth(table, "privileged"),
        host_network=_truth(table, "host_network"),
        host_pid=_truth(table, "host_pid"),
        host_ipc=_truth(table, "host_ipc"),
        host_paths=_items(table, "host_paths", _host_path),
        volumes=_texts(table, "volumes", values.volume),
        resources=table.table("resources", _ceilings) or Ceilings(),
        network=table.table("network", _network),
        bus=table.table("bus", _bus) or BusRule(),
        snapshot=_truth(table, "snapshot"),
        mixed_engines=_truth(table, "mixed_engines"),
    )


def _rbac(table: Table) -> Rbac:
    return Rbac(
        exec=_truth(table, "exec"),
        attach=_truth(table, "attach"),
        port_forward=_truth(table, "port_forward"),
        checkpoint=_truth(table, "checkpoint"),
        update=_truth(table, "update"),
    )


def _behaviour(table: Table) -> Behaviour:
    return Behaviour(
        watch=table.truth("watch"),
        on_drift=_choice(table, "on_drift", DRIFTS, DRIFTS[0]),
        baseline=_checked(table, "baseline", values.digest),
    )


def _ceilings(table: Table) -> Ceilings:
    return Ceilings(
        memory=_quantity(table, "memory", values.memory),
        cpu=_quantity(table, "cpu", values.cpu),
        pids=table.number("pids", 1, 2**22),
    )


def _network(table: Table) -> NetworkRule:
    return NetworkRule(
        egress=_items(table, "egress", _peer),
        ingress=_items(table, "ingress", _peer),
        node=_truth(table, "node"),
        dns=_truth(table, "dns"),
    )


def _bus(table: Table) -> BusRule:
    return BusRule(
        publish=_texts(table, "publish", values.subject), subscribe=_texts(table, "subscribe", values.subject)
    )


def _scope(table: Table) -> Scope:
    return Scope(
        namespaces=_some(table, "namespaces", values.name_glob),
        pods=_some(table, "pods", values.name_glob),
    )


def _containers(table: Table) -> dict[str, Contract]:
    found: dict[str, Contract] = {}
    for name in sorted(table.given):
        if not values.LABEL.fullmatch(name):
            raise table.wrong(name, "is not the name of a container")
        made = table.table(name, _contract)
        found[name] = made or UNRESTRICTED
    return found


def _image(where: str, item: object) -> ImageRule:
    """``GLOB``, ``GLOB@DIGEST``, or an object of ``repository`` and ``digests``."""
    if isinstance(item, str):
        glob, at, digest = item.partition("@")
        item = {"repository": glob} | ({"digests": [digest]} if at else {})
    with Table(where, item) as table:
        glob = table.text("repository", required=True)
        # A name that is not whole would match nothing, and look as if it did.
        if not values.GLOB.fullmatch(glob) or ("/" not in glob and not glob.startswith("**")):
            raise table.wrong(
                "repository",
                f"{glob!r} is no whole repository",
                fix="such as docker.io/library/busybox or ghcr.io/acme/**",
            )
        if ":" in glob.rpartition("/")[2]:
            raise table.wrong("repository", f"{glob!r} has a tag, which can be moved", fix="name digests")
        return ImageRule((glob,), _some(table, "digests", values.digest))


def _peer(where: str, item: object) -> Peer:
    """``TARGET [PROTOCOL[/PORTS]]`` (see :func:`_peer_words`), or an object of Peer's fields."""
    if isinstance(item, str):
        item = _peer_words(where, item)
    with Table(where, item) as table:
        protocol = _choice(table, "protocol", PROTOCOLS[1:], "")
        ports = _items(table, "ports", values.ports)
        if ports == ():
            raise table.wrong("ports", "is empty", fix="leave it out for all ports")
        if ports and protocol == "icmp":
            raise table.wrong("ports", "ICMP has none")
        return Peer(_checked(table, "cidr", values.cidr), _checked(table, "pod", values.pod), ports or (), protocol)


def _peer_words(where: str, text: str) -> dict[str, object]:
    """``10.0.0.0/8 tcp/80+443``, ``pod:shop/db any/5432-5433``, ``any udp``: the object that these words stand for."""
    target, _, rest = text.partition(" ")
    protocol, slash, ports = rest.strip().partition("/")
    found: dict[str, object] = {}
    if target.startswith("pod:"):
        found["pod"] = target.removeprefix("pod:")
    elif target != "any":
        found["cidr"] = target
    if rest and not protocol:
        raise InvalidInput(where, f"{text!r} names ports without a protocol")
    if protocol and protocol != "any":
        found["protocol"] = protocol
    if slash:
        found["ports"] = ports.split("+")
    return found


def _host_path(where: str, item: object) -> HostPath:
    """``/PATH``, ``/PATH:ro``, or an object of ``path`` and ``readonly``."""
    if isinstance(item, str):
        item = {"path": item.removesuffix(":ro"), "readonly": item.endswith(":ro")}
    with Table(where, item) as table:
        path = table.path("path", required=True)
        if posixpath.normpath(path) != path or path.startswith("//"):
            raise table.wrong("path", f"{path!r} has '.', '..', doubled slashes or one at its end")
        return HostPath(path, table.truth("readonly"))


def _items(table: Table, key: str, read: Callable[[str, object], T]) -> tuple[T, ...] | None:
    """A list; ``None`` where it is not given."""
    if key not in table.given:
        return None
    where = f"{table.where}.{key}"
    return tuple(read(f"{where}[{index}]", item) for index, item in enumerate(table.items(key)))


def _texts(table: Table, key: str, check: Callable[[str, str], str]) -> tuple[str, ...] | None:
    if key not in table.given:
        return None
    where = f"{table.where}.{key}"
    return tuple(check(f"{where}[{index}]", item) for index, item in enumerate(table.texts(key)))


def _some(table: Table, key: str, check: Callable[[str, str], str]) -> tuple[str, ...]:
    """Of a list that is left out to say all. An empty one would look as if it said none."""
    found = _texts(table, key, check)
    if found == ():
        raise table.wrong(key, "is empty", fix="leave it out for all")
    return found or ()


def _checked(table: Table, key: str, check: Callable[[str, str], str]) -> str:
    found = table.text(key)
    return check(f"{table.where}.{key}", found) if found else ""


def _choice(table: Table, key: str, allowed: tuple[str, ...], default: str) -> str:
    found = table.text(key) or default
    if found and found not in allowed:
        raise table.wrong(key, f"{found!r} is not one of {', '.join(allowed)}")
    return found


def _truth(table: Table, key: str) -> bool:
    """What is allowed unless it is said not to be."""
    return table.truth(key) if key in table.given else True


def _quantity(table: Table, key: str, read: Callable[[str, object], int]) -> int | None:
    return read(f"{table.where}.{key}", table.value(key)) if key in table.given else None
