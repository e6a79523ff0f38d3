"""What a machine cannot do, refused before anything is made: each with its field and the reason. Pure."""

from __future__ import annotations

from typing import Final

from engines.base import ContainerPlan, Expected, NamespaceMode, Profile, ProfileType, Resources, SandboxSpec
from forgeone_shim.errors import FailedPrecondition, InvalidInput, Unimplemented

_POD: Final = "linux.security_context"
_RESOURCES: Final = "linux.resources"
_NATIVE: Final = "use a RuntimeClass of the native engine"
# What a guest has of its own, as a host would.
DEVICES: Final = {
    "/dev/null": (1, 3, 0o666),
    "/dev/zero": (1, 5, 0o666),
    "/dev/full": (1, 7, 0o666),
    "/dev/random": (1, 8, 0o666),
    "/dev/urandom": (1, 9, 0o666),
    "/dev/tty": (5, 0, 0o666),
    "/dev/fuse": (10, 229, 0o666),
    "/dev/net/tun": (10, 200, 0o666),
}
# What a privileged container has besides those that every container has.
PRIVILEGED: Final = {
    **{name: DEVICES[name] for name in ("/dev/fuse", "/dev/net/tun")},
    "/dev/kmsg": (1, 11, 0o600),
}


def pod(spec: SandboxSpec) -> None:
    """:raises InvalidInput: it wants what is the host's."""
    options = spec.security.namespaces
    for field, mode in (("network", options.network), ("pid", options.pid), ("ipc", options.ipc)):
        if mode is NamespaceMode.NODE:
            raise InvalidInput(
                f"{_POD}.namespace_options.{field}",
                "a pod with a machine of its own cannot share its host's",
                fix=_NATIVE,
            )
    if options.user is not NamespaceMode.NODE:
        raise Unimplemented("the microvm engine has no pods with a user namespace: a machine keeps its users apart")


def foreseen(spec: SandboxSpec, expected: Expected) -> str:
    """Why the pod, or every container that it will have, would be refused; empty: nothing is known."""
    try:
        pod(spec)
        limits(spec.resources)
    except (InvalidInput, FailedPrecondition, Unimplemented) as error:
        return error.reason if isinstance(error, InvalidInput) else error.what
    if spec.security.selinux is not None:
        return "it has SELinux labels of its own, and the guest's kernel has no SELinux"
    if expected.classes:
        return "its containers are in RDT or block I/O classes, and a machine's are not"
    if expected.watched:
        return "its calls are to be counted, and those in a machine are made to the guest's kernel"
    return ""


def container(plan: ContainerPlan) -> None:
    """:raises InvalidInput: it wants what is the host's.

    :raises FailedPrecondition: it wants what this engine does not have.
    """
    spec, options = plan.spec, plan.spec.security.namespaces
    for field, mode in (("pid", options.pid), ("ipc", options.ipc)):
        if mode is NamespaceMode.NODE:
            raise InvalidInput(
                f"{_POD}.namespace_options.{field}",
                "a container with a machine of its own cannot share its host's",
                fix=_NATIVE,
            )
    for device in spec.devices:
        if device.source not in DEVICES:
            raise InvalidInput(
                "devices.host_path", f"{device.source} is the host's; a machine has {', '.join(DEVICES)}", fix=_NATIVE
            )
    if plan.edits:
        raise InvalidInput("CDI_devices", "a machine of its own has no devices of the host's", fix=_NATIVE)
    _profile("apparmor", spec.security.apparmor)
    if spec.security.selinux is not None:
        raise FailedPrecondition(f"{_POD}.selinux_options: the guest's kernel has no SELinux", fix=_NATIVE)
    if plan.blockio is not None:
        raise FailedPrecondition("a machine's disks are in memory: no class of block I/O holds for them", fix=_NATIVE)
    if plan.rdt_class:
        raise FailedPrecondition("a container in a machine cannot have an RDT class: its processes are the machine's")
    if plan.watched:
        raise FailedPrecondition("calls of containers in machines are not counted: they are made to the guest's kernel")
    limits(spec.resources)


def _profile(name: str, asked: Profile | None) -> None:
    if asked is not None and asked.type is ProfileType.LOCALHOST:
        raise FailedPrecondition(f"{_POD}.{name}: the guest's kernel has no profiles of the host's", fix=_NATIVE)


def limits(asked: Resources) -> None:
    """:raises FailedPrecondition: limits of what is the host's."""
    if any(limit > 0 for _, limit in asked.hugepages):
        raise FailedPrecondition(f"{_RESOURCES}.hugepage_limits: a machine has no huge pages")
