"""A package as an image of a node: verified by its documents, then described so that its layers can be brought."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from forgeone_shim.attestation import dsse
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.package import manifest as packages
from forgeone_shim.package import media
from forgeone_shim.package.assets import MODULE_FILE
from forgeone_shim.package.manifest import Package
from forgeone_shim.package.verification import Trust, Verified, parts, verify
from forgeone_shim.registry import modules
from forgeone_shim.registry.artifacts import TITLE, Part
from forgeone_shim.registry.manifest import ConfigFile, Descriptor, Manifest, Platform
from forgeone_shim.registry.model import Image, ImageConfig
from forgeone_shim.registry.origin import Origin

_OWN: Final = "forgeone.dev/"
NAME: Final = "forgeone.dev/package"
"""image; forgeoned

Of a [package](packages.md): its name and version, and the ids of the trusted keys that signed it.
"""
SIGNERS: Final = "forgeone.dev/package-signers"
MEMORY: Final = "forgeone.dev/package-memory"
"""image; forgeoned

The limits that a package suggests, in bytes and thousandths of a CPU; a container of it has them where neither it nor
its pod says any. No registry can say these, and the next: from an image that is no package they are taken off.
"""
CPU: Final = "forgeone.dev/package-cpu"
CONTRACT: Final = "forgeone.dev/package-contract"
"""image; forgeoned

The contract that a package asks for its containers, as a document; it is joined with theirs.
"""


@dataclass(frozen=True, slots=True)
class Packaged:
    """What there is to know before any layer comes. ``kept`` are layers of which the blob is kept, too."""

    manifest: Manifest
    file: ConfigFile
    documents: Mapping[str, bytes]
    kept: tuple[str, ...]


def resolve(origin: Origin, manifest: Manifest, trust: Trust) -> Packaged:
    """Ask for a package's documents, and verify them.

    :raises UntrustedImage: nobody that is trusted signed it. FailedPrecondition: it cannot be used here.
    """
    name = str(origin.reference)
    found = parts(manifest.config, manifest.layers, name)
    documents = {found.config.digest: _document(origin, found.config, packages.MAX_CONFIG)}
    envelope: bytes | None = None
    if found.signature is not None:
        envelope = documents[found.signature.digest] = _document(origin, found.signature, dsse.MAX_ENVELOPE)
    verified = verify(found, documents[found.config.digest], envelope, trust, name)
    package = verified.package
    by_digest = {layer.digest: layer for layer in found.layers}
    if package.sbom is not None:
        documents[package.sbom.digest] = _document(origin, by_digest[package.sbom.digest], packages.MAX_SBOM)
    layers, ids = [by_digest[package.module.digest]], [modules.module(package.module.digest, {TITLE: MODULE_FILE})]
    if package.assets is not None:
        # Below the module. Since it is not compressed, its digest is the archive's too.
        layers.insert(0, by_digest[package.assets.digest])
        ids.insert(0, Part(package.assets.digest))
    whole = replace(
        manifest, layers=tuple(layers), parts=tuple(ids), module=f"/{MODULE_FILE}", annotations=_annotations(verified)
    )
    file = ConfigFile(_run(package), tuple(each.layer_id for each in ids), Platform("wasi", modules.ARCHITECTURE), "")
    return Packaged(whole, file, documents, tuple(each.digest for each in layers[:-1]))


def _run(package: Package) -> ImageConfig:
    return ImageConfig(
        entrypoint=(package.name.rpartition("/")[2],),
        cmd=package.run.args,
        env=tuple(f"{key}={value}" for key, value in sorted(package.run.env.items())),
    )


def _annotations(verified: Verified) -> dict[str, str]:
    """In place of the OCI manifest's own, which nobody signed."""
    package = verified.package
    said = {
        NAME: f"{package.name}:{package.version}",
        SIGNERS: ",".join(key.id for key in verified.signers),
        MEMORY: str(package.limits.memory or ""),
        CPU: str(package.limits.cpu or ""),
        CONTRACT: _contract(package.contract),
    }
    return {key: value for key, value in said.items() if value}


def _contract(said: packages.Contract) -> str:
    """The document of a contract, empty where the package asks for nothing."""
    asked = said.document()
    return msgspec.json.encode(asked, order="sorted").decode() if asked else ""


def contract(image: Image) -> str:
    """The contract that a package asks for its containers, as a document; empty: none, or the image is no package."""
    return image.annotations.get(CONTRACT, "") if image.artifact == media.ARTIFACT else ""


def signers(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """The trusted keys that signed a package, as :mod:`~forgeone_shim.attestation.evidence` names signers."""
    return tuple(f"key:{key}" for key in annotations.get(SIGNERS, "").split(",") if key)


def foreign(annotations: Mapping[str, str]) -> dict[str, str]:
    """What an image that is no package may say of itself: nothing that forgeoned says of packages."""
    return {key: value for key, value in annotations.items() if not key.startswith(_OWN)}


def _document(origin: Origin, blob: Descriptor, limit: int) -> bytes:
    if blob.size > limit:
        raise FailedPrecondition(f"{origin.reference}: {blob.media_type} of {blob.size} bytes, more than {limit}")
    return origin.document(blob)
