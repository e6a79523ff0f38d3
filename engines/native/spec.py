"""From a container's plan to its OCI runtime configuration: pure, given what :func:`gather` read from the host."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from engines.base import ContainerPlan, Mount, Namespaces, Process, User
from engines.native import capabilities, devices, idmaps, mounts, scope, seccomp
from engines.native.devices import Node
from forgeone_shim import binds
from forgeone_shim.binds import MountPoint
from forgeone_shim.errors import InvalidInput
from forgeone_shim.kernel import bpf
from forgeone_shim.kernel.cgroups import Mode
from forgeone_shim.kernel.host import Host
from forgeone_shim.limits import resources

OCI_VERSION = "1.0.2"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
Json = dict[str, Any]
CompileFilter = Callable[[Mapping[str, Any]], str | None]
RuntimeDefault = Callable[[Collection[str]], Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What one plan needs to know of the host's files: resolved mounts, devices, the seccomp filter, and the AppArmor
    profile to enter (empty: none)."""

    mounts: tuple[Mount, ...] = ()
    mount_points: Mapping[str, MountPoint]
    devices: tuple[Node, ...] = ()
    seccomp: Json | None = None
    apparmor: str = ""


def gather(
    plan: ContainerPlan, host: Host, seccomp_root: str, runtime_default: RuntimeDefault = seccomp.default_profile
) -> Gathered:
    """Read (and for missing mount sources, make) what the plan names on the host."""
    security = plan.spec.security
    asked = binds.resolve(plan.spec.mounts)
    nodes = devices.read(plan.spec.devices)
    if _has_host_devices(plan):
        nodes = devices.all_of_host() + nodes
    profile = None
    if not security.privileged:
        held = capabilities.sets(security, host.capabilities)["bounding"]
        profile = seccomp.choose(security.seccomp, held, seccomp_root, runtime_default)
    return Gathered(mounts=asked, mount_points=binds.propagation_tags(asked), devices=nodes, seccomp=profile)


def _has_host_devices(plan: ContainerPlan) -> bool:
    """Privileged containers have, but for those whose root is not the host's: its disks are to be kept from that."""
    return plan.spec.security.privileged and plan.handler.host_devices and plan.namespaces.user is None


def environment(process: Process, *, hostname: str, tty: bool) -> list[str]:
    """The process's variables: ours first, so that the image's and the caller's win; of two the last counts."""
    found: dict[str, str] = {"PATH": PATH.partition("=")[2], "HOSTNAME": hostname}
    if tty:
        found["TERM"] = "xterm"
    for entry in process.env:
        name, equals, value = entry.partition("=")
        if not name or "\0" in entry:
            raise InvalidInput("envs", f"{entry!r} is not NAME=value")
        if equals:
            found[name] = value
    found.setdefault("HOME", process.user.home or "/")
    return [f"{name}={value}" for name, value in found.items() if name != "HOSTNAME" or value]


def user(who: User) -> Json:
    """OCI ``process.user``."""
    found: Json = {"uid": who.uid, "gid": who.gid}
    if who.additional_gids:
        found["additionalGids"] = list(who.additional_gids)
    return found


def process(plan: ContainerPlan, host: Host) -> Json:
    """OCI ``process``."""
    asked = plan.process
    if not asked.args or not asked.args[0]:
        raise InvalidInput("command", "is empty, and the image has none")
    if any("\0" in word for word in asked.args):
        raise InvalidInput("command", "holds a NUL")
    security = plan.spec.security
    found: Json = {
        "terminal": plan.spec.tty,
        "user": user(asked.user),
        "args": list(asked.args),
        "env": environment(asked, hostname=plan.hostname, tty=plan.spec.tty),
        "cwd": asked.cwd or "/",
        "capabilities": capabilities.sets(security, host.capabilities),
        "noNewPrivileges": security.no_new_privs,
        "oomScoreAdj": resources.oom_score_adj(plan.spec.resources, host),
    }
    if not str(found["cwd"]).startswith("/"):
        raise InvalidInput("working_dir", f"{asked.cwd!r} is not absolute")
    if plan.selinux.process:
        found["selinuxLabel"] = plan.selinux.process
    return found


def namespaces(paths: Namespaces, *, cgroup: bool) -> list[Json]:
    """OCI ``linux.namespaces``: joined by path, new where the path is empty, the host's where it is ``None``."""
    found: list[Json] = []
    known = (("user", paths.user), ("network", paths.network), ("ipc", paths.ipc), ("uts", paths.uts))
    for kind, path in (*known, ("pid", paths.pid)):
        if path is not None:
            found.append({"type": kind, "path": path} if path else {"type": kind})
    found.append({"type": "mount"})
    if cgroup:
        found.append({"type": "cgroup"})
    return found


def config(plan: ContainerPlan, host: Host, found: Gathered, compile_filter: CompileFilter) -> Json:
    """The whole ``config.json``. No annotation of the caller's is in it: crun takes orders from them."""
    security = plan.spec.security
    listed, propagation = mounts.plan_mounts(plan, host, found.mounts, found.mount_points)
    limits = resources.limits(plan.spec.resources, host)
    limits["devices"] = devices.rules(found.devices, privileged=_has_host_devices(plan))
    linux: Json = {
        "cgroupsPath": plan.cgroup,
        "namespaces": namespaces(plan.namespaces, cgroup=host.cgroups.mode is Mode.V2 and not security.privileged),
        "resources": limits,
        "devices": devices.spec(found.devices),
    }
    if not security.privileged:
        linux["maskedPaths"] = _absolute("masked_paths", security.masked_paths)
        linux["readonlyPaths"] = _absolute("readonly_paths", security.readonly_paths)
    linux |= idmaps.of_pod(plan.namespaces, security.namespaces)
    if propagation:
        linux["rootfsPropagation"] = propagation
    if plan.selinux.mount:
        linux["mountLabel"] = plan.selinux.mount
    whole: Json = {
        "ociVersion": OCI_VERSION,
        "process": process(plan, host),
        "root": {"path": plan.rootfs, "readonly": security.readonly_rootfs},
        "mounts": listed,
        "linux": linux,
    }
    if found.apparmor:
        whole["process"]["apparmorProfile"] = found.apparmor
    if orders := scope.orders(host.cgroups):
        whole["annotations"] = dict(orders)
    if found.seccomp is not None:
        add_filter(whole, found.seccomp, compile_filter)
    return whole


def add_filter(whole: Json, profile: Json, compile_filter: CompileFilter) -> None:
    """Put a seccomp profile into a configuration: compiled if it can be, else for crun to compile."""
    compiled = compile_filter(profile)
    if compiled is None:
        whole["linux"]["seccomp"] = profile
    else:
        whole.setdefault("annotations", {})[bpf.ANNOTATION] = compiled


def _absolute(field: str, paths: Sequence[str]) -> list[str]:
    for path in paths:
        if not path.startswith("/") or "\0" in path:
            raise InvalidInput(f"linux.security_context.{field}", f"{path!r} is not absolute")
    return list(paths)


def exec_process(config_json: bytes, argv: tuple[str, ...], *, tty: bool = False) -> Json:
    """The OCI process of an exec: the container's own, but for its arguments and its terminal."""
    if not argv or not argv[0]:
        raise InvalidInput("cmd", "is empty")
    if any("\0" in word for word in argv):
        raise InvalidInput("cmd", "holds a NUL")
    found: Json = msgspec.json.decode(config_json)["process"]
    found.update(terminal=tty, args=list(argv))
    if tty and not any(variable.startswith("TERM=") for variable in found["env"]):
        found["env"] = [*found["env"], "TERM=xterm"]
    return found
