"""ClusterImagePolicy: what sigstore's policy-controller asks of an image, where the node can tell.

https://docs.sigstore.dev/policy-controller/overview/. All policies that are about an image have to be met; of a
policy's authorities one has to have spoken. What would need the cluster or the network (secrets, KMS, a Fulcio by URL
without a trusted root, CUE and Rego, objects to match) is refused when the file is read: left out, it would allow more.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec

from forgeone_shim.attestation import publickeys
from forgeone_shim.attestation.authorities import Authority, Identity, Keys
from forgeone_shim.attestation.evidence import Endorsement, Evidence, Kind, Subject
from forgeone_shim.attestation.identity import Match, SignedIdentity
from forgeone_shim.attestation.keyless import Keyless, TrustedRoot, installed
from forgeone_shim.attestation.policyfiles import Files, document
from forgeone_shim.attestation.publickeys import VerifyingKey
from forgeone_shim.attestation.requirements import Rule
from forgeone_shim.attestation.rules import Endorsed, Endorser, Refused, Warned
from forgeone_shim.attestation.statements import predicate_type
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.registry.reference import Reference

if TYPE_CHECKING:
    from forgeone_shim.attestation.patterns import Pattern

Roots = Callable[[str], TrustedRoot]
"""The trusted root of a name, ``""`` for the default one; InvalidInput where there is none."""

_BUNDLES: Final = frozenset({Kind.BUNDLES})
_LEGACY: Final = frozenset({Kind.SIMPLE, Kind.ATTESTATIONS})
_GLOB: Final = re.compile(r"[a-zA-Z0-9_:/*.@-]{1,512}")
_ELSEWHERE: Final = frozenset(
    {"ca-cert", "configMapRef", "kms", "match", "policy", "remote", "rfc3161timestamp", "secretRef", "source"}
)
_HUB: Final = frozenset({"docker.io", "index.docker.io"})
_WHOLE: Final = {"*": "index.docker.io/library/*", "*/*": "index.docker.io/*/*"}


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    pass


class _Image(_Strict, frozen=True):
    glob: str


class _Key(_Strict, frozen=True):
    data: str
    hash_algorithm: Literal["sha256", "sha384", "sha512"] = "sha256"


class _Identity(_Strict, frozen=True):
    issuer: str = ""
    subject: str = ""
    issuer_regexp: str = msgspec.field(default="", name="issuerRegExp")
    subject_regexp: str = msgspec.field(default="", name="subjectRegExp")


class _Keyless(_Strict, frozen=True):
    identities: Annotated[list[_Identity], msgspec.Meta(min_length=1)]
    url: str = ""
    trust_root_ref: str = ""
    insecure_ignore_sct: bool = msgspec.field(default=False, name="insecureIgnoreSCT")


class _Static(_Strict, frozen=True):
    action: Literal["pass", "fail"]
    message: str = ""


class _Log(_Strict, frozen=True):
    url: str = ""
    trust_root_ref: str = ""


class _Attestation(_Strict, frozen=True):
    name: str
    predicate_type: Annotated[str, msgspec.Meta(min_length=1)]


class _Authority(_Strict, frozen=True):
    name: str = ""
    key: _Key | None = None
    keyless: _Keyless | None = None
    static: _Static | None = None
    ctlog: _Log | None = None
    attestations: list[_Attestation] = []
    signature_format: Literal["", "legacy", "bundle"] = ""


class _Spec(_Strict, frozen=True):
    images: Annotated[list[_Image], msgspec.Meta(min_length=1)]
    authorities: Annotated[list[_Authority], msgspec.Meta(min_length=1)]
    mode: Literal["", "enforce", "warn"] = ""


class _Policy(_Strict, frozen=True):
    api_version: Literal["policy.sigstore.dev/v1alpha1", "policy.sigstore.dev/v1beta1"]
    kind: Literal["ClusterImagePolicy"]
    metadata: dict[str, Any]
    spec: _Spec
    status: Any = None


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """One policy: its globs, and what it asks of what they match."""

    globs: tuple[re.Pattern[str], ...]
    rule: Rule

    def about(self, reference: Reference) -> bool:
        """Whether it is about an image of this name. One with tag and digest goes by either."""
        names = [f"{reference.name}:{reference.tag}"] if reference.tag else []
        names += [f"{reference.name}@{reference.digest}"] if reference.digest else []
        if reference.registry == "docker.io":
            # So go-containerregistry calls it; the shorter name is in policies, too.
            names += [f"index.{name}" for name in names]
        return any(glob.fullmatch(name) for glob in self.globs for name in names)


@dataclass(frozen=True, slots=True)
class _Passed:
    """An authority that lets every image pass."""

    @property
    def wanted(self) -> frozenset[Kind]:
        """Nothing."""
        return frozenset()

    def check(self, subject: Subject, evidence: Evidence, now: datetime) -> Endorsement:  # noqa: ARG002
        """Nobody stands behind it."""
        return Endorsement()


def read(path: Path, files: Files, roots: Roots) -> ImagePolicy:
    """Read a policy.

    :raises InvalidInput: naming file and field.
    :raises FailedPrecondition: it cannot be read, or others than root could have written it.
    """
    found = _document(path, files)
    name = found.metadata.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"{path}.metadata.name", "is missing")
    globs = tuple(_glob(each.glob, f"{path}.spec.images[{i}].glob") for i, each in enumerate(found.spec.images))
    rule = _rule(f"ClusterImagePolicy {name}", found.spec.authorities, f"{path}.spec.authorities", roots)
    return ImagePolicy(globs, Warned(rule) if found.spec.mode == "warn" else rule)


def _document(path: Path, files: Files) -> _Policy:
    """The file, strictly; what policy-controller knows and this does not is told apart from what nobody knows."""
    try:
        return document(str(path), files.read(path), _Policy)
    except InvalidInput as error:
        name = error.reason.partition("`")[2].partition("`")[0]
        if name not in _ELSEWHERE:
            raise
        raise InvalidInput(error.field, f"{name} cannot be held to on a node", fix="see docs/signatures.md") from None


def _glob(text: str, field: str) -> re.Pattern[str]:
    """``*`` is any number of characters but ``/``, ``**`` of any."""
    if not _GLOB.fullmatch(text):
        raise InvalidInput(field, f"{text[:200]!r} is not of letters, digits and _ : / . @ - *")
    text = _WHOLE.get(text, text)
    if not _possible(text):
        raise InvalidInput(
            field,
            f"{text[:200]!r} matches no image",
            fix="write names out, with registry and tag or digest, as in index.docker.io/library/busybox:*",
        )
    parts = text.split("**")
    return re.compile(".*".join("[^/]*".join(map(re.escape, part.split("*"))) for part in parts))


def _possible(glob: str) -> bool:
    """Whether the whole name of an image can be like it: registry, repository, and tag or digest."""
    host, _, repository = glob.partition("/")
    registry = host == "localhost" or bool(set(host) & set(".:*"))
    # Every repository there has an owner.
    deep = "**" in glob or "/" in (repository if host in _HUB else glob)
    return registry and deep and bool(set(glob.rpartition("/")[2]) & set(":@*"))


def _rule(policy: str, found: list[_Authority], field: str, roots: Roots) -> Rule:
    endorsers: list[Endorser] = []
    failing, passing = "", False
    for index, each in enumerate(found):
        where = f"{field}[{index}]"
        if sum(one is not None for one in (each.key, each.keyless, each.static)) != 1:
            raise InvalidInput(where, "exactly one of key, keyless and static is needed")
        if each.static is not None and (each.attestations or each.ctlog is not None):
            raise InvalidInput(where, "static asks for neither attestations nor ctlog")
        if each.static is None:
            endorsers.append(_endorser(each, where, roots))
        elif each.static.action == "pass":
            passing = True
        else:
            failing = each.static.message or "it fails every image"
    if passing:
        return _Passed()
    if endorsers:
        return Endorsed(policy, tuple(endorsers))
    return Refused(f"refused by {policy}: {failing}")


def _endorser(found: _Authority, where: str, roots: Roots) -> Endorser:
    formats = {"": _BUNDLES | _LEGACY, "legacy": _LEGACY, "bundle": _BUNDLES}[found.signature_format]
    logs = _logs(found.ctlog, where, roots)
    if found.key is not None:
        authority: Authority = _keys(found.key, logs, f"{where}.key.data")
    elif found.keyless is not None:
        if logs and found.ctlog is not None and found.ctlog.trust_root_ref != found.keyless.trust_root_ref:
            raise InvalidInput(f"{where}.ctlog.trustRootRef", "has to be that of keyless")
        authority = _keyless(found.keyless, formats, f"{where}.keyless", roots)
    else:
        raise InvalidInput(where, "exactly one of key, keyless and static is needed")
    predicates = tuple(predicate_type(each.predicate_type) for each in found.attestations)
    return Endorser(authority, formats, SignedIdentity(Match.ANY), predicates)


def _keys(found: _Key, logs: tuple[VerifyingKey, ...], where: str) -> Keys:
    try:
        return Keys(tuple(publickeys.read(text, where, found.hash_algorithm) for text in _pems(found.data)), logs)
    except FailedPrecondition as error:
        raise InvalidInput(where, error.what.removeprefix(f"{where}: ")) from None


def _logs(found: _Log | None, where: str, roots: Roots) -> tuple[VerifyingKey, ...]:
    """Without a log's name nothing is asked of one, as policy-controller has it."""
    if found is None or not (found.url or found.trust_root_ref):
        return ()
    logs = _root(found.trust_root_ref, f"{where}.ctlog", roots).logs(found.url)
    if not logs:
        raise InvalidInput(f"{where}.ctlog.url", f"the trusted root has no log at {found.url[:200]!r}")
    return logs


