"""Chooses the engine of a pod whose handler leaves that to the node (decision 24)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import reduce
from typing import Final

from engines.base import Engine, Expected, Features, NamespaceMode, SandboxSpec
from forgeone_shim.config.handlers import DEFAULT_ENGINE
from forgeone_shim.config.model import SchedulerConfig
from forgeone_shim.contract.model import Contract
from forgeone_shim.devices.names import HOST_ANNOTATION
from forgeone_shim.scheduler.plan import Placement, Wanted, isolated, plan

_MODULES: Final = "wasm.forgeone.dev/"
_HANDLER: Final = "run.oci.handler"
_WASM: Final = frozenset({"wasm", "wasm-smart"})
_CLASSES: Final = ("rdt.resources.beta.kubernetes.io/", "blockio.resources.beta.kubernetes.io/")


class Scheduler:
    """Thread-safe. Nothing is remembered of an engine: each pod is asked about as the host is at that moment."""

    def __init__(self, engines: Mapping[str, Engine], config: SchedulerConfig) -> None:
        """``engines`` are the installed ones."""
        self._engines, self._config = dict(engines), config

    def follow(self, config: SchedulerConfig) -> bool:
        """For pods to come. Says whether other labels are isolated than before."""
        before, self._config = self._config, config
        return before.isolate_labels != config.isolate_labels

    def isolated(self, contract: Contract) -> str:
        """Why a pod under that contract has a machine or may not go on, in a clause; empty: it may have any engine."""
        return isolated(contract.profile.trust_label, self._config.isolate_labels)

    def placements(self, spec: SandboxSpec, contract: Contract, only: str = "") -> Iterator[Placement]:
        """The engines that a pod may get under the contract that holds for it, the best first; at least one.

        Each is looked for when it is asked for.

        :param only: the one that it had, where it comes from a checkpoint.
        :raises FailedPrecondition: there is none, or what is demanded cannot be had here.
        """
        config = self._config
        expected = Expected(watched=contract.behaviour.watched, classes=_has_classes(spec))

        def unfit(engine: str) -> str:
            if only not in ("", engine):
                return f"its checkpoint is of the {only} engine"
            return self._unfit(engine, spec, expected)

        return plan(wanted(spec, contract), order=config.order, isolate_labels=config.isolate_labels, unfit=unfit)

    def _unfit(self, engine: str, spec: SandboxSpec, expected: Expected) -> str:
        found = self._engines.get(engine)
        if found is None:
            return "it is not installed"
        if why := found.unfit(spec, expected) or _no_users(found.features(), spec):
            return why
        return self._unusable(engine)

    def _unusable(self, engine: str) -> str:
        # Where it is not usable no pod of this node is, which Status tells; asking it executes programs.
        if engine == DEFAULT_ENGINE:
            return ""
        problems = (one for one in self._engines[engine].problems() if one.fatal or one.unusable)
        return next((one.what for one in problems), "")

    def has(self, engine: str) -> bool:
        """Whether it is among those that may be chosen."""
        return engine in self._config.order

    def possible(self) -> tuple[str, ...]:
        """The engines that some pod could get now, the preferred one first."""
        return tuple(one for one in self._config.order if one in self._engines and not self._unusable(one))

    def usual(self) -> str:
        """What a pod gets of which nothing is known."""
        return next(iter(self.possible()), DEFAULT_ENGINE)

    def features(self) -> Features:
        """What all of :meth:`possible` can do."""
        found = [self._engines[one].features() for one in self.possible()]
        return reduce(_shared, found) if found else Features()


def wanted(spec: SandboxSpec, contract: Contract) -> Wanted:
    """What the choice of an engine is about."""
    return Wanted(
        demanded=contract.exec_mode,
        label=contract.profile.trust_label,
        shares=_shares(spec),
        modules=_modules(spec.annotations),
    )


def _shares(spec: SandboxSpec) -> str:
    options, security = spec.security.namespaces, spec.security
    told = (
        ("the host's network", options.network is NamespaceMode.NODE),
        ("the host's processes", options.pid is NamespaceMode.NODE),
        ("the host's IPC", options.ipc is NamespaceMode.NODE),
        ("to be privileged", security.privileged),
        ("devices of the host", bool(spec.annotations.get(HOST_ANNOTATION))),
    )
    return ", ".join(what for what, so in told if so)


def _modules(annotations: Mapping[str, str]) -> str:
    if annotations.get(_HANDLER, "") in _WASM:
        return _HANDLER
    return next((key for key in sorted(annotations) if key.startswith(_MODULES)), "")


def _has_classes(spec: SandboxSpec) -> bool:
    return any(key.startswith(_CLASSES) for key in spec.annotations)


def _no_users(features: Features, spec: SandboxSpec) -> str:
    options = spec.security.namespaces
    if options.user is NamespaceMode.NODE:
        return ""
    if options.network is NamespaceMode.NODE:
        return "" if features.user_namespaces_host_network else "it has no user namespaces on the host's network"
    return "" if features.user_namespaces else "it has no user namespaces on this host"


def _shared(one: Features, other: Features) -> Features:
    return Features(**{item.name: getattr(one, item.name) and getattr(other, item.name) for item in fields(Features)})
