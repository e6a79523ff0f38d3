"""How a new container is set into its pod: what is refused, and which namespaces and files of the pod it gets."""

from __future__ import annotations

import posixpath

from engines.base import ContainerSpec, Mount, NamespaceMode, Namespaces
from forgeone_shim.errors import FailedPrecondition, InvalidInput, NotFound
from forgeone_shim.lifecycle.machine import LIVE
from forgeone_shim.network.facts import PodFacts
from forgeone_shim.runtime import userns
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.records import ContainerRecord, SandboxRecord
from forgeone_shim.runtime.table import Entry


def check(sandbox: SandboxRecord, spec: ContainerSpec) -> None:
    """What can be refused before anything is made."""
    if spec.security.privileged and not sandbox.spec.security.privileged:
        raise InvalidInput("config.linux.security_context.privileged", "the sandbox is not privileged")
    userns.check_container(sandbox.spec.security.namespaces, spec.security.namespaces)
    if spec.log_path and (posixpath.isabs(spec.log_path) or ".." in spec.log_path.split("/")):
        raise InvalidInput("config.log_path", f"{spec.log_path!r} must be relative and stay in the log directory")


def namespaces(parts: Parts, sandbox: SandboxRecord, spec: ContainerSpec) -> Namespaces:
    """The namespaces a container joins, or gets for itself."""
    mode, ns = spec.security.namespaces.pid, sandbox.namespaces
    if mode is NamespaceMode.NODE:
        pid: str | None = None
    elif mode is NamespaceMode.CONTAINER:
        pid = ""
    elif mode is NamespaceMode.POD:
        pid = ns.pid
    else:
        pid = f"/proc/{target(parts, sandbox, spec).pid}/ns/pid"
    return Namespaces(network=ns.network, ipc=ns.ipc, uts=ns.uts, pid=pid, user=ns.user)


def target(parts: Parts, sandbox: SandboxRecord, spec: ContainerSpec) -> Entry[ContainerRecord]:
    """The running container of the same pod whose processes another is to share."""
    field = "config.linux.security_context.namespace_options.target_id"
    try:
        found = parts.containers.find(spec.security.namespaces.target_id)
    except NotFound:
        raise InvalidInput(field, f"no container {spec.security.namespaces.target_id!r}") from None
    if found.record.sandbox_id != sandbox.id:
        raise InvalidInput(field, "the target is in another pod")
    if found.record.state not in LIVE or not found.pid:
        raise FailedPrecondition(f"{field}: the target container is not running")
    return found


def attachable(parts: Parts, sandbox: SandboxRecord) -> PodFacts:
    """What the network is told of a pod that has one of its own."""
    spec = sandbox.spec
    return PodFacts(
        sandbox_id=sandbox.id,
        netns=sandbox.namespaces.network or "",
        name=spec.name,
        namespace=spec.namespace,
        uid=spec.uid,
        hostname=sandbox.hostname,
        annotations=spec.annotations,
        port_mappings=spec.port_mappings,
        dns=spec.dns,
        cgroup_parent=spec.cgroup_parent,
        conf_dir=sandbox.handler.cni_conf_dir,
        rule=parts.guard.network(sandbox),
        machine=parts.engines[sandbox.engine].features().own_kernel,
    )


def restrain(parts: Parts, sandbox: SandboxRecord) -> None:
    """Keep a pod that is attached to its network rule, under the policies of now and whatever befell its tables.

    :raises ForgeError: it cannot be; no container may be started in it.
    """
    if sandbox.namespaces.network is None:
        return
    while True:
        told = attachable(parts, sandbox)
        parts.network.enforce(told, sandbox.ips)
        # Where the policies changed meanwhile, this may have come after what a reload made of the pod.
        if parts.guard.network(sandbox) == told.rule:
            return


def pod_mounts(parts: Parts, sandbox: SandboxRecord, spec: ContainerSpec) -> tuple[Mount, ...]:
    """What every container of the pod gets, unless its own mounts take the place."""
    directory, readonly = parts.paths.sandbox(sandbox.id), spec.security.readonly_rootfs
    shm = "/dev/shm" if sandbox.namespaces.ipc is None else str(parts.paths.shm(sandbox.id))  # noqa: S108
    offered = (
        Mount("/etc/hosts", str(directory / "hosts"), readonly, selinux_relabel=True),
        Mount("/etc/hostname", str(directory / "hostname"), readonly, selinux_relabel=True),
        Mount("/etc/resolv.conf", str(directory / "resolv.conf"), readonly, selinux_relabel=True),
        Mount("/dev/shm", shm),  # noqa: S108
    )
    taken = {posixpath.normpath(mount.destination) for mount in spec.mounts}
    return tuple(mount for mount in offered if mount.destination not in taken)
