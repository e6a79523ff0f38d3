"""``ipMasq`` of the plugins bridge and ptp: what leaves a container's network leaves it with the host's address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from forgeone_shim.deadline import Deadline
from forgeone_shim.network.cni.wellknown.conf import chain_name
from forgeone_shim.network.cni.wellknown.iptables import both_known, find_iptables, iptables
from forgeone_shim.network.cni.wellknown.result import IpInterface
from forgeone_shim.network.cni.wellknown.rules import Chain, Entry, Rule, Step

_TABLE, _CALLER = "nat", "POSTROUTING"
_MULTICAST: Final = {4: "224.0.0.0/4", 6: "ff00::/8"}


def is_possible() -> bool:
    """Whether the host's iptables is of a kind that is known here."""
    return both_known()


def plan(network: str, container_id: str, addresses: Sequence[IpInterface]) -> list[Step]:
    """The chain of a container's addresses, which are all of one IP version."""
    chain = chain_name("", network, container_id)
    comment = _comment(network, container_id)
    steps: list[Step] = [Chain(chain)]
    for address in addresses:
        multicast = _MULTICAST[address.version]
        steps += [
            Entry(chain, ("-d", str(address.network), *comment, "-j", "ACCEPT")),
            Entry(chain, ("!", "-d", multicast, *comment, "-j", "MASQUERADE")),
            Entry(_CALLER, _call(chain, address, comment)),
        ]
    return steps


def _comment(network: str, container_id: str) -> Rule:
    return ("-m", "comment", "--comment", f'name: "{network}" id: "{container_id}"')


def _call(chain: str, address: IpInterface, comment: Rule) -> Rule:
    return ("-s", f"{address.ip}/{address.max_prefixlen}", *comment, "-j", chain)


def add(network: str, container_id: str, addresses: Sequence[IpInterface], deadline: Deadline) -> None:
    """Masquerade a container's addresses.

    :raises CniError: iptables refused; what was done stays, for :func:`remove`.
    """
    for version in (4, 6):
        mine = [address for address in addresses if address.version == version]
        if mine:
            iptables(version).ensure(_TABLE, plan(network, container_id, mine), deadline)


def remove(network: str, container_id: str, addresses: Sequence[IpInterface], deadline: Deadline) -> None:
    """Undo :func:`add`; ``addresses`` are those that are still known, which spares a look at all rules.

    :raises CniError: iptables refused.
    """
    chain, comment = chain_name("", network, container_id), _comment(network, container_id)
    for version in (4, 6):
        found = find_iptables(version)
        if found is not None:
            calls = [(_CALLER, _call(chain, item, comment)) for item in addresses if item.version == version]
            found.drop(_TABLE, chain, [_CALLER], deadline, calls)
