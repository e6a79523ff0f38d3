"""``forge pkg``: packages built, signed, verified and moved, without a node."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from forgeone_shim import abi
from forgeone_shim.attestation import dsse, keys
from forgeone_shim.cli.output import printable, size
from forgeone_shim.config import loader
from forgeone_shim.config.model import Config
from forgeone_shim.deadline import NEVER
from forgeone_shim.errors import InvalidInput
from forgeone_shim.package import file, manifest, project, remote
from forgeone_shim.package.file import SUFFIX, PackageFile
from forgeone_shim.package.manifest import Package
from forgeone_shim.package.verification import Trust, Verified
from forgeone_shim.registry import authfiles
from forgeone_shim.registry.hosts import endpoints_for
from forgeone_shim.registry.model import Credentials
from forgeone_shim.registry.reference import Reference
from forgeone_shim.registry.transport import Session, TlsContexts


def command(args: argparse.Namespace) -> int:
    """Run one of them."""
    commands: dict[str, Callable[[argparse.Namespace], None]] = {
        "new": new,
        "keygen": keygen,
        "build": build,
        "sign": sign,
        "verify": verify,
        "inspect": inspect,
        "push": push,
        "pull": pull,
    }
    commands[args.action](args)
    return 0


def new(args: argparse.Namespace) -> None:
    """A project to fill in."""
    base = args.name.rpartition("/")[2]
    folder = Path(args.directory or base)
    text = project.TEMPLATE.format(name=args.name, base=base)
    manifest.check_name(args.name)
    folder.mkdir(parents=True, exist_ok=True)
    keys.write_new(folder / project.FILE, text.encode(), 0o644)
    sys.stdout.write(f"{folder / project.FILE}\n")


def keygen(args: argparse.Namespace) -> None:
    """A pair of keys; prints the id of the public one."""
    path, public = Path(args.file), Path(f"{args.file}.pub")
    key = keys.SigningKey.generate()
    key.save(path)
    try:
        keys.write_new(public, key.public.pem(), 0o644)
    except BaseException:
        path.unlink()
        raise
    sys.stdout.write(f"{key.public.id}\n")


def build(args: argparse.Namespace) -> None:
    """Prints the file and the package's digest."""
    found = project.read(Path(args.project))
    key = keys.read_signing_key(Path(args.key)) if args.key else None
    _written(file.build(found, Path(args.file or _default(found.name, found.version)), key))


def sign(args: argparse.Namespace) -> None:
    """The same package, signed."""
    key = keys.read_signing_key(Path(args.key))
    with PackageFile(Path(args.package)) as package:
        _written(file.sign(package, Path(args.file or args.package), key))


def verify(args: argparse.Namespace) -> None:
    """Says who signed it; fails where that is not enough."""
    with PackageFile(Path(args.package)) as package:
        found = package.verify(_trust(args, _config(args)))
        sys.stdout.write(f"{package.manifest_digest}  {found.package.name}:{found.package.version}\n")
    _tell_signers(found)


def inspect(args: argparse.Namespace) -> None:
    """The manifest and who claims to have signed it. Nothing is verified but what must be to read it."""
    with PackageFile(Path(args.package)) as package:
        said, envelope = package.package(), package.envelope()
        signed = dsse.parse(envelope, "the signature").signatures if envelope is not None else ()
        report = {
            "digest": package.manifest_digest,
            "reference": str(said.reference),
            "manifest": msgspec.json.decode(manifest.encode(said)),
            "signatures": [{"key": each.key_id} for each in signed],
        }
    if args.output == "json":
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        sys.stdout.write(_rendered(said, report))


def push(args: argparse.Namespace) -> None:
    """Prints the name it has there, with its digest."""
    config = _config(args)
    with PackageFile(Path(args.package)) as package:
        package.verify(Trust(unsigned=True))
        named = Reference.parse(args.reference)
        if named.digest:
            raise InvalidInput("reference", "a push gives a tag, not a digest")
        tag = named.tag if args.reference.rpartition("/")[2].count(":") else package.package().version
        with _session(config) as session:
            remote.push(session, _endpoints(config, named, args), named, tag, package)
        sys.stdout.write(f"{named.name}:{tag}@{package.manifest_digest}\n")


def pull(args: argparse.Namespace) -> None:
    """The package as a file, which is there only once it has been verified."""
    config = _config(args)
    named = Reference.parse(args.reference)
    with _session(config) as session:
        found = remote.pull(session, _endpoints(config, named, args), named, _trust(args, config))
        path = Path(args.file or _default(found.verified.package.name, found.verified.package.version))
        found.write(path)
    sys.stdout.write(f"{path}  {found.digest}\n")
    _tell_signers(found.verified)


def _written(made: file.Written) -> None:
    sys.stdout.write(f"{made.path}  {made.digest}\n")


def _default(name: str, version: str) -> str:
    return f"{name.rpartition('/')[2]}-{version}{SUFFIX}"


def _config(args: argparse.Namespace) -> Config:
    return loader.load(["--config", args.config] if args.config else [], os.environ)


def _trust(args: argparse.Namespace, config: Config) -> Trust:
    found: list[keys.PublicKey] = []
    for path in map(Path, args.trust or [config.packages.trusted_keys]):
        found += keys.read_trusted(path) if path.is_dir() or not args.trust else [keys.read_public_key(path)]
    unsigned = args.allow_unsigned or (not args.trust and config.packages.unsigned == "allow")
    return Trust(tuple(found), unsigned=unsigned, abi=abi.VERSION)


@contextmanager
def _session(config: Config) -> Iterator[Session]:
    session = Session(TlsContexts(), NEVER, config.registry.progress_timeout)
    try:
        yield session
    finally:
        session.close()


def _endpoints(config: Config, named: Reference, args: argparse.Namespace) -> Any:
    # Not above: gRPC's messages are not needed where nobody logs in.
    from forgeone_shim.cli.pull import credentials

    given = credentials(args)
    login: Credentials | None = Credentials(username=given.username, password=given.password)
    login = login or authfiles.find(named, "", namespaces="", node=config.registry.auth_file)
    return endpoints_for(Path(config.registry.config_path), named.registry, login)


def _tell_signers(found: Verified) -> None:
    for key in found.signers:
        sys.stdout.write(f"signed by {key.id}{f'  {printable(key.name)}' if key.name else ''}\n")
    if not found.signers:
        sys.stdout.write("not signed by a trusted key\n")


def _rendered(said: Package, report: dict[str, Any]) -> str:
    limits, contract = said.limits, msgspec.to_builtins(said.contract)
    rows = [
        ("name", str(said.reference)),
        ("digest", report["digest"]),
        ("description", said.description),
        ("module", f"{said.module.kind}, {size(said.module.size)}, {said.module.digest}"),
        ("imports", ", ".join(said.module.imports)),
        ("host abi", said.host_abi),
        ("assets", size(said.assets.size) if said.assets else ""),
        ("sbom", said.sbom.media_type if said.sbom else ""),
        ("arguments", " ".join(said.run.args)),
        ("environment", " ".join(f"{key}={value}" for key, value in sorted(said.run.env.items()))),
        ("memory", size(limits.memory) if limits.memory else ""),
        ("cpu", f"{limits.cpu / 1000:g}" if limits.cpu else ""),
        ("contract", ", ".join(f"{key} {value}" for key, value in contract.items() if value)),
        *(("signature", each["key"] or "of an unnamed key") for each in report["signatures"]),
    ]
    return "".join(f"{key:12} {printable(value)}\n" for key, value in rows if value)
