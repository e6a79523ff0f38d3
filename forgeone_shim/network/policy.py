"""What a contract's network rule means for one pod, here and now. Pure.

The rule is enforced inside the pod's own network namespace, so that it holds on whatever network the pod is; who could
change or evade it there is refused (:func:`unenforceable`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

from engines.base import Security
from forgeone_shim.contract.model import NetworkRule, Peer, PortRange
from forgeone_shim.errors import InvalidInput

VERSIONS: Final = (4, 6)
MAX_PASSES: Final = 512
"""Of peers, each way: the kernel holds a packet that begins something to one after the other."""

_TCP, _UDP, _SCTP = 6, 17, 132
_ICMP: Final = {4: 1, 6: 58}
_WITH_PORTS: Final = {"tcp": (_TCP,), "udp": (_UDP,), "sctp": (_SCTP,), "": (_TCP, _UDP, _SCTP)}
_DNS_PORT: Final = PortRange(53, 53)
_NODE: Final = "node"
_RAW: Final = "NET_RAW"
# What changes the rules, sends past them (packet sockets, AF_XDP), or takes over the host that made them.
_BEYOND: Final = ("NET_ADMIN", _RAW, "SYS_ADMIN", "SYS_MODULE", "SYS_RAWIO", "SYS_BOOT", "DAC_READ_SEARCH")
_AMONG_THE_HOSTS: Final = "SYS_PTRACE"
_MACHINES: Final = "microvm"
"""The engine whose containers are in no namespace of the host's: it holds their packets whatever they may do."""

Range = IPv4Network | IPv6Network
Address = tuple[int, bytes]
"""The version of IP and the address as packets have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """A pod of this node, as others may name it."""

    namespace: str
    name: str
    addresses: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a rule is applied to: the node's own addresses, the pod's name servers, and the pods of this node."""

    node: tuple[Address, ...] = ()
    resolvers: tuple[str, ...] = ()
    pods: tuple[Local, ...] = ()


@dataclass(frozen=True, slots=True)
class Pass:
    """What lets a packet through that begins something: whatever is set must hold.

    ``range`` and ``group`` (the name of an :class:`AddressSet`) are of its other end, ``ports`` are of whoever is
    talked to.
    """

    version: int
    range: Range | None = None
    group: str = ""
    protocol: int | None = None
    ports: PortRange | None = None


