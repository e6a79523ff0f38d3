"""What a network is told of the pod it takes in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engines.base import DNSConfig, PortMapping
from forgeone_shim.contract.model import NetworkRule


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """A pod to attach. ``netns`` is the path of its network namespace.

    ``conf_dir`` is the folder of CNI configurations of the pod's runtime handler; empty: the node's. ``rule`` is the
    network rule of its contract. ``machine`` says that a kernel of the pod's own is behind the namespace.
    """

    sandbox_id: str
    netns: str
    name: str = ""
    namespace: str = ""
    uid: str = ""
    hostname: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    port_mappings: tuple[PortMapping, ...] = ()
    dns: DNSConfig | None = None
    cgroup_parent: str = ""
    conf_dir: str = ""
    rule: NetworkRule | None = None
    machine: bool = False

    @property
    def restricted(self) -> bool:
        """Whether there is a rule to enforce."""
        return self.rule is not None and self.rule.restricts


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a pod got: its addresses (the preferred one first), the name of its interface and that one's MAC.

    ``dns`` is what the network says of name servers, if it does.
    """

    ips: tuple[str, ...]
    interface: str
    mac: str
    dns: DNSConfig | None = None
