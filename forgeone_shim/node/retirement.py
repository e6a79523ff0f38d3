"""Nodes of a cluster given back by their agents, asked for by an annotation and waited for."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ForgeError, NotFound, Unavailable
from forgeone_shim.node import labels
from forgeone_shim.node.cluster import Cluster, Conflict
from forgeone_shim.node.labels import How

_WATCH: Final = 60
_PAUSE: Final = 2.0


def retire(cluster: Cluster, names: Sequence[str], how: How, deadline: Deadline) -> Mapping[str, str]:
    """Ask the agents of these nodes (none: of all that have a ForgeOne); the reasons of those that have one still.

    Such a node is asked no more, and stays as it was. An API server that does not answer for a while is asked again.

    :raises ForgeError: the API server refuses, or does not answer in time; nodes are asked no more where it hears that.
    """
    asked = list(names) or [node.name for node in cluster.nodes(labels.VERSION)[0]]
    clean = {labels.UNINSTALL: str(how), labels.UNINSTALLED: None, labels.FAILED: None}
    try:
        for name in asked:
            cluster.patch_node(name, {"metadata": {"annotations": clean}})
        left = _awaited(cluster, frozenset(asked), deadline)
    except ForgeError:
        for name in asked:
            with suppress(ForgeError):
                _withdraw(cluster, name)
        raise
    for name in left:
        _withdraw(cluster, name)
    return left


def _awaited(cluster: Cluster, asked: frozenset[str], deadline: Deadline) -> Mapping[str, str]:
    """A node that is given back has no version any more."""
    while True:
        try:
            nodes, since = cluster.nodes(labels.VERSION)
        except Unavailable:
            if deadline.passed:
                raise
            threading.Event().wait(deadline.remaining(_PAUSE))
            continue
        left = {node.name: node.annotations.get(labels.FAILED, "") for node in nodes if node.name in asked}
        if all(left.values()):
            return left
        if deadline.passed:
            return {name: reason or "its agent has not given it back in time" for name, reason in left.items()}
        with suppress(Conflict, Unavailable):
            for _ in cluster.watch_nodes(since, int(deadline.remaining(_WATCH) or 0) + 1, selector=labels.VERSION):
                break


def _withdraw(cluster: Cluster, name: str) -> None:
    with suppress(NotFound):
        cluster.patch_node(name, {"metadata": {"annotations": {labels.UNINSTALL: None, labels.FAILED: None}}})
