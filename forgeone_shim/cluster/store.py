"""Policies of the cluster as they are kept on the node: the last known ones, whatever becomes of the API server.

``policies/NAME.json`` says what an object said, as a file of ``contract.policies_dir`` would; ``listed`` is there once
all of them have come. Each file is replaced whole, so a node that loses its power has the old one or the new one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forgeone_shim.cluster import objects
from forgeone_shim.contract import policy
from forgeone_shim.contract.policy import Policy
from forgeone_shim.dropins.files import untrusted
from forgeone_shim.errors import InternalError, InvalidInput

SUFFIX: Final = ".json"
_NEW: Final = ".new"


@dataclass(frozen=True, slots=True)
class Kept:
    """What there was: policies by name, why a file could not be used by its name, and whether all had come once."""

    policies: Mapping[str, Policy]
    broken: Mapping[str, str]
    listed: bool


NOTHING: Final = Kept({}, {}, False)


class Store:
    """A directory of root's alone, ``<root>/cluster``. One process at a time changes it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._policies = directory / "policies"
        self._listed = directory / "listed"

    def load(self) -> Kept:
        """What is kept; nothing where the directory is not there."""
        found: dict[str, Policy] = {}
        broken: dict[str, str] = {}
        try:
            names = sorted(path.name for path in self._policies.iterdir())
        except FileNotFoundError:
            return NOTHING
        except OSError as error:
            return Kept({}, {str(self._policies): error.strerror or str(error)}, False)
        for name in names:
            if not name.endswith(SUFFIX):
                continue
            try:
                found[name.removesuffix(SUFFIX)] = self._read(name)
            except InvalidInput as error:
                broken[name.removesuffix(SUFFIX)] = str(error)
        return Kept(found, broken, self._listed.exists())

    def _read(self, name: str) -> Policy:
        path = self._policies / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(fd, "rb") as file:
                if fault := untrusted(os.fstat(fd)):
                    raise InvalidInput(str(path), fault)
                data = file.read(policy.MAX_FILE + 1)
        except OSError as error:
            raise InvalidInput(str(path), error.strerror or str(error)) from None
        return objects.read(name.removesuffix(SUFFIX), data)

    def prepare(self) -> None:
        """Make the directories; what a writer that was killed has left goes. :raises InternalError: they cannot be."""
        try:
            for path in (self._directory, self._policies):
                path.mkdir(mode=0o700, exist_ok=True)
            for path in (*self._policies.glob(f"*{_NEW}"), *self._directory.glob(f"*{_NEW}")):
                path.unlink()
        except OSError as error:
            raise InternalError(f"prepare {self._directory}: {error.strerror}") from error

    def write(self, name: str, data: bytes) -> None:
        """A policy is kept from now on, in place of the one of that name. :raises InternalError: it cannot be."""
        self._put(self._policies / f"{name}{SUFFIX}", data)

    def remove(self, name: str) -> None:
        """A policy is kept no longer; one that is not there is no error. :raises InternalError: it stays."""
        try:
            (self._policies / f"{name}{SUFFIX}").unlink(missing_ok=True)
            _sync(self._policies)
        except OSError as error:
            raise InternalError(f"remove policy {name} of the cluster: {error.strerror}") from error

    def complete(self) -> None:
        """All of them have come. :raises InternalError: that cannot be kept."""
        if not self._listed.exists():
            self._put(self._listed, b"")

    def clear(self) -> None:
        """Nothing is kept any more; nothing there is no error. :raises InternalError: something stays."""
        with suppress(FileNotFoundError):
            try:
                # Without it what is left of the rest counts for nothing complete.
                self._listed.unlink(missing_ok=True)
                shutil.rmtree(self._directory)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise InternalError(f"remove {self._directory}: {error.strerror}") from error

    def _put(self, path: Path, data: bytes) -> None:
        new = path.with_name(f"{path.name}{_NEW}")
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
            new.rename(path)
            _sync(path.parent)
        except OSError as error:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise InternalError(f"write {path}: {error.strerror}") from error


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
