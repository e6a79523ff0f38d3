"""``forge pause``, ``forge resume``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from cri.api import runtime_pb2 as cri
from forgeone_shim.cli.client import Client, Noun
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.rpc import node_pb2


def pause(client: Client, args: argparse.Namespace) -> int:
    """Stop the processes of containers where they are."""
    return _each(client, args, client.node.PauseContainer, node_pb2.PauseContainerRequest)


def resume(client: Client, args: argparse.Namespace) -> int:
    """Let paused containers go on."""
    return _each(client, args, client.node.ResumeContainer, node_pb2.ResumeContainerRequest)


def _each(client: Client, args: argparse.Namespace, method: Callable[..., Any], request: Callable[..., object]) -> int:
    for name in args.names:
        for id_ in _running(client, name):
            client.call(method, request(container_id=id_))
        sys.stdout.write(f"{name}\n")
    return 0


def _running(client: Client, name: str) -> list[str]:
    """What runs (paused or not) of what ``name`` stands for: the server says why a container does not."""
    # `forge run` gives a pod and its container one name; whoever pauses that means all of it.
    target = client.find(name, Noun.POD, Noun.CONTAINER)
    if target.noun is Noun.CONTAINER:
        return [target.id]
    live = [item.id for item in client.containers(target.id) if item.state == cri.CONTAINER_RUNNING]
    if not live:
        raise FailedPrecondition(f"pod {name!r} has no running containers")
    return live
