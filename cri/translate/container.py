"""Containers: ``ContainerConfig`` -> ContainerSpec, ContainerView -> ``Container`` and ``ContainerStatus``."""

from __future__ import annotations

import re

from cri.api import runtime_pb2 as pb
from cri.translate import common, enums, fields
from cri.translate.mount import mount, mount_message
from engines.base import ContainerSpec, Device, Resources, Security
from forgeone_shim.devices import names
from forgeone_shim.errors import InvalidInput
from forgeone_shim.runtime.views import ContainerView

_PERMISSIONS = re.compile(r"(?!.*(.).*\1)[rwm]{1,3}")


def spec(config: pb.ContainerConfig, path: str = "config") -> ContainerSpec:
    """:raises InvalidInput: the first field that cannot be used, by its path in the request."""
    if not config.HasField("metadata"):
        raise InvalidInput(f"{path}.metadata", "is missing")
    if not config.HasField("image"):
        raise InvalidInput(f"{path}.image", "is missing")
    if config.HasField("windows"):
        raise InvalidInput(f"{path}.windows", "this is a Linux node")
    linux = config.linux
    return ContainerSpec(
        name=fields.name(f"{path}.metadata.name", config.metadata.name),
        attempt=config.metadata.attempt,
        image=fields.given(f"{path}.image.image", config.image.image),
        user_specified_image=config.image.user_specified_image,
        image_runtime_handler=config.image.runtime_handler,
        image_annotations=dict(config.image.annotations),
        command=fields.each(f"{path}.command", config.command, fields.no_nul),
        args=fields.each(f"{path}.args", config.args, fields.no_nul),
        working_dir=fields.absolute(f"{path}.working_dir", config.working_dir) if config.working_dir else "",
        envs=tuple([_env(f"{path}.envs[{index}]", env) for index, env in enumerate(config.envs)]),
        mounts=tuple([mount(f"{path}.mounts[{index}]", one) for index, one in enumerate(config.mounts)]),
        devices=tuple([_device(f"{path}.devices[{index}]", one) for index, one in enumerate(config.devices)]),
        cdi_devices=tuple(
            [_cdi(f"{path}.CDI_devices[{index}].name", one.name) for index, one in enumerate(config.CDI_devices)]
        ),
        labels=dict(config.labels),
        annotations=dict(config.annotations),
        log_path=fields.inside(f"{path}.log_path", config.log_path) if config.log_path else "",
        stdin=config.stdin,
        stdin_once=config.stdin_once,
        tty=config.tty,
        resources=common.resources(f"{path}.linux.resources", linux.resources)
        if linux.HasField("resources")
        else Resources(),
        security=_security(f"{path}.linux.security_context", linux.security_context),
        stop_signal=fields.member(f"{path}.stop_signal", config.stop_signal, enums.SIGNALS),
    )


def _env(path: str, env: pb.KeyValue) -> tuple[str, str]:
    if not env.key or "=" in env.key or "\0" in env.key:
        raise InvalidInput(f"{path}.key", f"{env.key!r} cannot name a variable")
    try:
        return env.key, fields.no_nul(f"{path}.value", env.value.decode())
    except UnicodeDecodeError:
        # The OCI runtime configuration is JSON and can hold only text; a value silently changed would be worse.
        raise InvalidInput(f"{path}.value", f"the value of {env.key!r} is not UTF-8") from None


def _cdi(path: str, name: str) -> str:
    return fields.matching(path, name, names.QUALIFIED, "a name vendor/class=device")


def _device(path: str, device: pb.Device) -> Device:
    return Device(
        destination=fields.absolute(f"{path}.container_path", device.container_path),
        source=fields.absolute(f"{path}.host_path", device.host_path),
        permissions=fields.matching(f"{path}.permissions", device.permissions, _PERMISSIONS, "some of r, w and m"),
    )


