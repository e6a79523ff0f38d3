"""Packages given to a registry, and taken from one as a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from forgeone_shim.attestation import dsse
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.package import manifest as packages
from forgeone_shim.package import media
from forgeone_shim.package.file import PackageFile, entry, write_whole
from forgeone_shim.package.verification import Parts, Trust, Verified, parts, verify
from forgeone_shim.registry import layout
from forgeone_shim.registry.hosts import Endpoint
from forgeone_shim.registry.manifest import OCI_MANIFEST, Descriptor, Manifest
from forgeone_shim.registry.push import Target
from forgeone_shim.registry.reference import Reference
from forgeone_shim.registry.source import Document, Source
from forgeone_shim.registry.stream import BlobStream
from forgeone_shim.registry.transport import Session


def push(session: Session, endpoints: Sequence[Endpoint], reference: Reference, tag: str, package: PackageFile) -> None:
    """Give a package to a registry under a tag.

    :raises PermissionDenied: it does not let us. Unavailable: it cannot be reached.
    """
    Target(session, reference, endpoints).push(package.blobs(), package.manifest_data, OCI_MANIFEST, tag)


def pull(session: Session, endpoints: Sequence[Endpoint], reference: Reference, trust: Trust) -> Found:
    """Ask for a package's documents and verify them; :meth:`Found.write` gets the rest.

    :raises UntrustedImage: nobody that is trusted signed it. PermissionDenied: the registry does not let us in.
    :raises FailedPrecondition: it is no package.
    """
    source = Source(session, reference, endpoints)
    document = source.manifest(reference.digest or reference.tag)
    if not isinstance(document.content, Manifest) or document.content.artifact != media.ARTIFACT:
        raise FailedPrecondition(f"{reference} is no package", fix="forge pull takes images")
    name = str(reference)
    found = parts(document.content.config, document.content.layers, name)
    config = _document(source, found.config, packages.MAX_CONFIG)
    signature = None if found.signature is None else _document(source, found.signature, dsse.MAX_ENVELOPE)
    return Found(source, document, found, config, signature, verify(found, config, signature, trust, name), trust)


@dataclass(frozen=True, slots=True)
class Found:
    """A package on a registry that has been verified, but for its layers."""

    source: Source
    document: Document
    parts: Parts
    config: bytes
    signature: bytes | None
    verified: Verified
    trust: Trust

    @property
    def digest(self) -> str:
        """Of its OCI manifest."""
        return self.document.digest

    def write(self, path: Path) -> None:
        """Get the layers and write the file, which is there only when every byte of it has been verified."""
        reference, package = self.source.reference, self.verified.package
        tag = reference.tag or package.version
        full = str(reference) if reference.digest else f"{reference.name}:{tag}"
        named = entry(tag, full, self.document.digest, len(self.document.data))
        blobs = [
            _bytes(self.document.digest, self.document.data),
            _bytes(self.parts.config.digest, self.config),
            *(layout.Blob(each.digest, each.size, lambda each=each: self._stream(each)) for each in self.parts.layers),
        ]
        if self.parts.signature is not None and self.signature is not None:
            blobs.append(_bytes(self.parts.signature.digest, self.signature))
        write_whole(path, layout.pieces([named], blobs), self._check)

    def _stream(self, layer: Descriptor) -> BlobStream:
        return BlobStream(self.source, layer, self.source.blob_endpoints())

    def _check(self, path: Path) -> None:
        with PackageFile(path) as package:
            package.verify(self.trust)


def _document(source: Source, blob: Descriptor, limit: int) -> bytes:
    if blob.size > limit:
        raise FailedPrecondition(f"{source.reference}: {blob.media_type} of {blob.size} bytes, more than {limit}")
    return source.document(blob)


def _bytes(digest: str, data: bytes) -> layout.Blob:
    return layout.Blob(digest, len(data), lambda: BytesIO(data))
