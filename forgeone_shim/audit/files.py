"""A log's files: tiles and the checkpoint. Each is whole and on disk before it has its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from forgeone_shim.audit import tiles
from forgeone_shim.audit.merkle import HASH_SIZE
from forgeone_shim.audit.tiles import CHECKPOINT, ENTRIES, TREE, WIDTH
from forgeone_shim.errors import FailedPrecondition

WAL: Final = "wal"
_NEW: Final = ".new"
_LARGEST: Final = 32 * 1024 * 1024


class Files:
    """The files below a log's directory. Reading needs nobody's leave; one thread writes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._touched: set[Path] = set()

    @property
    def wal(self) -> Path:
        """The segments' directory."""
        return self.directory / WAL

    def checkpoint(self) -> bytes | None:
        """The note that the tiles end with; ``None`` where none were written."""
        return self._read(CHECKPOINT)

    def tile(self, level: int, number: int, width: int = WIDTH) -> list[bytes]:
        """The first hashes of a tile. :raises FailedPrecondition: it is not there, or has not so many."""
        what = tiles.path(level, number, width)
        found = self._read(what)
        if found is None and width < WIDTH:
            found = self._read(tiles.path(level, number))
            found = found if found is None else found[: width * HASH_SIZE]
        if found is None:
            raise FailedPrecondition(f"{what} is missing")
        return tiles.hashes(found, width, what)

    def bundle(self, number: int, width: int = WIDTH) -> list[bytes]:
        """The first entries of a bundle. :raises FailedPrecondition: it is not there, or has not so many."""
        what = tiles.path(ENTRIES, number, width)
        found, has = self._read(what), width
        if found is None and width < WIDTH:
            found, has = self._read(tiles.path(ENTRIES, number)), WIDTH
        if found is None:
            raise FailedPrecondition(f"{what} is missing")
        return tiles.unbundle(found, has, what)[:width]

    def bundles(self) -> list[tuple[int, int]]:
        """Number and bytes of each whole bundle, in order."""
        found: list[tuple[int, int]] = []
        top = self.directory / TREE / ENTRIES
        for folder, _, names in os.walk(top):
            relative = Path(folder).relative_to(top)
            if relative.name.endswith(".p"):
                continue
            for name in names:
                parts = [*(part.removeprefix("x") for part in relative.parts), name]
                if all(part.isdecimal() and len(part) == 3 for part in parts):
                    found.append((int("".join(parts)), (Path(folder) / name).stat().st_size))
        return sorted(found)

    def write(self, name: str, data: bytes) -> None:
        """A file of that name, on disk once :meth:`sync` was called.

        :raises OSError: it is not.
        """
        path = self.directory / name
        self._make(path.parent)
        new = path.with_name(path.name + _NEW)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        new.replace(path)
        self._touched.add(path.parent)

    def sync(self) -> None:
        """Have the names of what was written on disk too."""
        while self._touched:
            folder = self._touched.pop()
            try:
                sync_directory(folder)
            except BaseException:
                self._touched.add(folder)
                raise

    def remove(self, name: str) -> None:
        """Forget a file; a missing one is no error."""
        (self.directory / name).unlink(missing_ok=True)

    def remove_partials(self, level: int | str, number: int) -> None:
        """Forget the parts of a tile that is whole."""
        folder = (self.directory / tiles.path(level, number, 1)).parent
        if folder.is_dir():
            for each in list(folder.iterdir()):
                each.unlink(missing_ok=True)
            folder.rmdir()

    def _read(self, name: str) -> bytes | None:
        try:
            with open(self.directory / name, "rb") as file:
                data = file.read(_LARGEST + 1)
        except FileNotFoundError:
            return None
        if len(data) > _LARGEST:
            raise FailedPrecondition(f"{name} is larger than {_LARGEST} bytes")
        return data

    def _make(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make(folder.parent)
        folder.mkdir(mode=0o700)
        self._touched.add(folder.parent)


def sync_directory(folder: Path) -> None:
    """Have a directory's names on disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
