"""The tree as archives: the same bytes for the same tree, whoever writes them, when and where."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from hack.bundle import layout, manifest
from hack.bundle.layout import Arch

LEVEL: Final = 4
"""Of gzip: half the time that the usual 6 takes, for a twentieth more bytes."""
_DIRECTORY: Final = 0o755
_PATH: Final = f"{layout.CURRENT}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSWD: Final = "root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n"
_GROUP: Final = "root:x:0:\nnobody:x:65534:\n"


@dataclass(frozen=True, slots=True)
class Stamp:
    """``epoch`` (seconds) is the time of everything in an artifact."""

    version: str
    arch: Arch
    epoch: int
    flavour: str = layout.STANDARD

    @property
    def suffix(self) -> str:
        """What names of the flavour that is not the usual one end with."""
        return "" if self.flavour == layout.STANDARD else f"-{self.flavour}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A member of an archive: a file's content, a link's target, or a directory."""

    name: str
    source: Path | bytes | None = None
    link: str = ""
    mode: int = _DIRECTORY


def entries(root: Path, top: str) -> Iterator[Entry]:
    """All of the tree below ``top``, and that itself."""
    yield Entry(top)
    for name, path in manifest.walk(root):
        if path.is_symlink():
            yield Entry(f"{top}/{name}", link=str(path.readlink()))
        elif path.is_dir():
            yield Entry(f"{top}/{name}")
        else:
            yield Entry(f"{top}/{name}", path, mode=manifest.mode(path))


def write_archive(root: Path, target: Path, stamp: Stamp) -> None:
    """``forgeone-VERSION-ARCH.tar.gz``: one directory, the bundle."""
    with target.open("wb") as file, _compressed(file) as out:
        _write_tar(entries(root, f"{layout.NAME}-{stamp.version}"), out, stamp.epoch)


def write_image(root: Path, target: Path, stamp: Stamp) -> None:
    """``forgeone-VERSION-ARCH.oci.tar``: an OCI image layout of one layer, the bundle where a node has it.

    https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md
    """
    layer, digest = _layer(_image_entries(root, stamp.version), stamp.epoch)
    config = _json(
        {
            "architecture": stamp.arch.debian,
            "os": "linux",
            "config": {
                "Env": [f"PATH={_PATH}"],
                "WorkingDir": "/",
                "Labels": {
                    "org.opencontainers.image.title": layout.NAME,
                    "org.opencontainers.image.version": stamp.version,
                    "org.opencontainers.image.licenses": "Apache-2.0",
                },
            },
            "rootfs": {"type": "layers", "diff_ids": [digest]},
            "history": [{"created_by": "hack.bundle"}],
        }
    )
    kind = "application/vnd.oci.image"
    document = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": _descriptor(f"{kind}.config.v1+json", config),
            "layers": [_descriptor(f"{kind}.layer.v1.tar+gzip", layer)],
        }
    )
    tag = f"{stamp.version}{stamp.suffix}"
    names = {
        "org.opencontainers.image.ref.name": tag,
        "io.containerd.image.name": f"docker.io/{layout.NAME}/{layout.NAME}:{tag}",
    }
    platform = {"architecture": stamp.arch.debian, "os": "linux"}
    index = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.index.v1+json",
        "manifests": [_descriptor(f"{kind}.manifest.v1+json", document) | {"platform": platform, "annotations": names}],
    }
    blobs = {f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}": blob for blob in (layer, config, document)}
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": _json(index), **blobs}
    with target.open("wb") as out:
        _write_tar(
            (Entry("blobs"), Entry("blobs/sha256"), *(Entry(name, files[name], mode=0o644) for name in sorted(files))),
            out,
            stamp.epoch,
        )


def _image_entries(root: Path, version: str) -> Iterator[Entry]:
    place = Path(layout.prefix(version))
    yield from (Entry(str(parent)[1:]) for parent in [*reversed(place.parents)][1:])
    yield from entries(root, str(place)[1:])
    yield Entry(layout.CURRENT[1:], link=f"versions/{version}")
    yield Entry("etc")
    yield Entry("etc/group", _GROUP.encode(), mode=0o644)
    yield Entry("etc/passwd", _PASSWD.encode(), mode=0o644)
    yield Entry("tmp", mode=0o1777)


def _layer(members: Iterable[Entry], epoch: int) -> tuple[bytes, str]:
    """Compressed, and the digest of what it was before."""
    buffer = io.BytesIO()
    with _compressed(buffer) as out:
        hashing = _Hashing(out)
        _write_tar(members, hashing, epoch)
    return buffer.getvalue(), f"sha256:{hashing.digest.hexdigest()}"


class _Hashing(io.RawIOBase):
    def __init__(self, out: IO[bytes]) -> None:
        self._out, self.digest = out, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._out.write(data)


@contextmanager
def _compressed(file: IO[bytes]) -> Iterator[IO[bytes]]:
    # The header has neither name nor time.
    with gzip.GzipFile("", "wb", LEVEL, file, 0) as out:
        yield out  # type: ignore[misc]  # typeshed: GzipFile is an IO in all but name


def _write_tar(members: Iterable[Entry], out: Any, epoch: int) -> None:
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.mtime, info.mode, info.uname, info.gname = epoch, member.mode, "root", "root"
            if member.link:
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, member.link, 0o777
                tar.addfile(info)
            elif member.source is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                content = member.source if isinstance(member.source, bytes) else member.source.read_bytes()
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _descriptor(kind: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(blob).hexdigest()}", "size": len(blob)}


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
