"""YAML as plain values. Imported only on a host that has such files: the parser is not small."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, ClassVar

import yaml

from forgeone_shim.errors import InvalidInput

_DEPTH_MAX = 32
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """One document of mappings whose keys are texts, none of them twice."""

    # What YAML 1.1 would take for a date, or for a mapping to be merged in, is a text here.
    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith((":timestamp", ":merge"))]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: ARG002
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if not all(isinstance(key, str) for key in keys):
            raise yaml.MarkedYAMLError(problem="a key is no text", problem_mark=node.start_mark)
        if len(set(keys)) != len(keys):
            raise yaml.MarkedYAMLError(problem="a key is there twice", problem_mark=node.start_mark)
        values = [self.construct_object(value, deep=True) for _, value in node.value]
        return dict(zip(keys, values, strict=True))


def parse(path: str, text: str) -> object:
    """What a file holds.

    :raises InvalidInput: naming the file.
    """
    try:
        _check(path, text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506
    except yaml.YAMLError as error:
        raise InvalidInput(path, f"is not YAML: {' '.join(str(error).split())}") from None


def _check(path: str, text: str) -> None:
    """Refuse what is small to write and large to read: references to references, and lists in lists in lists."""
    depth = 0
    for event in yaml.parse(text, Loader=_Base):
        if isinstance(event, yaml.AliasEvent):
            raise InvalidInput(path, "has references (*name), which are not supported")
        # What the parser makes of a tag is not always a plain value, nor is what it raises always its own error.
        if getattr(event, "tag", None) is not None:
            raise InvalidInput(path, "has tags (!name), which are not supported")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH_MAX:
            raise InvalidInput(path, "is nested too deeply")
