"""``forge pods``, ``forge ps``, ``forge images``, ``forge version``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from cri.api import runtime_pb2 as cri
from forgeone_shim.cli.client import Client, Noun, RemoteError
from forgeone_shim.cli.output import age, enum_name, print_json, short, size, table
from forgeone_shim.rpc import node_pb2
from forgeone_shim.version import VERSION

_PAUSED = "Paused"
# A handler that only ForgeOne has.
_OURS = "forgeone-native"


def pods(client: Client, args: argparse.Namespace) -> int:
    """Every pod, newest first."""
    items = client.pods()
    if args.output == "json":
        print_json(items)
        return 0
    engines, other = _engines(client).pods, upstream(client)
    rows = [
        (
            short(item.id),
            item.metadata.name,
            item.metadata.namespace,
            enum_name(cri.PodSandboxState, item.state, "SANDBOX_"),
            age(item.created_at),
            item.runtime_handler or "(default)",
            engines[item.id].engine if item.id in engines else other.name,
        )
        for item in items
    ]
    sys.stdout.write(table(("POD ID", "NAME", "NAMESPACE", "STATE", "AGE", "HANDLER", "ENGINE"), rows))
    return 0


def containers(client: Client, args: argparse.Namespace) -> int:
    """Running containers, or every one with ``--all``."""
    pod_id = client.find(args.pod, Noun.POD).id if args.pod else ""
    items = [item for item in client.containers(pod_id) if args.all or item.state == cri.CONTAINER_RUNNING]
    if args.output == "json":
        print_json(items)
        return 0
    names = {item.id: item.metadata.name for item in client.pods()}
    paused = set(client.call(client.node.ListPausedContainers, node_pb2.ListPausedContainersRequest()).container_ids)
    engines, other = _engines(client).containers, upstream(client)
    rows = [
        (
            short(item.id),
            item.metadata.name,
            item.image.user_specified_image or item.image.image,
            _PAUSED if item.id in paused else enum_name(cri.ContainerState, item.state, "CONTAINER_"),
            age(item.created_at),
            names.get(item.pod_sandbox_id, short(item.pod_sandbox_id)),
            engines.get(item.id, other.name),
        )
        for item in items
    ]
    sys.stdout.write(table(("CONTAINER ID", "NAME", "IMAGE", "STATE", "AGE", "POD", "ENGINE"), rows))
    return 0


def _engines(client: Client) -> Any:
    """Which engine has what; a pod that came meanwhile is not in it."""
    return _told(client, client.node.ListEngines, node_pb2.ListEnginesRequest(), node_pb2.ListEnginesResponse())


def own_pods(client: Client) -> list[Any]:
    """Those that ForgeOne runs itself, of all that its socket shows."""
    items = client.pods()
    if not upstream(client).socket:
        return items
    engines = _engines(client).pods
    return [item for item in items if item.id in engines]


def upstream(client: Client) -> Any:
    """The other runtime, whose are the pods that no engine has."""
    return _told(client, client.node.GetUpstream, node_pb2.GetUpstreamRequest(), node_pb2.GetUpstreamResponse())


def _told(client: Client, method: Callable[..., Any], request: object, nothing: Any) -> Any:
    """What a forgeoned that is older than this command, while a node is upgraded, has not got is left out."""
    try:
        return client.call(method, request)
    except RemoteError as error:
        if error.code != "UNIMPLEMENTED":
            raise
        return nothing


def images(client: Client, args: argparse.Namespace) -> int:
    """Every image, a line per tag."""
    items = sorted(client.call(client.images.ListImages, cri.ListImagesRequest()).images, key=_first_name)
    if args.output == "json":
        print_json(items)
        return 0
    owners = _owners(client)
    rows = [
        (
            name,
            tag,
            short(item.id),
            _platform(client, item.id),
            size(item.size),
            *([owners(item.id)] if owners else []),
            "pinned" if item.pinned else "",
        )
        for item in items
        for name, tag in image_names(item.repo_tags, item.repo_digests)
    ]
    runtime = ("RUNTIME",) if owners else ()
    sys.stdout.write(table(("IMAGE", "TAG", "IMAGE ID", "PLATFORM", "SIZE", *runtime, ""), rows))
    return 0


def _owners(client: Client) -> Callable[[str], str] | None:
    """Says which of two runtimes have an image of that id; ``None`` where there is one only."""
    other = upstream(client)
    if not other.socket:
        return None
    ours = cri.ListImagesRequest(filter=cri.ImageFilter(image=cri.ImageSpec(runtime_handler=_OURS)))
    here = {item.id for item in client.call(client.images.ListImages, ours).images}
    there = set(other.image_ids)
    return lambda id_: ", ".join(
        name for name, ids in (("forgeone", here), (other.name or "upstream", there)) if id_ in ids
    )


def _platform(client: Client, image_id: str) -> str:
    """What an image is for; one that was removed meanwhile is for nothing."""
    request = cri.ImageStatusRequest(image=cri.ImageSpec(image=image_id), verbose=True)
    told = json.loads(client.call(client.images.ImageStatus, request).info.get("info", "{}"))
    if "imageSpec" in told:
        # The other runtime's words.
        return "/".join(filter(None, (told["imageSpec"].get(key, "") for key in ("os", "architecture"))))
    return "artifact" if told.get("artifact") and not told.get("module") else str(told.get("platform", ""))


def version(client: Client, args: argparse.Namespace) -> int:
    """Both ends of the socket."""
    server, other = client.call(client.runtime.Version, cri.VersionRequest()), upstream(client)
    beside = {"socket": other.socket, "name": other.name, "version": other.version, "problem": other.problem}
    if args.output == "json":
        told = {"forge": VERSION, "forgeoned": server.runtime_version, "cri": server.runtime_api_version}
        print_json(told | ({"upstream": beside} if other.socket else {}))
        return 0
    sys.stdout.write(
        f"forge {VERSION}\n{server.runtime_name} {server.runtime_version}, CRI {server.runtime_api_version}\n"
    )
    if other.socket:
        sys.stdout.write(f"upstream {f'{other.name} {other.version}'.strip() or other.problem} at {other.socket}\n")
    return 0


def image_names(tags: Any, digests: Any) -> list[tuple[str, str]]:
    """Repository and tag of every tag; an image without tags is named by its repository's digest."""
    named = [tuple(tag.rpartition(":")[::2]) for tag in tags]
    untagged = [(digest.partition("@")[0], "<none>") for digest in digests[:1]] or [("<none>", "<none>")]
    return [(name, tag) for name, tag in named] or untagged


def _first_name(item: Any) -> str:
    return image_names(item.repo_tags, item.repo_digests)[0][0]
