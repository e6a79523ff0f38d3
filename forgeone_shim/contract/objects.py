"""Kubernetes objects as a manifest has them: what is asked for is of its type, all else is left alone. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from forgeone_shim.errors import InvalidInput

T = TypeVar("T")


class Node:
    """An object of a manifest, and where it is. What is null, or not there, is empty."""

    def __init__(self, where: str, value: object) -> None:
        if value is not None and not isinstance(value, dict):
            raise InvalidInput(where, "is not an object")
        self.where, self.value = where, value
        self.given: Mapping[str, Any] = value or {}

    def get(self, key: str, kind: type[T], *, default: T) -> T:
        """A value of this type. :raises InvalidInput: it is of another."""
        found = self.given.get(key)
        if found is None:
            return default
        if type(found) is not kind:
            raise InvalidInput(f"{self.where}.{key}", f"is not a {kind.__name__}")
        return found

    def text(self, key: str) -> str:
        """A text; empty where it is not there."""
        return self.get(key, str, default="")

    def truth(self, key: str) -> bool:
        """True or false; false where it is not there."""
        return self.get(key, bool, default=False)

    def number(self, key: str, default: int = 0) -> int:
        """A whole number."""
        return self.get(key, int, default=default)

    def node(self, key: str) -> Node:
        """An object; an empty one where it is not there."""
        return Node(f"{self.where}.{key}", self.given.get(key))

    def nodes(self, key: str) -> list[Node]:
        """A list of objects."""
        found: list[object] = self.get(key, list, default=[])
        return [Node(f"{self.where}.{key}[{index}]", item) for index, item in enumerate(found)]

    def words(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        found = self.get(key, list, default=[])
        if not all(isinstance(one, str) for one in found):
            raise InvalidInput(f"{self.where}.{key}", "is not a list of texts")
        return tuple(found)

    def texts(self, key: str) -> Mapping[str, str]:
        """An object of texts."""
        found = self.get(key, dict, default={})
        for name, value in found.items():
            if not isinstance(value, str):
                raise InvalidInput(f"{self.where}.{key}.{name}", "is not a text", fix="put it in quotes")
        return found
