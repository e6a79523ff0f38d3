"""A console whose end is told."""

from __future__ import annotations

from collections.abc import Callable

from engines.base import Console, Output


class Recorded:
    """A :class:`~engines.base.Console` that hands everything on, and calls ``end`` once when it is closed.

    ``end`` gets the exit code of a process that has exited.
    """

    def __init__(self, console: Console, end: Callable[..., None]) -> None:
        self._console = console
        self._end: Callable[..., None] | None = end
        self._told: dict[str, int] = {}

    @property
    def readers(self) -> tuple[int, ...]:
        """As the console's."""
        return self._console.readers

    @property
    def writer(self) -> int:
        """As the console's."""
        return self._console.writer

    @property
    def exited(self) -> int:
        """As the console's."""
        return self._console.exited

    def read(self, fd: int) -> tuple[Output, bytes] | None:
        """As the console's."""
        return self._console.read(fd)

    def write(self, data: bytes) -> int:
        """As the console's."""
        return self._console.write(data)

    def end_input(self) -> None:
        """As the console's."""
        self._console.end_input()

    def resize(self, width: int, height: int) -> None:
        """As the console's."""
        self._console.resize(width, height)

    def finish(self) -> int:
        """As the console's."""
        code = self._console.finish()
        self._told["exit_code"] = code
        return code

    def close(self) -> None:
        """As the console's."""
        end, self._end = self._end, None
        try:
            self._console.close()
        finally:
            if end is not None:
                end(**self._told)
