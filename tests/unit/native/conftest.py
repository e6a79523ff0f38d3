"""Plans and hosts for the native engine's unit tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from engines.base import ContainerPlan, ContainerSpec, Namespaces, Process, User
from forgeone_shim.kernel.capabilities import KNOWN
from forgeone_shim.kernel.cgroups import CgroupHost, Driver, Mode
from forgeone_shim.kernel.host import Host

PlanMaker = Callable[..., ContainerPlan]


@pytest.fixture
def plan() -> PlanMaker:
    """A plain container; keywords that ContainerPlan has replace it there, all others go into its spec."""

    def make(**changes: Any) -> ContainerPlan:
        own = {field.name for field in dataclasses.fields(ContainerPlan)}
        base = ContainerPlan(
            container_id="c1",
            sandbox_id="s1",
            bundle="/run/f/containers/c1",
            rootfs="/run/f/containers/c1/rootfs",
            exits="/run/f/exits",
            log_path="/var/log/pods/p/c/0.log",
            hostname="pod",
            cgroup="/kubepods/pod1/c1",
            process=Process(args=("/bin/sh",), env=(), cwd="/", user=User()),
            namespaces=Namespaces(network="/n/net", ipc="/n/ipc", uts="/n/uts", pid=""),
            pod_mounts=(),
            spec=ContainerSpec(name="c", **{key: value for key, value in changes.items() if key not in own}),
        )
        return dataclasses.replace(base, **{key: value for key, value in changes.items() if key in own})

    return make


def make_host(mode: Mode = Mode.V2, **changes: Any) -> Host:
    """A host with everything, of one cgroup layout."""
    controllers = ("cpu", "cpuset", "memory", "devices", "freezer", "pids", "hugetlb")
    groups = CgroupHost(
        mode=mode,
        driver=Driver.CGROUPFS,
        v1={} if mode is Mode.V2 else {name: f"/sys/fs/cgroup/{name}" for name in controllers},
        unified={Mode.V2: "/sys/fs/cgroup", Mode.HYBRID: "/sys/fs/cgroup/unified", Mode.V1: ""}[mode],
        v2_controllers=frozenset(controllers) if mode is Mode.V2 else frozenset(),
    )
    given = {"cgroups": groups, "capabilities": frozenset(KNOWN), "swap_limit": True}
    return Host(**{**given, **changes})


@pytest.fixture
def host() -> Host:
    """A cgroup v2 host that can do everything."""
    return make_host()
