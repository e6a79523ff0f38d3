"""ZTAPolicy objects of an API server as policies of a node: the same code reads both. Pure.

``spec`` says what a file of ``contract.policies_dir`` does, and ``metadata.name`` is the policy's name. Nothing else of
an object decides anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from forgeone_shim.cluster.names import API_VERSION, GROUP, KIND, PLURAL, VERSION
from forgeone_shim.contract import policy, values
from forgeone_shim.contract.policy import Policy
from forgeone_shim.errors import InvalidInput

__all__ = [
    "API_VERSION",
    "GROUP",
    "KIND",
    "PLURAL",
    "VERSION",
    "file_of",
    "name_of",
    "place",
    "policies_of",
    "policy_of",
    "read",
]

_SHOWN: Final = 100


def place(name: str) -> str:
    """What errors, and ``forge policy list``, call an object in place of a file."""
    return f"{PLURAL}/{name}"


def name_of(given: Mapping[str, Any]) -> str:
    """An object's name. :raises InvalidInput: no policy can be called so."""
    metadata = given.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str):
        raise InvalidInput(f"{PLURAL}: metadata.name", "is missing")
    return values.policy(f"{place(name[:_SHOWN])}: metadata.name", name)


def file_of(given: Mapping[str, Any]) -> bytes:
    """The file that says what an object does. The same object is the same bytes, and digest, on every node.

    :raises InvalidInput: it is not a ZTAPolicy of a version that is known here.
    """
    name = name_of(given)
    for key, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if given.get(key) != wanted:
            raise InvalidInput(f"{place(name)}: {key}", f"is not {wanted}")
    if "spec" not in given:
        raise InvalidInput(f"{place(name)}: spec", "is missing")
    document = {
        "apiVersion": policy.API_VERSION,
        "kind": policy.KIND,
        "metadata": {"name": name},
        "spec": given["spec"],
    }
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{place(name)}: spec", f"cannot be kept: {error}") from None


def policy_of(given: Mapping[str, Any]) -> Policy:
    """An object as the policy it is, its rules compiled; ``path`` is its :func:`place`.

    :raises InvalidInput: naming the object and the field: a node could not use it.
    """
    return read(name_of(given), file_of(given))


def read(name: str, data: bytes) -> Policy:
    """What :func:`file_of` made, read as every policy is.

    :raises InvalidInput: naming the object and the field.
    """
    found = policy.parse(place(name), data)
    if found.name != name:
        raise InvalidInput(f"{place(name)}: metadata.name", f"is {found.name!r}")
    return replace(found, path=place(name))


def policies_of(given: Iterable[Mapping[str, Any]]) -> tuple[tuple[Policy, ...], dict[str, str]]:
    """Those of a list that can be used, by name, and why the others cannot: by name, as far as they have one."""
    found: dict[str, Policy] = {}
    refused: dict[str, str] = {}
    for one in given:
        try:
            made = policy_of(one)
            found[made.name] = made
        except InvalidInput as error:
            metadata = one.get("metadata")
            name = metadata.get("name") if isinstance(metadata, dict) else None
            refused[str(name)[:_SHOWN]] = str(error)
    return tuple(found[name] for name in sorted(found)), refused
