"""Sandboxes: ``PodSandboxConfig`` -> SandboxSpec, SandboxView -> ``PodSandbox`` and ``PodSandboxStatus``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from cri.api import runtime_pb2 as pb
from cri.translate import common, enums, fields
from engines.base import DNSConfig, PortMapping, Resources, SandboxSpec, Security
from forgeone_shim.errors import InvalidInput
from forgeone_shim.runtime.views import SandboxView

# HOST_NAME_MAX is 64 on Linux (sethostname(2)).
_HOSTNAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,62}[A-Za-z0-9_])?")
_WORD = re.compile(r"[^\s\x00-\x1f\x7f]+")


def spec(config: pb.PodSandboxConfig, runtime_handler: str = "", path: str = "config") -> SandboxSpec:
    """:raises InvalidInput: the first field that cannot be used, by its path in the request."""
    if not config.HasField("metadata"):
        raise InvalidInput(f"{path}.metadata", "is missing")
    if config.HasField("windows"):
        raise InvalidInput(f"{path}.windows", "this is a Linux node")
    meta, linux = config.metadata, config.linux
    return SandboxSpec(
        name=fields.name(f"{path}.metadata.name", meta.name),
        uid=fields.name(f"{path}.metadata.uid", meta.uid),
        namespace=fields.name(f"{path}.metadata.namespace", meta.namespace),
        attempt=meta.attempt,
        hostname=_hostname(f"{path}.hostname", config.hostname),
        log_directory=fields.absolute(f"{path}.log_directory", config.log_directory) if config.log_directory else "",
        dns=_dns(f"{path}.dns_config", config.dns_config) if config.HasField("dns_config") else None,
        port_mappings=_port_mappings(f"{path}.port_mappings", config.port_mappings),
        labels=dict(config.labels),
        annotations=dict(config.annotations),
        cgroup_parent=fields.plain(f"{path}.linux.cgroup_parent", linux.cgroup_parent),
        sysctls={key: fields.no_nul(f"{path}.linux.sysctls[{key!r}]", value) for key, value in linux.sysctls.items()},
        security=_security(f"{path}.linux.security_context", linux.security_context),
        overhead=_resources(f"{path}.linux.overhead", linux, "overhead"),
        resources=_resources(f"{path}.linux.resources", linux, "resources"),
        runtime_handler=fields.plain("runtime_handler", runtime_handler),
    )


def _hostname(path: str, text: str) -> str:
    return fields.matching(path, text, _HOSTNAME, "a host name of at most 64 characters") if text else ""


def _dns(path: str, dns: pb.DNSConfig) -> DNSConfig:
    # Each becomes a word of resolv.conf, where a line break or a blank would smuggle in another directive.
    def word(at: str, text: str) -> str:
        return fields.matching(at, text, _WORD, "a single word")

    return DNSConfig(
        servers=fields.each(f"{path}.servers", dns.servers, fields.address),
        searches=fields.each(f"{path}.searches", dns.searches, word),
        options=fields.each(f"{path}.options", dns.options, word),
    )


def _port_mappings(path: str, mappings: Iterable[pb.PortMapping]) -> tuple[PortMapping, ...]:
    # A kubelet lists every port a container declares; without a host port there is nothing to forward.
    translated = [(_port_mapping(f"{path}[{index}]", mapping)) for index, mapping in enumerate(mappings)]
    return tuple([mapping for mapping in translated if mapping.host_port])


def _port_mapping(path: str, mapping: pb.PortMapping) -> PortMapping:
    return PortMapping(
        container_port=fields.between(f"{path}.container_port", mapping.container_port, 1, 65535),
        host_port=fields.between(f"{path}.host_port", mapping.host_port, 0, 65535),
        protocol=fields.member(f"{path}.protocol", mapping.protocol, enums.PROTOCOLS),
        host_ip=fields.address(f"{path}.host_ip", mapping.host_ip) if mapping.host_ip else "",
    )


def _resources(path: str, linux: pb.LinuxPodSandboxConfig, field: str) -> Resources:
    return common.resources(path, getattr(linux, field)) if linux.HasField(field) else Resources()  # type: ignore[arg-type]


def _security(path: str, context: pb.LinuxSandboxSecurityContext) -> Security:
    user = common.run_as(path, context)
    return Security(
        namespaces=common.namespace_options(
            f"{path}.namespace_options", context.namespace_options, enums.SANDBOX_PID_MODES
        ),
        privileged=context.privileged,
        selinux=common.selinux(context),
        run_as_user=user,
        run_as_group=common.run_as_group(path, context, has_user=user is not None),
        supplemental_groups=common.groups(f"{path}.supplemental_groups", context.supplemental_groups),
        supplemental_groups_policy=common.groups_policy(
            f"{path}.supplemental_groups_policy", context.supplemental_groups_policy
        ),
        readonly_rootfs=context.readonly_rootfs,
        seccomp=common.seccomp(path, context),
        apparmor=common.apparmor(path, context),
    )


def state(view: SandboxView) -> pb.PodSandboxState.ValueType:
    """CRI knows ready and not."""
    return pb.SANDBOX_READY if view.ready else pb.SANDBOX_NOTREADY


def metadata(spec: SandboxSpec) -> pb.PodSandboxMetadata:
    """A pod's names."""
    return pb.PodSandboxMetadata(name=spec.name, uid=spec.uid, namespace=spec.namespace, attempt=spec.attempt)


def item(view: SandboxView) -> pb.PodSandbox:
    """An entry of a list."""
    return pb.PodSandbox(
        id=view.id,
        metadata=metadata(view.spec),
        state=state(view),
        created_at=view.created_at,
        labels=view.spec.labels,
        annotations=view.spec.annotations,
        runtime_handler=view.handler,
    )


def status(view: SandboxView) -> pb.PodSandboxStatus:
    """All CRI wants to know of one sandbox."""
    return pb.PodSandboxStatus(
        id=view.id,
        metadata=metadata(view.spec),
        state=state(view),
        created_at=view.created_at,
        network=pb.PodSandboxNetworkStatus(
            ip=view.ips[0] if view.ips else "", additional_ips=[pb.PodIP(ip=ip) for ip in view.ips[1:]]
        ),
        linux=pb.LinuxPodSandboxStatus(
            namespaces=pb.Namespace(options=common.namespace_message(view.spec.security.namespaces))
        ),
        labels=view.spec.labels,
        annotations=view.spec.annotations,
        runtime_handler=view.handler,
    )
