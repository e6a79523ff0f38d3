"""What sandboxes and containers have in common: namespaces, security, resources."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from cri.api import runtime_pb2 as pb
from cri.translate import enums, fields
from engines.base import (
    GroupsPolicy,
    IdMapping,
    NamespaceMode,
    NamespaceOptions,
    Profile,
    ProfileType,
    Resources,
    SELinux,
)
from forgeone_shim.errors import InvalidInput

_ID_MAX = 2**32 - 2
_ID_SPACE = 2**32
_CAPABILITY = re.compile(r"(?:CAP_)?([A-Z][A-Z0-9_]*)", re.IGNORECASE)
_CPUSET = re.compile(r"(\d+(-\d+)?(,\d+(-\d+)?)*)?")
_PAGE_SIZE = re.compile(r"\d+[KMG]?B")
_CGROUP_FILE = re.compile(r"[a-z][a-z0-9_]*(\.[A-Za-z0-9_]+)+")
_LEGACY_PROFILES = {
    "runtime/default": Profile(ProfileType.RUNTIME_DEFAULT),
    "docker/default": Profile(ProfileType.RUNTIME_DEFAULT),
    "unconfined": Profile(ProfileType.UNCONFINED),
}
_LOCALHOST = "localhost/"


def namespace_options(
    path: str, options: pb.NamespaceOption, pids: Mapping[pb.NamespaceMode.ValueType, NamespaceMode]
) -> NamespaceOptions:
    """``pids`` are the PID modes allowed: TARGET is for containers only."""
    pid = fields.member(f"{path}.pid", options.pid, pids)
    if pid is NamespaceMode.TARGET:
        fields.given(f"{path}.target_id", options.target_id)
    user, uids, gids = _user_namespace(f"{path}.userns_options", options.userns_options)
    return NamespaceOptions(
        network=fields.member(f"{path}.network", options.network, enums.SHARED_MODES),
        pid=pid,
        ipc=fields.member(f"{path}.ipc", options.ipc, enums.SHARED_MODES),
        target_id=options.target_id if pid is NamespaceMode.TARGET else "",
        # Absent is not the enum's zero (POD) here: without the message the pod stays in the node's user namespace.
        user=user if options.HasField("userns_options") else NamespaceMode.NODE,
        uid_mappings=uids,
        gid_mappings=gids,
    )


def _user_namespace(
    path: str, userns: pb.UserNamespace
) -> tuple[NamespaceMode, tuple[IdMapping, ...], tuple[IdMapping, ...]]:
    mode = fields.member(f"{path}.mode", userns.mode, enums.SHARED_MODES)
    uids, gids = id_mappings(f"{path}.uids", userns.uids), id_mappings(f"{path}.gids", userns.gids)
    if mode is NamespaceMode.NODE and (uids or gids):
        raise InvalidInput(path, "mappings make no sense with mode NODE")
    return mode, uids, gids


def id_mappings(path: str, mappings: Iterable[pb.IDMapping]) -> tuple[IdMapping, ...]:
    """Extents within the 32-bit id space, none empty."""
    for index, extent in enumerate(mappings):
        end = max(extent.host_id, extent.container_id) + extent.length
        if extent.length == 0 or end > _ID_SPACE:
            raise InvalidInput(f"{path}[{index}]", "is empty or leaves the 32-bit id space")
    return tuple(IdMapping(m.host_id, m.container_id, m.length) for m in mappings)


def id_mapping_messages(mappings: Iterable[IdMapping]) -> list[pb.IDMapping]:
    """The inverse of :func:`id_mappings`."""
    return [pb.IDMapping(host_id=m.host_id, container_id=m.container_id, length=m.length) for m in mappings]


def namespace_message(options: NamespaceOptions) -> pb.NamespaceOption:
    """The inverse of :func:`namespace_options`."""
    message = pb.NamespaceOption(
        network=enums.MODE_OF[options.network],
        pid=enums.MODE_OF[options.pid],
        ipc=enums.MODE_OF[options.ipc],
        target_id=options.target_id,
    )
    if options.user is not NamespaceMode.NODE:
        message.userns_options.mode = enums.MODE_OF[options.user]
        message.userns_options.uids.extend(id_mapping_messages(options.uid_mappings))
        message.userns_options.gids.extend(id_mapping_messages(options.gid_mappings))
    return message


def user_id(path: str, value: int) -> int:
    """A uid or gid; 2**32-1 is how the kernel says "none"."""
    return fields.between(path, value, 0, _ID_MAX)


def run_as(path: str, context: pb.LinuxSandboxSecurityContext | pb.LinuxContainerSecurityContext) -> int | None:
    """``run_as_user``, where given."""
    return user_id(f"{path}.run_as_user", context.run_as_user.value) if context.HasField("run_as_user") else None


def run_as_group(
    path: str, context: pb.LinuxSandboxSecurityContext | pb.LinuxContainerSecurityContext, *, has_user: bool
) -> int | None:
    """``run_as_group``, where given; CRI demands a user with it."""
    if not context.HasField("run_as_group"):
        return None
    if not has_user:
        raise InvalidInput(f"{path}.run_as_group", "is given without a user to run as")
    return user_id(f"{path}.run_as_group", context.run_as_group.value)


def groups(path: str, values: Iterable[int]) -> tuple[int, ...]:
    """Supplemental groups."""
    return tuple([user_id(f"{path}[{index}]", value) for index, value in enumerate(values)])


def groups_policy(path: str, value: pb.SupplementalGroupsPolicy.ValueType) -> GroupsPolicy:
    """How they meet the image's own."""
    return fields.member(path, value, enums.GROUPS_POLICIES)


