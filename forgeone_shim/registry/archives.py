"""Images from a file: what names they get, and a layout as the place that they are brought from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Final, TypeVar

import msgspec

from forgeone_shim.errors import FailedPrecondition, InvalidInput, NotFound
from forgeone_shim.package import manifest as packages
from forgeone_shim.package import media
from forgeone_shim.registry.digest import is_digest
from forgeone_shim.registry.evidence import kind_of, parse_artifact
from forgeone_shim.registry.hosts import Endpoint
from forgeone_shim.registry.layout import FULL_NAME, REF_NAME, Archive, Section
from forgeone_shim.registry.manifest import (
    MAX_CONFIG,
    MAX_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Malformed,
    Manifest,
    parse_manifest,
)
from forgeone_shim.registry.reference import Reference
from forgeone_shim.registry.source import Document
from forgeone_shim.registry.transport import Session

MAX_IMAGES: Final = 1000
_EVIDENCE_TAG = re.compile(r"sha256-([0-9a-f]{64})(?:\.sig|\.att)?")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Said:
    """A manifest of an archive that is no image, but says who stands behind one.

    :param tag: the one that it has to be found by, as cosign and the referrers' stand-in have it, or ``""``.
    :param about: the digest of what it says that it is about, ``""`` where it does not.
    """

    entry: Descriptor
    tag: str = ""
    about: str = ""


@dataclass(frozen=True, slots=True)
class Named:
    """An image of an archive, the name that it gets here, and all that is said in the archive of any image."""

    reference: Reference
    target: Descriptor
    said: tuple[Said, ...] = ()


def named(archive: Archive, name: str) -> list[Named]:
    """The images of an archive with their names: ``name``, if there is but one, or those that its index has for them.

    A package that has none there is called what it calls itself.

    :raises InvalidInput: one has no name, or several would have the same.
    """
    if len(archive.entries) > MAX_IMAGES:
        raise InvalidInput("file", f"{archive.name} holds {len(archive.entries)} images")
    judged = [(entry, _said(archive, entry)) for entry in archive.entries]
    said = tuple(one for _, one in judged if one is not None)
    entries = [entry for entry, one in judged if one is None]
    if not entries:
        raise InvalidInput("file", f"{archive.name} holds no image")
    if name:
        digests = {entry.digest for entry in entries}
        if len(digests) > 1:
            raise InvalidInput("name", f"{archive.name} holds {len(digests)} images", fix="leave out the name")
        return [Named(Reference.parse(name), entries[0], said)]
    found = [Named(_name(archive, entry), entry, said) for entry in entries]
    by_name: dict[Reference, str] = {}
    for each in found:
        if by_name.setdefault(each.reference, each.target.digest) != each.target.digest:
            raise InvalidInput("file", f"{archive.name}: two of its images are called {each.reference}")
    return found


class _Subject(msgspec.Struct, frozen=True):
    digest: str


class _About(msgspec.Struct, frozen=True):
    """What a manifest says it is about."""

    subject: _Subject | None = None


def _said(archive: Archive, entry: Descriptor) -> Said | None:
    tag = (entry.annotations or {}).get(REF_NAME, "").rpartition(":")[2]
    if _EVIDENCE_TAG.fullmatch(tag):
        return Said(entry, tag=tag)
    if entry.media_type != OCI_MANIFEST:
        return None
    data, name = archive.read(entry.digest, MAX_MANIFEST), f"{archive.name}: {entry.digest}"
    layers = parse_artifact(data, entry.media_type, name)
    if not layers or any(kind_of(layer) is None for layer in layers):
        return None
    try:
        about = msgspec.json.decode(data, type=_About).subject
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Malformed(f"{name} is malformed: {error}") from None
    return Said(entry, about=about.digest if about is not None else "")


def _name(archive: Archive, entry: Descriptor) -> Reference:
    notes = entry.annotations or {}
    short = notes.get(REF_NAME, "")
    # The layout's own annotation may be a whole name, or a tag that says nothing without a repository.
    said = notes.get(FULL_NAME) or (short if "/" in short or ":" in short else "")
    if said:
        return Reference.parse(said)
    document = parse_manifest(archive.read(entry.digest, MAX_MANIFEST), entry.media_type, archive.name)
    if isinstance(document, Manifest) and document.config.media_type == media.CONFIG:
        config = archive.read(document.config.digest, packages.MAX_CONFIG)
        return packages.parse(config, f"the manifest of {archive.name}").reference
    raise InvalidInput("file", f"{archive.name}: image {entry.digest} has no name", fix="give it one with --name")


class LayoutSource:
    """An archive as the source of one image."""

    def __init__(self, session: Session, archive: Archive, wanted: Named) -> None:
        self.session, self.reference = session, wanted.reference
        self._archive, self._target, self._said = archive, wanted.target.digest, wanted.said
        if wanted.reference.digest not in ("", self._target):
            raise FailedPrecondition(f"{archive.name}: what is called {wanted.reference} is {self._target}")

    def manifest(self, reference: str) -> Document:
        """A manifest by digest; any tag is that of the image this is about."""
        digest = reference if is_digest(reference) else self._target
        data = self._archive.read(digest, MAX_MANIFEST)
        content = parse_manifest(data, "", f"manifest {digest}")
        if isinstance(content, Index):
            # An archive need not have what its indexes name for other platforms.
            here = [self._archive.has(entry.digest) for entry in content.entries]
            absent = tuple(entry for entry, there in zip(content.entries, here, strict=True) if not there)
            content = Index(tuple(compress(content.entries, here)), absent)
        return Document(data, digest, content)

    def document(self, blob: Descriptor, limit: int = MAX_CONFIG, _: str = "") -> bytes:
        """A small blob, verified; FailedPrecondition: it is larger than ``limit``, or than whoever names it says."""
        return self._archive.read(blob.digest, min(limit, blob.size))

    def served(
        self,
        reference: str,
        parse: Callable[[bytes, str, str], _R],
        *,
        optional: bool = True,  # noqa: ARG002
    ) -> tuple[bytes, str, _R]:
        """What a digest names, or the tag of something about the image, taken apart."""
        digest = reference
        if not is_digest(reference):
            tagged = [one.entry.digest for one in self._said if one.tag == reference]
            if not tagged:
                raise NotFound("manifest", reference, where=self._archive.name)
            digest = tagged[0]
        data = self._archive.read(digest, MAX_MANIFEST)
        return data, digest, parse(data, "", f"manifest {digest}")

    def referrers(self, digest: str, parse: Callable[[bytes, str, str], Sequence[_R]]) -> list[_R]:
        """What of the archive is about the manifest of this digest, or does not say what it is about."""
        found = [
            {"mediaType": one.entry.media_type, "digest": one.entry.digest}
            for one in self._said
            if not one.tag and one.about in ("", digest)
        ]
        document = msgspec.json.encode({"schemaVersion": 2, "manifests": found})
        return [*parse(document, OCI_INDEX, f"{self._archive.name}: what is about {digest}")]

    def blob_endpoints(self) -> list[Endpoint]:
        """The file alone."""
        return [Endpoint("file", self._archive.name, "/")]

    def open_blob(self, blob: Descriptor, offset: int, _: Sequence[Endpoint]) -> _Body:
        """A blob's bytes."""
        section = self._archive.open(blob.digest, blob.size)
        section.skip(offset)
        return _Body(section)


class _Body:
    """A part of a file, which has all of its bytes at once."""

    def __init__(self, section: Section) -> None:
        self._section = section

    def readinto(self, buffer: memoryview, _: float | None = None) -> int:
        return self._section.readinto(buffer)

    def close(self) -> None:
        """The file stays open."""
