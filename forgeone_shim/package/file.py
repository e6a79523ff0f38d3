"""``.forgepkg`` files: built, signed, looked at. The file is the package's OCI artifact as a layout in a tar."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import msgspec

from forgeone_shim.attestation import dsse
from forgeone_shim.attestation.keys import SigningKey
from forgeone_shim.errors import InvalidInput, NotFound, syscall_error
from forgeone_shim.package import assets, manifest, media, wasm
from forgeone_shim.package.manifest import Package
from forgeone_shim.package.project import Project
from forgeone_shim.package.verification import PAYLOAD, Parts, Trust, Verified, parts, statement, verify
from forgeone_shim.registry import layout
from forgeone_shim.registry.artifacts import TITLE
from forgeone_shim.registry.digest import digest_of, encoded, hasher
from forgeone_shim.registry.manifest import MAX_MANIFEST, OCI_MANIFEST, Descriptor, Manifest, parse_manifest

SUFFIX: Final = ".forgepkg"
_TITLES: Final = {
    media.MODULE: assets.MODULE_FILE,
    media.ASSETS: "assets.tar",
    media.SIGNATURE: "signature.dsse.json",
    **dict.fromkeys(media.SBOMS, "sbom.json"),
}
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Written:
    """A package that has been written; ``digest`` names its OCI manifest."""

    path: Path
    digest: str
    package: Package


class PackageFile:
    """A package in a file. A context manager; nothing it says is to be trusted before :meth:`verify`."""

    def __init__(self, path: Path) -> None:
        """:raises NotFound: there is no such file. InvalidInput, FailedPrecondition: it is no package."""
        self.path, self._stack = path, ExitStack()
        with ExitStack() as stack:
            try:
                file = stack.enter_context(path.open("rb"))
            except FileNotFoundError:
                raise NotFound("package", str(path)) from None
            except OSError as error:
                raise InvalidInput("package", f"{path}: {error.strerror}") from None
            self._archive = layout.Archive(cast(BinaryIO, file), path.name)
            self.manifest_digest, self.manifest_data, self._manifest = _only(self._archive)
            self.parts = parts(self._manifest.config, self._manifest.layers, path.name)
            self._stack = stack.pop_all()

    def __enter__(self) -> PackageFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def entries(self) -> tuple[Descriptor, ...]:
        """The index of its layout."""
        return self._archive.entries

    def envelope(self) -> bytes | None:
        """The signature, if it has one."""
        signature = self.parts.signature
        return None if signature is None else self._archive.read(signature.digest, dsse.MAX_ENVELOPE)

    def config(self) -> bytes:
        """The package's manifest."""
        return self._archive.read(self.parts.config.digest, manifest.MAX_CONFIG)

    def package(self) -> Package:
        """The same, read."""
        return manifest.parse(self.config(), f"the manifest of {self.path.name}")

    def verify(self, trust: Trust) -> Verified:
        """Check signature, manifest and needs, then every byte of every layer.

        :raises UntrustedImage: nobody that is trusted signed it. FailedPrecondition: something does not fit.
        """
        found = verify(self.parts, self.config(), self.envelope(), trust, self.path.name)
        for layer in self.parts.layers:
            self._check(layer)
        self._check_module(found.package)
        if found.package.assets is not None:
            assets.check(cast(BinaryIO, io.BufferedReader(_Raw(self.open(found.package.assets)))))
        return found

    def open(self, blob: Descriptor | manifest.Blob) -> layout.Section:
        """The bytes of one of its blobs, not verified."""
        return self._archive.open(blob.digest, blob.size)

    def blobs(self) -> list[layout.Blob]:
        """All there is to be written of it, but for its OCI manifest."""
        found = (self.parts.config, *self._manifest.layers)
        return [layout.Blob(each.digest, each.size, lambda each=each: self.open(each)) for each in found]

    def _check(self, layer: Descriptor) -> None:
        counted, source, buffer = hasher(layer.digest), self.open(layer), memoryview(bytearray(_CHUNK))
        while got := source.readinto(buffer):
            counted.update(buffer[:got])
        if counted.hexdigest() != encoded(layer.digest):
            raise InvalidInput("package", f"{self.path.name}: layer {layer.digest} is not what its digest says")

    def _check_module(self, package: Package) -> None:
        data = bytearray(package.module.size)
        source, view, at = self.open(package.module), memoryview(data), 0
        while got := source.readinto(view[at:]):
            at += got
        found = wasm.read(bytes(data))
        if (found.kind, found.imports) != (package.module.kind, package.module.imports):
            raise InvalidInput("package", f"{self.path.name}: its module is not as its manifest describes it")


