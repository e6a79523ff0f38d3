"""JSON and YAML files as plain values, strictly: UTF-8, one document, no key twice."""

from __future__ import annotations

import json
from collections.abc import Sequence

from forgeone_shim.errors import InvalidInput


def parse(path: str, data: bytes) -> object:
    """What a file holds; YAML where its name ends so.

    :raises InvalidInput: naming the file.
    """
    try:
        text = data.decode()
        if path.endswith(".yaml"):
            from forgeone_shim.dropins import yamls

            return yamls.parse(path, text)
        return json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
    except RecursionError:
        raise InvalidInput(path, "is nested too deeply") from None
    except ValueError as error:
        raise InvalidInput(path, f"is not {'YAML' if path.endswith('.yaml') else 'JSON'}: {error}") from None


def _once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is there twice")
        found[key] = value
    return found


def _refuse(word: str) -> object:
    raise ValueError(f"{word} is no number")
