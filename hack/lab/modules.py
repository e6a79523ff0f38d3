"""Images of WebAssembly modules in every form there is, to be pushed by :func:`hack.lab.images.push`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from hack.lab.images import OCI_MANIFEST, BuiltImage, Entry, Layer, build, digest, layer

ARTIFACT: Final = "application/vnd.wasm.config.v0+json"
OLD_ARTIFACT: Final = "application/vnd.wasm.config.v1+json"
SPIN: Final = "application/vnd.fermyon.spin.application.v1+config"
_RAW: Final = "application/wasm"
_CONTENT: Final = "application/vnd.wasm.content.layer.v1+wasm"
_RUNWASI: Final = "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"
_OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_TITLE: Final = "org.opencontainers.image.title"


def compat(module: bytes, platform: str = "wasi/wasm", variant: str = "", **config: object) -> BuiltImage:
    """``/app.wasm`` in an ordinary layer; ``variant`` is that of the annotation, empty for none."""
    os, _, architecture = platform.partition("/")
    given = {"Entrypoint": ["/app.wasm"], **config}
    built = build([layer([Entry("app.wasm", module, 0o755)])], given, os=os, architecture=architecture)
    if not variant:
        return built
    manifest = json.loads(built.manifest) | {"annotations": {"module.wasm.image/variant": variant}}
    return replace(built, manifest=json.dumps(manifest).encode())


def artifact(module: bytes, title: str = "", os: str = "wasip1") -> BuiltImage:
    """As ``wkg oci push`` does."""
    config = {"created": "2026-01-01T00:00:00Z", "architecture": "wasm", "os": os, "layerDigests": [digest(module)]}
    return _assembled((ARTIFACT, config), (_RAW, module), title)


def layers(module: bytes, *files: Entry, **config: object) -> BuiltImage:
    """As runwasi's oci-tar-builder does; ``files`` are in an ordinary layer below."""
    below = (layer(files),) if files else ()
    document = {
        "architecture": "wasm",
        "os": "wasip1",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [*(one.diff_id for one in below), digest(module)]},
    }
    return _assembled((_OCI_CONFIG, document), (_RUNWASI, module), below=below)


def spin(module: bytes) -> BuiltImage:
    """As ``spin registry push`` does, of an application without files: nothing in its config but the platform."""
    config = {"architecture": "wasm", "os": "wasip1", "rootfs": {"type": "layers", "diff_ids": []}}
    locked = json.dumps({"spin_lock_version": 1, "components": [{"id": "one"}]}).encode()
    return _assembled((_OCI_CONFIG, config), (_CONTENT, module), above=((SPIN, locked),))


def old_artifact(module: bytes, title: str = "", kind: str = OLD_ARTIFACT) -> BuiltImage:
    """As wasm-to-oci, or an older Spin, does."""
    return _assembled((kind, {}), (_CONTENT, module), title)


def _assembled(
    config: tuple[str, Mapping[str, object]],
    module: tuple[str, bytes],
    title: str = "",
    below: tuple[Layer, ...] = (),
    above: tuple[tuple[str, bytes], ...] = (),
) -> BuiltImage:
    """Config, module and the files ``above`` it each with their media types."""
    (config_type, document), (media_type, data) = config, module
    blob = json.dumps(document).encode()
    notes = {"annotations": {_TITLE: title}} if title else {}
    tar = "application/vnd.oci.image.layer.v1.tar+gzip"
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": config_type, "digest": digest(blob), "size": len(blob)},
        "layers": [
            *({"mediaType": tar, "digest": one.digest, "size": len(one.blob)} for one in below),
            {"mediaType": media_type, "digest": digest(data), "size": len(data), **notes},
            *({"mediaType": kind, "digest": digest(raw), "size": len(raw)} for kind, raw in above),
        ],
    }
    whole = (*below, *(Layer(raw, digest(raw), "none") for _, raw in (module, *above)))
    return BuiltImage(json.dumps(manifest).encode(), OCI_MANIFEST, blob, whole)
