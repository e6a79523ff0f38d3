"""Who has which address and host port, in the state store, so that processes sharing it agree.

An intent is written with everything the pod is going to have before the kernel is touched, and forgotten after the
kernel has nothing of it left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from forgeone_shim.errors import FailedPrecondition, ResourceExhausted
from forgeone_shim.network.hostports import Holder, Holders, HostPort, collide
from forgeone_shim.network.plan import Addresses, Layout, mac_address
from forgeone_shim.state.store import StateStore

INTENTS: Final = "network.intent"
LEASES: Final = "network.lease"
PORTS: Final = "network.port"
CURSORS: Final = "network.cursor"

# Taken addresses are skipped one by one only so far; then all leases are read once.
_PROBES: Final = 64


class Stage(StrEnum):
    """How far a pod's network is: the kernel may have some of it, has all of it, or is to have none of it."""

    INTENDED = "intended"
    ATTACHED = "attached"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """All a pod's network consists of. ``addresses`` are leased (with prefix length), ``ips`` those the pod got.

    ``ifb`` is empty for a pod that may send as fast as it can.
    """

    sandbox_id: str
    netns: str
    link: str
    bridge: str
    table: str
    mac: str
    addresses: tuple[str, ...]
    ips: tuple[str, ...]
    ports: tuple[HostPort, ...] = ()
    stage: Stage = Stage.INTENDED
    ifb: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """Who has an address."""

    sandbox_id: str


@dataclass(frozen=True, slots=True)
class Cursor:
    """The slot given out last."""

    slot: int


class Ipam:
    """Leases of one network. Thread-safe, and safe beside other processes with the same store."""

    def __init__(self, store: StateStore) -> None:
        self._store = store

    def intent(self, sandbox_id: str) -> Intent | None:
        """What is stored of a pod."""
        return self._store.get(INTENTS, sandbox_id, Intent)

    def intents(self) -> list[Intent]:
        """What is stored of every pod."""
        return [intent for _, intent in self._store.items(INTENTS, Intent)]

    def save(self, intent: Intent) -> Intent:
        """Store a pod's intent anew."""
        self._store.put(INTENTS, intent.sandbox_id, intent)
        return intent

    def reserve(
        self, layout: Layout, sandbox_id: str, netns: str, ports: tuple[HostPort, ...], *, sends_slowly: bool = False
    ) -> Intent:
        """Lease addresses and host ports and store the intent, all or nothing.

        ``sends_slowly`` says that what the pod sends is limited.

        :raises ResourceExhausted: every address is leased.
        :raises FailedPrecondition: another pod has one of the host ports.
        """
        with self._store.transaction():
            for port in ports:
                self._take_port(port, sandbox_id)
            addresses = self._take_addresses(layout, sandbox_id)
            return self.save(
                Intent(
                    sandbox_id=sandbox_id,
                    netns=netns,
                    link=layout.link_name(sandbox_id),
                    bridge=layout.bridge,
                    table=layout.table,
                    mac=mac_address(addresses.ipv4),
                    addresses=tuple(str(address) for address in addresses.all),
                    ips=tuple(str(address.ip) for address in addresses.all),
                    ports=ports,
                    ifb=layout.ifb_name(sandbox_id) if sends_slowly else "",
                )
            )

    def release_ports(self, intent: Intent) -> Intent:
        """Give the host ports back, once the kernel no longer leads them anywhere."""
        with self._store.transaction():
            for port in intent.ports:
                self._drop_port(port, intent.sandbox_id)
            return self.save(replace(intent, ports=()))

    def forget(self, intents: Sequence[Intent]) -> None:
        """Give back all these pods have, once the kernel has none of it."""
        with self._store.transaction():
            for intent in intents:
                for port in intent.ports:
                    self._drop_port(port, intent.sandbox_id)
                for address in intent.addresses:
                    key = address.partition("/")[0]
                    lease = self._store.get(LEASES, key, Lease)
                    if lease is not None and lease.sandbox_id == intent.sandbox_id:
                        self._store.delete(LEASES, key)
                self._store.delete(INTENTS, intent.sandbox_id)

    def holders(self) -> set[str]:
        """The sandboxes that have an address."""
        return {lease.sandbox_id for _, lease in self._store.items(LEASES, Lease)}

    def release(self, sandbox_id: str) -> None:
        """Give back what a sandbox has without an intent that says so: the intent could not be read."""
        with self._store.transaction():
            if self._store.get(INTENTS, sandbox_id, Intent) is not None:
                return
            for key, lease in self._store.items(LEASES, Lease):
                if lease.sandbox_id == sandbox_id:
                    self._store.delete(LEASES, key)
            for key, held in self._store.items(PORTS, Holders):
                left = tuple(holder for holder in held.holders if holder.sandbox_id != sandbox_id)
                if not left:
                    self._store.delete(PORTS, key)
                elif left != held.holders:
                    self._store.put(PORTS, key, Holders(left))

    def _take_addresses(self, layout: Layout, sandbox_id: str) -> Addresses:
        cursor_key = str(layout.ipv4)
        last = self._store.get(CURSORS, cursor_key, Cursor)
        # Round robin, so that an address rests as long as possible before another pod has it.
        start = 0 if last is None else last.slot - layout.first_slot + 1
        for step in range(min(_PROBES, layout.capacity)):
            place = (start + step) % layout.capacity
            if self._try_slot(layout, place, sandbox_id):
                return self._advance(layout, cursor_key, place)
        found = self._search(layout, start)
        if found is None or not self._try_slot(layout, found, sandbox_id):
            raise ResourceExhausted(
                f"all {layout.capacity} pod addresses of {layout.ipv4} are taken",
                fix="stop pods, or give [network] a larger range",
            )
        return self._advance(layout, cursor_key, found)

    def _advance(self, layout: Layout, cursor_key: str, place: int) -> Addresses:
        slot = place + layout.first_slot
        self._store.put(CURSORS, cursor_key, Cursor(slot))
        return layout.addresses(slot)

    def _try_slot(self, layout: Layout, place: int, sandbox_id: str) -> bool:
        lease = Lease(sandbox_id)
        taken: list[str] = []
        for address in layout.addresses(place + layout.first_slot).all:
            if not self._store.insert(LEASES, str(address.ip), lease):
                for key in taken:
                    self._store.delete(LEASES, key)
                return False
            taken.append(str(address.ip))
        return True

    def _search(self, layout: Layout, start: int) -> int | None:
        leased = {key for key, _ in self._store.items(LEASES, Lease)}
        for step in range(_PROBES, layout.capacity):
            place = (start + step) % layout.capacity
            addresses = layout.addresses(place + layout.first_slot)
            if all(str(address.ip) not in leased for address in addresses.all):
                return place
        return None

    def _take_port(self, port: HostPort, sandbox_id: str) -> None:
        held = self._store.get(PORTS, port.key, Holders) or Holders()
        for holder in held.holders:
            if collide(holder.host_ip, port.host_ip):
                raise FailedPrecondition(
                    f"host port {port} is taken by sandbox {holder.sandbox_id}",
                    fix="stop that pod or choose another host port",
                )
        self._store.put(PORTS, port.key, Holders((*held.holders, Holder(port.host_ip, sandbox_id))))

    def _drop_port(self, port: HostPort, sandbox_id: str) -> None:
        held = self._store.get(PORTS, port.key, Holders)
        if held is None:
            return
        mine = Holder(port.host_ip, sandbox_id)
        left = tuple(holder for holder in held.holders if holder != mine)
        if left:
            self._store.put(PORTS, port.key, Holders(left))
        else:
            self._store.delete(PORTS, port.key)
