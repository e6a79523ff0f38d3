"""What is said about an image, found beside it: signatures and attestations in every place where tools put them.

Referrers by the registry's API or, without one, by the tag that stands in for it; the tags of cosign (``.sig``,
``.att``). Nothing found is believed: what a list says of an entry may be wrong or missing, so that the manifests
themselves are read, and what those are worth :mod:`forgeone_shim.attestation.trust` decides.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md#referrers-tag-schema
https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md and BUNDLE_SPEC.md
https://github.com/notaryproject/specifications/blob/main/specs/signature-specification.md#storage
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Final, Literal, Protocol, TypeVar

import msgspec

from forgeone_shim.attestation.evidence import (
    MAX_ITEM,
    MAX_ITEMS,
    Evidence,
    Kind,
    LegacyAttestation,
    SimpleSignature,
)
from forgeone_shim.errors import DeadlineExceeded, ForgeError, NotFound, PermissionDenied, Unavailable
from forgeone_shim.registry.artifacts import EMPTY_CONFIG
from forgeone_shim.registry.digest import algorithm, encoded, is_digest
from forgeone_shim.registry.manifest import OCI_MANIFEST, Descriptor, Malformed

MAX_TOTAL: Final = 32 * 1024 * 1024
"""Bytes of evidence of one image that are fetched, the small pieces first."""

MAX_BESIDE: Final = 32 * 1024 * 1024
"""Bytes of the manifests that name it, with all that is written in them."""

MAX_MANIFESTS: Final = 64
"""Manifests of one list that are read."""

_WORKERS: Final = 4
_MAX_ENTRIES: Final = 4096
_MAX_LAYERS: Final = 1024

MEDIA_TYPES: Final[Mapping[Kind, str]] = {
    Kind.BUNDLES: "application/vnd.dev.sigstore.bundle.v0.3+json",
    Kind.SIMPLE: "application/vnd.dev.cosign.simplesigning.v1+json",
    Kind.ATTESTATIONS: "application/vnd.dsse.envelope.v1+json",
    Kind.NOTATION: "application/jose+json",
}
"""What a layer of evidence is called; bundles of earlier versions have other names."""

_BUNDLE: Final = "application/vnd.dev.sigstore.bundle"
_KINDS: Final = {media_type: kind for kind, media_type in MEDIA_TYPES.items()}
# What lists call these artifacts; an artifact's type is often lost on the way, and that of its config is left.
_TYPES: Final = (
    "",
    EMPTY_CONFIG,
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.dev.cosign.artifact.sig.v1+json",
    "application/vnd.cncf.notary.signature",
)
# cosign's annotations of a layer: signature, certificate, chain, and the word of a log.
_NOTES: Final = (
    "dev.cosignproject.cosign/signature",
    "dev.sigstore.cosign/certificate",
    "dev.sigstore.cosign/chain",
    "dev.sigstore.cosign/bundle",
)

_T = TypeVar("_T")
_R = TypeVar("_R")
_Text = Annotated[str, msgspec.Meta(max_length=1024)]


class Place(Protocol):
    """Where an image is, and what belongs to it."""

    def served(
        self, reference: str, parse: Callable[[bytes, str, str], _R], /, *, optional: bool = False
    ) -> tuple[bytes, str, _R]:
        """What a tag or digest names, taken apart; NotFound."""

    def referrers(self, digest: str, parse: Callable[[bytes, str, str], Sequence[_R]], /) -> list[_R]:
        """What says that it is about the manifest of this digest."""

    def document(self, blob: Descriptor, limit: int = ..., what: str = ..., /) -> bytes:
        """A small blob, verified."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has led to.

    :param problems: what kept it from finding more, one sentence each.
    :param unreached: somebody who may know of more could not be asked.
    """

    evidence: Evidence
    problems: tuple[str, ...] = ()
    unreached: bool = False


class _Entry(msgspec.Struct, frozen=True, rename="camel"):
    media_type: _Text
    digest: _Text
    artifact_type: _Text | None = None


class _List(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: Literal[2]
    manifests: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=_MAX_ENTRIES)]


class _Artifact(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: Literal[2]
    layers: Annotated[list[Descriptor], msgspec.Meta(max_length=_MAX_LAYERS)] = []


def search(place: Place, digests: Sequence[str], wanted: Collection[Kind]) -> Found:
    """Everything of the ``wanted`` kinds about the manifests of these digests.

    :raises DeadlineExceeded: it took too long.
    """
    if not wanted:
        return Found(Evidence())
    searcher = _Search(place, frozenset(wanted))
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="evidence") as pool:
        return searcher.run(pool, digests)


def parse_list(data: bytes, _: str, name: str) -> list[_Entry]:
    """The entries of a list of referrers that are manifests; others, and malformed ones, are passed over.

    Whatever type it was served as: a tag's index is asked for as any manifest is.

    :raises Malformed: it is no list.
    """
    found = []
    for raw in _decode(data, _List, name).manifests:
        try:
            entry = msgspec.json.decode(raw, type=_Entry)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue
        if is_digest(entry.digest) and entry.media_type == OCI_MANIFEST:
            found.append(entry)
    return found


def parse_artifact(data: bytes, _: str, name: str) -> tuple[Descriptor, ...]:
    """The layers of a manifest that may be one of evidence.

    :raises Malformed: it is no manifest, or a layer has no digest.
    """
    layers = _decode(data, _Artifact, name).layers
    if bad := [layer.digest for layer in layers if not is_digest(layer.digest)]:
        raise Malformed(f"{name} is malformed: {bad[0][:100]!r} is not a digest")
    return tuple(layers)


def kind_of(layer: Descriptor) -> Kind | None:
    """What a layer is, as its manifest has it."""
    if layer.media_type.startswith(_BUNDLE):
        return Kind.BUNDLES
    return _KINDS.get(layer.media_type)


def fallback_tag(digest: str) -> str:
    """The tag that stands in for the referrers API."""
    return f"{algorithm(digest)[:32]}-{encoded(digest)[:64]}"


def cosign_tag(digest: str, suffix: str) -> str:
    """Where cosign keeps the signatures (``sig``) or attestations (``att``) of the manifest of this digest."""
    return f"{algorithm(digest)}-{encoded(digest)}.{suffix}"


@dataclass(frozen=True, slots=True)
class _Item:
    kind: Kind
    layer: Descriptor


class _Search:
    """One search; its steps run in several threads, what they learn of trouble is gathered here."""

    def __init__(self, place: Place, wanted: frozenset[Kind]) -> None:
        self._place, self._wanted = place, wanted
        self._problems: list[str] = []
        self._unreached = False
        self._lock = threading.Lock()
        self._left = MAX_BESIDE

    def run(self, pool: ThreadPoolExecutor, digests: Sequence[str]) -> Found:
        suffixes = {Kind.SIMPLE: "sig", Kind.ATTESTATIONS: "att"}
        tags = [
            cosign_tag(digest, suffix)
            for kind, suffix in suffixes.items()
            for digest in digests
            if kind in self._wanted and _taggable(digest)
        ]
        listings, tagged = pool.map(self._listed, digests), pool.map(self._tagged, tags)
        items = [*chain.from_iterable(self._read(pool, entries) for entries in listings)]
        items += chain.from_iterable(tagged)
        chosen = self._bounded(items)
        contents = list(pool.map(self._content, chosen))
        return Found(_evidence(chosen, contents), tuple(dict.fromkeys(self._problems)), self._unreached)

    def _listed(self, digest: str) -> list[_Entry]:
        entries = self._try(lambda: self._place.referrers(digest, parse_list)) or []
        if not entries:
            served = self._try(lambda: self._place.served(fallback_tag(digest), parse_list, optional=True))
            entries = served[2] if served else []
        return list({entry.digest: entry for entry in entries}.values())

    def _read(self, pool: ThreadPoolExecutor, entries: Sequence[_Entry]) -> list[_Item]:
        """Of the entries that may be evidence by what the list says, and of all others only where those are none."""
        likely = [entry for entry in entries if _likely(entry)]
        others = [entry for entry in entries if not _likely(entry)]
        for some in (likely, others):
            if len(some) > MAX_MANIFESTS:
                self._problems.append(f"of {len(some)} referrers {MAX_MANIFESTS} were read")
            # A list grows at its end.
            digests = [entry.digest for entry in some[-MAX_MANIFESTS:]]
            if items := list(chain.from_iterable(pool.map(self._tagged, digests))):
                return items
        return []

    def _tagged(self, reference: str) -> list[_Item]:
        """What is wanted of the manifest that a tag or digest names."""
        served = self._try(lambda: self._place.served(reference, parse_artifact, optional=True))
        if served is None or not self._afforded(reference, len(served[0])):
            return []
        found = [(kind_of(layer), layer) for layer in served[2]]
        return [_Item(kind, layer) for kind, layer in found if kind is not None and kind in self._wanted]

    def _afforded(self, reference: str, size: int) -> bool:
        """Whether a manifest may be kept for as long as this takes: its annotations are as long as its author likes."""
        with self._lock:
            if size <= self._left:
                self._left -= size
                return True
        self._problems.append(f"{reference} with {size} bytes was passed over")
        return False

    def _bounded(self, items: Iterable[_Item]) -> list[_Item]:
        """As much as may be looked at: the newest of each kind, and of those the smallest where all are too large."""
        chosen: list[_Item] = []
        every = {(item.kind, item.layer.digest, *_noted(item.layer)): item for item in items}
        for kind in Kind:
            some = [item for item in every.values() if item.kind is kind]
            if len(some) > MAX_ITEMS:
                self._problems.append(f"of {len(some)} {kind} {MAX_ITEMS} were looked at")
            chosen += some[-MAX_ITEMS:]
        left, fitting = MAX_TOTAL, []
        for item in sorted(chosen, key=lambda item: item.layer.size):
            left -= item.layer.size
            if item.layer.size > MAX_ITEM or left < 0:
                self._problems.append(f"{item.layer.digest} with {item.layer.size} bytes was passed over")
            else:
                fitting.append(item)
        return fitting

    def _content(self, item: _Item) -> bytes | None:
        return self._try(lambda: self._place.document(item.layer, MAX_ITEM, "signature"), missing=True)

    def _try(self, ask: Callable[[], _T], *, missing: bool = False) -> _T | None:
        """What is asked for, or ``None``; that something is not there counts as trouble only where it must be."""
        try:
            return ask()
        except DeadlineExceeded:
            raise
        except NotFound as error:
            if missing:
                self._problems.append(error.what)
        except (Unavailable, PermissionDenied) as error:
            self._problems.append(error.what)
            self._unreached = True
        except ForgeError as error:
            self._problems.append(error.what)
        return None


def _likely(entry: _Entry) -> bool:
    return (entry.artifact_type or "") in _TYPES or (entry.artifact_type or "").startswith(_BUNDLE)


def _taggable(digest: str) -> bool:
    """Whether the tag is none too long (128 characters)."""
    return digest.startswith("sha256:")


def notes(signature: str, certificate: str, chain_: str, rekor: str) -> dict[str, str]:
    """What a layer says of a signature beside it."""
    said = zip(_NOTES, (signature, certificate, chain_, rekor), strict=True)
    return {key: text for key, text in said if text}


def _noted(layer: Descriptor) -> tuple[str, str, str, str]:
    """The inverse of :func:`notes`."""
    signature, certificate, chain_, rekor = ((layer.annotations or {}).get(key, "") for key in _NOTES)
    return signature, certificate, chain_, rekor


def _evidence(items: Sequence[_Item], contents: Sequence[bytes | None]) -> Evidence:
    def of(kind: Kind) -> Iterator[tuple[bytes, Descriptor]]:
        for item, data in zip(items, contents, strict=True):
            if item.kind is kind and data is not None:
                yield data, item.layer

    return Evidence(
        bundles=tuple(data for data, _ in of(Kind.BUNDLES)),
        simple=tuple(SimpleSignature(data, *_noted(layer)) for data, layer in of(Kind.SIMPLE)),
        attestations=tuple(LegacyAttestation(data, *_noted(layer)[1:]) for data, layer in of(Kind.ATTESTATIONS)),
        notation=tuple(data for data, _ in of(Kind.NOTATION)),
    )


def _decode(data: bytes, kind: type[_T], name: str) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Malformed(f"{name} is malformed: {str(error)[:200]}") from None
