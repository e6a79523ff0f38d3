"""Policy files and the files they name: read once, by root's alone, with a digest over all of it."""

from __future__ import annotations

import os
import stat
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from forgeone_shim.dropins import documents
from forgeone_shim.dropins.files import replaceable, untrusted
from forgeone_shim.errors import FailedPrecondition, InvalidInput

MAX_FILE: Final = 4 * 1024 * 1024
MAX_FILES: Final = 1024
# A policy under such a name would be passed over, and nobody would know.
_ODD: Final = (".yml", ".yaml", ".json", ".JSON", ".YAML")
_VERSION: Final = b"forgeone image trust 1\n"
T = TypeVar("T")


class Files:
    """Reads files that decide about trust, and remembers what was read."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def read(self, path: Path) -> bytes:
        """A whole file. :raises FailedPrecondition: it cannot be read, or others than root could have written it."""
        try:
            # Not to be held up by a fifo of that name.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(fd, "rb") as file:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise FailedPrecondition(f"{path}: is no file")
                if fault := untrusted(status) or replaceable(str(path)):
                    raise FailedPrecondition(f"{path}: {fault}", fix="let none but root write there")
                data = file.read(MAX_FILE + 1)
        except OSError as error:
            raise FailedPrecondition(f"{path}: {error.strerror}") from error
        if len(data) > MAX_FILE:
            raise FailedPrecondition(f"{path}: larger than {MAX_FILE} bytes")
        self._seen[str(path)] = sha256(data).hexdigest()
        return data

    def listed(self, directory: Path, suffixes: tuple[str, ...]) -> tuple[Path, ...]:
        """The files of a directory with one of these suffixes, by name.

        :raises FailedPrecondition: it is not there or cannot be read, others than root can write there, there are too
            many, or one that was surely meant has another suffix.
        """
        try:
            entries = sorted(each for each in directory.iterdir() if each.name[0] != ".")
            # Of an empty one there is no file whose way would be looked at.
            fault = f"it {why}" if (why := untrusted(directory.stat())) else replaceable(str(directory))
        except OSError as error:
            raise FailedPrecondition(f"{directory}: {error.strerror}") from error
        if fault:
            raise FailedPrecondition(f"{directory}: {fault}", fix="let none but root write there")
        if odd := [each for each in entries if each.name.endswith(_ODD) and not each.name.endswith(suffixes)]:
            raise FailedPrecondition(f"{odd[0]}: would not be read", fix=f"name it with {' or '.join(suffixes)}")
        found = [each for each in entries if each.name.endswith(suffixes)]
        if len(found) > MAX_FILES:
            raise FailedPrecondition(f"{directory}: has {len(found)} files, more than {MAX_FILES}")
        return tuple(found)

    def digest(self, *, also: str = "") -> str:
        """``sha256:`` over names and contents of all that was read, and ``also``."""
        whole = sha256(_VERSION)
        for path, digest in sorted(self._seen.items()):
            whole.update(f"{digest} {path}\n".encode())
        whole.update(also.encode())
        return f"sha256:{whole.hexdigest()}"


def document(path: str, data: bytes, type_: type[T]) -> T:
    """A JSON or YAML file as one of these. :raises InvalidInput: naming file and field."""
    value = documents.parse(path, data)
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at ")
        raise InvalidInput(f"{path}{where.strip('`').removeprefix('$')}", reason) from None
    except RecursionError:
        raise InvalidInput(path, "is nested too deeply") from None
