"""Scopes of containers-policy.json(5): which images a part of it is about."""

from __future__ import annotations

import re
from typing import Final

from forgeone_shim.errors import InvalidInput
from forgeone_shim.registry.reference import Reference

_LABEL: Final = "[a-z0-9-]+"
_HOST: Final = re.compile(
    rf"localhost|(\*|{_LABEL})(\.{_LABEL})+|{_LABEL}(\.{_LABEL})*:[0-9]{{1,5}}|\[[0-9a-f:]+\](:[0-9]{{1,5}})?"
)


def of(reference: Reference) -> tuple[str, ...]:
    """The scopes that an image is in, the most specific first."""
    name = reference.name
    found = [f"{name}@{reference.digest}" if reference.digest else f"{name}:{reference.tag}"]
    while name:
        found.append(name)
        name = name.rpartition("/")[0]
    host = found[-1].partition(":")[0]
    while "." in host:
        host = host.partition(".")[2]
        found.append(f"*.{host}")
    return tuple(found)


def possible(scope: str) -> bool:
    """Whether there can be an image that is in it."""
    host, slash, repository = scope.partition("/")
    if not slash:
        return not scope or (_HOST.fullmatch(host) is not None and host != "index.docker.io")
    try:
        found = Reference.parse(scope)
    except InvalidInput:
        return False
    # All of its official images, or those of one owner.
    return scope in of(found) or (host == "docker.io" and found.repository == f"library/{repository}")