def build(project: Project, out: Path, key: SigningKey | None) -> Written:
    """Build a package, signed if there is a key. The same input gives the same bytes.

    :raises InvalidInput: naming what is wrong with the project.
    """
    with ExitStack() as stack:
        module = _read(project.module, "module", manifest.MAX_MODULE)
        binary = wasm.read(module)
        blobs = [_bytes(module)]
        bundled: manifest.Blob | None = None
        if project.assets is not None:
            if not project.assets.is_dir():
                raise InvalidInput("assets", f"{project.assets} is no directory")
            kept = _kept(stack, out, assets.pieces(project.assets))
            bundled = manifest.Blob(digest=kept.digest, size=kept.size)
            blobs.append(kept)
        bill: manifest.Sbom | None = None
        if project.sbom is not None:
            data = _read(project.sbom, "sbom", manifest.MAX_SBOM)
            bill = manifest.Sbom(digest=digest_of(data), size=len(data), media_type=_sbom_type(data))
            blobs.append(_bytes(data))
        package = Package(
            schema=1,
            name=project.name,
            version=project.version,
            description=project.description,
            host_abi=project.host_abi,
            module=manifest.Module(
                digest=blobs[0].digest, size=blobs[0].size, kind=binary.kind, imports=binary.imports
            ),
            assets=bundled,
            sbom=bill,
            run=project.run,
            limits=project.limits,
            contract=project.contract,
        )
        manifest.check(package)
        config = manifest.encode(package)
        # What was built must be what is accepted: limits are checked by the reader alone.
        manifest.parse(config, "the package's manifest")
        types = [media.MODULE, *([media.ASSETS] if bundled else []), *([bill.media_type] if bill else [])]
        layers = tuple(Descriptor(kind, blob.digest, blob.size) for kind, blob in zip(types, blobs, strict=True))
        found = Parts(Descriptor(media.CONFIG, digest_of(config), len(config)), layers, None)
        envelope = None if key is None else _signed(found, None, key)
        return _write(out, package, found, envelope, [_bytes(config), *blobs])


def sign(source: PackageFile, out: Path, key: SigningKey) -> Written:
    """The same package with this key's signature beside those it has. ``out`` may be the file itself.

    :raises FailedPrecondition: its signature so far is over something else.
    """
    source.verify(Trust(unsigned=True))
    before = source.envelope()
    earlier = None if before is None else dsse.parse(before, f"the signature of {source.path.name}")
    blobs = [
        blob
        for blob in source.blobs()
        if source.parts.signature is None or blob.digest != source.parts.signature.digest
    ]
    return _write(out, source.package(), source.parts, _signed(source.parts, earlier, key), blobs)


def entry(reference_tag: str, full_name: str, digest: str, size: int) -> dict[str, Any]:
    """A package's line in the index of a layout."""
    names = {layout.FULL_NAME: full_name, layout.REF_NAME: reference_tag}
    return {
        "mediaType": OCI_MANIFEST,
        "digest": digest,
        "size": size,
        "artifactType": media.ARTIFACT,
        "annotations": names,
    }


