"""``forge stop``, ``forge rm``."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from cri.api import runtime_pb2 as cri
from forgeone_shim.cli.client import PATIENCE, Client, Noun, Target
from forgeone_shim.cli.listing import own_pods
from forgeone_shim.errors import FailedPrecondition

LOG_ANNOTATION: Final = "forgeone.dev/log-directory"
"""pod; `forge run`

The pod's log directory, which `forge rm` removes with the pod: only where its name ends with the pod's uid and it is no
symlink.
"""

# `forge run` gives a pod and its container one name; whoever stops or removes that means all of it.
_PODS_FIRST = (Noun.POD, Noun.CONTAINER)


def stop(client: Client, args: argparse.Namespace) -> int:
    """Stop containers, or whole pods."""
    for name in args.names:
        target = client.find(name, *_PODS_FIRST)
        if target.noun is Noun.CONTAINER:
            request = cri.StopContainerRequest(container_id=target.id, timeout=args.timeout)
            client.call(client.runtime.StopContainer, request, timeout=args.timeout + PATIENCE)
        else:
            stop_pod(client, target.id, args.timeout)
        sys.stdout.write(f"{name}\n")
    return 0


def stop_pod(client: Client, pod_id: str, timeout: int) -> None:
    """Stop a pod's containers with their grace period, then the pod."""
    for item in client.containers(pod_id):
        if item.state == cri.CONTAINER_RUNNING:
            request = cri.StopContainerRequest(container_id=item.id, timeout=timeout)
            client.call(client.runtime.StopContainer, request, timeout=timeout + PATIENCE)
    client.call(client.runtime.StopPodSandbox, cri.StopPodSandboxRequest(pod_sandbox_id=pod_id))


def remove(client: Client, args: argparse.Namespace) -> int:
    """Remove containers, or pods with all that is in them; what runs only with ``--force``."""
    targets = [client.find(name, *_PODS_FIRST) for name in args.names]
    if args.all:
        targets += [Target(Noun.POD, item.id, item.metadata.name, item) for item in own_pods(client)]
    for target in targets:
        if not args.force:
            _refuse_running(client, target)
        if target.noun is Noun.CONTAINER:
            client.call(client.runtime.RemoveContainer, cri.RemoveContainerRequest(container_id=target.id))
        else:
            remove_pod(client, target.item)
        sys.stdout.write(f"{target.name}\n")
    return 0


def remove_pod(client: Client, pod: Any) -> None:
    """Stop and remove a pod (its CRI list entry or anything with its id, metadata and annotations), and its logs if
    ``forge run`` made their directory."""
    client.call(client.runtime.StopPodSandbox, cri.StopPodSandboxRequest(pod_sandbox_id=pod.id))
    client.call(client.runtime.RemovePodSandbox, cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id))
    logs = Path(pod.annotations.get(LOG_ANNOTATION, ""))
    # Whoever made the pod wrote the annotation: only a directory that carries the pod's own uid is taken for its logs.
    if logs.is_absolute() and pod.metadata.uid and logs.name.endswith(pod.metadata.uid) and not logs.is_symlink():
        shutil.rmtree(logs, ignore_errors=True)


def _refuse_running(client: Client, target: Target) -> None:
    items = [target.item] if target.noun is Noun.CONTAINER else client.containers(target.id)
    if any(item.state == cri.CONTAINER_RUNNING for item in items):
        raise FailedPrecondition(f"{target.noun} {target.name!r} is running", fix="stop it first, or use --force")
