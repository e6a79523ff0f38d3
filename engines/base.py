"""The line between ForgeOne and its engines: plain data in, plain data out.

An engine runs containers. It gets everything it needs (rootfs, namespaces, paths) as frozen data and imports no room of
``forgeone_shim`` but its leaf helpers (``errors``, ``deadline``, ``kernel``). Engines are found through the entry-point
group ``forgeone.engines``.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from forgeone_shim.deadline import Deadline
from forgeone_shim.kernel.procs import Pidfd


class NamespaceMode(StrEnum):
    """Whose namespace a container lives in (CRI ``NamespaceMode``)."""

    POD = "pod"
    CONTAINER = "container"
    NODE = "node"
    TARGET = "target"


class Propagation(StrEnum):
    """Mount propagation; the value is the mount option."""

    PRIVATE = "rprivate"
    HOST_TO_CONTAINER = "rslave"
    BIDIRECTIONAL = "rshared"


class ProfileType(StrEnum):
    """How a seccomp or AppArmor profile is chosen."""

    RUNTIME_DEFAULT = "runtime-default"
    UNCONFINED = "unconfined"
    LOCALHOST = "localhost"


class GroupsPolicy(StrEnum):
    """``MERGE`` adds the image's /etc/group memberships to the groups asked for, ``STRICT`` does not."""

    MERGE = "merge"
    STRICT = "strict"


@dataclass(frozen=True, slots=True)
class IdMapping:
    """One extent of a user-namespace mapping."""

    host_id: int
    container_id: int
    length: int


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount the caller asked for. ``destination`` is a path inside the container.

    One of an ``image`` comes to an engine with the ``source`` where its layers are mounted and no image; the runtime
    tells its id as ``image_ref``. ``image_name`` is what the pod's author calls it, if that is another word for it.
    """

    destination: str
    source: str
    readonly: bool = False
    propagation: Propagation = Propagation.PRIVATE
    selinux_relabel: bool = False
    recursive_read_only: bool = False
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    image: str = ""
    image_sub_path: str = ""
    options: tuple[str, ...] = ()
    image_ref: str = ""
    image_name: str = ""


@dataclass(frozen=True, slots=True)
class Device:
    """A host device node made available; ``permissions`` is a subset of ``rwm``."""

    destination: str
    source: str
    permissions: str = "rwm"


@dataclass(frozen=True, slots=True)
class Resources:
    """Limits. Zero means "not set" except where noted; memory in bytes, CPU times in microseconds.

    ``pids_limit`` is of processes and threads, and of no caller's making: CRI has no such field, contracts do.
    """

    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    memory_limit: int = 0
    memory_swap_limit: int = 0
    oom_score_adj: int = 0
    hugepages: tuple[tuple[str, int], ...] = ()
    unified: Mapping[str, str] = field(default_factory=dict)
    pids_limit: int = 0


@dataclass(frozen=True, slots=True)
class Profile:
    """A seccomp or AppArmor choice; ``localhost_ref`` is the file or profile name for LOCALHOST."""

    type: ProfileType
    localhost_ref: str = ""


@dataclass(frozen=True, slots=True)
class SELinux:
    """An SELinux label in its parts."""

    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SELinuxLabels:
    """The labels that processes run with and that files get; empty: none. ``level`` is the level in both."""

    process: str = ""
    mount: str = ""
    level: str = ""


@dataclass(frozen=True, slots=True)
class NamespaceOptions:
    """CRI ``NamespaceOption``; ``target_id`` names the container for :attr:`NamespaceMode.TARGET`."""

    network: NamespaceMode = NamespaceMode.POD
    pid: NamespaceMode = NamespaceMode.POD
    ipc: NamespaceMode = NamespaceMode.POD
    target_id: str = ""
    user: NamespaceMode = NamespaceMode.NODE
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()


@dataclass(frozen=True, slots=True)
class Security:
    """CRI ``LinuxContainerSecurityContext`` and its sandbox twin; ``None`` profiles mean "not given"."""

    namespaces: NamespaceOptions = NamespaceOptions()
    privileged: bool = False
    add_capabilities: tuple[str, ...] = ()
    drop_capabilities: tuple[str, ...] = ()
    add_ambient_capabilities: tuple[str, ...] = ()
    selinux: SELinux | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_username: str = ""
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: GroupsPolicy = GroupsPolicy.MERGE
    readonly_rootfs: bool = False
    no_new_privs: bool = False
    seccomp: Profile | None = None
    apparmor: Profile | None = None
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()


class PortProtocol(StrEnum):
    """Transport of a host port."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A host port forwarded to the pod; ``host_ip`` empty means every address of the host."""

    container_port: int
    host_port: int
    protocol: PortProtocol = PortProtocol.TCP
    host_ip: str = ""


