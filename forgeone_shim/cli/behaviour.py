"""``forge dna learn|pin|drift|seccomp``: what containers do, and what is usual for an image."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from forgeone_shim.cli.client import Client, any_container
from forgeone_shim.cli.output import print_json, table
from forgeone_shim.dna.behaviour.baseline import SIZE_MAX
from forgeone_shim.errors import InternalError, InvalidInput
from forgeone_shim.rpc import node_pb2

_DRIFTED = 1


def learn(client: Client, args: argparse.Namespace) -> int:
    """Learn from a container; with JSON, print the baseline's document, which other nodes can pin."""
    request = node_pb2.LearnBehaviourRequest(container_id=any_container(client, args.container), anew=args.anew)
    return _told(client.call(client.node.LearnBehaviour, request).baseline, args)


def pin(client: Client, args: argparse.Namespace) -> int:
    """Pin what was learned of an image, or what a file says."""
    if bool(args.image) is bool(args.file):
        raise InvalidInput("image", "give an image, or --file")
    if args.remove:
        if not args.image:
            raise InvalidInput("image", "is missing", fix="forge dna pin --remove IMAGE")
        client.call(client.node.UnpinBaseline, node_pb2.UnpinBaselineRequest(image=args.image))
        return 0
    if args.file:
        request = node_pb2.PinBaselineRequest(document=_read(args.file))
    else:
        request = node_pb2.PinBaselineRequest(image=args.image)
    return _told(client.call(client.node.PinBaseline, request).baseline, args)


def drift(client: Client, args: argparse.Namespace) -> int:
    """How a container differs; 0: not at all, or it is compared with nothing; 1: it does."""
    request = node_pb2.GetBehaviourRequest(container_id=any_container(client, args.container))
    found = json.loads(client.call(client.node.GetBehaviour, request).document)
    if not isinstance(found, dict):
        raise InternalError("forgeoned's answer is not a document")
    if args.output == "json":
        print_json(found)
    else:
        sys.stdout.write(table(("FIELD", "VALUE"), _rows(found)))
    differs = found["drift"] or {}
    return _DRIFTED if differs.get("system") or differs.get("host") else 0


def seccomp(client: Client, args: argparse.Namespace) -> int:
    """Print the profile."""
    request = node_pb2.ExportSeccompProfileRequest(image=args.image)
    print_json(json.loads(client.call(client.node.ExportSeccompProfile, request).profile))
    return 0


def _told(baseline: Any, args: argparse.Namespace) -> int:
    if args.output == "json":
        # As it is: its digest is that of these bytes.
        sys.stdout.write(f"{baseline.document}\n")
        return 0
    rows = (
        ("digest", baseline.digest),
        ("image", baseline.image),
        ("containers", str(baseline.containers)),
        ("system calls", str(baseline.system_calls)),
        ("host calls", str(baseline.host_calls)),
    )
    sys.stdout.write(table(("FIELD", "VALUE"), rows))
    return 0


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    calls = sum(one["count"] for one in found["system"])
    rows = [
        ("image", found["image"]),
        ("system calls", f"{calls} of {len(found['system'])} kinds"),
        ("host calls", f"{sum(one['count'] for one in found['host'])} of {len(found['host'])} kinds"),
        ("seen", "from its beginning" if found["whole"] else "not from its beginning"),
    ]
    differs = found["drift"]
    if differs is None:
        return [*rows, ("baseline", "(none is pinned)")]
    new = ", ".join((*differs["system"], *differs["host"]))
    return [
        *rows,
        ("baseline", found["baseline"]["digest"]),
        ("drift", f"{differs['amount']:.0%}"),
        ("new", new or "(nothing)"),
        ("missing", ", ".join(differs["missing"]) or "(nothing)"),
        ("other shares", f"{differs['shares']:.0%}"),
        ("same order", f"{differs['order']:.0%}"),
    ]


def _read(name: str) -> str:
    try:
        if name == "-":
            data = sys.stdin.buffer.read(SIZE_MAX + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(SIZE_MAX + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("--file", f"{name} cannot be read: {error}") from error
    if not text.strip():
        raise InvalidInput("--file", f"{name} is empty")
    return text
