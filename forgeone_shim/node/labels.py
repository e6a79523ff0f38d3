"""What a node of a cluster says of its ForgeOne, and what others say to the agent there: names, and pure decisions."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from forgeone_shim.node.cluster import Node

READY: Final = "forgeone.dev/ready"
VERSION: Final = "forgeone.dev/version"
ENGINE: Final = "forgeone.dev/engine-"
TAINT: Final = "forgeone.dev/installing"
CORDONED: Final = "forgeone.dev/cordoned"
"""An annotation: the cordon is the agent's."""

UNINSTALL: Final = "forgeone.dev/uninstall"
"""An annotation: the agent is to give the node back; how, is :class:`How`."""

UNINSTALLED: Final = "forgeone.dev/uninstalled-by"
"""An annotation: the agent's pod (its UID) that has done so."""

FAILED: Final = "forgeone.dev/uninstall-failed"
"""An annotation: why it has not."""

_ENGINES: Final = ("native", "wasm", "microvm")
_TRUE: Final = "true"
_EFFECT: Final = "NoSchedule"


class How(StrEnum):
    """What becomes of pods when a node is given back."""

    REFUSE = "refuse"
    DRAIN = "drain"
    FORCE = "force"


class Task(StrEnum):
    """What the agent has to do."""

    INSTALL = "install"
    UNINSTALL = "uninstall"
    REST = "rest"
    FORGET = "forget"


def task(node: Node, pod: str) -> Task:
    """What is asked of the agent whose pod has this UID.

    A request that another pod has carried out was not meant for this one: its DaemonSet came afterwards.
    """
    if UNINSTALL not in node.annotations:
        return Task.INSTALL
    by = node.annotations.get(UNINSTALLED)
    if by is None:
        return Task.REST if FAILED in node.annotations else Task.UNINSTALL
    return Task.REST if by == pod else Task.FORGET


def how(node: Node) -> How:
    """How the node is to be given back; what is not known stops nothing."""
    said = node.annotations.get(UNINSTALL, "")
    return How(said) if said in set(How) else How.REFUSE


def wanted(version: str, engines: tuple[str, ...], *, ready: bool) -> dict[str, str | None]:
    """The labels of a node; ``None``: it has none of that name. Without a version it has no ForgeOne."""
    found: dict[str, str | None] = {READY: _TRUE if ready and version else None, VERSION: version or None}
    return found | {ENGINE + name: _TRUE if version and name in engines else None for name in _ENGINES}


def changed(now: Mapping[str, str], then: Mapping[str, str | None]) -> dict[str, str | None]:
    """Those of ``then`` that are not so ``now``."""
    return {name: value for name, value in then.items() if now.get(name) != value}


def others_cordon(node: Node) -> bool:
    """Whether somebody else than the agent lets no pods come."""
    return node.cordoned and CORDONED not in node.annotations


def marked(node: Node, *, cordon: bool, taint: bool) -> dict[str, object]:
    """The patch by which a node says that it installs; empty when it does already."""
    return _marks(node, cordon=cordon and not node.cordoned, taint=taint)


def unmarked(node: Node) -> dict[str, object]:
    """The patch by which it says so no more; a cordon that is somebody else's stays."""
    spec: dict[str, object] = {}
    metadata: dict[str, object] = {}
    if CORDONED in node.annotations:
        metadata["annotations"] = {CORDONED: None}
        spec["unschedulable"] = None
    if any(taint["key"] == TAINT for taint in node.taints):
        spec["taints"] = [dict(taint) for taint in node.taints if taint["key"] != TAINT]
    return _patch(node, metadata, spec)


def _marks(node: Node, *, cordon: bool, taint: bool) -> dict[str, object]:
    spec: dict[str, object] = {}
    metadata: dict[str, object] = {}
    if cordon:
        metadata["annotations"] = {CORDONED: _TRUE}
        spec["unschedulable"] = True
    if taint and all(one["key"] != TAINT for one in node.taints):
        spec["taints"] = [*map(dict, node.taints), {"key": TAINT, "value": _TRUE, "effect": _EFFECT}]
    return _patch(node, metadata, spec)


def _patch(node: Node, metadata: dict[str, object], spec: dict[str, object]) -> dict[str, object]:
    """Taints are one list, so a patch of them must not meet another's."""
    if not metadata and not spec:
        return {}
    patch: dict[str, object] = {"metadata": metadata | {"resourceVersion": node.version}}
    return patch | ({"spec": spec} if spec else {})
