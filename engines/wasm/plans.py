"""What a guest is to be, from what its container is to be. Pure."""

from __future__ import annotations

import posixpath

from engines.base import ContainerPlan, Resources
from engines.wasm.annotations import Asked
from engines.wasm.aot.target import Kind, Variant
from engines.wasm.card import Identity, Limits
from engines.wasm.guest.plan import GuestPlan, Preopen
from engines.wasm.messages import Insight
from engines.wasm.modules import FIELD, Wanted
from forgeone_shim.errors import FailedPrecondition, InvalidInput

_MICROSECONDS = 1_000_000
_TERMINAL = "xterm"


def check(plan: ContainerPlan) -> None:
    """Refuse what no WebAssembly container can have, before anything is made.

    :raises FailedPrecondition: names what was asked for and why it cannot be had.
    :raises InvalidInput: a value is none.
    """
    security = plan.spec.security
    refused = (
        (security.privileged, "a privileged container", "a guest has no system calls that privileges would be for"),
        (bool(plan.spec.devices), "devices", "a guest has no way to open one"),
        (bool(plan.edits), "CDI devices", "a guest has no way to open one"),
        (bool(security.add_capabilities), "added capabilities", "a guest has no system calls that they would be for"),
        (bool(plan.rdt_class), "an RDT class", "this engine does not place containers in resctrl groups"),
    )
    for asked, what, why in refused:
        if asked:
            raise FailedPrecondition(
                f"container {plan.spec.name}: {what} cannot be given to WebAssembly: {why}",
                fix="run it with the native engine",
            )
    if not plan.process.cwd.startswith("/"):
        raise InvalidInput("working_dir", f"{plan.process.cwd!r} is not absolute")
    if any("\0" in word for word in plan.process.args):
        raise InvalidInput(FIELD, "holds a NUL")


def variant(asked: Asked) -> Variant:
    """How the code of the container is to be compiled."""
    return Variant.METERED if asked.cpu_budget or asked.cpu_slice else Variant.PLAIN


def guest(plan: ContainerPlan, asked: Asked, choice: Wanted) -> GuestPlan:
    """The guest of a container: as a process of it would be started, with the whole of its files."""
    return GuestPlan(
        argv=_argv(plan),
        env=environment(plan),
        function=choice.function,
        preopens=preopens(plan.process.cwd),
        memory_max=asked.memory_max or plan.spec.resources.memory_limit,
        cpu_budget=round(asked.cpu_budget * _MICROSECONDS),
        cpu_slice=round(asked.cpu_slice * _MICROSECONDS),
    )


def insight(plan: ContainerPlan, asked: Asked, guest: GuestPlan, kind: Kind) -> Insight:
    """What the guest may know of its container; a watched one's calls are recorded if they can be at all."""
    return Insight(
        bundle=plan.bundle,
        identity=Identity(plan.container_id, plan.spec.name, plan.sandbox_id),
        limits=limits(plan.spec.resources, Limits(linear_memory=guest.memory_max, cpu_budget=guest.cpu_budget * 1000)),
        trace=asked.trace or (plan.watched and kind is Kind.MODULE),
    )


def limits(resources: Resources, before: Limits) -> Limits:
    """With these of the container; what a guest was created with stays."""
    return Limits(
        memory=max(0, resources.memory_limit),
        linear_memory=before.linear_memory,
        cpu_quota=max(0, resources.cpu_quota),
        cpu_period=resources.cpu_period if resources.cpu_quota > 0 else 0,
        cpu_shares=resources.cpu_shares,
        cpu_budget=before.cpu_budget,
    )


def _argv(plan: ContainerPlan) -> tuple[str, ...]:
    args = plan.process.args
    return (args[0].partition("#")[0] or plan.module, *args[1:]) if args else (plan.module,)


def preopens(cwd: str) -> tuple[Preopen, ...]:
    """All that is mounted in the container; what is read-only there the kernel keeps so. Relative paths begin at the
    working directory for guests that tell them from absolute ones."""
    # A C library takes the leading slash off: "/a" and "a" are one to it, and the last of the two is asked. That
    # every mount is where it is said to be is worth more than a working directory.
    return Preopen(path=posixpath.normpath(cwd), name="."), Preopen(path="/", name="/")


def environment(plan: ContainerPlan) -> tuple[str, ...]:
    """Ours first, so that the image's and the caller's win; of two the last counts."""
    found = {"HOSTNAME": plan.hostname} if plan.hostname else {}
    if plan.spec.tty:
        found["TERM"] = _TERMINAL
    for entry in plan.process.env:
        name, equals, value = entry.partition("=")
        if not name or "\0" in entry:
            raise InvalidInput("envs", f"{entry!r} is not NAME=value")
        if equals:
            found[name] = value
    found.setdefault("HOME", plan.process.user.home or "/")
    return tuple(f"{name}={value}" for name, value in found.items())
