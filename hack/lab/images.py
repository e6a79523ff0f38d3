"""Small images built in memory and pushed over plain HTTP (OCI image spec 1.1, distribution spec 1.1)."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import urllib3
import zstandard

from hack.lab.settings import patient

BUSYBOX = Path("/bin/busybox")
_SECONDS = 60.0
_PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\nforge:x:1000:1000:forge:/home/forge:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
)
_GROUP = "root:x:0:\nforge:x:1000:\nsmiths:x:5000:forge\nnogroup:x:65534:\n"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER_TYPES = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def digest(data: bytes) -> str:
    """``sha256:<hex>``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """A member of a layer: a file, unless ``type`` says otherwise (tarfile's constants)."""

    name: str
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    type: bytes = tarfile.REGTYPE
    link: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layer:
    """A compressed layer with its two digests."""

    blob: bytes
    diff_id: str
    compression: str = "gzip"

    @property
    def digest(self) -> str:
        """Digest of the compressed blob."""
        return digest(self.blob)


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """Manifest, config and layers, ready to push. ``id`` is the config's digest, as CRI names images."""

    manifest: bytes
    manifest_type: str
    config: bytes
    layers: tuple[Layer, ...]

    @property
    def digest(self) -> str:
        """Digest of the manifest."""
        return digest(self.manifest)

    @property
    def id(self) -> str:
        """Digest of the config."""
        return digest(self.config)


def tar(entries: Iterable[Entry]) -> bytes:
    """The entries as an uncompressed tar; the same entries give the same bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.mode, info.uid, info.gid = entry.type, entry.mode, entry.uid, entry.gid
            info.linkname, info.size, info.mtime = entry.link, len(entry.data), 1_700_000_000
            info.devmajor, info.devminor = entry.device
            info.pax_headers = {f"SCHILY.xattr.{name}": value for name, value in entry.xattrs.items()}
            archive.addfile(info, io.BytesIO(entry.data))
    return out.getvalue()


def layer(content: bytes | Iterable[Entry], compression: str = "gzip") -> Layer:
    """A layer from entries, or from tar bytes as they are."""
    raw = content if isinstance(content, bytes) else tar(content)
    if compression == "gzip":
        blob = gzip.compress(raw, compresslevel=6, mtime=0)
    elif compression == "zstd":
        blob = zstandard.ZstdCompressor().compress(raw)
    else:
        blob = raw
    return Layer(blob, digest(raw), compression)


def busybox_entries() -> list[Entry]:
    """A root file system around the host's static busybox: applets, passwd and group, the usual directories."""
    directories = ("bin", "dev", "etc", "home", "home/forge", "proc", "root", "run", "sys", "tmp", "var")
    entries = [Entry(name, type=tarfile.DIRTYPE, mode=0o1777 if name == "tmp" else 0o755) for name in directories]
    entries.append(Entry("bin/busybox", BUSYBOX.read_bytes(), 0o755))
    listed = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    applets = sorted(set(listed) - {"busybox"})
    entries += [Entry(f"bin/{name}", type=tarfile.SYMTYPE, link="busybox", mode=0o777) for name in applets]
    return [*entries, Entry("etc/passwd", _PASSWD.encode()), Entry("etc/group", _GROUP.encode())]


def build(
    layers: Sequence[Layer], config: Mapping[str, object] | None = None, *, docker: bool = False, **top: object
) -> BuiltImage:
    """An image of these layers. ``config`` is the config's own ``config`` part (Cmd, Env, User ...)."""
    document = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": "2023-11-14T22:13:20Z",
        "config": {"Env": [_PATH], **(config or {})},
        "rootfs": {"type": "layers", "diff_ids": [item.diff_id for item in layers]},
        **top,
    }
    blob = json.dumps(document).encode()
    manifest_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
    manifest = {
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": descriptor(blob, _DOCKER_CONFIG if docker else _OCI_CONFIG),
        "layers": [
            descriptor(item.blob, _DOCKER_LAYER if docker else _LAYER_TYPES[item.compression]) for item in layers
        ],
    }
    return BuiltImage(json.dumps(manifest).encode(), manifest_type, blob, tuple(layers))


