"""Moves entries from the write-ahead segments into the tiles."""

from __future__ import annotations

from collections.abc import Sequence

from forgeone_shim.audit import merkle, tiles
from forgeone_shim.audit.files import Files
from forgeone_shim.audit.snapshot import Snapshot
from forgeone_shim.audit.tiles import CHECKPOINT, ENTRIES, WIDTH, Edge
from forgeone_shim.audit.wal import Group


class Tiler:
    """Of one log. One thread uses it."""

    def __init__(self, files: Files, found: Snapshot | None) -> None:
        self._files = files
        self._edge = found.edge if found else Edge()
        number, width = divmod(self.size, WIDTH)
        self._bundle = files.bundle(number, width) if width else []
        self._bundles = files.bundles() if found else []

    @property
    def size(self) -> int:
        """Entries in the tiles."""
        return self._edge.frontier.size

    def write(self, groups: Sequence[Group]) -> None:
        """Add them; they are on disk, and the checkpoint with them, when this returns. It may be repeated.

        :raises OSError: they are not.
        """
        edge = Edge([list(tile) for tile in self._edge.tiles], self._edge.frontier.copy())
        bundle, whole = list(self._bundle), []
        new_bundles: list[tuple[int, int]] = []
        for entry in (entry for group in groups for entry in group.entries):
            bundle.append(entry)
            for level, number, tile in edge.add(merkle.leaf(entry)):
                self._files.write(tiles.path(level, number), b"".join(tile))
                whole.append((level, number))
                if level == 0:
                    data = tiles.bundle(bundle)
                    self._files.write(tiles.path(ENTRIES, number), data)
                    new_bundles.append((number, len(data)))
                    bundle = []
        for level, number, width in tiles.levels(edge.frontier.size):
            self._files.write(tiles.path(level, number, width), b"".join(edge.tiles[level]))
            if level == 0:
                self._files.write(tiles.path(ENTRIES, number, width), tiles.bundle(bundle))
        # What the checkpoint speaks of is there before it.
        self._files.sync()
        self._files.write(CHECKPOINT, groups[-1].note)
        self._files.sync()
        self._edge, self._bundle = edge, bundle
        self._bundles += new_bundles
        for level, number in whole:
            self._files.remove_partials(level, number)
            if level == 0:
                self._files.remove_partials(ENTRIES, number)

    def surplus(self, keep: int) -> int:
        """The entry that the log would begin with, were it to keep about so many bytes of entries; 0: as it is."""
        left = sum(size for _, size in self._bundles)
        for number, size in self._bundles:
            if left <= keep:
                return number * WIDTH if number > self._bundles[0][0] else 0
            left -= size
        return (self._bundles[-1][0] + 1) * WIDTH if self._bundles else 0

    def prune(self, first: int) -> None:
        """Forget whole bundles before that entry, and the tiles of their hashes: a higher tile has their root."""
        while self._bundles and (self._bundles[0][0] + 1) * WIDTH <= first:
            number = self._bundles[0][0]
            for level in (ENTRIES, 0):
                self._files.remove(tiles.path(level, number))
            del self._bundles[0]
