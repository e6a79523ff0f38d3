"""A kernel and its modules out of a Debian package, which is not installed (deb(5): an ``ar`` archive of tars)."""

from __future__ import annotations

import gzip
import lzma
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, Any, Final

import zstandard

from engines.microvm.boot.sources import Installed
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, syscall_error

_MAGIC: Final = b"!<arch>\n"
_HEADER: Final = 60
_READERS: Final[Mapping[str, Callable[[IO[bytes]], Any]]] = MappingProxyType(
    {
        "data.tar": lambda file: file,
        "data.tar.gz": gzip.open,
        "data.tar.xz": lzma.open,
        "data.tar.zst": lambda file: zstandard.ZstdDecompressor().stream_reader(file),
    }
)
_MODULES: Final = (".ko", ".ko.gz", ".ko.xz", ".ko.zst", "/modules.builtin")
# No kernel's package has more, and a damaged one must not fill the disk.
_FILES_MAX: Final = 20_000
_BYTES_MAX: Final = 2 * 1024**3


def unpack(package: Path, work: Path, deadline: Deadline) -> Installed:
    """Write the kernel and the modules into the directory ``work``.

    :raises FailedPrecondition: it is no such package, or holds no kernel, or more than one.
    """
    kernels: list[Path] = []
    folders: set[Path] = set()
    try:
        with package.open("rb") as file, _data(file, package) as data, tarfile.open(fileobj=data, mode="r|") as tar:
            files, size = 0, 0
            for member in tar:
                deadline.check(f"unpacking {package.name}")
                path = _wanted(member.name) if member.isreg() else None
                content = tar.extractfile(member) if path is not None else None
                if path is None or content is None:
                    continue
                files, size = files + 1, size + member.size
                if files > _FILES_MAX or size > _BYTES_MAX:
                    raise FailedPrecondition(f"{package} is larger than a kernel's package is")
                target = work / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as out:
                    shutil.copyfileobj(content, out)
                if path.parts[0] == "boot":
                    kernels.append(target)
                elif path.name == "modules.builtin":
                    folders.add(target.parent)
    except (tarfile.TarError, lzma.LZMAError, zstandard.ZstdError, EOFError, ValueError) as error:
        raise FailedPrecondition(f"{package} is no Debian package, or is damaged: {error}") from None
    except OSError as error:
        raise syscall_error("unpack", package, error) from None
    if len(kernels) != 1 or len(folders) != 1:
        raise FailedPrecondition(
            f"{package} holds {len(kernels)} kernels and the modules of {len(folders)}, not of one"
        )
    return Installed(kernels[0], folders.pop())


def _data(file: IO[bytes], package: Path) -> Any:
    """The tar with the package's files; what is behind it in the archive is not looked at."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise FailedPrecondition(f"{package} is no Debian package")
    while len(header := file.read(_HEADER)) == _HEADER:
        name, size = header[:16].decode("ascii", "replace").rstrip(" /"), int(header[48:58])
        if name in _READERS:
            return _READERS[name](file)
        file.seek(size + size % 2, 1)
    raise FailedPrecondition(f"{package} has no data.tar, or one of an unknown compression")


def _wanted(name: str) -> PurePosixPath | None:
    """Where a member goes: ``boot/vmlinuz-*``, or ``lib/modules/...``; ``None`` where it is not needed."""
    parts = [part for part in PurePosixPath(name).parts if part not in {"/", "."}]
    if parts[:1] == ["usr"]:
        parts = parts[1:]
    if ".." in parts:
        raise FailedPrecondition(f"a package's file is called {name!r}")
    if len(parts) == 2 and parts[0] == "boot" and parts[1].startswith("vmlinuz-"):
        return PurePosixPath(*parts)
    return PurePosixPath(*parts) if parts[:2] == ["lib", "modules"] and name.endswith(_MODULES) else None
