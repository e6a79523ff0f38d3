"""Pods with a user namespace of their own: what is refused, and how their namespaces are made.

A pod's root is then nobody on the host. Its other namespaces belong to the user namespace, so that its root rules them
as it would the host's. KEP-127 has what a kubelet asks for.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from engines.base import IdMapping, NamespaceMode, NamespaceOptions
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, InternalError, InvalidInput, syscall_error
from forgeone_shim.fs.owners import Owners
from forgeone_shim.kernel import namespaces
from forgeone_shim.runtime.records import SandboxRecord
from forgeone_shim.shim.messages import Extent, MakeNamespaces
from forgeone_shim.shim.namespaces import NamespaceServer, StepFailed

_FIELD = "linux.security_context.namespace_options"
PING_GROUPS = "net.ipv4.ping_group_range"
EVERY_GROUP = "0 2147483647"
# user_namespaces(7)
_EXTENTS_MAX = 340
# The last one, 4294967295, means "none".
_IDS = 2**32 - 1
_NO_ROOT = "give the pod ids that nobody else has"


def check(options: NamespaceOptions) -> None:
    """Whether a pod can have what it asks for.

    :raises InvalidInput: naming what it cannot have.
    """
    if options.user is NamespaceMode.NODE:
        return
    if options.user is not NamespaceMode.POD:
        raise InvalidInput(f"{_FIELD}.userns_options.mode", "must be POD or NODE")
    _check_mappings(f"{_FIELD}.userns_options.uids", options.uid_mappings)
    _check_mappings(f"{_FIELD}.userns_options.gids", options.gid_mappings)
    for name, mode in (("pid", options.pid), ("ipc", options.ipc)):
        if mode is NamespaceMode.NODE:
            raise InvalidInput(f"{_FIELD}.{name}", "a pod with a user namespace cannot be in the node's")


def _check_mappings(field: str, mappings: Sequence[IdMapping]) -> None:
    """What the kernel would refuse, or accept and make a pod that cannot run."""
    if not 0 < len(mappings) <= _EXTENTS_MAX:
        raise InvalidInput(field, f"{len(mappings)} mappings; a user namespace takes 1 to {_EXTENTS_MAX}")
    for one in mappings:
        if not 0 < one.length <= min(_IDS - one.container_id, _IDS - one.host_id):
            raise InvalidInput(field, f"{one.length} ids from {one.container_id} and {one.host_id} on cannot be mapped")
        if one.host_id == 0:
            raise InvalidInput(field, "the host's root is mapped: the pod would be no safer than without", fix=_NO_ROOT)
    for noun, starts in (("container", [m.container_id for m in mappings]), ("host", [m.host_id for m in mappings])):
        spans = sorted(zip(starts, (m.length for m in mappings), strict=True))
        for (start, length), (following, _) in itertools.pairwise(spans):
            if following < start + length:
                raise InvalidInput(field, f"{noun} id {following} is mapped twice")
    if not any(one.container_id == 0 for one in mappings):
        raise InvalidInput(field, "id 0 of the containers is not mapped: they would have no root")


def check_container(sandbox: NamespaceOptions, options: NamespaceOptions) -> None:
    """Whether a container can have what it asks for in such a pod.

    :raises InvalidInput: naming what it cannot have.
    """
    theirs = (sandbox.user, sandbox.uid_mappings, sandbox.gid_mappings)
    if theirs != (options.user, options.uid_mappings, options.gid_mappings):
        raise InvalidInput(
            f"config.{_FIELD}.userns_options",
            "user namespace config for sandbox is different from container",
            fix="give the container those of its pod",
        )
    if sandbox.user is NamespaceMode.POD and options.pid is NamespaceMode.NODE:
        raise InvalidInput(f"config.{_FIELD}.pid", "a pod with a user namespace cannot be in the node's")


def owners(record: SandboxRecord) -> Owners | None:
    """The owners of files in the pod, ``None`` where they are the host's."""
    if record.namespaces.user is None:
        return None
    options = record.spec.security.namespaces
    return Owners(record.namespaces.user, options.uid_mappings, options.gid_mappings)


def pin(
    server: NamespaceServer,
    directory: Path,
    options: NamespaceOptions,
    *,
    kinds: Sequence[str],
    hostname: str,
    sysctls: Mapping[str, str],
    deadline: Deadline,
) -> None:
    """Make the pod's user namespace and those of ``kinds`` in it, and pin each at ``directory/<kind>``.

    :raises InvalidInput: a kernel parameter cannot be used.
    :raises FailedPrecondition: the kernel does not let this process make user namespaces, or map these ids.
    """
    planned = namespaces.plan_sysctls(_fitting(sysctls, options.gid_mappings), kinds)
    request = MakeNamespaces(
        uids=_extents(options.uid_mappings),
        gids=_extents(options.gid_mappings),
        kinds=tuple(kinds),
        hostname=hostname,
        sysctls=tuple((one.path, one.value) for one in planned),
    )
    try:
        made = server.make_namespaces(request, deadline)
    except StepFailed as error:
        for one in planned:
            if error.step == f"sysctl:{one.path}":
                raise namespaces.sysctl_error(one, error.errno) from error
        if error.step in ("unshare the user namespace", "map ids"):
            raise FailedPrecondition(
                f"the pod's user namespace cannot be made: {error}", fix="see user.max_user_namespaces (sysctl)"
            ) from error
        raise InternalError(f"the pod's namespaces cannot be made: {error}") from error
    try:
        namespaces.pin_descriptors(directory, made)
    finally:
        for fd in made.values():
            os.close(fd)


def _extents(mappings: Sequence[IdMapping]) -> tuple[Extent, ...]:
    return tuple(Extent(one.container_id, one.host_id, one.length) for one in mappings)


def _fitting(sysctls: Mapping[str, str], gids: Sequence[IdMapping]) -> Mapping[str, str]:
    """The kernel takes a range of groups only where all of it is mapped; "every group" is then every one of the pod."""
    if sysctls.get(PING_GROUPS) != EVERY_GROUP:
        return sysctls
    highest = next(one.length for one in gids if one.container_id == 0) - 1
    return {**sysctls, PING_GROUPS: f"0 {highest}"}


def open_to_root(directory: Path, owners_: Owners) -> None:
    """Let the pod's root pass through a private directory to what is mounted below; nobody else.

    :raises FailedPrecondition: it cannot get there.
    :raises InternalError: a kernel call failed.
    """
    _, gid = owners_.root
    try:
        for parent in directory.parents:
            if not parent.stat().st_mode & stat.S_IXOTH:
                raise FailedPrecondition(
                    f"{parent} cannot be entered by the root of a pod with a user namespace", fix=f"chmod o+x {parent}"
                )
        os.chown(directory, -1, gid)
        directory.chmod(0o710)
    except OSError as error:
        raise syscall_error("chown", directory, error) from error
