"""Strict reading of what registries send: index or manifest list, OCI and Docker schema 2 manifests, image configs.

https://github.com/opencontainers/image-spec (index.md, manifest.md, config.md) and Docker's image manifest v2 schema 2.
"""

from __future__ import annotations

import platform as host
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from forgeone_shim.errors import FailedPrecondition, NotFound, Unimplemented
from forgeone_shim.package import media
from forgeone_shim.registry import artifacts, modules
from forgeone_shim.registry.artifacts import Part
from forgeone_shim.registry.digest import is_digest
from forgeone_shim.registry.model import ImageConfig

MAX_MANIFEST: Final = 4 * 1024 * 1024
MAX_CONFIG: Final = 8 * 1024 * 1024
MAX_INDEX_DEPTH: Final = 3
MAX_LAYERS: Final = 500  # as many as the kernel's overlayfs stacks
_MAX_ENTRIES: Final = 4096
_LAST: Final = 1000

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
ACCEPT: Final = ", ".join((OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST))
_INDEXES: Final = (OCI_INDEX, DOCKER_LIST)
_MANIFESTS: Final = (OCI_MANIFEST, DOCKER_MANIFEST)
_CONFIGS: Final = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")

_OCI_LAYER = re.compile(r"application/vnd\.oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:\+(gzip|zstd))?")
_DOCKER_LAYER = re.compile(r"application/vnd\.docker\.image\.rootfs\.(?:foreign\.)?diff\.tar(?:\.(?:gzip|zstd))?")

Compression = Literal["gzip", "zstd", "none"]
_Short = Annotated[str, msgspec.Meta(max_length=1024)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]


class Malformed(FailedPrecondition):
    """A registry's document is not what the specification says."""