@dataclass(frozen=True, slots=True)
class DNSConfig:
    """What goes into the pod's resolv.conf; all empty means "as the host has it"."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What a caller asks of a sandbox: CRI ``PodSandboxConfig`` without its protobuf."""

    name: str
    uid: str
    namespace: str
    attempt: int = 0
    hostname: str = ""
    log_directory: str = ""
    dns: DNSConfig | None = None
    port_mappings: tuple[PortMapping, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    cgroup_parent: str = ""
    sysctls: Mapping[str, str] = field(default_factory=dict)
    security: Security = Security()
    overhead: Resources = Resources()
    resources: Resources = Resources()
    runtime_handler: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """What a caller asks of a container: CRI ``ContainerConfig`` without its protobuf."""

    name: str
    attempt: int = 0
    image: str = ""
    user_specified_image: str = ""
    image_runtime_handler: str = ""
    image_annotations: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    envs: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    resources: Resources = Resources()
    security: Security = Security()
    stop_signal: str = ""


@dataclass(frozen=True, slots=True)
class User:
    """Who the container's process is, resolved against the image's own passwd and group files."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()
    home: str = "/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What to execute: final argv, environment (``KEY=value``), absolute working directory, user."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: User


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespaces:
    """Paths of the namespaces to join. ``None`` is the host's own; ``""`` asks the engine for a new one.

    Those of a pod with a ``user`` namespace belong to it; a new one is to as well. Its ids are in the specs.
    """

    network: str | None
    ipc: str | None
    uts: str | None
    pid: str | None
    user: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerSettings:
    """What a pod's runtime handler says about its containers in place of the engine's own settings.

    ``seccomp`` is the profile (JSON) that RUNTIME_DEFAULT means; empty: the engine's. ``host_devices`` says whether a
    privileged container has every device of the host.
    """

    seccomp: str = ""
    host_devices: bool = True


NO_SETTINGS = HandlerSettings()


class HookStage(StrEnum):
    """When a hook runs (OCI runtime spec, "POSIX-platform Hooks"); the value is the key in ``hooks``."""

    PRESTART = "prestart"
    CREATE_RUNTIME = "createRuntime"
    CREATE_CONTAINER = "createContainer"
    START_CONTAINER = "startContainer"
    POSTSTART = "poststart"
    POSTSTOP = "poststop"


@dataclass(frozen=True, slots=True)
class Hook:
    """A program run at a point of a container's life. ``timeout`` in seconds, 0 where none was given.

    ``args`` begin with the program's name for itself; ``env`` (``KEY=value``) empty means the engine's own.
    """

    stage: HookStage
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEdit:
    """A device node to add. ``None``, and an empty ``kind`` (else b, c, u or p), mean: as the one on the host has it.

    Where even the owner is not given, the node belongs to the container's user. ``permissions`` may be empty.
    """

    path: str
    host_path: str
    kind: str = ""
    major: int | None = None
    minor: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    permissions: str = "rwm"


@dataclass(frozen=True, slots=True)
class MountEdit:
    """A mount in the words of the OCI runtime spec, taken as it is."""

    destination: str
    source: str
    kind: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RdtEdit:
    """The resctrl class a container is put into (OCI ``linux.intelRdt``)."""

    clos_id: str = ""
    l3_cache_schema: str = ""
    mem_bw_schema: str = ""
    schemata: tuple[str, ...] = ()
    monitoring: bool = False


@dataclass(frozen=True, slots=True)
class NetDeviceEdit:
    """A network interface of the host's that is moved into the pod, and its name there."""

    host_name: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """What devices add to a container, besides what was asked for by itself (CDI ``containerEdits``)."""

    env: tuple[str, ...] = ()
    nodes: tuple[NodeEdit, ...] = ()
    mounts: tuple[MountEdit, ...] = ()
    hooks: tuple[Hook, ...] = ()
    additional_gids: tuple[int, ...] = ()
    rdt: RdtEdit | None = None
    net_devices: tuple[NetDeviceEdit, ...] = ()

    def __bool__(self) -> bool:
        return self != NO_EDITS


NO_EDITS = Edits()


@dataclass(frozen=True, slots=True)
class DeviceRate:
    """A weight or a rate (bytes or operations a second) for one block device."""

    major: int
    minor: int
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockIO:
    """Limits of block I/O. ``weight`` (10 to 1000, 0: none) is for every device that ``weights`` does not name."""

    weight: int = 0
    weights: tuple[DeviceRate, ...] = ()
    read_bps: tuple[DeviceRate, ...] = ()
    write_bps: tuple[DeviceRate, ...] = ()
    read_iops: tuple[DeviceRate, ...] = ()
    write_iops: tuple[DeviceRate, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPlan:
    """Everything an engine needs to create one container. All paths are absolute host paths.

    ``bundle`` is a directory of the container's own (config, pid file, control fifo); ``rootfs`` is mounted and ready;
    ``pod_mounts`` are ForgeOne's own (hosts, hostname, resolv.conf, shm); ``cgroup`` is the path of the container's
    cgroup below each hierarchy's root (``/kubepods/pod1/<id>``, or ``slice:forgeone:<id>`` with the systemd driver).
    ``handler`` are the settings of its pod's runtime handler.
    ``edits`` is what its devices bring with them, and ``pod_annotations`` are those of its pod. ``rdt_class`` names a
    resctrl group; empty where none was asked for. ``image_id`` is the image it was made from, and ``module`` where the
    WebAssembly module of an image that is nothing else lies in ``rootfs``: ``process.args`` are its arguments whatever
    the first of them says. Empty for other images, whose first argument names what to run. ``watched`` says that the
    engine is to count the calls of a guest to its host, where it can.
    """

    container_id: str
    sandbox_id: str
    bundle: str
    rootfs: str
    exits: str
    log_path: str
    hostname: str
    cgroup: str
    process: Process
    namespaces: Namespaces
    pod_mounts: tuple[Mount, ...]
    spec: ContainerSpec
    handler: HandlerSettings = NO_SETTINGS
    edits: Edits = NO_EDITS
    pod_annotations: Mapping[str, str] = field(default_factory=dict)
    blockio: BlockIO | None = None
    rdt_class: str = ""
    selinux: SELinuxLabels = SELinuxLabels()
    image_id: str = ""
    module: str = ""
    watched: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlan:
    """An image of this node that an engine may get ready for.

    ``layers`` are the directories of its unpacked layers, lowest first, never to be written to. ``args`` is what a
    container of it runs where nothing else is asked for, and ``module`` as in :class:`ContainerPlan`. ``rootfs`` is
    where they are mounted together while this is asked; empty: nowhere.
    """

    image_id: str
    layers: tuple[str, ...]
    args: tuple[str, ...]
    module: str = ""
    rootfs: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPlan:
    """Everything an engine needs to prepare a sandbox. ``directory`` is the sandbox's own state directory.

    ``sysctls`` are all that its namespaces have: the node's for every pod, and its own. ``restricted`` says that its
    packets are held to rules in its network namespace, so that each has to pass the kernel there.
    """

    sandbox_id: str
    directory: str
    hostname: str
    cgroup: str
    namespaces: Namespaces
    shares_pid: bool
    spec: SandboxSpec
    sysctls: Mapping[str, str] = field(default_factory=dict)
    restricted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """How an engine finds a container again: nothing that could not be rebuilt from the id."""

    container_id: str
    sandbox_id: str
    bundle: str
    exits: str
    cgroup: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a container uses, as a kernel of its pod's own counts it.

    ``files`` are those of its cgroup (v2) by name, with their text. Its device numbers are that kernel's.
    ``processes`` are processes, not threads. ``layer_bytes`` and ``layer_inodes`` are of what it has written, the
    others of ``layer_*`` of the room there is. ``open_files`` is the first process's soft limit of ``descriptors``.
    """

    files: Mapping[str, str]
    processes: int
    layer_bytes: int
    layer_inodes: int
    descriptors: int | None = None
    sockets: int | None = None
    open_files: int | None = None
    layer_size: int | None = None
    layer_inodes_total: int | None = None
    layer_inodes_free: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One look at a machine that a pod has of its own.

    ``cgroup`` is where everything of it is on the host (as in :class:`ContainerPlan`), its guest's memory and all that
    keeps it running; ``containers`` are those it tells of, by id.
    """

    cgroup: str
    containers: Mapping[str, Measured]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What is known of the containers of a pod that has none yet.

    ``watched``: their calls are to be counted. ``classes``: they are in RDT or block I/O classes.
    """

    watched: bool = False
    classes: bool = False


class LiveState(StrEnum):
    """What the kernel, not the database, says about a container."""

    MISSING = "missing"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Live:
    """A look at a container as it is now; ``pid`` is its first process on the host, 0 when there is none."""

    state: LiveState
    pid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Imprint:
    """What an engine has made of a plan, as it lies in the container's bundle now.

    ``version`` names the programs that run it and their versions. ``seal`` is the digest of the file that says what
    will run: another one later means that somebody has changed it. ``seccomp`` is the digest of the filter the
    container runs under, empty: none; ``capabilities`` are those it can ever have; ``facts`` is what else decides.
    """

    version: str
    seal: str
    seccomp: str = ""
    apparmor: str = ""
    capabilities: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a container ended, where its engine knows more than the exit code: CRI ``reason`` and ``message``."""

    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a container's life, in the words of the lifecycle; ``at`` in nanoseconds since the epoch."""

    at: int
    before: str
    event: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What a container may know of how it is known: digests (``sha256:`` and 64 digits), empty where there is none.

    ``entropy`` in bits; ``score`` 0 to 100.
    """

    fingerprint: str = ""
    contract: str = ""
    entropy: int = 0
    score: int = 0


@dataclass(frozen=True, slots=True)
class HostCall:
    """One call that a guest made to its host, in words; ``number`` counts from 1.

    ``at`` in nanoseconds since the epoch. ``duration`` in nanoseconds, ``None`` where it was not measured. ``result``
    is ``None`` where the call has not returned: the guest ended in it.
    """

    number: int
    at: int
    duration: int | None
    interface: str
    function: str
    arguments: tuple[str, ...]
    result: str | None


@dataclass(frozen=True, slots=True)
class HostCalls:
    """Calls in their order. ``lost`` before or among them were not kept; ``next`` is where to go on."""

    calls: tuple[HostCall, ...]
    lost: int
    next: int


@dataclass(frozen=True, slots=True)
class HostCount:
    """How often a guest has called one function of its host's, ``INTERFACE FUNCTION``."""

    name: str
    count: int


@dataclass(frozen=True, slots=True)
class ExecResult:
    """Outcome of a synchronous exec; each stream is capped, ``truncated`` says that some was dropped."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Stdio:
    """Which streams of a process a client wants; with a terminal its errors come with its output."""

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    tty: bool = False


class Output(StrEnum):
    """Which stream a process wrote to."""

    STDOUT = "stdout"
    STDERR = "stderr"


class Console(Protocol):
    """The streams of a process in a client's hands. Nothing blocks; one thread uses it; descriptors are for poll(2)."""

    @property
    def readers(self) -> tuple[int, ...]:
        """Descriptors that become readable when there is output; one that has ended is not among them."""

    @property
    def writer(self) -> int:
        """The descriptor that becomes writable when input is taken, -1 when none is taken (any more)."""

    @property
    def exited(self) -> int:
        """A descriptor that becomes readable when the process has exited, -1 where only the end of output tells."""

    def read(self, fd: int) -> tuple[Output, bytes] | None:
        """What is there on one of :attr:`readers`; ``None`` when nothing is; no bytes: this one has ended."""

    def write(self, data: bytes) -> int:
        """How much of ``data`` was taken as input: 0 when nothing is taken now, all when nobody reads any more."""

    def end_input(self) -> None:
        """The process sees the end of its input; again is no error."""

    def resize(self, width: int, height: int) -> None:
        """The client's terminal has ``width`` columns and ``height`` rows; no error without a terminal."""

    def finish(self) -> int:
        """The exit code of a process that has exited (0 for an attachment); raises the ForgeError of one that never
        started."""

    def close(self) -> None:
        """Let go: an executed process that still runs is killed, a container is left as it is. Again is no error."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something this host lacks: what, why it matters, and the command that mends it (empty: none known).

    ``fatal``: no pod of this node can run; ``unusable``: none of the engine that tells this can, others' do.
    """

    what: str
    why: str
    fix: str = ""
    fatal: bool = True
    unusable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What an engine can do, as the CRI ``RuntimeHandlerFeatures`` and ``RuntimeFeatures`` ask.

    ``own_kernel`` says that a pod has a kernel of its own: what its containers use is asked by :meth:`Engine.measured`,
    its ports are reached by :meth:`Engine.dial`, and the host's kernel does not see what it sends and gets.
    """

    recursive_read_only_mounts: bool = False
    user_namespaces: bool = False
    user_namespaces_host_network: bool = False
    supplemental_groups_policy: bool = False
    mount_options: bool = False
    own_kernel: bool = False


class Engine(Protocol):
    """An isolation engine. Every method blocks, is safe to call from many threads and to repeat after a crash."""

    @property
    def name(self) -> str:
        """Short name: ``native``, ``wasm``, ``microvm``."""

    def features(self) -> Features:
        """What this engine supports on this host."""

    def problems(self) -> list[Problem]:
        """What this host lacks for the engine to work."""

    def check(self, settings: HandlerSettings) -> None:
        """Whether the settings of a handler can be used; InvalidInput says why not."""

    def reconfigure(self, config: Mapping[str, object]) -> Callable[[], tuple[str, ...]]:
        """What puts a configuration (as the engine was built with) in force for containers to come; it cannot fail.

        It returns the keys whose values are as before, but lead to something else now: a file with new content.
        InvalidInput where it cannot be used; nothing has changed then. What needs a restart is as it was.
        """

    def unfit(self, spec: SandboxSpec, expected: Expected) -> str:
        """Why no such pod, or none of its containers, can be had of this engine on any host; empty: nothing is known.

        Asked where an engine is chosen for a pod; user namespaces are told by :meth:`features`. Pure, and quick.
        """

    def prepare_sandbox(self, plan: SandboxPlan, deadline: Deadline) -> str:
        """Make what the sandbox needs beyond its namespaces; returns the path of a shared PID namespace or ``""``."""

    def connect_sandbox(self, plan: SandboxPlan, deadline: Deadline) -> None:
        """Its network namespace is attached now: whatever takes addresses and routes from there does so here.

        Called once after :meth:`prepare_sandbox`, and never for a pod on the host's network.
        """

    def sandbox_alive(self, plan: SandboxPlan) -> bool:
        """Whether what :meth:`prepare_sandbox` made still lives."""

    def sandbox_process(self, plan: SandboxPlan) -> Pidfd | None:
        """The process without which the sandbox is nothing any more, the caller's to close; ``None``: there is none."""

    def remove_sandbox(self, plan: SandboxPlan) -> None:
        """Undo :meth:`prepare_sandbox`; nothing to undo is no error."""

    def create(self, plan: ContainerPlan, deadline: Deadline) -> int:
        """Create the container, held before its first instruction; returns its first process's pid."""

    def start(self, handle: Handle, deadline: Deadline) -> None:
        """Let the created container run."""

    def kill(self, handle: Handle, signal: int, *, everything: bool = False) -> None:
        """Signal the first process, or every process of the container. A dead container is no error."""

    def delete(self, handle: Handle) -> None:
        """Kill what is left and forget the container. A missing container is no error."""

    def update(self, handle: Handle, resources: Resources) -> None:
        """Give the container these limits, all or none of them; what is not set stays as it is.

        The score for the OOM killer is given at creation alone. FailedPrecondition says why the kernel refuses.
        """

    def pause(self, handle: Handle, deadline: Deadline) -> None:
        """Stop every process of the container where it is; returns when none runs any more."""

    def resume(self, handle: Handle, settled: Deadline | None = None) -> None:
        """Let a paused container go on; one that is not paused, or has gone, is no error.

        A checkpoint that nobody waits for any more may pause it once more when it ends. With a deadline for it, this
        returns when that is over; InternalError says that it still is not.
        """

    def checkpoint(self, handle: Handle, images: str, deadline: Deadline) -> None:
        """Write the container's processes into the empty directory ``images``; they stay as they are.

        FailedPrecondition says what this host, or this container, lacks for it.
        """

    def restore(self, plan: ContainerPlan, images: str, deadline: Deadline) -> int:
        """Make the container with the processes of a checkpoint, running; returns its first process's pid.

        ``rootfs`` is as it was at the checkpoint. On any error nothing is left but the bundle's directory.
        """

    def look(self, handle: Handle) -> Live:
        """The container as the kernel sees it."""

    def exec_sync(self, handle: Handle, argv: tuple[str, ...], timeout: float | None, limit: int) -> ExecResult:
        """Run ``argv`` inside; ``timeout`` seconds (``None``: none) later it is killed and DeadlineExceeded raised.

        Each stream is capped at ``limit`` bytes.
        """

    def exec_console(self, handle: Handle, argv: tuple[str, ...], stdio: Stdio) -> Console:
        """Start ``argv`` inside and hand over its streams; they must be closed."""

    def attach_console(self, handle: Handle, stdio: Stdio) -> Console:
        """The streams of the container's first process from now on; they must be closed."""

    def reopen_log(self, handle: Handle) -> None:
        """Make the supervisor close its log file and open it anew."""

    def was_oom_killed(self, handle: Handle) -> bool:
        """Whether the kernel killed a process of this container for memory."""

    def told(self, handle: Handle, step: Step) -> None:
        """A step of the container's life, for an engine that lets its containers know; quick, and in order.

        After a restart of the daemon there is one more, without an event, that leads to where the container is.
        """

    def trusted(self, handle: Handle, trust: Trust) -> None:
        """How a container is known, for an engine that lets its containers know; quick. Of several calls the last
        counts."""

    def host_calls(self, handle: Handle, after: int, *, ended: bool) -> HostCalls:
        """The calls that its guest made to its host after number ``after``; of an ``ended`` one all there will be.

        FailedPrecondition where none are recorded, and why.
        """

    def host_counts(self, handle: Handle) -> tuple[HostCount, ...] | None:
        """How often its guest has called each function of its host's, in the order in which each was called first.

        ``None`` where that is not counted: a container that was not watched, or has no guest.
        """

    def measured(self, handles: Sequence[Handle], deadline: Deadline) -> Measurement | None:
        """What these containers of one pod use, in one look; ``None`` where the host's control groups tell it.

        A container that is not told of has gone. Where the machine does not answer there are none in it.
        """

    def dial(self, plan: SandboxPlan, port: int, deadline: Deadline) -> socket.socket | None:
        """A connection (a stream, ended each way by itself) to a port of the pod's loopback interface.

        ``None`` where the pod's network namespace leads there. FailedPrecondition says why there is none, as when
        nobody listens.
        """

    def imprint(self, handle: Handle) -> Imprint:
        """What was made of a container's plan; NotFound where there is no such container any more."""

    def seal(self, handle: Handle) -> str:
        """The same as :attr:`Imprint.seal`, and nothing else; NotFound where there is no such container any more."""

    def verdict(self, handle: Handle) -> Verdict | None:
        """Why an ended container ended, beyond its exit code; ``None`` where that is all. Ask before :meth:`delete`."""

    def prepare_image(self, image: ImagePlan, deadline: Deadline) -> None:
        """Make ready what containers of this image will need, so that none of them waits for it; may be repeated.

        A create does without. FailedPrecondition says why the image cannot be run.
        """

    def retain_images(self, ids: Collection[str]) -> None:
        """Forget what was made ready for other images than these. Running containers go on."""

    def close(self) -> None:
        """The daemon ends: let go of what only daemons need. Containers go on."""
