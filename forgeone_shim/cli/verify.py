"""``forge verify``: who stands behind an image, by this node's policies or by a key, asked of its registry."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forgeone_shim import abi
from forgeone_shim.attestation.evidence import Endorsement, Evidence, Kind
from forgeone_shim.attestation.keys import read_trusted
from forgeone_shim.attestation.requirements import Requirements
from forgeone_shim.cli.output import print_json, printable
from forgeone_shim.config import loader
from forgeone_shim.config.model import Config
from forgeone_shim.deadline import NEVER
from forgeone_shim.errors import InvalidInput
from forgeone_shim.package.verification import Trust
from forgeone_shim.registry import authfiles
from forgeone_shim.registry.endorsing import case_of, target_of
from forgeone_shim.registry.evidence import Found, search
from forgeone_shim.registry.fetch import Resolved, resolve
from forgeone_shim.registry.hosts import endpoints_for
from forgeone_shim.registry.manifest import host_platform
from forgeone_shim.registry.model import Credentials
from forgeone_shim.registry.reference import Reference
from forgeone_shim.registry.source import Source
from forgeone_shim.registry.transport import Session, TlsContexts
from forgeone_shim.registry.verifiers import auth_document
from forgeone_shim.registry.vetting import Vetting


@dataclass(frozen=True, slots=True)
class _ByKey:
    """What ``--key`` asks for, of every image; ``signers`` are the owners of these keys."""

    requirements: Requirements
    signers: frozenset[str]
    digest: str = ""

    def required(self, reference: Reference, namespace: str = "") -> Requirements:  # noqa: ARG002
        return self.requirements


def command(args: argparse.Namespace) -> int:
    """Says who; fails where that is not enough.

    :raises UntrustedImage: naming the policy and what was wrong with what was found.
    """
    config = loader.load(["--config", args.config] if args.config else [], os.environ)
    by_key = _by_key(args.key) if args.key else None
    vetting = Vetting.open(config.signatures) if by_key is None else Vetting(by_key, None)
    if vetting is None:
        raise InvalidInput(
            "--key", "is not given, and this node has no policy", fix="set signatures.policy, or give one"
        )
    reference = Reference.parse(args.image)
    session = Session(TlsContexts(), NEVER, config.registry.progress_timeout)
    try:
        source = Source(session, reference, endpoints_for(*_where(config, reference, args)))
        resolved = resolve(source, host_platform(config.registry.platform), lambda: _packages(config))
        case, found = case_of(reference, resolved, args.namespace), Found(Evidence())
        if by_key is not None:
            # Of a package, too, only these count, whomever else this node trusts.
            case = replace(case, signers=tuple(signer for signer in case.signers if signer in by_key.signers))

        def find(wanted: frozenset[Kind]) -> Found:
            nonlocal found
            found = search(source, case.subject.digests, wanted)
            return found

        auth = auth_document(reference.registry, source.credentials)
        vetted = vetting.vet(case, (find,), lambda: target_of(resolved), lambda: auth, NEVER)
    finally:
        session.close()
    report = _report(reference, resolved, vetted.endorsement, found)
    if args.output == "json":
        print_json(report)
    else:
        sys.stdout.write(_rendered(report))
    return 0


def _by_key(files: list[str]) -> _ByKey:
    from forgeone_shim.attestation import publickeys
    from forgeone_shim.attestation.authorities import Keys
    from forgeone_shim.attestation.identity import Match, SignedIdentity
    from forgeone_shim.attestation.rules import Endorsed, Endorser

    try:
        keys = Keys(tuple(publickeys.read(Path(file).read_bytes(), file) for file in files))
    except OSError as error:
        raise InvalidInput("--key", f"{error.filename}: {error.strerror}") from None
    formats = frozenset({Kind.BUNDLES, Kind.SIMPLE, Kind.ATTESTATIONS})
    rule = Endorsed(" or ".join(files), (Endorser(keys, formats, SignedIdentity(Match.REPOSITORY)),))
    return _ByKey(Requirements((rule,)), frozenset(f"key:{key.id}" for key in keys.keys))


def _where(config: Config, reference: Reference, args: argparse.Namespace) -> tuple[Path, str, Credentials | None]:
    # Not above: gRPC's messages are not needed where nobody logs in.
    from forgeone_shim.cli.pull import credentials

    given = credentials(args)
    registry = config.registry
    login: Credentials | None = Credentials(username=given.username, password=given.password)
    login = login or authfiles.find(
        reference, args.namespace, namespaces=registry.namespaced_auth_dir, node=registry.auth_file
    )
    return Path(registry.config_path), reference.registry, login


def _packages(config: Config) -> Trust:
    keys = read_trusted(Path(config.packages.trusted_keys))
    return Trust(keys, unsigned=config.packages.unsigned == "allow", abi=abi.VERSION)


def _report(reference: Reference, resolved: Resolved, endorsement: Endorsement, found: Found) -> dict[str, Any]:
    evidence = found.evidence
    return {
        "image": str(reference),
        "digest": resolved.target,
        "manifest": resolved.manifest_digest,
        "signers": list(endorsement.signers),
        "attestations": [
            {"predicateType": each.predicate_type, "signer": each.signer} for each in endorsement.attestations
        ],
        "warnings": list(endorsement.warnings),
        "found": {str(kind): len(getattr(evidence, kind)) for kind in Kind},
        "problems": list(found.problems),
    }


def _rendered(report: dict[str, Any]) -> str:
    attested = Counter((each["predicateType"], each["signer"]) for each in report["attestations"])
    rows = [
        ("image", report["image"]),
        ("digest", report["digest"]),
        ("manifest", report["manifest"] if report["manifest"] != report["digest"] else ""),
        *(("signed by", signer) for signer in report["signers"]),
        *(
            ("attested", f"{kind} by {signer}{f', {n} times' if n > 1 else ''}")
            for (kind, signer), n in attested.items()
        ),
        *(("warning", warning) for warning in report["warnings"]),
        *(("problem", problem) for problem in report["problems"]),
    ]
    if not report["signers"] and not report["warnings"]:
        rows.append(("signed by", "nobody, and no policy asks for it"))
    return "".join(f"{key:12} {printable(value)}\n" for key, value in rows if value)
