"""A contract in words, field by field: what of it restricts anything. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Final

from forgeone_shim.contract.model import (
    UNRESTRICTED,
    Contract,
    HostPath,
    ImageRule,
    NetworkRule,
    Peer,
)

_THOUSANDTHS: Final = "profile.resources.cpu"


def restrictions(contract: Contract) -> dict[str, str]:
    """Of each field that says anything, its path and what it says, as an annotation would have it."""
    plain = dict(_leaves("", UNRESTRICTED)) | dict(_leaves("profile.network.", NetworkRule()))
    return {
        path: f"{value}m" if path == _THOUSANDTHS else text(value)
        for path, value in _leaves("", contract)
        if value != plain.get(path) and path != "profile.network"
    }


def text(value: object) -> str:
    """One value of a contract."""
    if isinstance(value, tuple):
        return ", ".join(text(one) for one in value) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Peer):
        return _peer(value)
    if isinstance(value, ImageRule):
        names = " and ".join(value.repositories)
        return f"{names}@{' or '.join(value.digests)}" if value.digests else names
    if isinstance(value, HostPath):
        return f"{value.path}:ro" if value.readonly else value.path
    return str(value)


def _peer(peer: Peer) -> str:
    target = " in ".join(filter(None, (f"pod:{peer.pod}" if peer.pod else "", peer.cidr))) or "any"
    ports = "+".join(str(one.first) if one.first == one.last else f"{one.first}-{one.last}" for one in peer.ports)
    how = "/".join(filter(None, (peer.protocol or ("any" if ports else ""), ports)))
    return f"{target} {how}".rstrip()


def _leaves(prefix: str, value: object) -> Iterator[tuple[str, object]]:
    for item in fields(value):  # type: ignore[arg-type]
        found = getattr(value, item.name)
        if is_dataclass(found):
            yield from _leaves(f"{prefix}{item.name}.", found)
        else:
            yield f"{prefix}{item.name}", found
