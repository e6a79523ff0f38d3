"""Images that are WebAssembly modules: how they are told apart, in which platforms, and what they consist of.

Four forms are in use. An image of layers as any other, whose config or whose annotation says that it is WebAssembly's
(https://github.com/solo-io/wasm, "compat"); an artifact of one module with a config of its own
(https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/); an image whose layer is the module itself, as
runwasi and Spin pack it; and the artifacts of wasm-to-oci and an older Spin, from before there was a word for it. A
layer of the last three is the file as it is, neither packed nor in an archive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from forgeone_shim.registry.artifacts import TITLE, Part, part

ARTIFACT_CONFIG: Final = "application/vnd.wasm.config.v0+json"
"""The config of a module that says what it is for; the other ones are not looked into."""

SPIN: Final = "application/vnd.fermyon.spin.application.v1+config"
"""What Spin knows of an application: the config of an artifact once, a layer since."""

_LAYER: Final = "application/wasm"
ARTIFACTS: Final = frozenset({ARTIFACT_CONFIG, "application/vnd.wasm.config.v1+json", SPIN, _LAYER})
LAYERS: Final = frozenset(
    {
        _LAYER,
        "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
        "application/vnd.wasm.content.layer.v1+wasm",
    }
)
VARIANT: Final = "module.wasm.image/variant"
"""image; who builds it

`compat`: this image of ordinary layers is WebAssembly, whatever platform it says; `compat-smart`: where the command
names a `.wasm` or `.wat` file.
"""

ARCHITECTURE: Final = "wasm"
_ARCHITECTURES: Final = frozenset({ARCHITECTURE, "wasm32"})
# What a browser runs has the same architecture.
_SYSTEMS: Final = frozenset({"", "wasi", "wasip1", "wasip2"})
_FILE: Final = "module.wasm"
# Where Spin's own shim for containerd has it.
_SPIN_FILE: Final = "spin.json"


def is_platform(os: str, architecture: str) -> bool:
    """Whether that is WASI's, of a preview that can be run here."""
    return architecture in _ARCHITECTURES and os in _SYSTEMS


def module(digest: str, annotations: Mapping[str, str]) -> Part:
    """The layer that is a module, as a file of the name that its title says.

    :raises ValueError: that is no name that a file may have.
    """
    return part(digest, {TITLE: annotations.get(TITLE) or _FILE})


def spin(digest: str) -> Part:
    """The layer that tells of an application, as a file."""
    return part(digest, {TITLE: _SPIN_FILE})


def of_artifact(kind: str, media_types: Sequence[str]) -> int | None:
    """Which layer of an artifact is the module that it consists of; ``None``: it is no such artifact.

    One of several modules is none: which to run nothing says. Nor is an application of Spin's that has files, which it
    would not find.
    """
    found = [at for at, media_type in enumerate(media_types) if media_type in LAYERS]
    if kind not in ARTIFACTS or len(found) != 1 or (kind == SPIN and len(media_types) > 1):
        return None
    return found[0]
