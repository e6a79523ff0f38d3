"""What a host may lack for the native engine, each with the command that mends it."""

from __future__ import annotations

import os
import re

from engines.base import Problem
from engines.native import apparmor
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ForgeError
from forgeone_shim.kernel import cgroups
from forgeone_shim.kernel.cgroups import Mode
from forgeone_shim.kernel.host import Host
from forgeone_shim.kernel.spawn import find_program, run

INSTALL = "apt-get install -y crun conmon catatonit"
# crun 1.8 has the seccomp cache and the status file this engine reads; conmon 2.0.30 the persist and exit directories.
_OLDEST = {"crun": (1, 8), "conmon": (2, 0, 30)}
_VERSION = re.compile(r"version (\d+(?:\.\d+)+)")
_NEEDED_V1 = ("cpu", "cpuset", "devices", "freezer", "memory")


def parse_version(text: str) -> tuple[int, ...]:
    """The numbers after ``version`` in a program's ``--version``; empty when there are none."""
    found = _VERSION.search(text)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def problems(crun: str, conmon: str, init: str, host: Host) -> list[Problem]:
    """Everything that is missing or too old, fatal things first."""
    found = [
        *_program("crun", crun, "it makes the containers"),
        *_program("conmon", conmon, "it supervises the containers"),
        *_init(init),
        *_cgroups(host),
        *_privileges(host),
        *_user_namespaces(host),
        *_speed(host),
    ]
    return sorted(found, key=lambda problem: not problem.fatal)


def _program(name: str, configured: str, why: str) -> list[Problem]:
    path = find_program(configured)
    if path is None:
        return [Problem(f"{configured} is not installed", why, INSTALL)]
    try:
        said = run(path, [name, "--version"], Deadline.after(5)).text
    except ForgeError as error:
        return [Problem(f"{path} --version fails: {error}", why, INSTALL)]
    version = parse_version(said)
    if version < _OLDEST[name]:
        wanted = ".".join(map(str, _OLDEST[name]))
        return [Problem(f"{path} is older than {wanted} or of unknown version", why, INSTALL)]
    return []


def _init(configured: str) -> list[Problem]:
    if find_program(configured) is None:
        why = "pods whose containers share a PID namespace need it as their init"
        return [Problem(f"{configured} is not installed", why, INSTALL)]
    return []


def _cgroups(host: Host) -> list[Problem]:
    found = []
    groups = host.cgroups
    if not groups.v1 and not groups.unified:
        why = "containers are limited and found by control groups"
        return [Problem(f"no control groups below {cgroups.ROOT}", why, f"mount -t cgroup2 none {cgroups.ROOT}")]
    if groups.mode is not Mode.V2:
        for controller in (name for name in _NEEDED_V1 if name not in groups.v1):
            path = f"{cgroups.ROOT}/{controller}"
            fix = f"mkdir -p {path} && mount -t cgroup -o {controller} none {path}"
            found.append(Problem(f"cgroup controller {controller} is not mounted", "containers need it", fix))
        if "hugetlb" in groups.v2_controllers:
            path = f"{cgroups.ROOT}/hugetlb"
            fix = f"mkdir -p {path} && mount -t cgroup -o hugetlb none {path}"
            why = "crun refuses to run on a hybrid host that has hugetlb only on its unified hierarchy"
            found.append(Problem("cgroup controller hugetlb is not mounted as v1", why, fix))
    elif not {"cpu", "memory", "pids"} <= groups.v2_controllers:
        found.append(Problem("cgroup v2 lacks cpu, memory or pids", "limits cannot be set", ""))
    return found


def _privileges(host: Host) -> list[Problem]:
    found = []
    if os.geteuid() != 0 or "CAP_SYS_ADMIN" not in host.capabilities:
        found.append(Problem("forgeoned does not run as root", "namespaces and mounts need it", "run it as root"))
    elif "CAP_SYS_RESOURCE" not in host.capabilities:
        why = f"no container can have an oom_score_adj below {host.oom_score_adj}"
        found.append(Problem("CAP_SYS_RESOURCE is missing", why, fatal=False))
    if host.apparmor and find_program("apparmor_parser") is None:
        why = "containers run without ForgeOne's AppArmor profile, and those that ask for RuntimeDefault are refused"
        found.append(Problem("apparmor_parser is not installed", why, apparmor.INSTALL, fatal=False))
    return found


def _user_namespaces(host: Host) -> list[Problem]:
    if host.user_namespaces:
        return []
    why = "pods with a user namespace (hostUsers: false) are refused"
    what = "no user namespaces, or a kernel before Linux 5.19"
    return [Problem(what, why, "sysctl -w user.max_user_namespaces=65536", fatal=False)]


def _speed(host: Host) -> list[Problem]:
    if host.quick_moves or not host.cgroups.unified:
        return []
    why = "moving a process into a cgroup waits for an RCU grace period (several ms a container start)"
    fix = f"mount -o remount,favordynmods {host.cgroups.unified}"
    return [Problem("cgroups are not mounted with favordynmods", why, fix, fatal=False)]
