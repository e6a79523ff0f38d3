"""The pod network: gives a pod its way to other pods, the host and the world, and takes it away again.

Order of things: the intent (addresses, host ports, link name) is stored, the kernel changed, the intent marked done. On
the way back the kernel goes first and the leases last, so whatever is cut off in between is found in the store and
finished by :meth:`PodNetwork.reconcile`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import structlog

from engines.base import PortMapping, PortProtocol
from forgeone_shim.config.model import NetworkConfig
from forgeone_shim.errors import FailedPrecondition, ForgeError, InternalError
from forgeone_shim.kernel.netlink import NETLINK_NETFILTER, Netlink, Pool
from forgeone_shim.network import bridge, conntrack, nftables, shaping
from forgeone_shim.network.bandwidth import UNLIMITED, Limits
from forgeone_shim.network.bridge import Bridge
from forgeone_shim.network.facts import Attachment
from forgeone_shim.network.host import has_ipv6
from forgeone_shim.network.hostports import Element, HostPort, elements, plan_host_ports
from forgeone_shim.network.ipam import Intent, Ipam, Stage
from forgeone_shim.network.plan import POD_INTERFACE, Layout, plan_layout
from forgeone_shim.network.turns import Turns
from forgeone_shim.state.store import StateStore

_ALIAS_MAX = 200


class PodNetwork:
    """The built-in pod network of one configuration. Thread-safe.

    Deleting a link takes the kernel some 15 ms, so :meth:`detach` leaves that, and the address, to a thread of its own;
    :meth:`settle` waits for it. What that thread could not do it tries again with the next detach or :meth:`status`.

    :raises InvalidInput: a setting cannot be used.
    """

    def __init__(self, config: NetworkConfig, store: StateStore) -> None:
        self._configured = plan_layout(config)
        self._ipam = Ipam(store)
        self._turns = Turns()
        self._preparing = threading.Lock()
        self._layout: Layout | None = None
        self._idle = threading.Condition()
        self._leaving: set[str] = set()
        self._failed: set[str] = set()
        self._reaping = False
        self._netfilter = Pool(NETLINK_NETFILTER)
        self._log = structlog.get_logger("network")

    def prepare(self) -> None:
        """Make the bridge and the nftables table, or repair what is missing of them, pods' host ports included.

        :raises FailedPrecondition: the host lacks ``nft``, or another device has the bridge's name.
        :raises InternalError: the kernel refused.
        """
        self._prepare()

    def attach(
        self,
        sandbox_id: str,
        netns_path: str | Path,
        port_mappings: Sequence[PortMapping],
        hostname: str = "",
        pinned: Callable[[], object] = lambda: None,
        *,
        limits: Limits = UNLIMITED,
    ) -> Attachment:
        """Connect the network namespace of a pod. A pod that is attached already keeps what it has.

        ``hostname`` only labels the link for people. ``pinned`` returns once the namespace is there, or raises: what
        comes before that is done meanwhile. ``limits`` are in force before the pod has an address. On failure
        everything is undone.

        :raises InvalidInput: a port mapping cannot be used.
        :raises FailedPrecondition: another pod has one of the host ports.
        :raises ResourceExhausted: every address is taken.
        :raises NotFound: there is no network namespace at ``netns_path``.
        :raises InternalError: the kernel refused.
        """
        ports = plan_host_ports(port_mappings)
        netns = str(netns_path)
        with self._turns.hold(sandbox_id), _kernel_errors(f"attach sandbox {sandbox_id}"):
            present = self._ipam.intent(sandbox_id)
            if present is not None:
                if present.stage is Stage.ATTACHED and present.netns == netns and bridge.link_is_there(present.link):
                    return _attachment(present)
                self._clear([present])
            layout, found = self._prepared()
            intent = self._ipam.reserve(layout, sandbox_id, netns, ports, sends_slowly=limits.egress is not None)
            with ExitStack() as undo:
                undo.callback(self._abandon, intent)
                pinned()
                intent = self._connect(layout, found, intent, hostname, limits)
                self._publish(layout, intent)
                intent = self._ipam.save(replace(intent, stage=Stage.ATTACHED))
                undo.pop_all()
            return _attachment(intent)

    def detach(self, sandbox_id: str) -> None:
        """Take a pod off the network. Its host ports are free when this returns, its addresses a moment later.

        A pod that is not attached is no error, nor is a network namespace that is gone.

        :raises InternalError: the kernel refused; :meth:`reconcile`, or calling this again, goes on.
        """
        with self._turns.hold(sandbox_id), _kernel_errors(f"detach sandbox {sandbox_id}"):
            intent = self._ipam.intent(sandbox_id)
            if intent is None:
                self._ipam.release(sandbox_id)
                return
            self._withdraw(intent)
        self._reap_later(sandbox_id)

    def attachment(self, sandbox_id: str) -> Attachment | None:
        """What a pod has, ``None`` unless it is attached."""
        intent = self._ipam.intent(sandbox_id)
        return _attachment(intent) if intent is not None and intent.stage is Stage.ATTACHED else None

    def in_use(self) -> bool:
        """Whether any pod has, or was to have, anything of it."""
        return bool(self._ipam.intents())

    def reconcile(self, known: set[str] | Callable[[], set[str]]) -> tuple[str, ...]:
        """Finish what was cut off: undo every pod that is leaving or not among the known sandboxes.

        Given a function, it is asked after the stored pods were read: a sandbox that is known before it is attached is
        then never mistaken for a stranger. One pod's failure does not hold up the others; returns the ids that are left
        to do.
        """
        holders = self._ipam.holders()
        intents = self._ipam.intents()
        ids = known() if callable(known) else known
        for sandbox_id in holders - ids - {intent.sandbox_id for intent in intents}:
            self._ipam.release(sandbox_id)
        doomed = [
            intent.sandbox_id for intent in intents if intent.stage is Stage.LEAVING or intent.sandbox_id not in ids
        ]
        failed = [sandbox_id for sandbox_id in doomed if not self._try_clear(sandbox_id)]
        return tuple(failed)

    def status(self) -> tuple[bool, str, str]:
        """``(ready, reason, message)`` as CRI's NetworkReady wants it; repairs what someone removed."""
        if self._failed:
            self._reap_later()
        try:
            with _kernel_errors("look at the pod network"):
                layout, _ = self._prepared()
        except ForgeError as error:
            return False, "NetworkPluginNotReady", str(error)
        if layout.ipv6 is None and self._configured.ipv6 is not None:
            return True, "", "IPv6 is disabled on this host: pods get IPv4 addresses only"
        return True, "", ""

    def settle(self, timeout: float | None = None) -> bool:
        """Wait until no detached pod's link is left to delete, ``timeout`` seconds at most; says whether that is so."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._reaping, timeout)

    def teardown(self) -> None:
        """Remove the bridge and the table.

        :raises FailedPrecondition: pods are attached.
        """
        self.settle()
        with self._preparing, _kernel_errors("remove the pod network"):
            if any(intent.bridge == self._configured.bridge for intent in self._ipam.intents()):
                raise FailedPrecondition("pods are attached to the network", fix="stop them first")
            self._table(self._configured.table).delete()
            bridge.delete_bridge(self._configured.bridge)
            self._layout = None

    def _prepared(self) -> tuple[Layout, Bridge]:
        """The layout in force and the bridge, once that and the table are known to be there."""
        layout = self._layout
        if layout is not None and self._table(layout.table).is_there():
            with Netlink() as netlink:
                found = bridge.find_bridge(netlink, layout)
            if found is not None:
                return layout, found
        return self._prepare()

    def _prepare(self) -> tuple[Layout, Bridge]:
        with self._preparing, _kernel_errors("prepare the pod network"):
            layout = self._configured if has_ipv6() else self._configured.without_ipv6()
            made = bridge.ensure_bridge(layout)
            nftables.load_table(layout)
            for intent in self._ipam.intents():
                if intent.stage is Stage.ATTACHED and intent.table == layout.table:
                    self._table(layout.table).add(elements(intent.ports, intent.ips))
            self._layout = layout
            return layout, made

    def _connect(self, layout: Layout, found: Bridge, intent: Intent, hostname: str, limits: Limits) -> Intent:
        """Link and addresses; returns the intent with the addresses the pod really has."""
        with Netlink() as netlink:
            bridge.plug(netlink, found, intent, f"{hostname} {intent.sandbox_id}".strip()[:_ALIAS_MAX])
            if limits:
                shaping.shape(netlink, intent.link, intent.ifb, limits)
        return replace(intent, ips=bridge.configure_pod(intent, layout))

    def _publish(self, layout: Layout, intent: Intent) -> None:
        """Host ports."""
        self._table(layout.table).add(elements(intent.ports, intent.ips))
        udp = {port.host_port for port in intent.ports if port.protocol is PortProtocol.UDP}
        if udp:
            with self._netfilter.borrow() as netlink:
                conntrack.forget_udp(netlink, udp)

    def _table(self, name: str) -> nftables.Table:
        return nftables.Table(name, self._netfilter)

    def _abandon(self, intent: Intent) -> None:
        """Undo a failed attach; what cannot be undone now stays stored as leaving."""
        try:
            with _kernel_errors(f"undo the attach of sandbox {intent.sandbox_id}"):
                self._clear([intent])
        except ForgeError as error:
            self._log.warning("network not undone yet", sandbox=intent.sandbox_id, error=str(error))
            with self._idle:
                self._failed.add(intent.sandbox_id)

    def _clear(self, intents: Sequence[Intent]) -> None:
        """Undo all of it, here and now."""
        gone = [self._withdraw(intent) for intent in intents]
        bridge.unplug([name for intent in gone for name in (intent.link, intent.ifb) if name])
        self._ipam.forget(gone)

    def _withdraw(self, intent: Intent) -> Intent:
        """The part of a detach a caller waits for: it cannot be taken back, and the host ports are free."""
        if intent.stage is not Stage.LEAVING:
            intent = self._ipam.save(replace(intent, stage=Stage.LEAVING))
        if intent.ports:
            self._table(intent.table).remove(_all_elements(intent.ports, intent))
            intent = self._ipam.release_ports(intent)
        return intent

    def _try_clear(self, sandbox_id: str) -> bool:
        try:
            with self._turns.hold(sandbox_id), _kernel_errors(f"detach sandbox {sandbox_id}"):
                intent = self._ipam.intent(sandbox_id)
                if intent is not None:
                    self._clear([intent])
        except ForgeError as error:
            self._log.warning("network not detached yet", sandbox=sandbox_id, error=str(error))
            return False
        return True

    def _reap_later(self, *sandbox_ids: str) -> None:
        with self._idle:
            self._leaving |= self._failed.union(sandbox_ids)
            self._failed = set()
            if self._reaping:
                return
            self._reaping = True
        threading.Thread(target=self._reap, name="network-reaper", daemon=True).start()

    def _reap(self) -> None:
        while True:
            with self._idle:
                batch, self._leaving = sorted(self._leaving), set()
                if not batch:
                    self._reaping = False
                    self._idle.notify_all()
                    return
            self._reap_batch(batch)

    def _reap_batch(self, batch: Sequence[str]) -> None:
        """Delete the links of leaving pods, together if that works, else one by one."""
        try:
            with ExitStack() as turns, _kernel_errors("delete the links of detached sandboxes"):
                for sandbox_id in batch:
                    turns.enter_context(self._turns.hold(sandbox_id))
                stored = [self._ipam.intent(sandbox_id) for sandbox_id in batch]
                leaving = [intent for intent in stored if intent is not None and intent.stage is Stage.LEAVING]
                if leaving:
                    self._clear(leaving)
        except Exception as error:
            if len(batch) > 1:
                for sandbox_id in batch:
                    self._reap_batch([sandbox_id])
                return
            self._log.warning("network not detached yet", sandbox=batch[0], error=str(error))
            with self._idle:
                self._failed.update(batch)


def _attachment(intent: Intent) -> Attachment:
    return Attachment(intent.ips, POD_INTERFACE, intent.mac)


def _all_elements(ports: Sequence[HostPort], intent: Intent) -> tuple[Element, ...]:
    """Of the addresses leased, not only of those the pod got: the keys are the same, and missing ones do no harm."""
    return elements(ports, [address.partition("/")[0] for address in intent.addresses])


@contextmanager
def _kernel_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InternalError(f"{what}: {error.strerror or error}") from error
