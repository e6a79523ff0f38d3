"""Two contracts as one that allows what both allow, and nothing else. Pure.

Everything here is an intersection, so that the order in which contracts are joined does not matter, joining one twice
changes nothing, and no contract can give back what another takes. Results are in one normal form: sorted, and without
what another member says already.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import compress
from operator import attrgetter
from typing import Any, Final, Protocol, TypeVar

from forgeone_shim.contract import patterns
from forgeone_shim.contract.model import (
    DRIFTS,
    UNRESTRICTED,
    Behaviour,
    BusRule,
    Ceilings,
    Contract,
    HostPath,
    ImageRule,
    NetworkRule,
    Peer,
    PortRange,
    Rbac,
    TrustProfile,
)
from forgeone_shim.errors import InvalidInput

MAX_MEMBERS: Final = 256
"""Of a joined list, before what others cover is left out: two of 64 members each could become 4096."""


class _Sorts(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...


T = TypeVar("T", bound=_Sorts)


def tighten(floor: Contract, contract: Contract) -> Contract:
    """What both allow.

    :raises InvalidInput: they name two of something that there can be one of: engine, label, policy or baseline.
    """
    return Contract(
        runtime_policy_id=_same("runtime_policy_id", floor.runtime_policy_id, contract.runtime_policy_id),
        trusted_issuers=_common(floor.trusted_issuers, contract.trusted_issuers),
        minimum_entropy=max(floor.minimum_entropy, contract.minimum_entropy),
        exec_mode=_same("exec_mode", floor.exec_mode, contract.exec_mode),
        profile=_profile(floor.profile, contract.profile),
        rbac=_rbac(floor.rbac, contract.rbac),
        behaviour=_behaviour(floor.behaviour, contract.behaviour),
    )


def normal(contract: Contract) -> Contract:
    """The same in normal form."""
    return contract if contract is UNRESTRICTED else tighten(UNRESTRICTED, contract)


def _profile(a: TrustProfile, b: TrustProfile) -> TrustProfile:
    return TrustProfile(
        trust_label=_same("profile.trust_label", a.trust_label, b.trust_label),
        images=_join("profile.images", a.images, b.images, images_meet, image_covers),
        capabilities=_common(a.capabilities, b.capabilities),
        privileged=a.privileged and b.privileged,
        host_network=a.host_network and b.host_network,
        host_pid=a.host_pid and b.host_pid,
        host_ipc=a.host_ipc and b.host_ipc,
        host_paths=_join("profile.host_paths", a.host_paths, b.host_paths, paths_meet, path_covers),
        volumes=_common(a.volumes, b.volumes),
        resources=Ceilings(
            memory=_least(a.resources.memory, b.resources.memory),
            cpu=_least(a.resources.cpu, b.resources.cpu),
            pids=_least(a.resources.pids, b.resources.pids),
        ),
        network=_network(a.network, b.network),
        bus=BusRule(
            publish=_subjects("profile.bus.publish", a.bus.publish, b.bus.publish),
            subscribe=_subjects("profile.bus.subscribe", a.bus.subscribe, b.bus.subscribe),
        ),
        snapshot=a.snapshot and b.snapshot,
        mixed_engines=a.mixed_engines and b.mixed_engines,
    )


def _rbac(a: Rbac, b: Rbac) -> Rbac:
    return Rbac(
        exec=a.exec and b.exec,
        attach=a.attach and b.attach,
        port_forward=a.port_forward and b.port_forward,
        checkpoint=a.checkpoint and b.checkpoint,
        update=a.update and b.update,
    )


def _behaviour(a: Behaviour, b: Behaviour) -> Behaviour:
    return Behaviour(
        watch=a.watch or b.watch,
        on_drift=max(a.on_drift, b.on_drift, key=DRIFTS.index),
        baseline=_same("behaviour.baseline", a.baseline, b.baseline),
    )


def _network(a: NetworkRule | None, b: NetworkRule | None) -> NetworkRule | None:
    a, b = a or NetworkRule(), b or NetworkRule()
    found = NetworkRule(
        egress=_join("profile.network.egress", a.egress, b.egress, peers_meet, peer_covers),
        ingress=_join("profile.network.ingress", a.ingress, b.ingress, peers_meet, peer_covers),
        node=a.node and b.node,
        dns=a.dns and b.dns,
    )
    # One that restricts nothing by itself is kept where it takes something from another.
    return None if found == NetworkRule() else found


def images_meet(a: ImageRule, b: ImageRule) -> ImageRule | None:
    """The images that both rules allow."""
    digests = tuple(sorted({*a.digests} & {*b.digests} if a.digests and b.digests else {*a.digests, *b.digests}))
    if a.digests and b.digests and not digests:
        return None
    globs = {*a.repositories, *b.repositories}
    plain = {glob for glob in globs if patterns.ANY not in glob}
    if plain:
        # One name is all that can match it; the other globs either let it through or nothing.
        if len(plain) > 1 or not all(patterns.matches(glob, min(plain)) for glob in globs):
            return None
        globs = plain
    return ImageRule(tuple(sorted(globs)), digests)


def image_covers(wide: ImageRule, narrow: ImageRule) -> bool:
    """Whether ``wide`` surely allows all that ``narrow`` does."""
    if wide.digests and not (narrow.digests and {*narrow.digests} <= {*wide.digests}):
        return False
    return {*wide.repositories} <= {*narrow.repositories} or (
        len(narrow.repositories) == 1
        and patterns.ANY not in narrow.repositories[0]
        and all(patterns.matches(glob, narrow.repositories[0]) for glob in wide.repositories)
    )


def peers_meet(a: Peer, b: Peer) -> Peer | None:
    """Whom both allow."""
    cidr, pod = _ranges_meet(a, b), _pods_meet(a.pod, b.pod)
    if cidr is None or pod is None:
        return None
    if a.protocol and b.protocol and a.protocol != b.protocol:
        return None
    protocol = a.protocol or b.protocol
    ports = _ports_meet(a.ports, b.ports)
    if ports is None or (ports and protocol == "icmp"):
        return None
    return Peer(cidr, pod, ports, protocol)


def peer_covers(wide: Peer, narrow: Peer) -> bool:
    """Whether ``wide`` allows all that ``narrow`` does."""
    return (
        wide.protocol in {"", narrow.protocol}
        and (not wide.pod or _pods_meet(wide.pod, narrow.pod) == narrow.pod != "")
        and (not wide.cidr or _ranges_meet(wide, narrow) == narrow.cidr != "")
        and (not wide.ports or (narrow.ports != () and _ports_meet(wide.ports, narrow.ports) == _joined(narrow.ports)))
    )


def path_covers(wide: HostPath, narrow: HostPath) -> bool:
    """Whether ``wide`` allows all that ``narrow`` does."""
    return below(narrow.path, wide.path) and (narrow.readonly or not wide.readonly)


def paths_meet(a: HostPath, b: HostPath) -> HostPath | None:
    """What both allow: the one that is below the other, if it is."""
    for inner, outer in ((a, b), (b, a)):
        if below(inner.path, outer.path):
            return HostPath(inner.path, a.readonly or b.readonly)
    return None


def below(path: str, directory: str) -> bool:
    """Whether a normal absolute path is a directory, or in it."""
    return directory in {path, "/"} or path.startswith(f"{directory}/")


def _subjects(field: str, a: tuple[str, ...] | None, b: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return _join(
        field, a, b, patterns.subjects_meet, lambda wide, narrow: patterns.subjects_meet(wide, narrow) == narrow
    )


def _ranges_meet(a: Peer, b: Peer) -> str | None:
    if not a.cidr or not b.cidr or a.cidr == b.cidr:
        return a.cidr or b.cidr
    one, other = _range(a.cidr), _range(b.cidr)
    if one.version != other.version or not one.overlaps(other):
        return None
    # Of two ranges that overlap, one is inside the other.
    return str(one if one.prefixlen >= other.prefixlen else other)


@lru_cache(maxsize=4 * MAX_MEMBERS)
def _range(cidr: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(cidr)


def _pods_meet(a: str, b: str) -> str | None:
    if not a or not b or a == b:
        return a or b
    (space, name), (other_space, other_name) = a.split("/"), b.split("/")
    if space != other_space or "*" not in {name, other_name}:
        return None
    return a if other_name == "*" else b


def _ports_meet(a: tuple[PortRange, ...], b: tuple[PortRange, ...]) -> tuple[PortRange, ...] | None:
    """``()`` is all of them, ``None`` none."""
    if not a or not b:
        return _joined(a or b)
    left, right, met = list(_joined(a)), list(_joined(b)), list[PortRange]()
    while left and right:
        one, other = left[-1], right[-1]
        if one.last >= other.first and other.last >= one.first:
            met.append(PortRange(max(one.first, other.first), min(one.last, other.last)))
        # From the highest ports down: whichever reaches further down may meet one more.
        (left if one.first >= other.first else right).pop()
    return tuple(reversed(met)) or None


def _joined(ranges: Iterable[PortRange]) -> tuple[PortRange, ...]:
    found: list[PortRange] = []
    for one in sorted(ranges, key=attrgetter("first", "last")):
        if found and one.first <= found[-1].last + 1:
            found[-1] = PortRange(found[-1].first, max(found[-1].last, one.last))
        else:
            found.append(one)
    return tuple(found)


def _join(
    field: str,
    a: tuple[T, ...] | None,
    b: tuple[T, ...] | None,
    meet: Callable[[T, T], T | None],
    covers: Callable[[T, T], bool],
) -> tuple[T, ...] | None:
    """Every pair's common part, where either side is a list; what another member covers is left out."""
    if a is None and b is None:
        return None
    met: set[T] = set()
    for one, other in _pairs(a, b, covers):
        found = meet(one, other)
        if found is not None:
            met.add(found)
        if len(met) > MAX_MEMBERS:
            raise InvalidInput(field, f"joined with a policy's it has more than {MAX_MEMBERS} members")
    kept: list[T] = []
    for one in sorted(met):
        if not any(covers(other, one) for other in kept):
            kept = [*(other for other in kept if not covers(one, other)), one]
    return tuple(sorted(kept))


