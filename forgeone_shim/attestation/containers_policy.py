"""containers-policy.json(5): what podman, skopeo and CRI-O ask of an image, read from the same file.

https://github.com/containers/image/blob/main/docs/containers-policy.json.5.md. Only the scopes of ``docker`` and
``default`` are about images that are pulled. What asks for GPG (``signedBy``) is not verified here, and so refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from cryptography import x509

from forgeone_shim.attestation import certificates, publickeys, scopes
from forgeone_shim.attestation.authorities import Authority, Fulcio, Identity, Keys, PrivateCa
from forgeone_shim.attestation.evidence import Kind
from forgeone_shim.attestation.identity import Match, SignedIdentity
from forgeone_shim.attestation.policyfiles import Files, document
from forgeone_shim.attestation.publickeys import VerifyingKey
from forgeone_shim.attestation.requirements import Rule
from forgeone_shim.attestation.rules import Endorsed, Endorser, Refused
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.registry.reference import Reference

_FORMATS: Final = frozenset({Kind.BUNDLES, Kind.SIMPLE, Kind.ATTESTATIONS})
_TRANSPORT: Final = "docker"
# containers-transports(5), and those that went: another one is a slip that would leave its scopes out.
_TRANSPORTS: Final = frozenset(
    {
        _TRANSPORT,
        "atomic",
        "containers-storage",
        "dir",
        "docker-archive",
        "docker-daemon",
        "oci",
        "oci-archive",
        "ostree",
        "sif",
        "tarball",
    }
)

# What is there and empty was meant to be something: left out, it would ask for less.
_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Texts = Annotated[list[str], msgspec.Meta(min_length=1)]
_Data = Annotated[bytes, msgspec.Meta(min_length=1)]
_Datas = Annotated[list[bytes], msgspec.Meta(min_length=1)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    pass


class _Typed(_Strict, frozen=True, tag_field="type"):
    pass


class _MatchExact(_Typed, frozen=True, tag="matchExact"):
    pass


class _MatchRepoDigestOrExact(_Typed, frozen=True, tag="matchRepoDigestOrExact"):
    pass


class _MatchRepository(_Typed, frozen=True, tag="matchRepository"):
    pass


class _ExactReference(_Typed, frozen=True, tag="exactReference"):
    docker_reference: str


class _ExactRepository(_Typed, frozen=True, tag="exactRepository"):
    docker_repository: str


class _Remap(_Typed, frozen=True, tag="remapIdentity"):
    prefix: _Text
    signed_prefix: _Text


_Identity = _MatchExact | _MatchRepoDigestOrExact | _MatchRepository | _ExactReference | _ExactRepository | _Remap


class _Fulcio(_Strict, frozen=True):
    oidc_issuer: _Text
    ca_path: _Text = ""
    ca_data: _Data = b""
    subject_email: _Text = ""
    build_signer_uri: _Text = msgspec.field(default="", name="buildSignerURI")


class _Pki(_Strict, frozen=True):
    ca_roots_path: _Text = ""
    ca_roots_data: _Data = b""
    ca_intermediates_path: _Text = ""
    ca_intermediates_data: _Data = b""
    subject_email: _Text = ""
    subject_hostname: _Text = ""


class _Accept(_Typed, frozen=True, tag="insecureAcceptAnything"):
    pass


class _Reject(_Typed, frozen=True, tag="reject"):
    pass


class _SignedBy(_Typed, frozen=True, tag="signedBy"):
    key_type: str
    key_path: str = ""
    key_paths: list[str] = []
    key_data: str = ""
    signed_identity: _Identity | None = None


class _SignedBaseLayer(_Typed, frozen=True, tag="signedBaseLayer"):
    base_layer_identity: Any


class _SigstoreSigned(_Typed, frozen=True, tag="sigstoreSigned"):
    key_path: _Text = ""
    key_paths: _Texts = []
    key_data: _Data = b""
    key_datas: _Datas = []
    fulcio: _Fulcio | None = None
    pki: _Pki | None = None
    rekor_public_key_path: _Text = ""
    rekor_public_key_paths: _Texts = []
    rekor_public_key_data: _Data = b""
    rekor_public_key_datas: _Datas = []
    signed_identity: _Identity | None = None


_Requirement = _Accept | _Reject | _SignedBy | _SignedBaseLayer | _SigstoreSigned
_Requirements = Annotated[list[_Requirement], msgspec.Meta(min_length=1)]


class _Policy(_Strict, frozen=True):
    default: _Requirements
    transports: dict[str, dict[str, _Requirements]] = {}


@dataclass(frozen=True, slots=True)
class ContainersPolicy:
    """One file. ``scopes`` are those of the transport that images are pulled by, ``""`` its default."""

    default: tuple[Rule, ...]
    scopes: Mapping[str, tuple[Rule, ...]]

    def required(self, reference: Reference) -> tuple[Rule, ...]:
        """What the most specific scope asks for; nothing where it accepts anything."""
        for scope in (*scopes.of(reference), ""):
            if (rules := self.scopes.get(scope)) is not None:
                return rules
        return self.default


def read(path: Path, files: Files) -> ContainersPolicy:
    """Read a policy and the keys it names.

    :raises InvalidInput: naming file and field.
    :raises FailedPrecondition: a file cannot be read, or others than root could have written it.
    """
    found = document(str(path), files.read(path), _Policy)
    if unknown := sorted(found.transports.keys() - _TRANSPORTS):
        raise InvalidInput(f"{path}.transports", f"{unknown[0][:100]!r} is no transport")
    pulled = found.transports.get(_TRANSPORT, {})
    for scope in pulled:
        if not scopes.possible(scope):
            raise InvalidInput(
                f"{path}.transports[{_TRANSPORT!r}]",
                f"{scope[:200]!r} has no image in it",
                fix="write names out, as in docker.io/library/busybox, in lower case and without a / at the end",
            )
    return ContainersPolicy(
        _rules(found.default, f"{path}.default", "", files),
        {
            scope: _rules(each, f"{path}.transports[{_TRANSPORT!r}][{scope!r}]", scope, files)
            for scope, each in pulled.items()
        },
    )


def _rules(found: list[_Requirement], where: str, scope: str, files: Files) -> tuple[Rule, ...]:
    policy = f"{where.partition('.transports')[0].removesuffix('.default')}, " + (
        f"scope {scope!r}" if scope else "its default"
    )
    rules: list[Rule] = []
    for index, requirement in enumerate(found):
        match requirement:
            case _Accept():
                continue
            case _Reject():
                rules.append(Refused(f"refused by {policy}", "name its repository in that file to allow it"))
            case _SigstoreSigned():
                field = f"{where}[{index}]"
                try:
                    rules.append(Endorsed(policy, (_endorser(requirement, field, files),)))
                except FailedPrecondition as error:
                    raise InvalidInput(field, error.what, fix=error.fix) from None
            case _:
                rules.append(
                    Refused(
                        f"{policy} asks for a GPG signature, which is not verified here",
                        "ask for sigstoreSigned in that scope",
                    )
                )
    return tuple(rules)


def _endorser(found: _SigstoreSigned, field: str, files: Files) -> Endorser:
    given = [
        bool(each)
        for each in (found.key_path, found.key_paths, found.key_data, found.key_datas, found.fulcio, found.pki)
    ]
    if sum(given) != 1:
        raise InvalidInput(field, "exactly one of keyPath, keyPaths, keyData, keyDatas, fulcio and pki is needed")
    rekor = (
        found.rekor_public_key_path,
        found.rekor_public_key_paths,
        found.rekor_public_key_data,
        found.rekor_public_key_datas,
    )
    if sum(map(bool, rekor)) > 1:
        raise InvalidInput(field, "at most one of the fields rekorPublicKey* can be there")
    logs = _keys(*rekor, f"{field}.rekorPublicKey", files)
    return Endorser(_authority(found, logs, field, files), _FORMATS, _identity(found.signed_identity, field))


def _authority(found: _SigstoreSigned, logs: tuple[VerifyingKey, ...], field: str, files: Files) -> Authority:
    if found.fulcio is not None:
        field = f"{field}.fulcio"
        if not logs:
            raise InvalidInput(field, "needs one of the fields rekorPublicKey*")
        fulcio = found.fulcio
        if not (fulcio.subject_email or fulcio.build_signer_uri):
            raise InvalidInput(field, "subjectEmail or buildSignerURI is needed")
        who = Identity(fulcio.oidc_issuer, fulcio.subject_email, fulcio.build_signer_uri)
        return Fulcio(_certificates(fulcio.ca_path, fulcio.ca_data, f"{field}.ca", files), (who,), logs)
    if found.pki is not None:
        field, pki = f"{field}.pki", found.pki
        if not (pki.subject_email or pki.subject_hostname):
            raise InvalidInput(field, "subjectEmail or subjectHostname is needed")
        between: tuple[x509.Certificate, ...] = ()
        if pki.ca_intermediates_path or pki.ca_intermediates_data:
            between = _certificates(
                pki.ca_intermediates_path, pki.ca_intermediates_data, f"{field}.caIntermediates", files
            )
        roots = _certificates(pki.ca_roots_path, pki.ca_roots_data, f"{field}.caRoots", files)
        return PrivateCa(roots, between, pki.subject_email, pki.subject_hostname, logs)
    return Keys(_keys(found.key_path, found.key_paths, found.key_data, found.key_datas, f"{field}.key", files), logs)


def _keys(  # noqa: PLR0917
    path: str, paths: list[str], data: bytes, datas: list[bytes], field: str, files: Files
) -> tuple[VerifyingKey, ...]:
    """``field`` is what the names of all four begin with."""
    texts = [(f"{field}Data", data)] if data else [(f"{field}Datas[{i}]", each) for i, each in enumerate(datas)]
    named = [(f"{field}Path", path)] if path else [(f"{field}Paths[{i}]", each) for i, each in enumerate(paths)]
    texts += [(f"{where}: {each}", files.read(_absolute(each, where))) for where, each in named]
    return tuple(publickeys.read(text, where) for where, text in texts)


def _certificates(path: str, data: bytes, field: str, files: Files) -> tuple[x509.Certificate, ...]:
    if bool(path) == bool(data):
        raise InvalidInput(field, f"exactly one of {field.rpartition('.')[2]}Path and ...Data is needed")
    return certificates.load_pem(files.read(_absolute(path, field)) if path else data, path or field)


def _absolute(path: str, field: str) -> Path:
    if not path.startswith("/") or "\0" in path:
        raise InvalidInput(field, f"{path!r} is not an absolute path")
    return Path(path)


def _identity(found: _Identity | None, field: str) -> SignedIdentity:
    match found:
        case None | _MatchRepoDigestOrExact():
            return SignedIdentity()
        case _MatchExact():
            return SignedIdentity(Match.EXACT)
        case _MatchRepository():
            return SignedIdentity(Match.REPOSITORY)
        case _ExactReference():
            wanted = _reference(found.docker_reference, f"{field}.signedIdentity.dockerReference")
            if "@" not in wanted and ":" not in wanted.rpartition("/")[2]:
                raise InvalidInput(f"{field}.signedIdentity.dockerReference", "has neither tag nor digest")
            return SignedIdentity(Match.EXACT_REFERENCE, wanted)
        case _ExactRepository():
            wanted = _reference(found.docker_repository, f"{field}.signedIdentity.dockerRepository")
            return SignedIdentity(Match.EXACT_REPOSITORY, wanted)
        case _Remap():
            return SignedIdentity(
                Match.REMAP, prefix=found.prefix.rstrip("/"), signed_prefix=found.signed_prefix.rstrip("/")
            )


def _reference(text: str, field: str) -> str:
    try:
        Reference.parse(text)
    except InvalidInput as error:
        raise InvalidInput(field, error.reason) from None
    return text