@dataclass(frozen=True, slots=True)
class AddressSet:
    """Addresses that come and go while the rules stay, in order and in the kernel's bytes."""

    name: str
    version: int
    addresses: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What passes in each direction besides answers; ``None``: everything, ``()``: nothing.

    ``machine`` are the pod's addresses where its packets are not those of processes in its namespace, but of a machine
    that they are passed on for.
    """

    egress: tuple[Pass, ...] | None
    ingress: tuple[Pass, ...] | None
    groups: tuple[AddressSet, ...] = ()
    machine: tuple[Address, ...] | None = None

    def passes_as(self, other: Ruleset) -> bool:
        """Whether they differ in nothing but who has which address."""
        return (self.egress, self.ingress, self.machine) == (other.egress, other.ingress, other.machine)


def packed(ips: Iterable[str]) -> tuple[Address, ...]:
    """Addresses as they are compared."""
    return tuple((one.version, one.packed) for one in map(ip_address, ips))


def plan(rule: NetworkRule, facts: Surroundings) -> Ruleset:
    """What the kernel is to hold the pod's packets to.

    :raises InvalidInput: the rule has more combinations of peers, protocols and ports than are enforced.
    """
    names, egress, ingress = _names(rule), None, None
    if rule.egress is not None:
        egress = (*_limited("egress", _passes(rule.egress, names)), *_dns(rule, facts))
    if rule.ingress is not None:
        node = (Pass(version, group=f"{_NODE}v{version}") for version in VERSIONS if rule.node)
        ingress = (*node, *_limited("ingress", _passes(rule.ingress, names)))
    return Ruleset(egress, ingress, groups(rule, facts))


def groups(rule: NetworkRule, facts: Surroundings) -> tuple[AddressSet, ...]:
    """The part of :func:`plan` that changes while the rule stays."""
    found = {
        f"{name}v": [address for pod in facts.pods if means(selector, pod) for address in pod.addresses]
        for selector, name in _names(rule).items()
    }
    if rule.ingress is not None and rule.node:
        found[f"{_NODE}v"] = list(facts.node)
    return tuple(_group(name, version, members) for name, members in found.items() for version in VERSIONS)


def selected(rule: NetworkRule) -> frozenset[str]:
    """The pods that a rule names: ``NAMESPACE/NAME`` and ``NAMESPACE/*``."""
    return frozenset(peer.pod for peer in (*(rule.egress or ()), *(rule.ingress or ())) if peer.pod)


def means(selector: str, pod: Local) -> bool:
    """Whether a rule that names ``selector`` means this pod."""
    namespace, _, name = selector.partition("/")
    return namespace == pod.namespace and name in ("*", pod.name)


def unenforceable(
    rule: NetworkRule | None,
    *,
    host_network: bool,
    host_pid: bool = False,
    privileged: bool = False,
    capabilities: Collection[str] = (),
    engine: str = "",
) -> str:
    """Why a rule could not be enforced on a pod, or on one of its containers; empty where it can.

    ``capabilities`` are all that the container's processes could have, names without ``CAP_``: :func:`withheld` ones
    are not among them.
    """
    if rule is None or not rule.restricts:
        return ""
    try:
        plan(rule, Surroundings())
    except InvalidInput as error:
        return error.what
    if host_network:
        return "the pod uses the host's network, where its packets cannot be told from the host's"
    if engine == _MACHINES:
        return ""
    if privileged:
        return "a privileged container could change its pod's rules"
    beyond = (*_BEYOND, _AMONG_THE_HOSTS) if host_pid else _BEYOND
    held = [name for name in beyond if name in capabilities]
    return f"a container with {held[0]} could get around its pod's rules" if held else ""


def withheld(rule: NetworkRule | None, security: Security, engine: str = "") -> tuple[str, ...]:
    """The default capabilities that a new container is not given in a pod with that rule, names without ``CAP_``.

    Packet sockets do not pass through rules. A container that asks for them by name gets them, and is refused for it.
    """
    if rule is None or not rule.restricts or security.privileged or engine == _MACHINES:
        return ()
    named = (*security.add_capabilities, *security.add_ambient_capabilities)
    asked = {name.upper().removeprefix("CAP_") for name in named}
    return () if asked & {_RAW, "ALL"} else (_RAW,)


def _passes(peers: Iterable[Peer], names: dict[str, str]) -> Iterator[Pass]:
    for peer in peers:
        network = peer.network
        for version in VERSIONS:
            if network is not None and network.version != version:
                continue
            narrow = network if network is not None and network.prefixlen else None
            group = f"{names[peer.pod]}v{version}" if peer.pod else ""
            for protocol, ports in _services(peer, version):
                yield Pass(version, narrow, group, protocol, ports)


def _services(peer: Peer, version: int) -> Iterator[tuple[int | None, PortRange | None]]:
    ranges = _joined(peer.ports)
    if peer.protocol == "icmp":
        # It has no ports: a peer that names some is talked to by nothing.
        if not ranges:
            yield _ICMP[version], None
    elif ranges:
        yield from ((protocol, ports) for protocol in _WITH_PORTS[peer.protocol] for ports in ranges)
    elif peer.protocol:
        yield from ((protocol, None) for protocol in _WITH_PORTS[peer.protocol])
    else:
        yield None, None


def _joined(ranges: Iterable[PortRange]) -> list[PortRange]:
    """The same ports in as few ranges as can be, in order."""
    joined: list[PortRange] = []
    for one in sorted(ranges, key=lambda item: (item.first, item.last)):
        if joined and one.first <= joined[-1].last + 1:
            joined[-1] = PortRange(joined[-1].first, max(joined[-1].last, one.last))
        else:
            joined.append(one)
    return joined


def _dns(rule: NetworkRule, facts: Surroundings) -> Iterator[Pass]:
    if not rule.egress or not rule.dns:
        return
    for resolver in facts.resolvers:
        address = ip_address(resolver.partition("%")[0])
        for protocol in (_UDP, _TCP):
            yield Pass(address.version, ip_network(address), "", protocol, _DNS_PORT)


def _limited(field: str, passes: Iterable[Pass]) -> tuple[Pass, ...]:
    distinct = tuple(dict.fromkeys(passes))
    if len(distinct) > MAX_PASSES:
        raise InvalidInput(
            f"network.{field}", f"{len(distinct)} combinations of peer, protocol and ports are more than {MAX_PASSES}"
        )
    return distinct


def _names(rule: NetworkRule) -> dict[str, str]:
    return {selector: f"pods{index}" for index, selector in enumerate(sorted(selected(rule)))}


def _group(name: str, version: int, members: Iterable[Address]) -> AddressSet:
    return AddressSet(f"{name}{version}", version, tuple(sorted({data for of, data in members if of == version})))
