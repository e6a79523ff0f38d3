"""Which bytes an image of this node was made from, and where they are: what an export consists of."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any, Final

import msgspec

from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.registry import enclosed, layout
from forgeone_shim.registry.digest import algorithm, digest_of, encoded
from forgeone_shim.registry.fetch import BlobFolder, Layers
from forgeone_shim.registry.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Index, Manifest, parse_manifest
from forgeone_shim.registry.model import Image
from forgeone_shim.registry.reference import Reference

# More than a layer of one file has: the file and the directories that its name needs.
_FEW: Final = 64
_FIX: Final = "set registry.keep_blobs, forge reload, and pull it again; then export it"


@dataclass(frozen=True, slots=True)
class Chosen:
    """An image to export, and the names it is exported under, each with the digest it stands for."""

    image: Image
    names: tuple[tuple[Reference, str], ...]


class _Kind(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str = ""


def choose(names: Sequence[str], find: Callable[[str], list[Image]]) -> list[Chosen]:
    """The images of these names; by a name, an image has that name alone, by its id all that it has.

    :raises NotFound: one is not here.
    """
    if not names:
        raise InvalidInput("images", "is empty")
    found = [Chosen(image, _names(image, text)) for text in dict.fromkeys(names) for image in find(text)]
    for each in found:
        if not each.names:
            raise FailedPrecondition(f"image {each.image.id} has no name to export it under")
    return found


def pieces(chosen: Sequence[Chosen], documents: BlobFolder, blobs: BlobFolder, layers: Layers) -> Iterator[bytes]:
    """The archive.

    :raises FailedPrecondition: naming the first blob that is not kept. Nothing has been given out then.
    """
    entries: list[dict[str, Any]] = []
    content: dict[str, layout.Blob] = {}
    for each in chosen:
        gatherer = _Gatherer(each.image, documents, blobs, layers)
        for reference, target in each.names:
            entry = _entry(gatherer.gather(target), target, reference)
            said = gatherer.evidence(reference, {key: entry[key] for key in ("mediaType", "digest", "size")})
            entries += [one for one in (entry, *said) if one not in entries]
        content |= gatherer.found
    return layout.pieces(entries, content.values())


def _names(image: Image, text: str) -> tuple[tuple[Reference, str], ...]:
    every = [(Reference.parse(tag), _target(image, Reference.parse(tag))) for tag in image.repo_tags]
    told = {(reference.name, target) for reference, target in every}
    digests = [Reference.parse(name) for name in image.repo_digests]
    every += [(each, each.digest) for each in digests if (each.name, each.digest) not in told]
    with suppress(InvalidInput):
        asked = Reference.parse(text)
        wanted = asked.at(asked.digest) if asked.digest else asked.repo_tag
        if wanted in image.repo_tags:
            return tuple(one for one in every if str(one[0]) == wanted)
        if wanted in image.repo_digests:
            return ((Reference.parse(wanted), asked.digest),)
    return tuple(every)


def _target(image: Image, tag: Reference) -> str:
    """What a tag stood for in its registry: an index, where one of that repository led to this image."""
    digests = [Reference.parse(name) for name in image.repo_digests]
    found = [each.digest for each in digests if each.name == tag.name] or [image.manifest_digest]
    return next((digest for digest in found if digest != image.manifest_digest), found[0])


def _entry(data: bytes, digest: str, reference: Reference) -> dict[str, Any]:
    kind = msgspec.json.decode(data, type=_Kind).media_type
    if not kind:
        kind = OCI_INDEX if isinstance(parse_manifest(data, "", digest), Index) else OCI_MANIFEST
    named = {layout.FULL_NAME: str(reference)}
    if reference.tag and not reference.digest:
        named[layout.REF_NAME] = reference.tag
    return {"mediaType": kind, "digest": digest, "size": len(data), "annotations": named}


class _Gatherer:
    """Finds the blobs of one image."""

    def __init__(self, image: Image, documents: BlobFolder, blobs: BlobFolder, layers: Layers) -> None:
        self._image, self._documents, self._blobs, self._layers = image, documents, blobs, layers
        self.found: dict[str, layout.Blob] = {}

    def gather(self, target: str) -> bytes:
        """Everything from an index or manifest down to this image's layers; returns that index or manifest."""
        data = self._documents.read(target)
        if data is None:
            raise self._missing(target)
        parsed = parse_manifest(data, "", f"manifest {target}")
        self._add_bytes(target, data)
        if isinstance(parsed, Index):
            # Of other platforms nothing is here, and an index may do without them.
            for entry in parsed.entries:
                if entry.digest == self._image.manifest_digest or self._is_index(entry.digest):
                    self.gather(entry.digest)
        else:
            self._gather(parsed)
        return data

    def evidence(self, reference: Reference, subject: dict[str, Any]) -> list[dict[str, Any]]:
        """What is kept of those who stand behind the image by that name, as something to import beside it."""
        kept = self._image.evidence.get(reference.at(subject["digest"]), "")
        data = self._documents.read(kept) if kept else None
        evidence = enclosed.decode(data) if data is not None else None
        if not evidence:
            return []
        manifest, blobs = enclosed.enclosed(evidence, subject)
        digest = digest_of(manifest)
        for name, blob in {**blobs, digest: manifest}.items():
            self._add_bytes(name, blob)
        return [{"mediaType": OCI_MANIFEST, "digest": digest, "size": len(manifest)}]

    def _is_index(self, digest: str) -> bool:
        data = self._documents.read(digest)
        return data is not None and isinstance(parse_manifest(data, "", digest), Index)

    def _gather(self, manifest: Manifest) -> None:
        for blob in (manifest.config, *manifest.layers):
            if blob.digest in self.found:
                continue
            if self._blobs.has(blob.digest):
                self._add_file(blob, self._blobs.path(blob.digest))
            elif (data := self._documents.read(blob.digest)) is not None:
                self._add_bytes(blob.digest, data)
            elif (file := self._file(blob)) is not None:
                self._add_file(blob, file)
            elif blob == manifest.config and blob.size == 2:
                self._add_bytes(blob.digest, b"{}")
            else:
                raise self._missing(blob.digest)

    def _file(self, blob: Descriptor) -> Path | None:
        """The file of a layer that is a file as it came, as modules and files of artifacts are."""
        for layer in self._image.layers:
            usage = self._layers.info(layer)
            if usage.size != blob.size or usage.inodes > _FEW:
                continue
            for path in self._layers.path(layer).rglob("*"):
                if path.is_symlink() or not path.is_file() or path.stat().st_size != blob.size:
                    continue
                with path.open("rb") as file:
                    if file_digest(file, algorithm(blob.digest)).hexdigest() == encoded(blob.digest):
                        return path
        return None

    def _add_bytes(self, digest: str, data: bytes) -> None:
        self.found[digest] = layout.Blob(digest, len(data), lambda: io.BytesIO(data))

    def _add_file(self, blob: Descriptor, path: Path) -> None:
        def opened() -> io.FileIO:
            return io.FileIO(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))

        self.found[blob.digest] = layout.Blob(blob.digest, blob.size, opened)

    def _missing(self, digest: str) -> FailedPrecondition:
        name = next(iter((*self._image.repo_tags, *self._image.repo_digests)), self._image.id)
        return FailedPrecondition(f"{name} cannot be exported: its blob {digest} is not kept on this node", fix=_FIX)
