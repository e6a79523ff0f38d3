"""What is stored of a sandbox and a container: only what cannot be looked up again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from engines.base import ContainerSpec, Namespaces, Resources, SandboxSpec, Security, SELinuxLabels, User
from forgeone_shim.config.handlers import Handler
from forgeone_shim.contract.facts import Bound, ImageFacts
from forgeone_shim.contract.model import Contract
from forgeone_shim.dna.entropy import Seeding
from forgeone_shim.dna.fingerprint import Genome
from forgeone_shim.lifecycle.machine import State

SANDBOX_KIND = "sandbox"
CONTAINER_KIND = "container"


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRecord:
    """Times in nanoseconds since the epoch. ``namespaces`` holds the paths its containers join.

    ``handler`` is what its runtime handler was when the pod was started. Where that leaves the choice of ``engine`` to
    the node, ``placed`` says why it is this one.

    ``overhead`` and ``resources`` are what an update put in place of the spec's.

    ``bound`` is the contract that has held for the pod since its start.
    """

    id: str
    spec: SandboxSpec
    engine: str
    state: State
    created_at: int
    namespaces: Namespaces
    hostname: str
    cgroup_parent: str
    ips: tuple[str, ...] = ()
    overhead: Resources | None = None
    resources: Resources | None = None
    handler: Handler = field(default_factory=Handler)
    selinux: SELinuxLabels = field(default_factory=SELinuxLabels)
    bound: Bound = field(default_factory=Bound)
    placed: str = ""

    @property
    def contract(self) -> Contract:
        """The effective one."""
        return self.bound.contract

    @property
    def effective_spec(self) -> SandboxSpec:
        """What was asked for, as updated since."""
        if self.overhead is None and self.resources is None:
            return self.spec
        overhead = self.spec.overhead if self.overhead is None else self.overhead
        resources = self.spec.resources if self.resources is None else self.resources
        return replace(self.spec, overhead=overhead, resources=resources)

    @property
    def key(self) -> str:
        """What a kubelet's retry repeats."""
        return sandbox_key(self.spec)


@dataclass(frozen=True, slots=True)
class ImageVolume:
    """The image that a mount of the container's names, as it was when the container was created."""

    image_id: str
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRecord:
    """Times in nanoseconds since the epoch, 0 where it has not happened.

    ``kill_at`` is when the grace period of a stop under way ends; ``cleaned`` says that after its end the engine forgot
    it and its root filesystem was unmounted. ``image_volumes`` are those of the spec's mounts that name an image, in
    their order. ``resources`` are what an update put in place of the spec's, which stays as it was asked for: a
    kubelet's retry is compared with it. ``suggested`` are the limits that its package and its contract add.
    ``start_error`` says why its command cannot be executed: its start will fail. ``restored`` says that it has no
    process until it is started, and then those of a checkpoint.

    ``bound`` is the contract that holds for it. ``trusted`` is what was known of its image when it was created, and
    ``trusted_volumes`` of those of ``image_volumes``; ``argv`` is the command with the image's own in it. ``withheld``
    are default capabilities that its pod's network rule took. ``dna`` is the hash of everything that decides what runs
    (``genome``), empty where none was computed, and ``seal`` that of what its engine keeps of it on disk. ``entropy``
    is how many bits of fresh seed it has received since somebody else could have had its state, by ``seedings``.
    ``denied`` says why it was stopped that ran until the policies were asked again.
    """

    id: str
    sandbox_id: str
    spec: ContainerSpec
    engine: str
    state: State
    image_id: str
    image_ref: str
    layers: tuple[str, ...]
    log_path: str
    cgroup: str
    stop_signal: str
    created_at: int
    user: User = field(default_factory=User)
    own_pid_namespace: bool = True
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    kill_at: int = 0
    cleaned: bool = False
    start_error: str = ""
    restored: bool = False
    resources: Resources | None = None
    suggested: Resources | None = None
    image_volumes: tuple[ImageVolume, ...] = ()
    bound: Bound = field(default_factory=Bound)
    trusted: ImageFacts | None = None
    trusted_volumes: tuple[ImageFacts, ...] = ()
    argv: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()
    dna: str = ""
    genome: Genome | None = None
    seal: str = ""
    seedings: tuple[Seeding, ...] = ()
    entropy: int = 0
    denied: str = ""

    @property
    def contract(self) -> Contract:
        """The effective one."""
        return self.bound.contract

    @property
    def verified_by(self) -> tuple[str, ...]:
        """Who is known to stand behind its image."""
        return () if self.trusted is None else self.trusted.verified_by

    @property
    def security(self) -> Security:
        """What was asked for, less the capabilities that it was not given."""
        asked = self.spec.security
        if not self.withheld:
            return asked
        return replace(asked, drop_capabilities=(*asked.drop_capabilities, *self.withheld))

    @property
    def unstarted(self) -> bool:
        """Whether it was created without a process, and has none yet."""
        return self.state is State.BOOTED and (self.restored or bool(self.start_error))

    @property
    def used_layers(self) -> set[str]:
        """Layers that must stay as long as it does."""
        return {*self.layers, *(layer for volume in self.image_volumes for layer in volume.layers)}

    @property
    def effective_spec(self) -> ContainerSpec:
        """What was asked for, as updated since, with the images that were found."""
        spec = self.spec if self.resources is None else replace(self.spec, resources=self.resources)
        if not self.image_volumes:
            return spec
        found = iter(self.image_volumes)
        mounts = (replace(one, image_ref=next(found).image_id) if one.image else one for one in spec.mounts)
        return replace(spec, mounts=tuple(mounts))

    @property
    def key(self) -> str:
        """What a kubelet's retry repeats."""
        return container_key(self.sandbox_id, self.spec)


def sandbox_key(spec: SandboxSpec) -> str:
    """The identity of a sandbox to its caller."""
    return pod_key(spec.namespace, spec.name, spec.uid, spec.attempt)


def pod_key(namespace: str, name: str, uid: str, attempt: int) -> str:
    """The same, of what it consists."""
    return f"{namespace}/{name}/{uid}/{attempt}"


def container_key(sandbox_id: str, spec: ContainerSpec) -> str:
    """The identity of a container to its caller."""
    return f"{sandbox_id}/{spec.name}/{spec.attempt}"
