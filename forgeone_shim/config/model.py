"""ForgeOne's configuration as one typed model; the loader fills it from TOML, environment and flags."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcConfig:
    """The CRI socket's server. ``max_connection_age_ms`` moves clients over at a hot reload (0: never)."""

    threads: int = 64
    max_connection_age_ms: int = 0
    max_message_bytes: int = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """Level: debug, info, warning or error. Format: json or console."""

    level: str = "info"
    format: str = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryConfig:
    """Image pulls. ``config_path`` is a ``certs.d`` folder in containerd's format; times in seconds."""

    config_path: str = "/etc/forgeone/certs.d"
    max_concurrent_downloads: int = 4
    progress_timeout: float = 60.0
    keep_blobs: bool = False
    platform: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """The built-in pod network: one bridge, one IPv4 and (unless empty) one IPv6 range."""

    bridge: str = "forge0"
    table: str = "forgeone"
    link_prefix: str = "fo"
    ipv4: str = "10.88.0.0/16"
    ipv6: str = "fd88:0:0:1::/64"
    mtu: int = 0
    masquerade: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeConfig:
    """The native engine's programs (a name is looked up in PATH) and defaults."""

    crun: str = "crun"
    conmon: str = "conmon"
    init: str = "catatonit"
    cgroup_driver: str = "auto"
    seccomp_profile_root: str = "/var/lib/kubelet/seccomp"
    log_line_max_bytes: int = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything forgeoned reads at start. Paths are absolute."""

    root: str = "/var/lib/forgeone"
    state: str = "/run/forgeone"
    socket: str = "/run/forgeone/forgeone.sock"
    socket_gid: int = 0
    cgroup_root: str = "/forgeone"
    pinned_images: tuple[str, ...] = ()
    grpc: GrpcConfig = field(default_factory=GrpcConfig)
    log: LogConfig = field(default_factory=LogConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    native: NativeConfig = field(default_factory=NativeConfig)