class Platform(msgspec.Struct, frozen=True):
    """What an image runs on, in Go's words (``linux``, ``amd64``)."""

    os: _Short = ""
    architecture: _Short = ""
    variant: _Short | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A blob by its digest. ``urls`` are not followed: content comes from the registry or not at all."""

    media_type: _Short
    digest: _Short
    size: _Size
    platform: Platform | None = None
    annotations: dict[str, str] | None = None


class _Document(msgspec.Struct, frozen=True, rename="camel"):
    """Either kind of manifest, so that one document cannot be read as both (CVE-2021-41190)."""

    schema_version: Literal[2]
    media_type: _Short | None = None
    manifests: Annotated[list[Descriptor], msgspec.Meta(max_length=_MAX_ENTRIES)] | None = None
    config: Descriptor | None = None
    layers: Annotated[list[Descriptor], msgspec.Meta(max_length=_MAX_ENTRIES)] | None = None
    annotations: dict[str, str] | None = None
    artifact_type: _Short | None = None


class _RunConfig(msgspec.Struct, frozen=True, rename="pascal"):
    user: str | None = None
    exposed_ports: dict[str, msgspec.Raw] | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    volumes: dict[str, msgspec.Raw] | None = None
    working_dir: str | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None


class _RootFs(msgspec.Struct, frozen=True):
    type: str | None = None
    diff_ids: list[_Short] | None = None


class _ModuleFile(msgspec.Struct, frozen=True):
    architecture: _Short | None = None
    os: _Short | None = None
    created: _Short | None = None


class _ConfigFile(msgspec.Struct, frozen=True):
    architecture: _Short | None = None
    os: _Short | None = None
    variant: _Short | None = None
    created: _Short | None = None
    config: _RunConfig | None = None
    rootfs: _RootFs | None = None


@dataclass(frozen=True, slots=True)
class Index:
    """A choice of manifests by platform. ``absent`` are those that cannot be had where it comes from."""

    entries: tuple[Descriptor, ...]
    absent: tuple[Descriptor, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one platform: its config and its layers, lowest first. ``artifact`` is the type of one.

    The ``parts`` of an artifact, or of an image with a layer that is a WebAssembly module, pair with its layers; in the
    latter those of an archive have no id yet. ``module`` is where that module lies in the root file system. A
    package has neither before it has been verified.
    """

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]
    artifact: str = ""
    parts: tuple[Part, ...] = ()
    module: str = ""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What an image's config says; ``diff_ids`` pair with the manifest's layers."""

    config: ImageConfig
    diff_ids: tuple[str, ...]
    platform: Platform
    created: str


_T = TypeVar("_T")


def parse_manifest(data: bytes, content_type: str, name: str) -> Index | Manifest:
    """Read an index or a manifest. ``content_type`` counts where the document does not say what it is.

    :raises Malformed: when it is malformed or claims to be two things.
    :raises Unimplemented: when it is a kind of manifest ForgeOne does not know.
    """
    document = _decode(data, _Document, name, MAX_MANIFEST)
    declared = content_type.partition(";")[0].strip().lower()
    kind = document.media_type or (declared if declared in _INDEXES + _MANIFESTS else "")
    is_index = document.manifests is not None
    if is_index == (document.layers is not None or document.config is not None):
        raise _malformed(name, "it is neither an index nor a manifest, or both")
    other = _MANIFESTS if is_index else _INDEXES
    if kind in other or (declared in other):
        raise _malformed(name, f"its media type {kind!r} contradicts its content")
    if kind and kind not in _INDEXES + _MANIFESTS:
        raise Unimplemented(f"{name}: manifests of type {kind[:100]!r} are not supported")
    if document.manifests is not None:
        return Index(tuple(_checked(d, name) for d in document.manifests))
    if document.config is None or document.layers is None:
        raise _malformed(name, "it lacks its config or its layers")
    if len(document.layers) > MAX_LAYERS:
        raise _malformed(name, f"it has {len(document.layers)} layers; the kernel stacks {MAX_LAYERS}")
    config = _checked(document.config, name)
    layers = tuple(_checked(d, name) for d in document.layers)
    if config.media_type == media.CONFIG:
        return Manifest(config, layers, dict(document.annotations or {}), media.ARTIFACT)
    if config.media_type not in _CONFIGS:
        return _artifact(document, config, layers, name)
    return _image(document, config, layers, name)


def _image(document: _Document, config: Descriptor, layers: tuple[Descriptor, ...], name: str) -> Manifest:
    notes = dict(document.annotations or {})
    found = [at for at, layer in enumerate(layers) if layer.media_type in modules.LAYERS]
    if len(found) > 1:
        raise Unimplemented(f"{name}: it has {len(found)} WebAssembly modules, and nothing says which of them to run")
    parts = []
    for at, layer in enumerate(layers):
        if at in found:
            parts.append(_part(layer, name, module=True))
        elif found and layer.media_type == modules.SPIN:
            parts.append(modules.spin(layer.digest))
        else:
            layer_format(layer, name)
            parts.append(Part(""))
    if not found:
        return Manifest(config, layers, notes)
    _check_clash(parts, name)
    return Manifest(config, layers, notes, parts=tuple(parts), module=f"/{parts[found[0]].file}")


def _check_clash(parts: Sequence[Part], name: str) -> None:
    if clash := artifacts.clash(parts):
        raise _malformed(name, f"two of its layers take the place of {clash[:100]!r}")


def _part(layer: Descriptor, name: str, *, module: bool) -> Part:
    try:
        return (modules.module if module else artifacts.part)(layer.digest, layer.annotations or {})
    except ValueError as error:
        raise _malformed(name, f"layer {layer.digest} {error}") from None


def _artifact(document: _Document, config: Descriptor, layers: tuple[Descriptor, ...], name: str) -> Manifest:
    kind = document.artifact_type or ("" if config.media_type == artifacts.EMPTY_CONFIG else config.media_type)
    if not kind:
        raise _malformed(name, "its config is empty, and it has no artifactType")
    # Of the whole's type: an artifact of another one may have rules of its own, whatever its config and layers are.
    at = modules.of_artifact(kind, [layer.media_type for layer in layers])
    parts = []
    for number, layer in enumerate(layers):
        parts.append(_part(layer, name, module=number == at))
        if not parts[-1].file:
            layer_format(layer, name)
    _check_clash(parts, name)
    module = "" if at is None else f"/{parts[at].file}"
    return Manifest(config, layers, dict(document.annotations or {}), kind, tuple(parts), module)


def parse_config(data: bytes, manifest: Manifest, name: str) -> ConfigFile:
    """Read an image's config and match it with the manifest.

    :raises Malformed: when it is malformed or does not fit the manifest.
    :raises Unimplemented: when it describes no root filesystem.
    """
    file = _decode(data, _ConfigFile, name, MAX_CONFIG)
    diff_ids = tuple(file.rootfs.diff_ids or ()) if file.rootfs else ()
    if not diff_ids and manifest.module and all(part.file for part in manifest.parts):
        diff_ids = tuple(layer.digest for layer in manifest.layers)
    if not diff_ids:
        raise Unimplemented(f"{name}: its config names no root filesystem layers, so there is nothing to run")
    if len(diff_ids) != len(manifest.layers):
        raise _malformed(name, f"its config names {len(diff_ids)} layers, its manifest {len(manifest.layers)}")
    if bad := [d for d in diff_ids if not is_digest(d)]:
        raise _malformed(name, f"{bad[0][:100]!r} is not a digest")
    if not all(d.startswith("sha256:") for d in diff_ids):
        raise Unimplemented(f"{name}: only sha256 diff ids are supported")
    platform = Platform(file.os or "", file.architecture or "", file.variant)
    if manifest.module and not modules.is_platform(platform.os, platform.architecture):
        raise Unimplemented(f"{name}: it has a layer that is a WebAssembly module, but is for {platform}")
    diff_ids = _layer_ids(diff_ids, manifest, name)
    run = file.config or _RunConfig()
    config = ImageConfig(
        entrypoint=tuple(run.entrypoint or ()),
        cmd=tuple(run.cmd or ()),
        env=tuple(run.env or ()),
        user=run.user or "",
        working_dir=run.working_dir or "",
        labels=dict(run.labels or {}),
        stop_signal=run.stop_signal or "",
        volumes=tuple(run.volumes or ()),
        exposed_ports=tuple(run.exposed_ports or ()),
    )
    texts = (*config.entrypoint, *config.cmd, *config.env, config.user, config.working_dir, *config.volumes)
    if any("\0" in text for text in texts):
        raise _malformed(name, "its config holds a NUL character")
    return ConfigFile(config, diff_ids, platform, file.created or "")


def _layer_ids(diff_ids: tuple[str, ...], manifest: Manifest, name: str) -> tuple[str, ...]:
    """What the layers are called in the store: one that is a file is no archive, and its diff id is the file's own."""
    if not manifest.module:
        return diff_ids
    found = []
    for diff_id, layer, part in zip(diff_ids, manifest.layers, manifest.parts, strict=True):
        if part.file and diff_id != layer.digest:
            raise _malformed(name, f"{part.file}, layer {layer.digest}, has the diff id {diff_id} in its config")
        found.append(part.layer_id or diff_id)
    return tuple(found)


