"""``forge contract``: contracts read, explained and signed, and policies tried on manifests, without a node."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from forgeone_shim.attestation import dsse, keys
from forgeone_shim.cli import policies
from forgeone_shim.cli.output import print_json, printable, table
from forgeone_shim.contract import manifest, parse, reader, render
from forgeone_shim.contract.facts import Bound, Point
from forgeone_shim.contract.manifest import Assumed, Manifest
from forgeone_shim.contract.model import PAYLOAD_TYPE
from forgeone_shim.contract.policies import Policies
from forgeone_shim.errors import InvalidInput


def command(args: argparse.Namespace) -> int:
    """``forge contract``."""
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "lint": lint,
        "explain": explain,
        "sign": sign,
        "test": test,
    }
    return commands[args.action](args)


def lint(args: argparse.Namespace) -> int:
    """Says for each file what it is, or what is wrong with it."""
    return policies.each(args.files, lambda name, data: _linted(name, data, args.namespace))


def _linted(name: str, data: bytes, namespace: str) -> str:
    if manifest.is_manifest(_first(name, data)):
        found = manifest.read(name, data, Assumed(), namespace)
        with_one = [one for one in found if _offers(name, one)]
        return f"{len(found)} pods, {len(with_one)} with a contract"
    document, _ = parse.read(name, data, ())
    envelope = " in an envelope" if "payloadType" in _object(name, data) else ""
    return f"a contract{envelope}, {document.contract.digest}"


def _offers(name: str, one: Manifest) -> bool:
    """Whether it brings a contract; every container's is read."""
    names = ["", *(facts.container.name for facts in one.containers if facts.container is not None)]
    pod = parse.Pod(one.pod.pod.namespace, one.pod.pod.name)
    with reader.located(f"{name}: {one.name}"):
        for key in one.annotations:
            _known(key, names)
        found = [parse.offered(one.annotations, container, pod=pod) for container in names]
    return any(offer.given for offer in found)


def _known(key: str, names: Sequence[str]) -> None:
    """An annotation for a container that the pod does not have is a slip that no node can see."""
    of = key.removeprefix(parse.PREFIX).partition(".")[2]
    if key.startswith(parse.PREFIX) and of and of not in names:
        raise InvalidInput(f"annotation {key}", f"the pod has no container {of!r}")


def explain(args: argparse.Namespace) -> int:
    """Field by field: what holds, and who says so."""
    known, data = policies.of(args), policies.content(args.file)
    if manifest.is_manifest(_first(args.file, data)):
        found = manifest.read(args.file, data, Assumed(), args.namespace)
        if len(found) > 1:
            raise InvalidInput(args.file, f"has {len(found)} pods", fix="give a file with one")
        annotations, pod = found[0].annotations, found[0].pod.pod
        namespace, name = pod.namespace, pod.name
    else:
        annotations = {f"{parse.PREFIX}{parse.DOCUMENT}": data.decode(errors="replace")}
        namespace, name = args.namespace or "default", args.pod
    bound = known.bind(annotations, args.container, namespace=namespace, name=name)
    if args.output == "json":
        print_json(_told(bound))
        return 0
    own = parse.offered(annotations, args.container, pod=parse.Pod(namespace, name), issuers=known.issuers)
    sources = {one.name: render.restrictions(one.contract) for one in known.all if one.name in bound.policies}
    sources["the pod" if not args.container else "its pod"] = render.restrictions(own.contract)
    rows = [
        (field, said, ", ".join(source for source, found_there in sources.items() if field in found_there))
        for field, said in render.restrictions(bound.contract).items()
    ]
    signers = " and ".join(_named(known, one) for one in bound.signers)
    sys.stdout.write(
        f"policies   {', '.join(bound.policies) or 'none'}\n"
        f"signed by  {signers or 'nobody who is trusted here' if bound.given else 'there is no contract'}\n"
        f"digest     {bound.contract.digest}\n"
    )
    sys.stdout.write("\n" + table(("FIELD", "VALUE", "SAID BY"), rows) if rows else "\nnothing is restricted\n")
    return 0


def sign(args: argparse.Namespace) -> int:
    """The envelope, on one line: an annotation's value as it is."""
    key, data = keys.read_signing_key(Path(args.key)), policies.content(args.file)
    document, _ = parse.read(args.file, data, ())
    value = _object(args.file, data)
    if "payloadType" in value:
        envelope = dsse.parse(data, args.file)
    else:
        import rfc8785

        envelope = dsse.Envelope(PAYLOAD_TYPE, rfc8785.dumps(value))
    made = dsse.encode(dsse.sign(envelope, key))
    if len(made) > reader.MAX_DOCUMENT:
        raise InvalidInput(args.file, f"is {len(made)} bytes when it is signed, more than {reader.MAX_DOCUMENT}")
    if not document.scope.namespaces:
        sys.stderr.write("forge: it has no scope.namespaces: whoever has it can put it on pods of any namespace\n")
    if args.file_out == "-":
        sys.stdout.write(made.decode() + "\n")
    else:
        keys.write_new(Path(args.file_out), made + b"\n", 0o644)
    return 0


def test(args: argparse.Namespace) -> int:
    """What the node would say at each point; 1 where it would deny."""
    known = policies.of(args)
    assumed = Assumed(
        engine=args.engine,
        user=args.user,
        digest=args.digest,
        signers=tuple(args.signed_by),
        entropy=args.entropy,
        trust_score=args.trust_score,
    )
    points = [_point(one) for one in args.at] or [Point.SANDBOX, Point.CREATE, Point.START]
    found = [
        answer
        for name in args.files
        for one in manifest.read(name, policies.content(name), assumed, args.namespace)
        for answer in manifest.answers(known, one, points)
    ]
    if args.output == "json":
        print_json(
            [
                {
                    "pod": one.pod,
                    "container": one.container,
                    "point": str(one.point),
                    "allowed": one.ruling.allowed,
                    "policy": one.ruling.policy,
                    "rule": one.ruling.rule,
                    "reason": one.ruling.reason,
                }
                for one in found
            ]
        )
    else:
        rows = [
            (one.pod, one.container or "-", str(one.point), "allowed", "", "")
            if one.ruling.allowed
            else (one.pod, one.container or "-", str(one.point), "denied", one.ruling.by, one.ruling.reason)
            for one in found
        ]
        sys.stdout.write(table(("POD", "CONTAINER", "AT", "RULING", "BY", "REASON"), rows))
    return 0 if all(one.ruling.allowed for one in found) else 1


def _point(text: str) -> Point:
    try:
        return Point(text)
    except ValueError:
        raise InvalidInput("--at", f"{text!r} is not one of {', '.join(Point)}") from None


def _told(bound: Bound) -> dict[str, Any]:
    import msgspec

    return {
        "policies": list(bound.policies),
        "given": bound.given,
        "signers": list(bound.signers),
        "digest": bound.contract.digest,
        "contract": msgspec.to_builtins(bound.contract),
    }


def _named(known: Policies, id_: str) -> str:
    key = keys.named(known.issuers, id_)
    return f"{id_} ({printable(key.name)})" if key is not None and key.name else id_


def _first(name: str, data: bytes) -> object:
    """The first document of a file."""
    return next((value for value in manifest.documents(name, data)), None)


def _object(name: str, data: bytes) -> dict[str, Any]:
    value = parse.plain(name, data)
    return value if isinstance(value, dict) else {}
