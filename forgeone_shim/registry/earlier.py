"""Images that were pulled before there was a word for what they are. Pure."""

from __future__ import annotations

from dataclasses import replace

from forgeone_shim.errors import ForgeError
from forgeone_shim.registry import artifacts, modules
from forgeone_shim.registry.manifest import OCI_MANIFEST, Manifest, artifact_file, parse_manifest
from forgeone_shim.registry.model import Image


def is_earlier(image: Image) -> bool:
    """Whether it may be a module that was taken for an artifact of files."""
    return image.artifact in modules.ARTIFACTS and not image.module


def as_now(image: Image, manifest: bytes | None) -> Image:
    """The image as it would be if it were pulled today; its layers stay what they are, and so do their files' names.

    What is a module to nobody today either, or cannot be told any more, is left as it is.
    """
    try:
        parsed = parse_manifest(manifest or b"", OCI_MANIFEST, image.id)
    except ForgeError:
        return image
    if not isinstance(parsed, Manifest) or not parsed.module or len(parsed.layers) != len(image.layers):
        return image
    layer = next(
        layer for layer, part in zip(parsed.layers, parsed.parts, strict=True) if parsed.module[1:] == part.file
    )
    file = artifacts.part(layer.digest, layer.annotations or {}).file
    platform = artifact_file(parsed).platform
    return replace(image, module=f"/{file}", os=platform.os, architecture=platform.architecture, variant="")
