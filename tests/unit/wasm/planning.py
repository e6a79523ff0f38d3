"""Plans of containers, for the tests of what is made of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engines.base import ContainerPlan, ContainerSpec, Namespaces, Process, User


def plan(*args: str, env: tuple[str, ...] = (), cwd: str = "/", **changes: Any) -> ContainerPlan:
    """A container that runs ``args``; ``changes`` are of the plan, or of its spec where that has the field."""
    of_spec = {name: changes.pop(name) for name in tuple(changes) if name in ContainerSpec.__dataclass_fields__}
    whole = ContainerPlan(
        container_id="c" * 64,
        sandbox_id="s" * 64,
        bundle="/b",
        rootfs="/r",
        exits="/e",
        log_path="",
        hostname="pod",
        cgroup="/c",
        process=Process(args=args, env=env, cwd=cwd, user=User()),
        namespaces=Namespaces(network=None, ipc=None, uts=None, pid=""),
        pod_mounts=(),
        spec=ContainerSpec(name="main", **of_spec),
    )
    return replace(whole, **changes)
