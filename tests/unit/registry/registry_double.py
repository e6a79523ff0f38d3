"""A registry in this process that can be told to misbehave, and the images it serves."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import zstandard

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def pack(tar: bytes, packed: str) -> bytes:
    if packed == "gzip":
        return gzip.compress(tar, compresslevel=1, mtime=0)
    return zstandard.compress(tar) if packed == "zstd" else tar


@dataclass
class Contents:
    """What a registry holds: blobs by digest, manifests by tag or digest (with their media type)."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    referrers: dict[str, list[dict[str, Any]]] | None = None

    def add_blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        self.blobs[sha256(data)] = data
        return {"mediaType": media_type, "digest": sha256(data), "size": len(data)}

    def add_manifest(self, document: dict[str, Any], *tags: str) -> dict[str, Any]:
        data = json.dumps(document).encode()
        media_type = document["mediaType"]
        for name in (sha256(data), *tags):
            self.manifests[name] = (media_type, data)
        return {"mediaType": media_type, "digest": sha256(data), "size": len(data)}

    def add_image(
        self,
        *tags: str,
        layers: list[bytes] | None = None,
        packed: str = "gzip",
        docker: bool = False,
        config: dict[str, Any] | None = None,
        architecture: str = "amd64",
    ) -> dict[str, Any]:
        """An image of these tars; returns its manifest's descriptor."""
        tars = layers if layers is not None else [tar_of({"hello": b"hello"})]
        suffix = "" if packed == "none" else f"+{packed}"
        entries = [self.add_blob(pack(t, packed), DOCKER_LAYER if docker else OCI_LAYER + suffix) for t in tars]
        file = {
            "architecture": architecture,
            "os": "linux",
            "created": "2024-01-01T00:00:00Z",
            "config": config or {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [sha256(t) for t in tars]},
        }
        described = self.add_blob(json.dumps(file).encode(), DOCKER_CONFIG if docker else OCI_CONFIG)
        document = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
            "config": described,
            "layers": entries,
        }
        return self.add_manifest(document, *tags)

    def add_index(self, *tags: str, entries: list[dict[str, Any]], docker: bool = False) -> dict[str, Any]:
        return self.add_manifest(
            {"schemaVersion": 2, "mediaType": DOCKER_LIST if docker else OCI_INDEX, "manifests": entries}, *tags
        )

    def add_artifact(
        self,
        *tags: str,
        layers: list[tuple[str, bytes, dict[str, str]]],
        subject: str = "",
        kind: str = "",
        **top: object,
    ) -> dict[str, Any]:
        """A manifest of typed blobs, about another one, perhaps."""
        empty = self.add_blob(b"{}", "application/vnd.oci.empty.v1+json")
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": empty,
            "layers": [{**self.add_blob(data, type_), "annotations": notes} for type_, data, notes in layers],
            **({"artifactType": kind} if kind else {}),
            **({"subject": {"mediaType": OCI_MANIFEST, "digest": subject, "size": 1}} if subject else {}),
            **top,
        }
        return {**self.add_manifest(document, *tags), **({"artifactType": kind} if kind else {})}

    def config_digest(self, manifest: dict[str, Any]) -> str:
        digest: str = json.loads(self.manifests[manifest["digest"]][1])["config"]["digest"]
        return digest

    def layer_digests(self, manifest: dict[str, Any]) -> list[str]:
        return [layer["digest"] for layer in json.loads(self.manifests[manifest["digest"]][1])["layers"]]


@dataclass(frozen=True)
class Seen:
    """A request as the registry saw it."""

    path: str
    headers: dict[str, str]
    method: str = "GET"
    body: bytes = b""


class FakeRegistry:
    """Serves :class:`Contents` on a loopback port. ``hook`` may answer a request itself by returning true."""

    def __init__(self, contents: Contents | None = None) -> None:
        self.contents = contents or Contents()
        self.seen: list[Seen] = []
        self.hook: Callable[[Handler], bool] = lambda handler: False
        self.cut_after: list[int] = []
        self.stall_after: int | None = None
        self.ranges = True
        self.delay = 0.0
        self.page_size = 100
        self._released = threading.Event()
        owner = self

        class Bound(Handler):
            registry = owner

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def paths(self, part: str = "") -> list[str]:
        return [seen.path for seen in self.seen if part in seen.path]

    def stall(self) -> None:
        self._released.wait(30)

    def close(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    registry: FakeRegistry

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.body = body
        self.registry.seen.append(Seen(self.path, dict(self.headers), self.command, body))
        if self.registry.hook(self):
            return
        parts = urlsplit(self.path).path.split("/")
        kind, name = parts[-2:]
        if kind == "manifests" and name in self.registry.contents.manifests:
            media_type, data = self.registry.contents.manifests[name]
            self.answer(200, data, {"Content-Type": media_type, "Docker-Content-Digest": sha256(data)})
        elif kind == "referrers" and self.registry.contents.referrers is not None:
            self._referrers(self.registry.contents.referrers.get(name, []))
        elif kind == "blobs" and name in self.registry.contents.blobs:
            self._blob(self.registry.contents.blobs[name])
        else:
            error = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
            self.answer(404, json.dumps(error).encode())

    do_POST = do_GET

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> bool:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return True

    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)

    def _referrers(self, entries: list[dict[str, Any]]) -> None:
        """A page of them; ``page_size`` of the registry says how many that are."""
        size, start = self.registry.page_size, int(self.query().get("last", ["0"])[0])
        headers = {"Content-Type": OCI_INDEX}
        if start + size < len(entries):
            headers["Link"] = f'<{urlsplit(self.path).path}?last={start + size}>; rel="next"'
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries[start : start + size]}
        self.answer(200, json.dumps(document).encode(), headers)

    def _blob(self, data: bytes) -> None:
        registry = self.registry
        time.sleep(registry.delay)
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted and registry.ranges else 0
        body = data[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if registry.stall_after is not None and len(body) > registry.stall_after:
            self.wfile.write(body[: registry.stall_after])
            self.wfile.flush()
            registry.stall()
            self.close_connection = True
        elif registry.cut_after and len(body) > 10_000:
            self.wfile.write(body[: registry.cut_after.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, ValueError):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass
