"""``forge inspect``, ``forge dna show``, ``forge dna diff``: what is known of a container."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import msgspec

from forgeone_shim.cli.client import Client, Noun
from forgeone_shim.cli.output import print_json, table
from forgeone_shim.dna.fingerprint import Genome, compare
from forgeone_shim.errors import FailedPrecondition, ForgeError, InternalError, InvalidInput
from forgeone_shim.rpc import node_pb2

# As diff(1) has it.
_DIFFERENT, _TROUBLE = 1, 2


def command(client: Client, args: argparse.Namespace) -> int:
    """Print the documents, as one where there is one."""
    found = [document(client, client.find(name).id) for name in args.names]
    print_json(found[0] if len(found) == 1 else found)
    return 0


def document(client: Client, id_: str) -> dict[str, Any]:
    """What forgeoned knows of a container or a pod."""
    answer = client.call(client.node.Inspect, node_pb2.InspectRequest(id=id_))
    found = json.loads(answer.document)
    if not isinstance(found, dict):
        raise InternalError("forgeoned's answer is not a document")
    return found


def show(client: Client, args: argparse.Namespace) -> int:
    """Who a container is."""
    found = _container(client, args.container)
    if args.output == "json":
        print_json(found["dna"])
        return 0
    dna, score = found["dna"], found["score"]
    parts = ", ".join(f"{name} {part['points']}/{part['of']}" for name, part in score["parts"].items())
    limits = ", ".join(f"{name}={value}" for name, value in sorted(dna["resource_limits"].items()) if value)
    rows = (
        ("hash", dna["hash"] or "(it never had a process)"),
        ("signers", ", ".join(dna["signer"]) or "(none was checked)"),
        ("limits", limits or "(none)"),
        ("trust label", dna["trust_label"] or "(none)"),
        ("entropy", f"{dna['runtime_entropy']} bits"),
        ("score", f"{score['total']} of 100 ({parts})"),
        ("image", found["image"]["id"]),
        ("engine", found["engine"]["version"] or found["engine"]["name"]),
    )
    sys.stdout.write(table(("FIELD", "VALUE"), rows))
    return 0


def diff(client: Client, args: argparse.Namespace) -> int:
    """What decides what runs and differs between two containers; 0: nothing, 1: something, 2: it cannot be told."""
    try:
        before, after = (_genome(client, name) for name in (args.before, args.after))
    except ForgeError as error:
        sys.stderr.write(f"forge: {error}\n")
        return _TROUBLE
    found = compare(before, after)
    if args.output == "json":
        print_json([{"field": one.field, "before": one.before, "after": one.after} for one in found])
    elif found:
        rows = [(one.field, _text(one.before), _text(one.after)) for one in found]
        sys.stdout.write(table(("FIELD", "BEFORE", "AFTER"), rows))
    return _DIFFERENT if found else 0


def _genome(client: Client, name: str) -> Genome:
    found = _container(client, name)
    if found["dna"]["genome"] is None:
        raise FailedPrecondition(f"container {name!r} never had a process, and so has no fingerprint")
    try:
        return msgspec.convert(found["dna"]["genome"], Genome)
    except msgspec.ValidationError as error:
        raise InternalError(f"forgeoned's genome of {name!r} is of another version: {error}") from error


def _container(client: Client, name: str) -> dict[str, Any]:
    """One that has ended, too."""
    target = client.find(name)
    if target.noun is Noun.CONTAINER:
        return document(client, target.id)
    items = client.containers(target.id)
    if len(items) != 1:
        raise InvalidInput("container", f"pod {name!r} has {len(items)} containers", fix="name the container")
    return document(client, items[0].id)


def _text(value: object) -> str:
    return value if isinstance(value, str) else "-" if value is None else json.dumps(value, ensure_ascii=False)
