"""What a container gets besides what its caller asked for: the node's defaults, its devices, the host's hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engines.base import ContainerPlan, Hook, Problem
from engines.native import defaults, edits, hooks
from engines.native.defaults import Defaults, DefaultSettings
from engines.native.hooksd import HookDirectories, Subject
from engines.native.spec import Gathered
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.kernel.host import Host

Json = dict[str, Any]

# crun, and systemd through it, takes orders from annotations; those that a hook was chosen for must not give any.
_ORDERS = ("run.oci.", "org.systemd.", "org.criu", "krun.", "module.wasm.", "io.kubernetes.cri.", "io.crun.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraSettings(DefaultSettings):
    """That part of the engine's settings, as ``[native]`` has it."""

    hooks_dirs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chosen:
    """The hooks of one container, and the annotations they may see."""

    hooks: tuple[Hook, ...] = ()
    annotations: Mapping[str, str] | None = None

    def keep(self, bundle: str) -> None:
        """Note those that crun does not run."""
        if self.hooks:
            hooks.keep(bundle, self.hooks, self.annotations or {})


class Extras:
    """A container that has none of it costs a few comparisons. Safe to call from many threads.

    :param crun_version: the version of the crun in use, asked only when it matters.
    """

    def __init__(self, settings: ExtraSettings, host: Host, crun_version: Callable[[], tuple[int, ...]]) -> None:
        self._defaults = Defaults.read(settings)
        self._directories = HookDirectories(settings.hooks_dirs) if settings.hooks_dirs else None
        self._host, self._crun_version = host, crun_version

    def asked(self, plan: ContainerPlan) -> ContainerPlan:
        """The plan with the node's defaults, and what its pod's annotations ask for, among the wishes.

        The resctrl class of a device takes the place of any other.
        """
        plan = self._defaults.added_to(plan, self._host)
        if plan.edits.rdt is None:
            return plan
        return replace(plan, rdt_class=edits.rdt_class(plan.edits.rdt) or "")

    def problems(self) -> list[Problem]:
        """What on this host is in the way of the settings."""
        found = self._defaults.problems(self._host)
        files = self._directories.unusable() if self._directories is not None else []
        why = "nobody can tell which containers it was meant for, so that none can be created"
        return [*found, *(Problem(f"hook definition {what}", why, "correct or remove it") for what in files)]

    def found(self, plan: ContainerPlan, gathered: Gathered) -> Gathered:
        """The devices that were asked for, with their owners."""
        if not self._defaults.owned_devices:
            return gathered
        return replace(gathered, devices=defaults.owned(gathered.devices, plan))

    def put(self, whole: Json, plan: ContainerPlan, deadline: Deadline) -> Chosen:
        """Change the finished ``config.json``; returns the hooks, which are to be kept before crun sees it.

        ``plan`` is what :meth:`asked` returned.

        :raises ForgeError: a device or a hook cannot be used, or the node does not permit what the pod asks for.
        """
        self._defaults.settle(whole, plan, self._host)
        if plan.edits:
            self._check_crun(plan)
            edits.apply(whole, plan.edits, edits.nodes(plan.edits))
        chosen = self._hooks(plan)
        if chosen.hooks:
            hooks.check(chosen.hooks)
            whole["hooks"] = hooks.of_crun(chosen.hooks, deadline)
            if chosen.annotations:
                whole["annotations"] = {**chosen.annotations, **whole.get("annotations", {})}
        return chosen

    def _check_crun(self, plan: ContainerPlan) -> None:
        wanted = edits.needed(plan.edits)
        if wanted is not None and self._crun_version() < wanted.version:
            version = ".".join(map(str, wanted.version))
            raise FailedPrecondition(f"a CDI device needs {wanted.what}", fix=f"install crun {version} or later")

    def _hooks(self, plan: ContainerPlan) -> Chosen:
        own = plan.edits.hooks
        if self._directories is None:
            return Chosen(own)
        annotations = {**plan.pod_annotations, **plan.spec.annotations}
        callers = any(mount not in self._defaults.mounts for mount in plan.spec.mounts)
        subject = Subject(annotations, _command(plan.process.args), callers)
        matched = self._directories.matching(subject)
        seen = {key: value for key, value in matched.annotations.items() if not key.startswith(_ORDERS)}
        return Chosen((*own, *matched.hooks), seen)


def _command(args: Sequence[str]) -> str:
    if not args:
        raise InvalidInput("command", "is empty, and the image has none")
    return args[0]
