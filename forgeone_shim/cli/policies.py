"""``forge policy``: the policies of a node, and whether files can be such; what ``forge contract`` needs of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from forgeone_shim.attestation import keys
from forgeone_shim.cli.output import print_json, printable, table
from forgeone_shim.cluster import crd, objects
from forgeone_shim.cluster.store import NOTHING, Store
from forgeone_shim.config import loader
from forgeone_shim.contract import parse, policies, policy, render
from forgeone_shim.contract.policies import Policies
from forgeone_shim.contract.policy import Policy
from forgeone_shim.errors import ForgeError, InvalidInput, NotFound, syscall_error
from forgeone_shim.runtime.paths import Paths

# A manifest may be as large as what an API server takes (etcd's limit for a request).
_MAX_FILE: Final = 3 * 1024 * 1024


def command(args: argparse.Namespace) -> int:
    """``forge policy``."""
    return {"list": listing, "check": check, "crd": definition}[args.action](args)


def definition(_: argparse.Namespace) -> int:
    """What ``kubectl apply -f -`` makes of a cluster one that knows ZTAPolicy objects."""
    sys.stdout.write(crd.manifest())
    return 0


def listing(args: argparse.Namespace) -> int:
    """The policies there are, and what they demand."""
    known = of(args)
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
            _source(one),
            one.path,
        )
        for one in known.all
    ]
    sys.stdout.write(table(("NAME", "APPLIES", "NAMESPACES", "RULES", "DEMANDS", "FROM", "FILE"), rows))
    return 0


def check(args: argparse.Namespace) -> int:
    """Every file by itself, and then all of them together; 1 where something cannot be used."""
    if args.files:
        worst = each(args.files, lambda name, data: f"policy {policy.parse(name, data).name}")
        if worst:
            return worst
        known = Policies(
            [policy.parse(name, content(name)) for name in args.files], _issuers(args, ""), _default(args, "")
        )
    else:
        known = of(args)
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


def _source(one: Policy) -> str:
    return "cluster" if one.path == objects.place(one.name) else "node"


def _demands(one: Policy) -> list[str]:
    found = ["a signed contract"] if one.signed else []
    return found + (["a verified image"] if one.verified else []) + list(render.restrictions(one.contract))


def _summary(known: Policies, one: Policy) -> dict[str, Any]:
    import msgspec

    return {
        "name": one.name,
        "path": one.path,
        "source": _source(one),
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


def of(args: argparse.Namespace) -> Policies:
    """Those that the command line names, or else the node's."""
    whole = loader.load(["--config", args.config] if args.config else [], os.environ)
    config = whole.contract
    default = _default(args, config.default_policy if not args.policies else "")
    if not args.policies:
        synced = bool(whole.cluster.kubeconfig)
        kept = Store(Paths(Path(whole.root), Path(whole.state)).cluster).load() if synced else NOTHING
        for name, why in kept.broken.items():
            sys.stderr.write(f"forge: policy {printable(name)} of the cluster: {printable(why)}\n")
        own = policies.read(policies.directory_of(config))
        joined, shadowed = policies.joined(own, [kept.policies[name] for name in sorted(kept.policies)])
        for name in sorted(shadowed):
            sys.stderr.write(f"forge: policy {name} of the cluster is not in force: a file has that name\n")
        return Policies(joined, _issuers(args, config.issuers_dir), default, default_may_come=synced)
    # Of a directory that somebody names, it is asked what it says and not who could have written it.
    directory = Path(args.policies)
    if not directory.is_dir():
        raise NotFound("directory", args.policies)
    files = sorted(file for file in directory.iterdir() if file.suffix in policies.SUFFIXES and file.name[0] != ".")
    found = [policy.parse(str(file), content(str(file))) for file in files]
    return Policies(found, _issuers(args, config.issuers_dir), default)


def _issuers(args: argparse.Namespace, directory: str) -> list[keys.PublicKey]:
    found: list[keys.PublicKey] = []
    for path in map(Path, args.issuers or filter(None, [directory])):
        found += keys.read_trusted(path) if path.is_dir() or not args.issuers else [keys.read_public_key(path)]
    return found


def _default(args: argparse.Namespace, otherwise: str) -> str:
    return otherwise if args.default is None else str(args.default)


def each(files: Sequence[str], read: Callable[[str, bytes], str]) -> int:
    """What is said of each file, the bad ones on standard error; 1 where there was one."""
    worst = 0
    for name in files:
        try:
            said = read(name, content(name))
            sys.stdout.write(f"{printable(name)}: {said}\n")
        except ForgeError as error:
            sys.stderr.write(f"{printable(str(error))}\n")
            worst = 1
    return worst


def content(name: str) -> bytes:
    """What a file holds, or standard input (``-``). :raises InvalidInput: it is too large."""
    try:
        if name == "-":
            data = sys.stdin.buffer.read(_MAX_FILE + 1)
        else:
            with open(name, "rb") as file:
                data = file.read(_MAX_FILE + 1)
    except FileNotFoundError:
        raise NotFound("file", name) from None
    except OSError as error:
        raise syscall_error("read", name, error) from None
    if len(data) > _MAX_FILE:
        raise InvalidInput(name, f"is larger than {_MAX_FILE} bytes")
    return data