def artifact_file(manifest: Manifest, config: bytes | None = None) -> ConfigFile:
    """What stands in for the config of an artifact: no command, the files as layers, no platform unless it is a module.

    :param config: its config, where it has one that is to be looked into.
    :raises Malformed: that is not what its type says.
    """
    layers, created = tuple(found.layer_id for found in manifest.parts), manifest.annotations.get(artifacts.CREATED, "")
    if not manifest.module:
        return ConfigFile(ImageConfig(), layers, Platform(), created)
    said = _ModuleFile()
    if manifest.config.media_type == modules.ARTIFACT_CONFIG and config is not None:
        said = _decode(config, _ModuleFile, f"config {manifest.config.digest}", MAX_CONFIG)
    platform = Platform(said.os or "wasi", said.architecture or modules.ARCHITECTURE)
    return ConfigFile(ImageConfig(), layers, platform, created or said.created or "")


def layer_format(layer: Descriptor, name: str) -> Compression | None:
    """How a layer is packed; ``None`` where its media type cannot be trusted and its first bytes decide.

    Docker's schema 2 has always been served with ``tar.gzip`` for tars of every kind.
    """
    if match := _OCI_LAYER.fullmatch(layer.media_type):
        packed = match[1]
        return "gzip" if packed == "gzip" else "zstd" if packed == "zstd" else "none"
    if _DOCKER_LAYER.fullmatch(layer.media_type):
        return None
    raise Unimplemented(f"{name}: layer {layer.digest} is {layer.media_type[:100]!r}, not a filesystem layer")


