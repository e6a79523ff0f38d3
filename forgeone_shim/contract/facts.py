"""What is known at a point of decision: plain data, gathered by whoever asks, over which rules of policies are written.

Field names are the names in CEL (``container.privileged``). A field may be a text, a number, a truth value, a tuple of
texts, a mapping of texts, one of these classes, or a tuple of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from forgeone_shim.contract.model import UNRESTRICTED, Contract


class Point(StrEnum):
    """Where a decision is asked for."""

    SANDBOX = "sandbox"
    CREATE = "create"
    START = "start"
    RECOVER = "recover"
    EXEC = "exec"
    ATTACH = "attach"
    PORT_FORWARD = "port-forward"
    CHECKPOINT = "checkpoint"
    RESTORE = "restore"
    UPDATE = "update"
    RESUME = "resume"

    @property
    def starts(self) -> bool:
        """Whether it brings something to life, rather than reaching into what lives."""
        return self in _STARTS


_STARTS: Final = frozenset({Point.SANDBOX, Point.CREATE, Point.START, Point.RECOVER})


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """A pod. ``host_*`` say that it shares the host's; ``engines`` are those of its containers, each once."""

    namespace: str
    name: str
    uid: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    runtime_handler: str = ""
    host_network: bool = False
    host_pid: bool = False
    host_ipc: bool = False
    user_namespace: bool = False
    privileged: bool = False
    sysctls: Mapping[str, str] = field(default_factory=dict)
    host_ports: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MountFacts:
    """A mount that was asked for. ``source`` has no symlink in it; ``kind`` is of ``volumes.kind``."""

    destination: str
    source: str
    readonly: bool = False
    kind: str = ""
    propagation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerFacts:
    """A container, as it will run or runs.

    ``capabilities`` are all that its processes could have, names without ``CAP_``. Limits: bytes of memory, thousandths
    of a CPU, processes; 0 is none. ``seccomp`` and ``apparmor`` are ``runtime-default``, ``localhost`` or
    ``unconfined``; ``unmasked``: nothing of /proc and /sys is hidden from it, or nothing kept from its writes
    (``procMount: Unmasked``). ``argv`` is the command with the image's own in it.
    """

    name: str
    id: str = ""
    attempt: int = 0
    argv: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: int = 0
    group: int = 0
    privileged: bool = False
    capabilities: tuple[str, ...] = ()
    no_new_privs: bool = False
    readonly_rootfs: bool = False
    seccomp: str = ""
    apparmor: str = ""
    unmasked: bool = False
    mounts: tuple[MountFacts, ...] = ()
    devices: tuple[str, ...] = ()
    memory: int = 0
    cpu: int = 0
    pids: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    tty: bool = False
    restored: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationFacts:
    """What a trusted signer states about an image: an in-toto predicate, by its type."""

    predicate_type: str
    signer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """An image. ``name`` is as the pod has it, ``repository`` whole; ``verified_by`` are signers that were checked.

    ``repositories`` are all that this node knows the image by.
    """

    name: str
    repository: str
    digest: str
    verified_by: tuple[str, ...] = ()
    attestations: tuple[AttestationFacts, ...] = ()
    volume: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeFacts:
    """What runs the container. ``entropy`` in bits, ``trust_score`` 0 to 100, ``drifted``: from its baseline."""

    engine: str = ""
    version: str = ""
    entropy: int = 0
    trust_score: int = 0
    drifted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """This node."""

    name: str = ""
    kernel: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFacts:
    """What is asked of something that lives: an exec's command, the ports of a port-forward, an update's limits."""

    command: tuple[str, ...] = ()
    tty: bool = False
    ports: tuple[int, ...] = ()
    memory: int = 0
    cpu: int = 0


@dataclass(frozen=True, slots=True)
class Own:
    """What a pod itself says of that of which there can be one: what policies say of it may change under the pod."""

    exec_mode: str = ""
    trust_label: str = ""
    baseline: str = ""

    @classmethod
    def of(cls, contract: Contract) -> Own:
        """As the contract that it brought has it."""
        return cls(contract.exec_mode, contract.profile.trust_label, contract.behaviour.baseline)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The contract that holds for a pod or a container here: what was offered, under the policies of this node.

    :param contract: the effective one.
    :param given: whether the pod brought one.
    :param signers: the ids of the issuers who signed what it brought; all of it, or there are none.
    :param policies: the names of the policies that apply, floors first.
    :param namespace: the pod's, which decides about that.
    """

    contract: Contract = UNRESTRICTED
    given: bool = False
    signers: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    namespace: str = ""
    own: Own = Own()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractFacts:
    """Of the contract that holds, what rules are written over.

    Whoever may write a pod's annotations may claim anything in them. Where ``signers`` is not empty, ``trust_label``
    and ``runtime_policy_id`` are theirs.
    """

    given: bool = False
    signers: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    runtime_policy_id: str = ""
    trusted_issuers: tuple[str, ...] = ()
    minimum_entropy: int = 0
    exec_mode: str = ""
    trust_label: str = ""
    egress_restricted: bool = False
    ingress_restricted: bool = False
    watched: bool = False
    on_drift: str = ""
    snapshot: bool = True

    @classmethod
    def of(cls, bound: Bound) -> ContractFacts:
        """The rules' view of what holds."""
        contract = bound.contract
        network = contract.profile.network
        return cls(
            given=bound.given,
            signers=bound.signers,
            policies=bound.policies,
            runtime_policy_id=contract.runtime_policy_id,
            trusted_issuers=contract.trusted_issuers or (),
            minimum_entropy=contract.minimum_entropy,
            exec_mode=contract.exec_mode,
            trust_label=contract.profile.trust_label,
            egress_restricted=network is not None and network.egress is not None,
            ingress_restricted=network is not None and network.ingress is not None,
            watched=contract.behaviour.watched,
            on_drift=contract.behaviour.on_drift,
            snapshot=contract.profile.snapshot,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All of it. ``container`` and ``image`` are ``None`` where the pod alone is asked about."""

    pod: PodFacts
    contract: Bound = Bound()
    container: ContainerFacts | None = None
    image: ImageFacts | None = None
    runtime: RuntimeFacts = RuntimeFacts()
    node: NodeFacts = NodeFacts()
    request: RequestFacts = RequestFacts()
