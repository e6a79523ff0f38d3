"""A contract: what a pod, or one of its containers, says about what it may be and what may be done to it.

A contract only takes away. What it leaves unsaid is as Kubernetes has it; ``None`` is "unrestricted", an empty tuple
is "nothing". ``merge.tighten`` joins two, ``parse`` reads them, ``judge`` holds facts to them.
"""

from __future__ import annotations

import ipaddress
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from hashlib import sha256
from typing import Any, Final

EXEC_MODES: Final = ("", "native", "wasm", "microvm")
PROTOCOLS: Final = ("", "tcp", "udp", "sctp", "icmp")
DRIFTS: Final = ("report", "pause", "stop")
"""What is done about behaviour that drifted from its baseline, from the mildest on."""
VOLUME_KINDS: Final = (
    "config-map",
    "csi",
    "downward-api",
    "empty-dir",
    "host-path",
    "image",
    "persistent",
    "projected",
    "secret",
)
PAYLOAD_TYPE: Final = "application/vnd.forgeone.contract.v1+json"
"""What a signed contract's DSSE envelope says it holds."""


@dataclass(frozen=True, slots=True, order=True)
class ImageRule:
    """Images that may be used: their repository matches every glob, and their digest is one of ``digests`` (if any).

    Of a glob, ``*`` stands for any characters but ``/``, and ``**`` for any. Repositories are whole names
    (``docker.io/library/busybox``). Several globs are what remains of several contracts.
    """

    repositories: tuple[str, ...]
    digests: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports from ``first`` to ``last``, both included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True, order=True)
class Peer:
    """Whom a pod may talk to, or hear from.

    :param cidr: a range of addresses without host bits; ``""``: any.
    :param pod: ``NAMESPACE/NAME``, or ``NAMESPACE/*``: pods on this node; ``""``: any.
    :param ports: the ports of whoever is talked to; ``()``: all.
    :param protocol: one of :data:`PROTOCOLS`; ``""`` is any of them, with ports any that has ports.

    With ``cidr`` and ``pod`` both, it is the addresses of those pods that are in the range. With neither it is anybody.
    """

    cidr: str = ""
    pod: str = ""
    ports: tuple[PortRange, ...] = ()
    protocol: str = ""

    @property
    def network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
        """The range, parsed."""
        return ipaddress.ip_network(self.cidr) if self.cidr else None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRule:
    """Who may be talked to first (``egress``) and by whom (``ingress``); answers always pass.

    Where there is an ``ingress``, ``node`` says whether the node itself may come in besides: its kubelet's probes, its
    host ports. Where there is an ``egress`` that is not empty, ``dns`` says whether the pod may ask its name servers.
    """

    egress: tuple[Peer, ...] | None = None
    """list of `PEER [PROTOCOL[/PORTS]]`

    Whom the pod may talk to. PEER is a range (`10.0.0.0/8`), `pod:NAMESPACE/NAME` or `pod:NAMESPACE/*` of this node, or
    `any`; PROTOCOL `tcp`, `udp`, `sctp`, `icmp` or `any`; PORTS such as `80+443+8000-8999`. Of pods alone.
    """
    ingress: tuple[Peer, ...] | None = None
    """list of `PEER [PROTOCOL[/PORTS]]`

    Who may talk to the pod. Of pods alone.
    """
    node: bool = True
    """permission

    For the node itself to come in besides: probes, host ports. Of pods alone.
    """
    dns: bool = True
    """permission

    To ask its name servers besides. Of pods alone.
    """

    @property
    def restricts(self) -> bool:
        """Whether it has to be enforced at all."""
        return self.egress is not None or self.ingress is not None