def busybox(cmd: Sequence[str] = ("sh",), extra: Iterable[Entry] = (), **config: object) -> BuiltImage:
    """A one-layer busybox image (two with ``extra`` files); ``config`` goes into the image config's ``config``."""
    layers = [layer(busybox_entries())]
    added = list(extra)
    if added:
        layers.append(layer(added))
    return build(layers, {"Cmd": list(cmd), **config})


def push(registry: str, name: str, image: BuiltImage) -> str:
    """Push under ``repository:tag``; returns the whole reference, ``registry/repository:tag``."""
    repository, _, tag = name.partition(":")
    with urllib3.PoolManager(retries=False, timeout=patient(_SECONDS)) as http:
        for blob in (*(item.blob for item in image.layers), image.config):
            push_blob(http, registry, repository, blob)
        put_manifest(
            http, registry, repository, tag or "latest", manifest=image.manifest, media_type=image.manifest_type
        )
    return f"{registry}/{repository}:{tag or 'latest'}"


def push_index(registry: str, name: str, images: Mapping[str, BuiltImage]) -> str:
    """Push images by platform (``linux/arm64/v8``) below one index; returns the whole reference."""
    repository, _, tag = name.partition(":")
    manifests = []
    for text, image in images.items():
        push(registry, f"{repository}:{text.replace('/', '-')}", image)
        parts = dict(zip(("os", "architecture", "variant"), text.split("/"), strict=False))
        manifests.append({**descriptor(image.manifest, image.manifest_type), "platform": parts})
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).encode()
    with urllib3.PoolManager(retries=False, timeout=patient(_SECONDS)) as http:
        put_manifest(http, registry, repository, tag or "latest", manifest=index, media_type=OCI_INDEX)
    return f"{registry}/{repository}:{tag or 'latest'}"


def push_artifact(registry: str, name: str, kind: str, files: Mapping[str, bytes]) -> str:
    """Push files by their names as an OCI artifact of a type, as ``oras push`` does; returns the whole reference."""
    repository, _, tag = name.partition(":")
    empty = "application/vnd.oci.empty.v1+json"
    layers = [
        {**descriptor(data, "application/octet-stream"), "annotations": {"org.opencontainers.image.title": title}}
        for title, data in files.items()
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": kind,
        "config": descriptor(b"{}", empty),
        "layers": layers,
    }
    with urllib3.PoolManager(retries=False, timeout=patient(_SECONDS)) as http:
        for blob in (*files.values(), b"{}"):
            push_blob(http, registry, repository, blob)
        text = json.dumps(manifest).encode()
        put_manifest(http, registry, repository, tag or "latest", manifest=text, media_type=OCI_MANIFEST)
    return f"{registry}/{repository}:{tag or 'latest'}"


def descriptor(blob: bytes, media_type: str) -> dict[str, object]:
    """What a manifest says of a blob."""
    return {"mediaType": media_type, "digest": digest(blob), "size": len(blob)}


def push_blob(http: urllib3.PoolManager, registry: str, repository: str, blob: bytes) -> None:
    """Push a blob that is not there yet."""
    base = f"http://{registry}/v2/{repository}/blobs/"
    if http.request("HEAD", base + digest(blob)).status == 200:
        return
    begun = _expect(http.request("POST", f"{base}uploads/"), 202)
    location = begun.headers["Location"]
    if not urlsplit(location).netloc:
        location = f"http://{registry}{location}"
    target = f"{location}{'&' if '?' in location else '?'}digest={digest(blob)}"
    _expect(http.request("PUT", target, body=blob, headers={"Content-Type": "application/octet-stream"}), 201)


def put_manifest(
    http: urllib3.PoolManager, registry: str, repository: str, tag: str, *, manifest: bytes, media_type: str
) -> None:
    """Push a manifest or an index, whose blobs are there, under a tag or its digest."""
    url = f"http://{registry}/v2/{repository}/manifests/{tag}"
    _expect(http.request("PUT", url, body=manifest, headers={"Content-Type": media_type}), 201)


def _expect(response: urllib3.BaseHTTPResponse, status: int) -> urllib3.BaseHTTPResponse:
    if response.status != status:
        raise RuntimeError(f"{response.url}: {response.status} {response.data[:500]!r}")
    return response