def selinux(context: pb.LinuxSandboxSecurityContext | pb.LinuxContainerSecurityContext) -> SELinux | None:
    """The SELinux label, where given."""
    if not context.HasField("selinux_options"):
        return None
    label = context.selinux_options
    return SELinux(label.user, label.role, label.type, label.level)


def seccomp(path: str, context: pb.LinuxSandboxSecurityContext | pb.LinuxContainerSecurityContext) -> Profile | None:
    """The profile, or what the deprecated path says; ``localhost_ref`` is then an absolute path."""
    if context.HasField("seccomp"):
        profile: Profile | None = _profile(f"{path}.seccomp", context.seccomp)
        path = f"{path}.seccomp.localhost_ref"
    else:
        path = f"{path}.seccomp_profile_path"
        profile = _legacy_profile(path, context.seccomp_profile_path)
    if profile is None or profile.type is not ProfileType.LOCALHOST:
        return profile
    return Profile(ProfileType.LOCALHOST, fields.absolute(path, profile.localhost_ref))


def apparmor(path: str, context: pb.LinuxSandboxSecurityContext | pb.LinuxContainerSecurityContext) -> Profile | None:
    """The profile, or what a container's deprecated field says."""
    if context.HasField("apparmor"):
        return _profile(f"{path}.apparmor", context.apparmor)
    if isinstance(context, pb.LinuxContainerSecurityContext):
        return _legacy_profile(f"{path}.apparmor_profile", context.apparmor_profile)
    return None


def _profile(path: str, profile: pb.SecurityProfile) -> Profile:
    type_ = fields.member(f"{path}.profile_type", profile.profile_type, enums.PROFILE_TYPES)
    if type_ is not ProfileType.LOCALHOST:
        return Profile(type_)
    # Clients that come from the deprecated fields leave their prefix on.
    reference = profile.localhost_ref.removeprefix(_LOCALHOST)
    return Profile(type_, fields.given(f"{path}.localhost_ref", reference))


def _legacy_profile(path: str, text: str) -> Profile | None:
    if not text:
        return None
    if text.startswith(_LOCALHOST):
        return Profile(ProfileType.LOCALHOST, fields.given(path, text.removeprefix(_LOCALHOST)))
    profile = _LEGACY_PROFILES.get(text)
    if profile is None:
        raise InvalidInput(path, f"{text!r} is no profile", fix="runtime/default, unconfined or localhost/<profile>")
    return profile


def capabilities(path: str, names: Iterable[str]) -> tuple[str, ...]:
    """``CAP_NAME`` or ``ALL``, from any spelling of them."""

    def one(at: str, text: str) -> str:
        bare = fields.matching(at, text, _CAPABILITY, "a capability").upper().removeprefix("CAP_")
        return "ALL" if bare == "ALL" else f"CAP_{bare}"

    return fields.each(path, names, one)


def resources(path: str, message: pb.LinuxContainerResources) -> Resources:
    """Limits; -1 is "unlimited" where the kernel knows that word."""
    return Resources(
        cpu_period=fields.at_least(f"{path}.cpu_period", message.cpu_period),
        cpu_quota=fields.at_least(f"{path}.cpu_quota", message.cpu_quota, -1),
        cpu_shares=fields.at_least(f"{path}.cpu_shares", message.cpu_shares),
        cpuset_cpus=fields.matching(f"{path}.cpuset_cpus", message.cpuset_cpus, _CPUSET, "a list such as 0-3,7"),
        cpuset_mems=fields.matching(f"{path}.cpuset_mems", message.cpuset_mems, _CPUSET, "a list such as 0-3,7"),
        memory_limit=fields.at_least(f"{path}.memory_limit_in_bytes", message.memory_limit_in_bytes, -1),
        memory_swap_limit=fields.at_least(f"{path}.memory_swap_limit_in_bytes", message.memory_swap_limit_in_bytes, -1),
        oom_score_adj=fields.between(f"{path}.oom_score_adj", message.oom_score_adj, -1000, 1000),
        hugepages=tuple(
            [
                (fields.matching(f"{path}.hugepage_limits[{i}].page_size", h.page_size, _PAGE_SIZE, "a size"), h.limit)
                for i, h in enumerate(message.hugepage_limits)
            ]
        ),
        unified={
            fields.matching(f"{path}.unified", key, _CGROUP_FILE, "a cgroup v2 file"): fields.no_nul(
                f"{path}.unified[{key!r}]", value
            )
            for key, value in message.unified.items()
        },
    )


def resources_message(limits: Resources) -> pb.LinuxContainerResources:
    """The inverse of :func:`resources`."""
    return pb.LinuxContainerResources(
        cpu_period=limits.cpu_period,
        cpu_quota=limits.cpu_quota,
        cpu_shares=limits.cpu_shares,
        cpuset_cpus=limits.cpuset_cpus,
        cpuset_mems=limits.cpuset_mems,
        memory_limit_in_bytes=limits.memory_limit,
        memory_swap_limit_in_bytes=limits.memory_swap_limit,
        oom_score_adj=limits.oom_score_adj,
        hugepage_limits=[pb.HugepageLimit(page_size=size, limit=limit) for size, limit in limits.hugepages],
        unified=limits.unified,
    )
