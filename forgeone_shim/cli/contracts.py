"""``forge contract`` and ``forge policy``: contracts and policies read, explained, signed and tried, without a node."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from forgeone_shim.attestation import dsse, keys
from forgeone_shim.cli.output import print_json, printable, table
from forgeone_shim.config import loader
from forgeone_shim.contract import manifest, parse, policies, policy, reader, render
from forgeone_shim.contract.facts import Bound, Point
from forgeone_shim.contract.manifest import Assumed, Manifest
from forgeone_shim.contract.model import PAYLOAD_TYPE
from forgeone_shim.contract.policies import Policies
from forgeone_shim.contract.policy import Policy
from forgeone_shim.errors import ForgeError, InvalidInput, NotFound, syscall_error

# A manifest may be as large as what an API server takes (etcd's limit for a request).
_MAX_MANIFEST: Final = 3 * 1024 * 1024


def contract(args: argparse.Namespace) -> int:
    """``forge contract``."""
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "lint": lint,
        "explain": explain,
        "sign": sign,
        "test": test,
    }
    return commands[args.action](args)


def of_policies(args: argparse.Namespace) -> int:
    """``forge policy``."""
    return {"list": listing, "check": check}[args.action](args)


def lint(args: argparse.Namespace) -> int:
    """Says for each file what it is, or what is wrong with it."""
    return _each(args.files, lambda name, data: _linted(name, data, args.namespace))


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
    known, data = _policies(args), _data(args.file)
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
    key, data = keys.read_signing_key(Path(args.key)), _data(args.file)
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
    known = _policies(args)
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
        for one in manifest.read(name, _data(name), assumed, args.namespace)
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


def listing(args: argparse.Namespace) -> int:
    """The policies there are, and what they demand."""
    known = _policies(args)
    if args.output == "json":
        print_json([_summary(known, one) for one in known.all])
        return 0
    rows = [
        (
            one.name,
            "floor" if one.floor else "default" if one.name == known.default else "by name",
            ", ".join(one.namespaces) or "all" + (f" but {', '.join(one.excepted)}" if one.excepted else ""),
            str(len(one.rules)),
            ", ".join(_demands(one)) or "-",
            one.path,
        )
        for one in known.all
    ]
    sys.stdout.write(table(("NAME", "APPLIES", "NAMESPACES", "RULES", "DEMANDS", "FILE"), rows))
    return 0


def check(args: argparse.Namespace) -> int:
    """Every file by itself, and then all of them together; 1 where something cannot be used."""
    if args.files:
        worst = _each(args.files, lambda name, data: f"policy {policy.parse(name, data).name}")
        if worst:
            return worst
        known = Policies(
            [policy.parse(name, _data(name)) for name in args.files], _issuers(args, ""), _default(args, "")
        )
    else:
        known = _policies(args)
        sys.stdout.write("".join(f"{printable(one.path)}: policy {one.name}\n" for one in known.all))
    for warning in _warnings(known):
        sys.stderr.write(f"forge: {warning}\n")
    sys.stdout.write(f"{len(known.all)} policies, {known.digest}\n")
    return 0


def _warnings(known: Policies) -> Iterator[str]:
    """What can be meant, and mostly is not."""
    trusted = {key.id for key in known.issuers}
    for one in known.all:
        for issuer in one.issuers:
            if issuer not in trusted:
                yield f"policy {one.name}: no key of contract.issuers_dir is {issuer}"
        if one.signed and not trusted:
            yield f"policy {one.name}: demands signed contracts, and no issuer is trusted"
        try:
            known.bind({f"{parse.PREFIX}runtime_policy_id": one.name}, namespace="", name="")
        except InvalidInput as error:
            yield f"policy {one.name} cannot be named where all floors apply: {error}"


def _demands(one: Policy) -> list[str]:
    found = ["a signed contract"] if one.signed else []
    return found + (["a verified image"] if one.verified else []) + list(render.restrictions(one.contract))


def _summary(known: Policies, one: Policy) -> dict[str, Any]:
    import msgspec

    return {
        "name": one.name,
        "path": one.path,
        "digest": one.digest,
        "floor": one.floor,
        "default": one.name == known.default,
        "namespaces": list(one.namespaces),
        "exceptNamespaces": list(one.excepted),
        "requireSignedContract": one.signed,
        "contractIssuers": list(one.issuers),
        "requireVerifiedImage": one.verified,
        "contract": msgspec.to_builtins(one.contract),
        "rules": [
            {"name": rule.name, "at": sorted(rule.at), "expression": rule.expression, "message": rule.message}
            for rule in one.rules
        ],
    }


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


def _policies(args: argparse.Namespace) -> Policies:
    config = loader.load(["--config", args.config] if args.config else [], os.environ).contract
    default = _default(args, config.default_policy if not args.policies else "")
    if not args.policies:
        return Policies(policies.read(Path(config.policies_dir)), _issuers(args, config.issuers_dir), default)
    # Of a directory that somebody names, it is asked what it says and not who could have written it.
    directory = Path(args.policies)
    if not directory.is_dir():
        raise NotFound("directory", args.policies)
    files = sorted(file for file in directory.iterdir() if file.suffix in policies.SUFFIXES and file.name[0] != ".")
    found = [policy.parse(str(file), _data(str(file))) for file in files]
    return Policies(found, _issuers(args, config.issuers_dir), default)


def _issuers(args: argparse.Namespace, directory: str) -> list[keys.PublicKey]:
    found: list[keys.PublicKey] = []
    for path in map(Path, args.issuers or filter(None, [directory])):
        found += keys.read_trusted(path) if path.is_dir() or not args.issuers else [keys.read_public_key(path)]
    return found


def _default(args: argparse.Namespace, otherwise: str) -> str:
    return otherwise if args.default is None else str(args.default)


def _each(files: Sequence[str], read: Callable[[str, bytes], str]) -> int:
    """What is said of each file, the bad ones on standard error; 1 where there was one."""
    worst = 0
    for name in files:
        try:
            said = read(name, _data(name))
            sys.stdout.write(f"{printable(name)}: {said}\n")
        except ForgeError as error:
            sys.stderr.write(f"{printable(str(error))}\n")
            worst = 1
    return worst


def _data(name: str) -> bytes:
    try:
        if name == "-":
            data = sys.stdin.buffer.read(_MAX_MANIFEST + 1)
        else:
            with open(name, "rb") as file:
                data = file.read(_MAX_MANIFEST + 1)
    except FileNotFoundError:
        raise NotFound("file", name) from None
    except OSError as error:
        raise syscall_error("read", name, error) from None
    if len(data) > _MAX_MANIFEST:
        raise InvalidInput(name, f"is larger than {_MAX_MANIFEST} bytes")
    return data


def _first(name: str, data: bytes) -> object:
    """The first document of a file."""
    return next((value for value in manifest.documents(name, data)), None)


def _object(name: str, data: bytes) -> dict[str, Any]:
    value = parse.plain(name, data)
    return value if isinstance(value, dict) else {}
