"""ForgeOne's configuration as one typed model; the loader fills it from TOML, environment and flags.

The string below a field is what ``docs/configuration.md`` says of it, and the docstring of a section what stands above
its keys: ``make reference`` writes the page. Links in them are the page's.

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
    """The server of the CRI socket."""

    threads: int = 512
    """Calls served at a time, 1 to 4096. A stop holds one for its grace period, so this is more than pods end at a
    time.
    """
    max_connection_age_ms: int = 0
    """After so long clients are moved to a new connection, and so to a new forgeoned on the same path. 0: never."""
    max_message_bytes: int = 16 * 1024 * 1024
    """The largest message taken and sent, at least 1 MiB."""

    def __post_init__(self) -> None:
        checks.in_range("grpc.threads", self.threads, 1, 4096)
        checks.in_range("grpc.max_connection_age_ms", self.max_connection_age_ms, 0, 2**31 - 1)
        checks.in_range("grpc.max_message_bytes", self.max_message_bytes, 1024 * 1024, 2**31 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """What forgeoned writes to standard error."""

    level: str = "info"
    """`debug`, `info`, `warning` or `error`."""
    format: str = "json"
    """`json`, a line an event; or `console`, for people."""

    def __post_init__(self) -> None:
        checks.one_of("log.level", self.level, ("debug", "info", "warning", "error"))
        checks.one_of("log.format", self.format, ("json", "console"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryConfig:
    """How images are pulled."""

    config_path: str = "/etc/forgeone/certs.d"
    """Folder of `<host>/hosts.toml` files in containerd's format; see [operating](operate.md#registries)."""
    max_concurrent_downloads: int = 4
    """Layers of one image that are downloaded at a time, 1 to 64."""
    progress_timeout: float = 60.0
    """Seconds without a byte after which a pull fails."""
    keep_blobs: bool = False
    """Keep compressed layers beside the unpacked ones, which `forge images export` needs; a pull then brings those of
    layers that are here already.
    """
    platform: str = ""
    """`os/architecture[/variant]` to choose from an index; empty: this host's."""
    auth_file: str = ""
    """Credentials for pulls that bring none, in the format of Docker's `config.json`; readable by its owner alone."""
    namespaced_auth_dir: str = ""
    """Directory of such files, `NAMESPACE.json`: for the images of pods in that Kubernetes namespace, before
    `auth_file`.
    """

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
    """Who may send [packages](packages.md) here. Nothing of one is unpacked before it has been verified."""

    trusted_keys: str = "/etc/forgeone/keys.d"
    """Directory of public keys (`*.pem`, `*.pub`: Ed25519, or ECDSA on P-256). It need not be there; a file that cannot
    be used, that is not root's, or that others can write, makes every signature count for nothing until it is mended.
    """
    unsigned: str = "deny"
    """`allow` takes packages that no trusted key signed, too. A signature that is not over the package it comes with is
    refused all the same.
    """

    def __post_init__(self) -> None:
        checks.absolute_path("packages.trusted_keys", self.trusted_keys)
        checks.one_of("packages.unsigned", self.unsigned, ("deny", "allow"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignaturesConfig:
    """Who must stand behind images: the [page about signatures](signatures.md) has the formats. With none of the first
    four and no `verifiers_dir` nothing is asked. The files are read at the start and at each reload; one that cannot be
    used refuses all of them: forgeoned does not start, or keeps what it had. All must be such that only root can have
    written them.
    """

    policy: str = ""
    """A policy in the format of containers-policy.json(5)."""
    namespaces_dir: str = ""
    """Directory of such files, `NAMESPACE.json`: in place of `policy` for the images of pods in that Kubernetes
    namespace.
    """
    images_dir: str = ""
    """Directory of `ClusterImagePolicy` documents (`*.yaml`, `*.json`)."""
    notation: str = ""
    """A trust policy of the Notary Project (`trustpolicy.json`)."""
    roots_dir: str = "/etc/forgeone/roots.d"
    """Trusted roots for signatures without keys, and the Notary Project's trust stores. It need not be there."""
    unmatched: str = "deny"
    """What becomes of an image that no policy is about, where there is one: `allow`, `warn` or `deny`."""
    verifiers_dir: str = ""
    """Directory of programs that are asked about each image, as containerd has them; all must agree. An empty one
    refuses every image.
    """
    verifier_timeout: float = 10.0
    """Seconds that each of them may take, 0.1 to 3600."""

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
    """Which network pods get, and the built-in one.

    Several forgeoned on one host need names and ranges of their own.
    """

    mode: str = "auto"
    """`builtin`: the built-in network. `cni`: what `[cni]` says. `auto`: CNI as soon as `cni.conf_dir` holds a network
    configuration, be it a bad one, or `cni.conf_template` is set; else the built-in one. Pods keep the network they
    were attached to.
    """
    bridge: str = "forge0"
    """The bridge, made when the first pod needs it; at most 15 characters."""
    table: str = "forgeone"
    """The nftables table, of kind `inet`."""
    link_prefix: str = "fo"
    """Begins the name of each pod's link on the host; at most 7 characters."""
    ipv4: str = "10.88.0.0/16"
    """Range of the pods' IPv4 addresses."""
    ipv6: str = "fd88:0:0:1::/64"
    """Range of their IPv6 addresses; empty: none."""
    mtu: int = 0
    """MTU of the pods' interfaces, at least 1280 (576 without IPv6). 0: that of the host's default route."""
    masquerade: bool = True
    """Give pods the host's address when they talk to the world outside."""

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
    """Networks by [CNI](https://www.cni.dev) plugins; see [operating](operate.md#networks)."""

    conf_dir: str = "/etc/cni/net.d"
    """Folder of network configurations (`.conflist`, `.conf`, `.json`), watched: a change counts for the next pod. It
    need not exist yet. A runtime handler may have another one.
    """
    bin_dirs: tuple[str, ...] = ("/opt/cni/bin", "/usr/lib/cni")
    """Folders to look for plugins in, in this order."""
    max_conf_num: int = 1
    """How many of the folder's configurations, in the order of their names, each pod is attached to; 0: all. The first
    is `eth0` and has the pod's addresses.
    """
    conf_template: str = ""
    """Template of a configuration that is written to the folder when the kubelet tells the node's range of pod
    addresses, unless another one is there.
    """
    ip_preference: str = "ipv4"
    """Which of a pod's addresses is its first: `ipv4`, `ipv6`, or `cni`, the order of the plugin's result. Counts for
    the built-in network as well.
    """
    in_process: bool = True
    """Do what the well-known plugins do within forgeoned where it does just the same; `false`: execute every plugin."""
    timeout: float = 60.0
    """Seconds one call of a plugin may take before it is killed, 0.1 to 3600."""

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
    """The engine that runs containers with crun under conmon."""

    crun: str = "crun"
    """The OCI runtime: a path, or a name looked up in `PATH`."""
    conmon: str = "conmon"
    """The supervisor beside each container."""
    init: str = "catatonit"
    """First process of a PID namespace that a pod's containers share."""
    cgroup_driver: str = "auto"
    """`systemd`, `cgroupfs`, or `auto`: systemd's where systemd runs. The kubelet is told over CRI."""
    seccomp_profile_root: str = ""
    """Directory that seccomp profiles of the type Localhost must be in, wherever symlinks lead. Empty: anywhere, as the
    kubelet sends absolute paths below its own root directory.
    """
    seccomp_default_profile: str = ""
    """The seccomp profile that RuntimeDefault means, a JSON file in the format of the OCI or of those that other
    engines ship (`archMap`, `includes`, `excludes`). Anything in it that is not understood is an error. Empty:
    ForgeOne's own.
    """
    log_size_max: int = 0
    """Bytes a container's log file may grow to, at least 65536; 0: no end. A file at its limit is begun anew and what
    it held is lost: give it well above the kubelet's `containerLogMaxSize`, for what is written faster than a kubelet
    looks.
    """
    log_rate: int = 0
    """Bytes a second that a container may log, at least 65536; 0: as many as it writes. Nothing is lost: who writes
    faster waits. Costs each container that has a log one more process, of some 6 MB.
    """
    hooks_dirs: tuple[str, ...] = ()
    """Directories of hook definitions, see [operating](operate.md#hooks); files of a later one replace those of the
    same name. Others look into `/usr/share/containers/oci/hooks.d` unasked: here nothing is run as root that was not
    named.
    """
    default_env: tuple[str, ...] = ()
    """Variables `NAME=value` of every container that says nothing else of them, nor its image."""
    default_mounts: tuple[str, ...] = ()
    """Bind mounts of every container, `/on/the/host:/in/the/container`, with `:ro` after it for one that cannot be
    written to. A container's own mount at the same place wins.
    """
    default_capabilities: tuple[str, ...] = ()
    """Capabilities of a container before those it adds and drops; empty: CHOWN, DAC_OVERRIDE, FSETID, FOWNER, MKNOD,
    NET_RAW, SETGID, SETUID, SETFCAP, SETPCAP, NET_BIND_SERVICE, SYS_CHROOT, KILL, AUDIT_WRITE.
    """
    default_ulimits: tuple[str, ...] = ()
    """Limits of every process, `nofile=1024:2048` (soft and hard) or `core=0` (both); -1 is none. What is not named is
    as forgeoned's own, which the systemd unit sets. Without CAP_SYS_RESOURCE no limit can be above forgeoned's.
    """
    additional_devices: tuple[str, ...] = ()
    """Devices that every container has: `/dev/fuse`, `/dev/fuse:rw`, or `/dev/sdc:/dev/xvdc:rwm`."""
    allowed_devices: tuple[str, ...] = ()
    """Devices of the host that a pod gets by naming them in the annotation [`forgeone.dev/devices`](annotations.md).
    `/dev/kmsg:r` is offered with no more than that.
    """
    device_ownership_from_security_context: bool = False
    """Devices that were asked for belong to the container's `runAsUser` and `runAsGroup`, where these are given and not
    0, rather than to their owners on the host.
    """
    cgroup_writable: str = "never"
    """Which containers can write to their cgroup (v2 alone, mounted with `nsdelegate` as systemd does, as they could
    lift their own limits otherwise): `never` any; those of pods with the annotation
    [`forgeone.dev/cgroup-writable`](annotations.md) (`annotation`); `always` all, but where that says `false`.
    """

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
    """The engine that runs WebAssembly modules and components. It makes its control groups as `native.cgroup_driver`
    says, and takes seccomp profiles of the type Localhost from where `native.seccomp_profile_root` says.
    """

    compile_timeout: float = 300.0
    """Seconds that compiling a module may take, 1 to 86400."""
    compile_memory: int = 2 * 1024 * 1024 * 1024
    """Bytes of memory that compiling a module may take, at least 256 MiB; up to four are compiled at a time. A
    component of 18 MB with CPython in it takes 400 MB.
    """
    log_size_max: int = 0
    """As `native.log_size_max`."""
    log_rate: int = 0
    """As `native.log_rate`; costs no further process."""

    def __post_init__(self) -> None:
        checks.in_range("wasm.compile_timeout", self.compile_timeout, 1, 86400)
        checks.in_range("wasm.compile_memory", self.compile_memory, 256 * 1024 * 1024, 2**62)
        for key, bytes_ in (("log_size_max", self.log_size_max), ("log_rate", self.log_rate)):
            if bytes_:
                checks.in_range(f"wasm.{key}", bytes_, 64 * 1024, 2**62)


@dataclass(frozen=True, slots=True, kw_only=True)
class MicrovmConfig:
    """The engine that runs each pod in a virtual machine of its own; see [its page](microvm.md). It makes its control
    groups as `native.cgroup_driver` says, and takes seccomp profiles of the type Localhost from where
    `native.seccomp_profile_root` says.
    """

    vmm: str = "qemu"
    """The virtual machine monitor: `qemu`, `firecracker` or `cloud-hypervisor`. The last two [need KVM, and do
    less](microvm.md#other-monitors).
    """
    qemu: str = "qemu-system-x86_64"
    """QEMU: a path, or a name looked up in `PATH`."""
    firecracker: str = "firecracker"
    """The same of Firecracker."""
    cloud_hypervisor: str = "cloud-hypervisor"
    """The same of Cloud Hypervisor."""
    accel: str = "auto"
    """What executes a guest's instructions: `kvm`; `tcg`, which is QEMU's emulator and needs no support of the host; or
    `auto`: KVM where a guest was seen to boot by it, else TCG.
    """
    boot_set: str = ""
    """Directory with what machines boot, as `forge microvm build --output-dir` makes it. Empty: it is put together
    below `root` from the next three.
    """
    kernel: str = ""
    """The guests' kernel: a `bzImage`, an ELF image with a PVH entry, or a Debian package that holds one with its
    modules. Empty: the bundle's, else the newest `/boot/vmlinuz-*` that has modules, else the package that `make setup`
    has fetched.
    """
    modules_dir: str = ""
    """Directory of its modules, with `modules.builtin`. Empty: `/lib/modules/` and the kernel's release."""
    agent: str = ""
    """The guests' first process, a static executable. Empty: the bundle's, else it is compiled from what ForgeOne
    brings, by `musl-gcc` or `gcc`.
    """
    boot_keys: str = "/etc/forgeone/boot.d"
    """Public keys (`*.pem`, `*.pub`) of those whose signed boot manifests count. Files that others than root could
    write are refused.
    """
    require_signed_boot: bool = False
    """Boot nothing but what a key of `boot_keys` has signed: kernel, initrd and command line."""
    boot_timeout: float = 60.0
    """Seconds that a machine may take from its start until its agent answers, 1 to 3600."""
    memory: int = 256 * 1024 * 1024
    """Bytes of memory of a machine whose pod has no limit, at least 128 MiB."""
    memory_overhead: int = 96 * 1024 * 1024
    """Bytes that a machine has beyond its pod's limit, for its kernel and agent, at least 32 MiB."""
    vcpus_max: int = 0
    """The most virtual CPUs of a machine, up to 255; 0: as many as the host has."""
    writable_layer: str = "memory"
    """Where the files are that a container writes into its root: the machine's `memory`, or a `disk` of its own."""
    writable_layer_size: int = 0
    """How many bytes of them there may be, at least 16 MiB; 0: half of the machine's memory, or 10 GiB of disk."""
    templates: bool = True
    """Machines are cloned from one that has booted, which takes tens of milliseconds. `false`: each boots."""
    reclaim: bool = True
    """Memory that a guest does not use any more goes back to the host."""
    uid_base: int = 1_900_000_000
    """Monitors run as the 65536 user and group ids from here on, which nothing else on the host may use."""
    log_size_max: int = 0
    """As `native.log_size_max`."""
    log_rate: int = 0
    """As `native.log_rate`; costs no further process."""

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
    """Which [engine](auto.md) runs the pods of the handler `forgeone-auto`."""

    order: tuple[str, ...] = ("native", "wasm", "microvm")
    """The engines that they may have, the preferred ones first. One that is not in it is never chosen: a pod whose
    contract demands it is denied. One of ForgeOne's own that is not installed is passed over; any other
    name is refused.
    """
    isolate_labels: tuple[str, ...] = ()
    """Trust labels, as contracts and policies have them, whose pods have virtual machines of their own, or are denied.
    """

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
    """Devices that vendors describe: the [Container Device
    Interface](https://github.com/cncf-tags/container-device-interface), versions 0.3.0 to 1.1.0, in JSON or YAML; see
    [operating](operate.md#devices-of-vendors).
    """

    spec_dirs: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")
    """Where the files `*.json` and `*.yaml` are. A later directory takes precedence. Seen as they are whenever a
    container names a device.
    """

    def __post_init__(self) -> None:
        checks.directories("cdi.spec_dirs", self.spec_dirs)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourcesConfig:
    """Classes of resources that pods choose by annotation."""

    blockio_config_file: str = ""
    """Classes of block I/O that [annotations](annotations.md) choose from: a file of goresctrl's, ending in `.yaml` or
    `.json`; see [operating](operate.md#classes-of-resources). Read again when it has changed. Empty: none.
    """

    def __post_init__(self) -> None:
        if self.blockio_config_file:
            checks.absolute_path("resources.blockio_config_file", self.blockio_config_file)
            if not self.blockio_config_file.endswith((".yaml", ".json")):
                raise InvalidInput("resources.blockio_config_file", "must end with .yaml or .json")


@dataclass(frozen=True, slots=True, kw_only=True)
class SELinuxConfig:
    """SELinux labels of containers."""

    mode: str = "auto"
    """`auto`: containers are labelled where SELinux is on and its policy has labels for them (`lxc_contexts`); or
    `off`. See [operating](operate.md#selinux).
    """
    categories: int = 1024
    """Each pod has two categories of so many that no other pod has, 2 to 1024."""

    def __post_init__(self) -> None:
        checks.one_of("selinux.mode", self.mode, ("auto", "off"))
        checks.in_range("selinux.categories", self.categories, 2, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractConfig:
    """What pods may ask for and do: their contracts, and this node's [policies](policies.md)."""

    policies_dir: str = "/etc/forgeone/policies.d"
    """Where the policies are, `*.yaml`, `*.yml` and `*.json`. A directory that is named here has to be there. Read at
    the start and at each reload; a file that cannot be used refuses all of them: forgeoned does not start, or keeps
    what it had. After a reload running containers are judged by the new ones.
    """
    default_policy: str = ""
    """The policy for pods whose contract names none. Empty: what Kubernetes allows. Floors apply whatever it is."""
    issuers_dir: str = "/etc/forgeone/issuers.d"
    """Public keys (`*.pem`, `*.pub`) of those whose signed contracts count. Files that others than root could write are
    refused.
    """
    kubelet_dir: str = "/var/lib/kubelet"
    """Where the kubelet keeps the volumes of pods (its `--root-dir`): by that a secret is told from a directory of the
    host.
    """

    def __post_init__(self) -> None:
        checks.absolute_path("contract.policies_dir", self.policies_dir)
        checks.absolute_path("contract.issuers_dir", self.issuers_dir)
        checks.absolute_path("contract.kubelet_dir", self.kubelet_dir)
        if self.default_policy:
            checks.policy_name("contract.default_policy", self.default_policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """[Policies of a cluster](policies.md#policies-of-a-cluster): ZTAPolicy objects of its API server, besides those of
    `contract.policies_dir`.
    """

    kubeconfig: str = ""
    """A kubeconfig file that says where the API server is and who asks, such as the kubelet's own
    `/etc/kubernetes/kubelet.conf`; root's alone. Its current context counts. Empty: no policies come from a cluster,
    and what came earlier is removed.
    """
    required: bool = False
    """Whether pods wait until all policies have come once: without them new ones are denied, but for static pods. Later
    the node has the last known ones, whatever becomes of the API server.
    """
    node_name: str = ""
    """What the node is called in what it says of policies that it cannot use. Empty: as the host is called."""

    def __post_init__(self) -> None:
        if self.kubeconfig:
            checks.absolute_path("cluster.kubeconfig", self.kubeconfig)
        if self.node_name:
            checks.host_name("cluster.node_name", self.node_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """The [audit log](audit.md). It is always on."""

    keep: int = 1024 * 1024 * 1024
    """Bytes of entries that stay on the node; the oldest are given up, which is an entry itself. `0`: all of them.
    Proofs of what stays, and that the log only grew, can be made all the same.
    """
    on_damage: str = "refuse"
    """What happens when the log is found cut, changed or rolled back at the start. It is moved aside and another one
    begun in any case. `refuse`: nothing starts until `forge audit accept`. `report`: it is a condition of Status only.
    """
    arguments: bool = False
    """Whether the arguments of commands that are run in containers are logged. They may hold secrets: by default only
    the program, their number and their hash are.
    """

    def __post_init__(self) -> None:
        if self.keep:
            checks.in_range("audit.keep", self.keep, 1024 * 1024, 2**62)
        checks.one_of("audit.on_damage", self.on_damage, ("refuse", "report"))


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingConfig:
    """The port that clients of exec, attach and port-forward connect to, with a token that the kubelet got over CRI:
    good once, for a minute.
    """

    address: str = "127.0.0.1"
    """Address to listen on. The kubelet connects from this node, so loopback is enough."""
    port: int = 0
    """Port to listen on; 0: any that is free."""
    tls_cert_file: str = ""
    """Certificate (PEM). With it clients come by TLS 1.2 or newer. Read for each connection, so a renewed one needs no
    restart.
    """
    tls_key_file: str = ""
    """Its key, if it is not in the same file."""
    idle_timeout: float = 4 * 3600.0
    """Seconds after which a session in which nothing was sent is ended."""
    max_sessions: int = 1024
    """Connections at once; more are answered with 503."""

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
    """Where Prometheus reads [what the node knows](operate.md#metrics)."""

    address: str = ""
    """`ADDRESS:PORT` to listen on, `0.0.0.0:9580` or `[::]:9580`; empty: nowhere. Whoever reaches it can read names of
    pods, images and policies.
    """
    tls_cert_file: str = ""
    """Certificate (PEM). With it clients come by TLS 1.2 or newer. Read for each connection."""
    tls_key_file: str = ""
    """Its key, if it is not in the same file."""
    client_ca_file: str = ""
    """Authorities (PEM): with it only clients with a certificate by one of them are answered."""

    def __post_init__(self) -> None:
        if self.address:
            checks.endpoint("metrics.address", self.address)
        for key in ("tls_cert_file", "tls_key_file", "client_ca_file"):
            if path := getattr(self, key):
                checks.absolute_path(f"metrics.{key}", path)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamConfig:
    """Another CRI runtime of this node, such as containerd: it runs the pods whose handler ForgeOne has not, and a
    kubelet sees the pods of both on one socket. See [beside another runtime](upstream.md).
    """

    socket: str = ""
    """Its CRI socket, as `/run/containerd/containerd.sock`. Empty: there is none, and its pods are not shown."""
    default_runtime: str = "upstream"
    """Who runs the pods that name no handler: `upstream` or `forgeone`. Counts while there is a socket."""
    policies: str = "ignore"
    """What becomes of a new pod for the other runtime to which a floor of this node, or its default policy, would
    apply: `ignore`, it runs there under none; `deny`, it is refused, a static pod as well.
    """

    def __post_init__(self) -> None:
        if self.socket:
            checks.socket_path("upstream.socket", self.socket)
        checks.one_of("upstream.default_runtime", self.default_runtime, ("upstream", "forgeone"))
        checks.one_of("upstream.policies", self.policies, ("ignore", "deny"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything forgeoned reads at start. Paths are absolute."""

    root: str = "/var/lib/forgeone"
    """What outlives a reboot: images, what containers have written, the database. Not on overlayfs."""
    state: str = "/run/forgeone"
    """What need not: namespaces, pod files, bundles. Best on tmpfs. Neither in `root` nor around it."""
    socket: str = "/run/forgeone/forgeone.sock"
    """The CRI socket, mode 0660; at most 99 bytes."""
    socket_gid: int = 0
    """The group that may use the socket. Whoever may is root on this host."""
    cgroup_root: str = "/forgeone"
    """Cgroup of the pods that name no parent of their own (a kubelet's do)."""
    pinned_images: tuple[str, ...] = ()
    """Images a kubelet's garbage collection must keep: names, `name*`, or `*word*`."""
    # Unprivileged pods may bind low ports and ping inside a network namespace that is theirs alone.
    default_sysctls: tuple[str, ...] = (
        "net.ipv4.ip_unprivileged_port_start=0",
        "net.ipv4.ping_group_range=0 2147483647",
    )
    """Kernel parameters of every pod that sets none of that name itself: `net.*` where the pod has a network of its
    own, `kernel.shm*`, `kernel.msg*`, `kernel.sem` and `fs.mqueue.*` where it has its own IPC namespace.
    """
    handlers_dir: str = "/etc/forgeone/handlers.d"
    """Directory of [runtime handlers](#runtime-handlers). It need not be there."""
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
