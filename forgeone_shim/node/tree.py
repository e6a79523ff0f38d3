"""A node's files as plans read them: as they are, or as they would be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from forgeone_shim.errors import syscall_error
from forgeone_shim.node import files
from forgeone_shim.node.layout import Layout


class Tree(Protocol):
    """What is read, by the node's own paths."""

    def read(self, path: str) -> bytes | None:
        """A file's content; ``None`` where there is none."""

    def names(self, path: str) -> tuple[str, ...]:
        """What is in a directory, sorted; nothing where there is none."""

    def masked(self, path: str) -> bool:
        """Whether it is a symlink to ``/dev/null``, by which systemd.unit(5) takes a unit out of use."""


class NodeTree:
    """A node's file system."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def read(self, path: str) -> bytes | None:
        """:raises InternalError: it cannot be read."""
        return files.read(self._layout.at(path, follow=True))

    def names(self, path: str) -> tuple[str, ...]:
        """:raises InternalError: it cannot be read."""
        directory = self._layout.at(path, follow=True)
        try:
            return tuple(sorted(entry.name for entry in directory.iterdir()))
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as error:
            raise syscall_error("read", directory, error) from None

    def masked(self, path: str) -> bool:
        """As the protocol says."""
        found = self._layout.at(path)
        return found.is_symlink() and str(found.readlink()) == "/dev/null"


class Changed:
    """A tree with some files as they would be; ``None``: without them."""

    def __init__(self, below: Tree, changes: Mapping[str, bytes | None]) -> None:
        self._below = below
        self._changes = changes

    def read(self, path: str) -> bytes | None:
        """As the protocol says."""
        return self._changes[path] if path in self._changes else self._below.read(path)

    def names(self, path: str) -> tuple[str, ...]:
        """As the protocol says."""
        found = set(self._below.names(path))
        for changed, content in self._changes.items():
            directory, _, name = changed.rpartition("/")
            if directory == path.rstrip("/"):
                found = found - {name} if content is None else found | {name}
        return tuple(sorted(found))

    def masked(self, path: str) -> bool:
        """As the protocol says."""
        return path not in self._changes and self._below.masked(path)
