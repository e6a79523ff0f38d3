"""A mapping read from outside, taken apart key by key: what is not asked for is an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from forgeone_shim.errors import InvalidInput

T = TypeVar("T")
_UINT32 = 2**32 - 1


class Table:
    """``where`` names it in errors. A key whose value is null counts as not given.

    Use as a context manager, so that keys nobody asked for are found at the end.
    """

    def __init__(self, where: str, value: object) -> None:
        if not isinstance(value, dict):
            raise InvalidInput(where, "is not an object")
        self.where = where
        self._left: dict[str, object] = {key: item for key, item in value.items() if item is not None}
        self.given = frozenset(self._left)

    def __enter__(self) -> Table:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self._left:
            raise InvalidInput(f"{self.where}.{min(self._left)}", "is not a field known here")

    def wrong(self, key: str, why: str, *, fix: str = "") -> InvalidInput:
        """An error about one of its keys."""
        return InvalidInput(f"{self.where}.{key}", why, fix=fix)

    def text(self, key: str, *, required: bool = False) -> str:
        """A text without NUL; empty where it is not given."""
        found = self._left.pop(key, "")
        if not isinstance(found, str) or "\0" in found:
            raise self.wrong(key, "is not a text")
        if required and not found:
            raise self.wrong(key, "is missing")
        return found

    def path(self, key: str, *, required: bool = False) -> str:
        """An absolute path; empty where it is not given."""
        found = self.text(key, required=required)
        if found and not found.startswith("/"):
            raise self.wrong(key, f"{found!r} is not an absolute path")
        return found

    def number(self, key: str, low: int = 0, high: int = _UINT32) -> int | None:
        """A whole number; ``None`` where it is not given."""
        found = self._left.pop(key, None)
        if found is None:
            return None
        if type(found) is not int or not low <= found <= high:
            raise self.wrong(key, f"{found!r} is not a number in {low}..{high}")
        return found

    def truth(self, key: str) -> bool:
        """True or false; false where it is not given."""
        found = self._left.pop(key, False)
        if not isinstance(found, bool):
            raise self.wrong(key, "is neither true nor false")
        return found

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        found = self._list(key)
        if not all(isinstance(item, str) and "\0" not in item for item in found):
            raise self.wrong(key, "is not a list of texts")
        return tuple(str(item) for item in found)

    def variables(self, key: str) -> tuple[str, ...]:
        """A list of ``NAME=value``."""
        found = self.texts(key)
        for item in found:
            if item.find("=") <= 0:
                raise self.wrong(key, f"{item!r} is not NAME=value")
        return found

    def numbers(self, key: str) -> tuple[int, ...]:
        """A list of numbers that fit 32 bits."""
        found = self._list(key)
        if not all(type(item) is int and 0 <= item <= _UINT32 for item in found):
            raise self.wrong(key, f"is not a list of numbers in 0..{_UINT32}")
        return tuple(item for item in found if isinstance(item, int))

    def items(self, key: str) -> Sequence[object]:
        """A list of whatever."""
        return self._list(key)

    def value(self, key: str) -> object:
        """Whatever is there; ``None`` where it is not given."""
        return self._left.pop(key, None)

    def tables(self, key: str, read: Callable[[Table], T]) -> tuple[T, ...]:
        """A list of objects, each taken apart by ``read``."""
        return tuple(self._read(key, read))

    def _read(self, key: str, read: Callable[[Table], T]) -> Iterator[T]:
        for index, item in enumerate(self._list(key)):
            with Table(f"{self.where}.{key}[{index}]", item) as table:
                yield read(table)

    def table(self, key: str, read: Callable[[Table], T]) -> T | None:
        """An object taken apart by ``read``; ``None`` where it is not given."""
        if key not in self._left:
            return None
        with Table(f"{self.where}.{key}", self._left.pop(key)) as table:
            return read(table)

    def labels(self, key: str) -> dict[str, str]:
        """An object of texts."""
        found = self._left.pop(key, {})
        if not isinstance(found, dict) or not all(isinstance(item, str) for item in found.values()):
            raise self.wrong(key, "is not an object of texts")
        return found

    def _list(self, key: str) -> Sequence[object]:
        found = self._left.pop(key, [])
        if not isinstance(found, list):
            raise self.wrong(key, "is not a list")
        return found