@dataclass(frozen=True, slots=True, order=True)
class HostPath:
    """A directory or file of the host that may be mounted, with all below it; ``readonly``: only so."""

    path: str
    readonly: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The most that a container may be given: bytes of memory, thousandths of a CPU, processes. ``None``: any.

    Where there is a ceiling, a container must have a limit, and one that is not above it.
    """

    memory: int | None = None
    """bytes, `64Mi`

    The highest limit of memory; a container without a limit is refused.
    """
    cpu: int | None = None
    """`2`, `0.5`, `500m`

    The highest limit of CPUs; a container without a limit is refused.
    """
    pids: int | None = None
    """a number

    Its limit of processes and threads.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class BusRule:
    """Subjects of the message bus, in NATS' words (``*`` is one token, a ``>`` at the end one or more)."""

    publish: tuple[str, ...] | None = None
    """list of subjects, `shop.orders.*`, `shop.>`

    What it may publish on the message bus. Kept for it; nothing is refused over it here.
    """
    subscribe: tuple[str, ...] | None = None
    """list of subjects

    What it may subscribe to, likewise.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustProfile:
    """What a container may consist of.

    ``capabilities`` is the ceiling, names without ``CAP_``. ``host_paths`` are those that may be mounted,
    ``volumes`` the kinds of volumes (:data:`VOLUME_KINDS`). ``snapshot`` says whether its memory may be written to a
    file, ``mixed_engines`` whether its pod may have containers of several engines.
    """

    trust_label: str = ""
    """a label

    What it is called by policies' rules, and by `scheduler.isolate_labels`. Somebody's word, unless the contract is
    signed.
    """
    images: tuple[ImageRule, ...] | None = None
    """list, `GLOB` or `GLOB@sha256:HEX`

    Images that may be used, and mounted, by their whole repository, without a tag: `*` is anything but `/`, `**`
    anything.
    """
    capabilities: tuple[str, ...] | None = None
    """list, with or without `CAP_`

    The most that a process of it could have.
    """
    privileged: bool = True
    """permission

    To be privileged.
    """
    host_network: bool = True
    """permission

    To use the host's network.
    """
    host_pid: bool = True
    """permission

    To see the host's processes.
    """
    host_ipc: bool = True
    """permission

    To use the host's IPC.
    """
    host_paths: tuple[HostPath, ...] | None = None
    """list, `/PATH` or `/PATH:ro`

    Directories and files of the host that may be mounted, with all below them. Symlinks are followed first.
    """
    volumes: tuple[str, ...] | None = None
    """list of `config-map`, `csi`, `downward-api`, `empty-dir`, `host-path`, `image`, `persistent`, `projected`,
    `secret`

    Kinds of volumes that may be mounted. The token of a service account is `projected`; what is not in the kubelet's
    directory of the pod is `host-path`.
    """
    resources: Ceilings = Ceilings()
    network: NetworkRule | None = None
    bus: BusRule = BusRule()
    snapshot: bool = True
    """permission

    To have its memory written to a file, and to come from one.
    """
    mixed_engines: bool = True
    """permission

    For its pod to have containers of several engines.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Rbac:
    """What may be done to a container while it lives."""

    exec: bool = True
    """permission

    For commands to be executed in it, by people, probes and hooks, and for an ephemeral container to share its
    processes (`kubectl debug --target`).
    """
    attach: bool = True
    """permission

    To be attached to.
    """
    port_forward: bool = True
    """permission

    For its ports to be forwarded. Of pods alone.
    """
    checkpoint: bool = True
    """permission

    To be checkpointed.
    """
    update: bool = True
    """permission

    For its limits to be changed.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """Whether its system calls (of a WebAssembly guest: its calls to the host) are watched, and what drift does.

    ``baseline`` is the digest of the pinned one; empty: whichever is pinned for its image.
    """

    watch: bool = False
    """`true`

    Its system calls, or its calls to the host, are watched.
    """
    on_drift: str = "report"
    """`report`, `pause`, `stop`

    What is done when it behaves otherwise than its baseline.
    """
    baseline: str = ""
    """`sha256:HEX`

    The baseline that is meant, which has it watched, too; without it, the one that is pinned for its image.
    """

    @property
    def watched(self) -> bool:
        """Whoever names a baseline means to be held to it."""
        return self.watch or bool(self.baseline)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """What is demanded of a container and its surroundings, and what it may be and have done to it.

    :param runtime_policy_id: the node's policy that applies besides its floors; empty: the node's default policy.
    :param trusted_issuers: who must have signed the image, one of them, as signatures name them
        (``key:sha256:HEX``, ``x509:SUBJECT``, ``keyless:IDENTITY``).
    :param minimum_entropy: bits of fresh seed that it must have before it runs.
    :param exec_mode: the engine that must run it, one of :data:`EXEC_MODES`.
    """

    runtime_policy_id: str = ""
    """a policy's name

    The policy of the node that applies besides its floors, in place of the default one.
    """
    trusted_issuers: tuple[str, ...] | None = None
    """list, `key:sha256:HEX`, `x509:SUBJECT`, `keyless:IDENTITY`

    One of them must have signed the image, and each image that is mounted.
    """
    minimum_entropy: int = 0
    """bits, 0 to 65536

    Fresh seed that it must have had since its state could last have been copied, to start and to resume.
    """
    exec_mode: str = ""
    """`native`, `wasm`, `microvm`

    The engine that must run it, and that a node [chooses](auto.md) for the pod where its handler leaves that open.
    """
    profile: TrustProfile = field(default_factory=TrustProfile)
    rbac: Rbac = field(default_factory=Rbac)
    behaviour: Behaviour = field(default_factory=Behaviour)

    @property
    def digest(self) -> str:
        """``sha256:`` and the hash of its canonical JSON (RFC 8785)."""
        return f"sha256:{sha256(self.canonical()).hexdigest()}"

    def canonical(self) -> bytes:
        """What it says, and nothing that is left unsaid: a field that is new here changes no digest of before."""
        # Not above: a node where no pod has a contract never asks for it.
        import rfc8785

        return rfc8785.dumps(_said(self))


def _said(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_said(one) for one in value]
    if not is_dataclass(value):
        return value
    found = {item.name: (getattr(value, item.name), item) for item in fields(value)}
    return {name: _said(one) for name, (one, item) in found.items() if one != _default(item)}


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


UNRESTRICTED: Final = Contract()
"""The contract of a pod that has none, on a node without policies."""
