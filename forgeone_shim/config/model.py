"""ForgeOne's configuration as one typed model; the loader fills it from TOML, environment and flags.

A section that exists is a section that is valid: every constructor checks its values and raises
:class:`~forgeone_shim.errors.InvalidInput` naming the key (``network.bridge``) and what it may hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from forgeone_shim import texts
from forgeone_shim.config import checks
from forgeone_shim.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcConfig:
    """The CRI socket's server. ``max_connection_age_ms`` moves clients over at a hot reload (0: never)."""

    threads: int = 512
    max_connection_age_ms: int = 0
    max_message_bytes: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        checks.in_range("grpc.threads", self.threads, 1, 4096)
        checks.in_range("grpc.max_connection_age_ms", self.max_connection_age_ms, 0, 2**31 - 1)
        checks.in_range("grpc.max_message_bytes", self.max_message_bytes, 1024 * 1024, 2**31 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """Level: debug, info, warning or error. Format: json or console."""

    level: str = "info"
    format: str = "json"

    def __post_init__(self) -> None:
        checks.one_of("log.level", self.level, ("debug", "info", "warning", "error"))
        checks.one_of("log.format", self.format, ("json", "console"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryConfig:
    """Image pulls. ``config_path`` is a ``certs.d`` folder in containerd's format; times in seconds."""

    config_path: str = "/etc/forgeone/certs.d"
    max_concurrent_downloads: int = 4
    progress_timeout: float = 60.0
    keep_blobs: bool = False
    platform: str = ""
    auth_file: str = ""
    namespaced_auth_dir: str = ""

    def __post_init__(self) -> None:
        checks.absolute_path("registry.config_path", self.config_path)
        checks.in_range("registry.max_concurrent_downloads", self.max_concurrent_downloads, 1, 64)
        checks.in_range("registry.progress_timeout", self.progress_timeout, 0.1, 86400)
        checks.platform("registry.platform", self.platform)
        for key, path in (("auth_file", self.auth_file), ("namespaced_auth_dir", self.namespaced_auth_dir)):
            if path:
                checks.absolute_path(f"registry.{key}", path)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagesConfig:
    """Which packages may come here: those that a key of a directory signed, and ``unsigned`` ones or not."""

    trusted_keys: str = "/etc/forgeone/keys.d"
    unsigned: str = "deny"

    def __post_init__(self) -> None:
        checks.absolute_path("packages.trusted_keys", self.trusted_keys)
        checks.one_of("packages.unsigned", self.unsigned, ("deny", "allow"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignaturesConfig:
    """Who must stand behind images. Without a policy and without verifiers nothing is asked, and nothing read.

    ``verifiers_dir`` holds programs as containerd's ``bindir`` has them; ``verifier_timeout`` is in seconds for each.
    """

    policy: str = ""
    namespaces_dir: str = ""
    images_dir: str = ""
    notation: str = ""
    roots_dir: str = "/etc/forgeone/roots.d"
    unmatched: str = "deny"
    verifiers_dir: str = ""
    verifier_timeout: float = 10.0

    def __post_init__(self) -> None:
        for key in ("policy", "namespaces_dir", "images_dir", "notation", "verifiers_dir"):
            if path := getattr(self, key):
                checks.absolute_path(f"signatures.{key}", path)
        checks.absolute_path("signatures.roots_dir", self.roots_dir)
        checks.one_of("signatures.unmatched", self.unmatched, ("allow", "warn", "deny"))
        checks.in_range("signatures.verifier_timeout", self.verifier_timeout, 0.1, 3600)

    @property
    def policies(self) -> bool:
        """Whether there is any policy."""
        return bool(self.policy or self.namespaces_dir or self.images_dir or self.notation)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Which network pods get, and the built-in one: one bridge, one IPv4 and (unless empty) one IPv6 range.

    ``mode``: ``builtin``, ``cni``, or ``auto``: CNI where there is a configuration for it.
    """

    mode: str = "auto"
    bridge: str = "forge0"
    table: str = "forgeone"
    link_prefix: str = "fo"
    ipv4: str = "10.88.0.0/16"
    ipv6: str = "fd88:0:0:1::/64"
    mtu: int = 0
    masquerade: bool = True

    def __post_init__(self) -> None:
        checks.one_of("network.mode", self.mode, ("auto", "builtin", "cni"))
        checks.interface_name("network.bridge", self.bridge)
        checks.identifier("network.table", self.table)
        checks.interface_prefix("network.link_prefix", self.link_prefix)
        checks.subnet("network.ipv4", self.ipv4, version=4)
        if self.ipv6:
            checks.subnet("network.ipv6", self.ipv6, version=6)
        if self.mtu:
            # RFC 8200 section 5: a link that carries IPv6 has an MTU of at least 1280; RFC 791: 576 for IPv4.
            checks.in_range("network.mtu", self.mtu, 1280 if self.ipv6 else 576, 65535)


@dataclass(frozen=True, slots=True, kw_only=True)
class CniConfig:
    """Networks by CNI plugins. ``timeout`` is what one call of a plugin may take, in seconds."""

    conf_dir: str = "/etc/cni/net.d"
    bin_dirs: tuple[str, ...] = ("/opt/cni/bin", "/usr/lib/cni")
    max_conf_num: int = 1
    conf_template: str = ""
    ip_preference: str = "ipv4"
    in_process: bool = True
    timeout: float = 60.0

    def __post_init__(self) -> None:
        checks.absolute_path("cni.conf_dir", self.conf_dir)
        if not self.bin_dirs:
            raise InvalidInput("cni.bin_dirs", "is empty")
        for folder in self.bin_dirs:
            checks.absolute_path("cni.bin_dirs", folder)
            # CNI_PATH separates folders by it.
            if ":" in folder:
                raise InvalidInput("cni.bin_dirs", f"{folder!r} has a colon in it")
        checks.in_range("cni.max_conf_num", self.max_conf_num, 0, 64)
        if self.conf_template:
            checks.absolute_path("cni.conf_template", self.conf_template)
        checks.one_of("cni.ip_preference", self.ip_preference, ("ipv4", "ipv6", "cni"))
        checks.in_range("cni.timeout", self.timeout, 0.1, 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeConfig:
    """The native engine's programs (a name is looked up in PATH) and defaults."""

    crun: str = "crun"
    conmon: str = "conmon"
    init: str = "catatonit"
    cgroup_driver: str = "auto"
    seccomp_profile_root: str = ""
    seccomp_default_profile: str = ""
    log_size_max: int = 0
    log_rate: int = 0
    hooks_dirs: tuple[str, ...] = ()
    default_env: tuple[str, ...] = ()
    default_mounts: tuple[str, ...] = ()
    default_capabilities: tuple[str, ...] = ()
    default_ulimits: tuple[str, ...] = ()
    additional_devices: tuple[str, ...] = ()
    allowed_devices: tuple[str, ...] = ()
    device_ownership_from_security_context: bool = False
    cgroup_writable: str = "never"

    def __post_init__(self) -> None:
        for key, value in (("crun", self.crun), ("conmon", self.conmon), ("init", self.init)):
            checks.program(f"native.{key}", value)
        checks.one_of("native.cgroup_driver", self.cgroup_driver, ("auto", "cgroupfs", "systemd"))
        for key, path in (
            ("seccomp_profile_root", self.seccomp_profile_root),
            ("seccomp_default_profile", self.seccomp_default_profile),
        ):
            if path:
                checks.absolute_path(f"native.{key}", path)
        for key, bytes_ in (("log_size_max", self.log_size_max), ("log_rate", self.log_rate)):
            if bytes_:
                checks.in_range(f"native.{key}", bytes_, 64 * 1024, 2**62)
        checks.directories("native.hooks_dirs", self.hooks_dirs)
        checks.each("native.default_env", self.default_env, texts.variable)
        checks.each("native.default_mounts", self.default_mounts, texts.mount)
        checks.each("native.default_capabilities", self.default_capabilities, checks.capability)
        checks.each("native.default_ulimits", self.default_ulimits, texts.ulimit)
        checks.each("native.additional_devices", self.additional_devices, texts.device)
        checks.each("native.allowed_devices", self.allowed_devices, checks.absolute_path)
        checks.one_of("native.cgroup_writable", self.cgroup_writable, ("never", "annotation", "always"))


@dataclass(frozen=True, slots=True, kw_only=True)
class WasmConfig:
    """The wasm engine: what compiling a module may take (seconds, bytes), and its containers' logs."""

    compile_timeout: float = 300.0
    compile_memory: int = 2 * 1024 * 1024 * 1024
    log_size_max: int = 0
    log_rate: int = 0

    def __post_init__(self) -> None:
        checks.in_range("wasm.compile_timeout", self.compile_timeout, 1, 86400)
        checks.in_range("wasm.compile_memory", self.compile_memory, 256 * 1024 * 1024, 2**62)
        for key, bytes_ in (("log_size_max", self.log_size_max), ("log_rate", self.log_rate)):
            if bytes_:
                checks.in_range(f"wasm.{key}", bytes_, 64 * 1024, 2**62)


@dataclass(frozen=True, slots=True, kw_only=True)
class MicrovmConfig:
    """The microvm engine: what its machines boot, who watches over that, and what they are given.

    Sizes in bytes, times in seconds. ``boot_set``, ``kernel``, ``modules_dir`` and ``agent`` are looked for, or made,
    where they are empty.
    """

    vmm: str = "qemu"
    qemu: str = "qemu-system-x86_64"
    firecracker: str = "firecracker"
    cloud_hypervisor: str = "cloud-hypervisor"
    accel: str = "auto"
    boot_set: str = ""
    kernel: str = ""
    modules_dir: str = ""
    agent: str = ""
    boot_keys: str = "/etc/forgeone/boot.d"
    require_signed_boot: bool = False
    boot_timeout: float = 60.0
    memory: int = 256 * 1024 * 1024
    memory_overhead: int = 96 * 1024 * 1024
    vcpus_max: int = 0
    writable_layer: str = "memory"
    writable_layer_size: int = 0
    templates: bool = True
    reclaim: bool = True
    uid_base: int = 1_900_000_000
    log_size_max: int = 0
    log_rate: int = 0

    def __post_init__(self) -> None:
        checks.one_of("microvm.vmm", self.vmm, ("qemu", "firecracker", "cloud-hypervisor"))
        for key in ("qemu", "firecracker", "cloud_hypervisor"):
            checks.program(f"microvm.{key}", getattr(self, key))
        checks.one_of("microvm.accel", self.accel, ("auto", "kvm", "tcg"))
        for key in ("boot_set", "kernel", "modules_dir", "agent"):
            if path := getattr(self, key):
                checks.absolute_path(f"microvm.{key}", path)
                if self.boot_set and key != "boot_set":
                    raise InvalidInput(f"microvm.{key}", "is part of a boot set, and microvm.boot_set names one")
        checks.absolute_path("microvm.boot_keys", self.boot_keys)
        checks.in_range("microvm.boot_timeout", self.boot_timeout, 1, 3600)
        checks.in_range("microvm.memory", self.memory, 128 * 1024 * 1024, 2**46)
        checks.in_range("microvm.memory_overhead", self.memory_overhead, 32 * 1024 * 1024, 2**40)
        checks.in_range("microvm.vcpus_max", self.vcpus_max, 0, 255)
        checks.one_of("microvm.writable_layer", self.writable_layer, ("memory", "disk"))
        if self.vmm != "qemu":
            for key, value, only in (("accel", self.accel, "tcg"), ("writable_layer", self.writable_layer, "disk")):
                if value == only:
                    raise InvalidInput(f"microvm.{key}", f"{value!r} is what QEMU alone does, and vmm is {self.vmm!r}")
        if self.writable_layer_size:
            checks.in_range("microvm.writable_layer_size", self.writable_layer_size, 16 * 1024 * 1024, 2**46)
        # Each machine's monitor has one of the 65536 ids from here; 2**32 - 1 is no id.
        checks.in_range("microvm.uid_base", self.uid_base, 1, 2**32 - 1 - 65536)
        for key, bytes_ in (("log_size_max", self.log_size_max), ("log_rate", self.log_rate)):
            if bytes_:
                checks.in_range(f"microvm.{key}", bytes_, 64 * 1024, 2**62)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """How an engine is chosen for pods of the handler ``forgeone-auto``.

    ``order`` are the engines that they may have, the preferred ones first; pods with one of the trust labels
    ``isolate_labels`` have machines of their own.
    """

    order: tuple[str, ...] = ("native", "wasm", "microvm")
    isolate_labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.order:
            raise InvalidInput("scheduler.order", "is empty", fix="native, wasm, microvm")
        checks.no_blanks("scheduler.order", self.order)
        if len(set(self.order)) != len(self.order):
            raise InvalidInput("scheduler.order", "has an engine twice")
        checks.no_blanks("scheduler.isolate_labels", self.isolate_labels)
        if self.isolate_labels and "microvm" not in self.order:
            raise InvalidInput("scheduler.isolate_labels", "is met by microvm, which scheduler.order does not have")


@dataclass(frozen=True, slots=True, kw_only=True)
class CdiConfig:
    """Where devices are described (Container Device Interface); a later directory takes precedence."""

    spec_dirs: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")

    def __post_init__(self) -> None:
        checks.directories("cdi.spec_dirs", self.spec_dirs)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourcesConfig:
    """Classes of resources that pods choose by annotation. The file is goresctrl's, YAML or JSON; empty: none."""

    blockio_config_file: str = ""

    def __post_init__(self) -> None:
        if self.blockio_config_file:
            checks.absolute_path("resources.blockio_config_file", self.blockio_config_file)
            if not self.blockio_config_file.endswith((".yaml", ".json")):
                raise InvalidInput("resources.blockio_config_file", "must end with .yaml or .json")


@dataclass(frozen=True, slots=True, kw_only=True)
class SELinuxConfig:
    """Labels of containers. Mode: ``auto`` (where the host's policy has labels for containers) or ``off``."""

    mode: str = "auto"
    categories: int = 1024

    def __post_init__(self) -> None:
        checks.one_of("selinux.mode", self.mode, ("auto", "off"))
        checks.in_range("selinux.categories", self.categories, 2, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractConfig:
    """What pods may ask for and do. ``default_policy`` is for those without a contract; empty: what Kubernetes allows.

    ``issuers_dir`` holds the public keys of those whose signed contracts count. ``kubelet_dir`` is where the kubelet
    keeps the volumes of pods.
    """

    policies_dir: str = "/etc/forgeone/policies.d"
    default_policy: str = ""
    issuers_dir: str = "/etc/forgeone/issuers.d"
    kubelet_dir: str = "/var/lib/kubelet"

    def __post_init__(self) -> None:
        checks.absolute_path("contract.policies_dir", self.policies_dir)
        checks.absolute_path("contract.issuers_dir", self.issuers_dir)
        checks.absolute_path("contract.kubelet_dir", self.kubelet_dir)
        if self.default_policy:
            checks.policy_name("contract.default_policy", self.default_policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Policies that come from a cluster's API server. ``kubeconfig`` says how it is reached; empty: none do.

    ``required``: pods wait until all of its policies have come once. ``node_name`` is what the node is called in what
    it says there; empty: as the host is called.
    """

    kubeconfig: str = ""
    required: bool = False
    node_name: str = ""

    def __post_init__(self) -> None:
        if self.kubeconfig:
            checks.absolute_path("cluster.kubeconfig", self.kubeconfig)
        if self.node_name:
            checks.host_name("cluster.node_name", self.node_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """The audit log. ``keep`` is how many bytes of entries stay on the node, 0: all of them.

    ``on_damage``: ``refuse`` to start anything once the log was found damaged, until somebody has accepted that, or
    ``report`` it only. ``arguments``: the arguments of commands run in containers are logged, not their hash alone.
    """

    keep: int = 1024 * 1024 * 1024
    on_damage: str = "refuse"
    arguments: bool = False

    def __post_init__(self) -> None:
        if self.keep:
            checks.in_range("audit.keep", self.keep, 1024 * 1024, 2**62)
        checks.one_of("audit.on_damage", self.on_damage, ("refuse", "report"))


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingConfig:
    """Where clients stream exec, attach and port-forward through; port 0 is any free one, ``idle_timeout`` in seconds.

    With a certificate (a PEM file, its key in it or in another; read for each connection) clients come by TLS.
    """

    address: str = "127.0.0.1"
    port: int = 0
    tls_cert_file: str = ""
    tls_key_file: str = ""
    idle_timeout: float = 4 * 3600.0
    max_sessions: int = 1024

    def __post_init__(self) -> None:
        checks.ip_address("streaming.address", self.address)
        checks.in_range("streaming.port", self.port, 0, 65535)
        for key, value in (("tls_cert_file", self.tls_cert_file), ("tls_key_file", self.tls_key_file)):
            if value:
                checks.absolute_path(f"streaming.{key}", value)
        checks.in_range("streaming.idle_timeout", self.idle_timeout, 1, 31 * 86400)
        checks.in_range("streaming.max_sessions", self.max_sessions, 1, 65536)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """Where Prometheus reads what the node knows: ``ADDRESS:PORT`` (an IPv6 address in brackets); empty: nowhere.

    With a certificate (PEM files, read for each connection) clients come by TLS, and with ``client_ca_file`` only those
    whose certificate it vouches for.
    """

    address: str = ""
    tls_cert_file: str = ""
    tls_key_file: str = ""
    client_ca_file: str = ""

    def __post_init__(self) -> None:
        if self.address:
            checks.endpoint("metrics.address", self.address)
        for key in ("tls_cert_file", "tls_key_file", "client_ca_file"):
            if path := getattr(self, key):
                checks.absolute_path(f"metrics.{key}", path)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamConfig:
    """Another CRI runtime of this node, for pods whose handler ForgeOne has not. ``socket``: its path; empty: none.

    ``default_runtime`` is who runs the pods that name no handler: ``upstream`` or ``forgeone``.
    """

    socket: str = ""
    default_runtime: str = "upstream"

    def __post_init__(self) -> None:
        if self.socket:
            checks.socket_path("upstream.socket", self.socket)
        checks.one_of("upstream.default_runtime", self.default_runtime, ("upstream", "forgeone"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything forgeoned reads at start. Paths are absolute."""

    root: str = "/var/lib/forgeone"
    state: str = "/run/forgeone"
    socket: str = "/run/forgeone/forgeone.sock"
    socket_gid: int = 0
    cgroup_root: str = "/forgeone"
    pinned_images: tuple[str, ...] = ()
    # Unprivileged pods may bind low ports and ping inside a network namespace that is theirs alone.
    default_sysctls: tuple[str, ...] = (
        "net.ipv4.ip_unprivileged_port_start=0",
        "net.ipv4.ping_group_range=0 2147483647",
    )
    handlers_dir: str = "/etc/forgeone/handlers.d"
    grpc: GrpcConfig = field(default_factory=GrpcConfig)
    log: LogConfig = field(default_factory=LogConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    packages: PackagesConfig = field(default_factory=PackagesConfig)
    signatures: SignaturesConfig = field(default_factory=SignaturesConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    cni: CniConfig = field(default_factory=CniConfig)
    native: NativeConfig = field(default_factory=NativeConfig)
    wasm: WasmConfig = field(default_factory=WasmConfig)
    microvm: MicrovmConfig = field(default_factory=MicrovmConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    cdi: CdiConfig = field(default_factory=CdiConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    selinux: SELinuxConfig = field(default_factory=SELinuxConfig)
    contract: ContractConfig = field(default_factory=ContractConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    streaming: StreamingConfig = field(default_factory=StreamingConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    upstream: UpstreamConfig = field(default_factory=UpstreamConfig)

    def __post_init__(self) -> None:
        checks.absolute_path("root", self.root)
        checks.absolute_path("state", self.state)
        checks.apart("root", self.root, "state", self.state)
        checks.socket_path("socket", self.socket)
        checks.in_range("socket_gid", self.socket_gid, 0, 2**32 - 2)
        checks.absolute_path("cgroup_root", self.cgroup_root)
        checks.no_blanks("pinned_images", self.pinned_images)
        texts.parameters("default_sysctls", self.default_sysctls)
        checks.absolute_path("handlers_dir", self.handlers_dir)
        if self.upstream.socket == self.socket:
            raise InvalidInput("upstream.socket", f"{self.socket!r} is ForgeOne's own", fix="name the other runtime's")