def write_whole(path: Path, pieces: Iterable[bytes], check: Callable[[Path], object] | None = None) -> None:
    """A file that is there whole, in place of what was there before, or not at all.

    ``check`` looks at it before it gets its name, and may raise to prevent that.

    :raises InternalError: naming the path and why.
    """
    beside = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        with beside.open("xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(beside)
        beside.replace(path)
    except OSError as error:
        raise syscall_error("write", path, error) from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _write(out: Path, package: Package, found: Parts, envelope: bytes | None, blobs: list[layout.Blob]) -> Written:
    layers = [_entry(layer) for layer in found.layers]
    if envelope is not None:
        blobs.append(_bytes(envelope))
        layers.append(_entry(Descriptor(media.SIGNATURE, blobs[-1].digest, blobs[-1].size)))
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": media.ARTIFACT,
        "config": _entry(found.config),
        "layers": layers,
        "annotations": {
            TITLE: package.name,
            "org.opencontainers.image.version": package.version,
            **({"org.opencontainers.image.description": package.description} if package.description else {}),
        },
    }
    data = msgspec.json.encode(document)
    named = entry(package.version, str(package.reference), digest_of(data), len(data))
    write_whole(out, layout.pieces([named], [*blobs, _bytes(data)]))
    return Written(out, digest_of(data), package)


def _signed(found: Parts, earlier: dsse.Envelope | None, key: SigningKey) -> bytes:
    made = dsse.Envelope(PAYLOAD, statement(found.config, found.layers))
    if earlier is not None:
        # The payload may be written in another way and mean the same; those signatures are over that writing.
        made = earlier
    return dsse.encode(dsse.sign(made, key))


def _only(archive: layout.Archive) -> tuple[str, bytes, Manifest]:
    if len(archive.entries) != 1:
        raise InvalidInput("package", f"{archive.name} holds {len(archive.entries)} images, not one package")
    found = archive.entries[0]
    data = archive.read(found.digest, MAX_MANIFEST)
    document = parse_manifest(data, found.media_type, archive.name)
    if not isinstance(document, Manifest) or document.artifact != media.ARTIFACT:
        raise InvalidInput("package", f"{archive.name} is an image and no package", fix="forge images import takes it")
    return found.digest, data, document


def _entry(of: Descriptor) -> dict[str, Any]:
    title = _TITLES.get(of.media_type)
    named = {"annotations": {TITLE: title}} if title else {}
    return {"mediaType": of.media_type, "digest": of.digest, "size": of.size, **named}


def _bytes(data: bytes) -> layout.Blob:
    return layout.Blob(digest_of(data), len(data), lambda: io.BytesIO(data))


def _kept(stack: ExitStack, out: Path, pieces: Iterator[bytes]) -> layout.Blob:
    """A blob that may be too large for memory, in a file without a name beside where it goes."""
    try:
        file = stack.enter_context(tempfile.TemporaryFile(dir=out.parent))  # noqa: SIM115
    except OSError as error:
        raise syscall_error("open", out.parent, error) from None
    counted, size = sha256(), 0
    for piece in pieces:
        counted.update(piece)
        size += len(piece)
        file.write(piece)
    file.flush()
    return layout.Blob(f"sha256:{counted.hexdigest()}", size, lambda: layout.Section(file.fileno(), 0, size))


def _read(path: Path, key: str, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InvalidInput(key, f"{path}: {error.strerror}") from None
    if len(data) > limit:
        raise InvalidInput(key, f"{path} is larger than {limit} bytes")
    return data


def _sbom_type(data: bytes) -> Any:
    try:
        found = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        found = {}
    for mark, kind in (("spdxVersion", "application/spdx+json"), ("bomFormat", "application/vnd.cyclonedx+json")):
        if mark in found:
            return kind
    raise InvalidInput("sbom", "is neither SPDX nor CycloneDX in JSON")


class _Raw(io.RawIOBase):
    """A section as a file that can be read."""

    def __init__(self, section: layout.Section) -> None:
        super().__init__()
        self._section = section

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        return self._section.readinto(memoryview(buffer))