def _keyless(found: _Keyless, formats: frozenset[Kind], where: str, roots: Roots) -> Keyless:
    if formats & _BUNDLES and not installed():
        raise InvalidInput(
            where,
            "sigstore is not installed here, which verifies bundles without keys",
            fix="pip install 'forgeone[keyless]', or signatureFormat: legacy",
        )
    root = _root(found.trust_root_ref, where, roots)
    if found.url and not root.issues(found.url):
        raise InvalidInput(f"{where}.url", f"the trusted root has no certificate authority at {found.url[:200]!r}")
    identities = tuple(_identity(each, f"{where}.identities[{i}]") for i, each in enumerate(found.identities))
    return Keyless(root, identities, transparency=not found.insecure_ignore_sct)


def _root(name: str, where: str, roots: Roots) -> TrustedRoot:
    try:
        return roots(name)
    except InvalidInput as error:
        raise InvalidInput(where, error.what, fix=error.fix) from None


def _identity(found: _Identity, where: str) -> Identity:
    for plain, pattern, noun in (
        (found.issuer, found.issuer_regexp, "issuer"),
        (found.subject, found.subject_regexp, "subject"),
    ):
        if bool(plain) == bool(pattern):
            raise InvalidInput(where, f"exactly one of {noun} and {noun}RegExp is needed")
    return Identity(
        found.issuer,
        found.subject,
        "",
        _pattern(found.issuer_regexp, f"{where}.issuerRegExp"),
        _pattern(found.subject_regexp, f"{where}.subjectRegExp"),
    )


def _pattern(text: str, where: str) -> Pattern | None:
    if not text:
        return None
    # What is behind it is needed for these alone.
    from forgeone_shim.attestation.patterns import Pattern

    try:
        return Pattern(text)
    except ValueError as error:
        raise InvalidInput(where, f"{text[:200]!r} is no regular expression: {error}") from None


def _pems(text: str) -> list[bytes]:
    """Every key of a text that may have several."""
    end = "-----END PUBLIC KEY-----"
    return [f"{each}{end}".encode() for each in text.split(end)[:-1]] + (
        [rest.encode()] if (rest := text.rpartition(end)[2].strip()) or end not in text else []
    )
