"""The pods' network, whichever it is: the built-in one or what CNI configurations describe.

Which one a pod gets is decided when it is attached; from then on it is the one that has it stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Final

import structlog

from engines.base import DNSConfig
from forgeone_shim.config.model import CniConfig, NetworkConfig
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import InternalError
from forgeone_shim.network import podfiles
from forgeone_shim.network.bandwidth import plan_limits
from forgeone_shim.network.cni import generated
from forgeone_shim.network.cni.network import CniNetwork, Retry
from forgeone_shim.network.cni.plugin import Json
from forgeone_shim.network.cni.plugins import Find
from forgeone_shim.network.cni.results import prefer
from forgeone_shim.network.enforcement import Enforcement, Restraint
from forgeone_shim.network.facts import Attachment, PodFacts
from forgeone_shim.network.pod import PodNetwork
from forgeone_shim.network.policy import Local, packed
from forgeone_shim.state.store import StateStore

_RANGES: Final = "network.ranges"
_NODE: Final = "node"


class Network:
    """Thread-safe. The parameters are those of :class:`PodNetwork` and :class:`CniNetwork`.

    :raises InvalidInput: a setting cannot be used.
    """

    def __init__(self, config: NetworkConfig, cni: CniConfig, store: StateStore, find: Find, retry: Retry) -> None:
        self._config, self._cni_config, self._store, self._retry = config, cni, store, retry
        self._builtin = PodNetwork(config, store)
        self._cni = CniNetwork(cni, store, find, retry)
        self._cni.use_ranges(store.get(_RANGES, _NODE, tuple[str, ...]) or ())
        self._enforcement = Enforcement(retry)
        self._log = structlog.get_logger("network")

    def reconfigure(self, mode: str, cni: CniConfig, conf_dirs: set[str]) -> None:
        """For pods to come: the mode, what counts for CNI, and the folders of it that runtime handlers name."""
        self._config, self._cni_config = replace(self._config, mode=mode), cni
        self._cni.reconfigure(cni, conf_dirs | {cni.conf_dir})
        if self._by_cni("") or conf_dirs:
            self._retry("collect garbage of the networks", self._cni.collect_garbage)

    def attach(
        self, pod: PodFacts, pinned: Callable[[], object] = lambda: None, deadline: Deadline = NEVER
    ) -> Attachment:
        """Connect the network namespace of a pod. A pod that is attached already keeps what it has.

        When this returns the pod is kept to its rule, and those that may talk to it can. ``pinned`` returns once the
        namespace is there, or raises: what comes before that is done meanwhile. On failure everything is undone, if
        need be later.

        :raises InvalidInput: the pod asks for what cannot be.
        :raises FailedPrecondition: another pod has one of the host ports, or CNI has no configuration it can use.
        :raises ResourceExhausted: every address is taken.
        :raises NotFound: there is no network namespace at ``pod.netns``.
        :raises DeadlineExceeded: the deadline passed first.
        :raises InternalError: the kernel refused.
        :raises CniError: a plugin refused or failed.
        """
        got = self._attach(pod, pinned, deadline)
        try:
            self._enforcement.admit(_restraint(pod, got.ips, got.dns))
        except BaseException:
            self._abandon(pod.sandbox_id)
            raise
        return got

    def _attach(self, pod: PodFacts, pinned: Callable[[], object], deadline: Deadline) -> Attachment:
        if self._cni.has(pod.sandbox_id) or (
            self._by_cni(pod.conf_dir) and self._builtin.attachment(pod.sandbox_id) is None
        ):
            return self._cni.attach(pod, pinned, deadline)
        limits = plan_limits(pod.annotations)
        got = self._builtin.attach(pod.sandbox_id, pod.netns, pod.port_mappings, pinned=pinned, limits=limits)
        return replace(got, ips=prefer(got.ips, self._cni_config.ip_preference))

    def _abandon(self, sandbox_id: str) -> None:
        try:
            self.detach(sandbox_id)
        except Exception as error:
            # Stored as leaving: whoever undoes the pod, or reconciles, goes on.
            self._log.warning("network not undone yet", sandbox=sandbox_id, error=str(error))

    def know(self, pods: Iterable[tuple[PodFacts, tuple[str, ...]]]) -> None:
        """Pods that were attached before this process, with their addresses: rules name them before any is enforced."""
        for pod, ips in pods:
            self._enforcement.know(Restraint(sandbox_id=pod.sandbox_id, netns=pod.netns, pod=_local(pod, ips)))

    def enforce(self, pod: PodFacts, ips: tuple[str, ...]) -> None:
        """Keep a pod that is attached to its rule, whatever has happened to its tables; next to nothing without one.

        :raises InvalidInput: the rule cannot be enforced.
        :raises NotFound: the pod is leaving, or has no network namespace any more.
        :raises InternalError: the kernel refused. The pod may then have no container.
        """
        if pod.restricted or self._enforcement.holds(pod.sandbox_id):
            self._enforcement.enforce(_restraint(pod, ips, self._dns(pod)))

    def report_to(self, report: Callable[[str], object]) -> None:
        """Whom to tell, by the pod's id, that its rules had been tampered with and are back; must return quickly."""
        self._enforcement.report_to(report)

    def detach(self, sandbox_id: str) -> None:
        """Take a pod off its network. Its host ports are free when this returns, and no rule lets its addresses in.

        A pod that is not attached is no error, nor is a network namespace that is gone.

        :raises InternalError: the kernel refused; :meth:`reconcile`, or calling this again, goes on.
        :raises CniError: a plugin failed; it is tried again until it succeeds, and by each further call.
        """
        self._enforcement.forget(sandbox_id)
        if self._cni.has(sandbox_id):
            self._cni.detach(sandbox_id)
        else:
            self._builtin.detach(sandbox_id)

    def _dns(self, pod: PodFacts) -> DNSConfig | None:
        """What the network of an attached pod said of name servers; only where that counts."""
        if not pod.restricted or pod.dns:
            return None
        got = self._cni.attachment(pod.sandbox_id)
        return None if got is None else got.dns

    def refused(self, sandbox_id: str) -> Json | None:
        """Packets and bytes that were refused of a pod, each way; ``None`` unless it is kept to a rule.

        :raises InternalError: the kernel does not tell.
        """
        drops = self._enforcement.drops(sandbox_id)
        return None if drops is None else asdict(drops)

    def details(self, sandbox_id: str) -> Json:
        """What there is to tell people of a pod's network; empty for the built-in one without a rule."""
        found = self._cni.details(sandbox_id)
        try:
            refused = self.refused(sandbox_id)
        except InternalError as error:
            # The rest is wanted most where something is amiss.
            refused = {"error": str(error)}
        return found if refused is None else {**found, "refused": refused}

    def reconcile(self, known: Callable[[], set[str]]) -> tuple[str, ...]:
        """Finish what was cut off; the ids of the pods that are left to do. See :meth:`PodNetwork.reconcile`."""
        return (*self._builtin.reconcile(known), *self._cni.reconcile(known))

    def recovered(self, conf_dirs: set[str]) -> None:
        """After a start: have CNI's plugins check the pods that are attached, and collect what belongs to no pod.

        ``conf_dirs`` are the folders of CNI configurations that runtime handlers name.
        """
        if self._cni.in_use():
            self._retry("check the pods' networks", self._cni.check)
        folders = [self._cni.folder(one) for one in (*conf_dirs, *([""] if self._by_cni("") else []))]
        if any(folder.present for folder in folders):
            self._retry("collect garbage of the networks", self._cni.collect_garbage)

    def status(self) -> tuple[bool, str, str]:
        """``(ready, reason, message)`` as CRI's NetworkReady wants it; repairs what someone removed."""
        if not self._by_cni(""):
            return self._builtin.status()
        if self._builtin.in_use():
            ready, _, message = self._builtin.status()
            if not ready:
                self._log.warning("the built-in network that pods are still on is not whole", error=message)
        return self._cni.status()

    def settle(self, timeout: float | None = None) -> bool:
        """Wait until no detached pod's link is left to delete, ``timeout`` seconds at most; says whether that is so."""
        return self._builtin.settle(timeout)

    def use_ranges(self, ranges: tuple[str, ...]) -> None:
        """The node's ranges of pod addresses, as the control plane has given them; they outlive this process.

        :raises InvalidInput: the template for a configuration with them cannot be used.
        :raises InternalError: the configuration cannot be written.
        """
        self._store.put(_RANGES, _NODE, ranges)
        self._cni.use_ranges(ranges)
        if self._cni_config.conf_template and self._config.mode != "builtin":
            written = generated.write(self._cni_config, ranges)
            self._log.info("network configuration from the template", folder=self._cni_config.conf_dir, written=written)
        elif not self._by_cni("") and not set(ranges) <= {self._config.ipv4, self._config.ipv6}:
            self._log.warning("pod CIDR differs from the configured ranges", cidr=",".join(ranges))

    def close(self) -> None:
        """Stop watching for configurations. Pods stay attached, and kept to their rules."""
        self._cni.close()
        self._enforcement.close()

    def _by_cni(self, conf_dir: str) -> bool:
        """Whether a new pod is for CNI: where its runtime handler names a folder for it, always."""
        if conf_dir or self._config.mode == "cni":
            return True
        return self._config.mode == "auto" and (bool(self._cni_config.conf_template) or self._cni.folder().present)


def _restraint(pod: PodFacts, ips: tuple[str, ...], dns: DNSConfig | None) -> Restraint:
    return Restraint(
        sandbox_id=pod.sandbox_id,
        netns=pod.netns,
        pod=_local(pod, ips),
        # What the network says of name servers is the second choice, before the host's own.
        resolvers=podfiles.name_servers(pod.dns or dns) if pod.restricted else (),
        rule=pod.rule,
        machine=pod.machine,
    )


def _local(pod: PodFacts, ips: tuple[str, ...]) -> Local:
    return Local(namespace=pod.namespace, name=pod.name, addresses=packed(ips))