def _pairs(a: tuple[T, ...] | None, b: tuple[T, ...] | None, covers: Callable[[T, T], bool]) -> Iterator[tuple[T, T]]:
    """Whose common parts make up all that is in both; without those that surely add nothing."""
    if a is None or b is None:
        yield from ((one, one) for one in a or b or ())
        return
    # What is whole in the other list stays whole. So a list that was joined with another does not grow by that again.
    whole_a = [any(covers(wide, one) for wide in b) for one in a]
    whole_b = [any(covers(wide, one) for wide in a) for one in b]
    yield from ((one, one) for one in (*compress(a, whole_a), *compress(b, whole_b)))
    rest = [one for one, whole in zip(b, whole_b, strict=True) if not whole]
    yield from ((one, other) for one, whole in zip(a, whole_a, strict=True) if not whole for other in rest)


def _common(a: tuple[str, ...] | None, b: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if a is None and b is None:
        return None
    if a is None or b is None:
        return tuple(sorted({*(a or b or ())}))
    return tuple(sorted({*a} & {*b}))


def _least(a: int | None, b: int | None) -> int | None:
    return min((one for one in (a, b) if one is not None), default=None)


def _same(field: str, a: str, b: str) -> str:
    if a and b and a != b:
        raise InvalidInput(field, f"is {b!r}, and {a!r} is demanded")
    return a or b