def sniff(head: bytes) -> Compression:
    """How a blob is packed, by its first four bytes."""
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    # A zstd frame, or the skippable frame that may come before one.
    if head[:4] == b"\x28\xb5\x2f\xfd" or (len(head) >= 4 and 0x50 <= head[0] <= 0x5F and head[1:4] == b"\x2a\x4d\x18"):
        return "zstd"
    return "none"


def host_platform(wanted: str = "") -> Platform:
    """The platform of this machine, or the one that ``os/architecture[/variant]`` names."""
    if wanted:
        os, _, rest = wanted.partition("/")
        architecture, _, variant = rest.partition("/")
        return Platform(os, architecture, variant or None)
    machine = host.machine()
    known = {
        "x86_64": ("amd64", None),
        "aarch64": ("arm64", "v8"),
        "armv7l": ("arm", "v7"),
        "armv6l": ("arm", "v6"),
        "i686": ("386", None),
        "loongarch64": ("loong64", None),
    }
    architecture, arm = known.get(machine, (machine, None))
    return Platform("linux", architecture, arm)


def choose(index: Index, platform: Platform, name: str, *, modules_first: bool = False) -> Descriptor:
    """The entry that fits the platform best; the first of equals, as the index's author ordered them.

    A WebAssembly module fits every platform: last of all, or first.

    :raises NotFound: when none fits.
    """
    at_module = -1 if modules_first else _LAST + 1
    fitting = [
        (rank, at, d)
        for at, d in enumerate(index.entries)
        if (rank := _rank(d.platform, platform, at_module)) is not None
    ]
    if not fitting:
        raise NotFound("image", f"{name} for {platform}")
    return min(fitting, key=lambda entry: entry[:2])[2]


def is_shared(index: Index, platform: Platform) -> bool:
    """Whether it has a WebAssembly module beside an image for the platform, so that a pod's handler decides.

    That is so of a name wherever it is: one of the two that is absent may be brought by another way.
    """
    found = {
        modules.is_platform(d.platform.os, d.platform.architecture)
        for d in (*index.entries, *index.absent)
        if d.platform and _rank(d.platform, platform, 0) is not None
    }
    return len(found) == 2


def check_platform(file: ConfigFile, platform: Platform, name: str) -> None:
    """Refuse an image made for another platform; one that does not say is let through, and a WebAssembly module.

    :raises NotFound: naming the platform looked for.
    """
    said = file.platform
    if modules.is_platform(said.os, said.architecture):
        return
    if (said.os and said.os != platform.os) or (said.architecture and said.architecture != platform.architecture):
        raise NotFound("image", f"{name} for {platform} (it is for {said})")


def _rank(entry: Platform | None, wanted: Platform, module: int) -> int | None:
    """How well an entry fits, smaller is better; an entry that names no platform is the last resort."""
    if entry is None:
        return _LAST
    if modules.is_platform(entry.os, entry.architecture):
        return module
    if entry.os != wanted.os or entry.architecture != wanted.architecture:
        return None
    want, have = _level(wanted), _level(entry)
    return want - have if have <= want else None


def _level(platform: Platform) -> int:
    """The variant as a number; without one, what the architecture's users mean by that."""
    variant = platform.variant or {"arm64": "v8", "arm": "v7", "amd64": "v1"}.get(platform.architecture, "v0")
    number = variant.removeprefix("v").partition(".")[0]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 4 else 999


def _checked(descriptor: Descriptor, name: str) -> Descriptor:
    if not is_digest(descriptor.digest):
        raise _malformed(name, f"{descriptor.digest[:100]!r} is not a sha256 or sha512 digest")
    return descriptor


def _decode(data: bytes, kind: type[_T], name: str, limit: int) -> _T:
    if len(data) > limit:
        raise _malformed(name, f"it is larger than {limit} bytes")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _malformed(name, str(error)[:200]) from None


def _malformed(name: str, why: str) -> Malformed:
    return Malformed(f"{name} is malformed: {why}", fix="push the image again")