def _security(path: str, context: pb.LinuxContainerSecurityContext) -> Security:
    user = common.run_as(path, context)
    if user is not None and context.run_as_username:
        raise InvalidInput(f"{path}.run_as_username", "is given together with run_as_user")
    capabilities = f"{path}.capabilities"
    return Security(
        namespaces=common.namespace_options(
            f"{path}.namespace_options", context.namespace_options, enums.CONTAINER_PID_MODES
        ),
        privileged=context.privileged,
        add_capabilities=common.capabilities(f"{capabilities}.add_capabilities", context.capabilities.add_capabilities),
        drop_capabilities=common.capabilities(
            f"{capabilities}.drop_capabilities", context.capabilities.drop_capabilities
        ),
        add_ambient_capabilities=common.capabilities(
            f"{capabilities}.add_ambient_capabilities", context.capabilities.add_ambient_capabilities
        ),
        selinux=common.selinux(context),
        run_as_user=user,
        run_as_group=common.run_as_group(path, context, has_user=user is not None or bool(context.run_as_username)),
        run_as_username=fields.plain(f"{path}.run_as_username", context.run_as_username),
        supplemental_groups=common.groups(f"{path}.supplemental_groups", context.supplemental_groups),
        supplemental_groups_policy=common.groups_policy(
            f"{path}.supplemental_groups_policy", context.supplemental_groups_policy
        ),
        readonly_rootfs=context.readonly_rootfs,
        no_new_privs=context.no_new_privs,
        seccomp=common.seccomp(path, context),
        apparmor=common.apparmor(path, context),
        masked_paths=fields.each(f"{path}.masked_paths", context.masked_paths, fields.absolute),
        readonly_paths=fields.each(f"{path}.readonly_paths", context.readonly_paths, fields.absolute),
    )


def _metadata(spec: ContainerSpec) -> pb.ContainerMetadata:
    return pb.ContainerMetadata(name=spec.name, attempt=spec.attempt)


def _image(spec: ContainerSpec) -> pb.ImageSpec:
    # Kubernetes shows this name to people: what the pod says, not the id it was resolved to. It is told no handler: one
    # id is one image for all of them, and a kubelet that counts by both would take the image for unused.
    return pb.ImageSpec(
        image=spec.user_specified_image or spec.image,
        annotations=spec.image_annotations,
        user_specified_image=spec.user_specified_image,
    )


def state(view: ContainerView) -> pb.ContainerState.ValueType:
    """CRI's word for how it is."""
    return pb.CONTAINER_UNKNOWN if view.unknown else enums.CONTAINER_STATES[view.state]


def item(view: ContainerView) -> pb.Container:
    """An entry of a list."""
    return pb.Container(
        id=view.id,
        pod_sandbox_id=view.sandbox_id,
        metadata=_metadata(view.spec),
        image=_image(view.spec),
        image_ref=view.image_ref,
        state=state(view),
        created_at=view.created_at,
        labels=view.spec.labels,
        annotations=view.spec.annotations,
        image_id=view.image_id,
    )


def status(view: ContainerView) -> pb.ContainerStatus:
    """All CRI wants to know of one container."""
    user = view.user
    return pb.ContainerStatus(
        id=view.id,
        metadata=_metadata(view.spec),
        state=state(view),
        created_at=view.created_at,
        started_at=view.started_at,
        finished_at=view.finished_at,
        exit_code=view.exit_code,
        image=_image(view.spec),
        image_ref=view.image_ref,
        reason=_reason(view),
        message=view.message,
        labels=view.spec.labels,
        annotations=view.spec.annotations,
        mounts=[mount_message(mount) for mount in view.spec.mounts],
        log_path=view.log_path,
        resources=pb.ContainerResources(linux=common.resources_message(view.spec.resources)),
        image_id=view.image_id,
        user=pb.ContainerUser(
            linux=pb.LinuxContainerUser(uid=user.uid, gid=user.gid, supplemental_groups=user.additional_gids)
        ),
        stop_signal=enums.signal_of(view.stop_signal),
    )


def _reason(view: ContainerView) -> str:
    if view.reason or enums.CONTAINER_STATES[view.state] != pb.CONTAINER_EXITED:
        return view.reason
    return "Error" if view.exit_code else "Completed"
