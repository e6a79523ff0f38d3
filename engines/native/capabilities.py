"""Linux capabilities of a container: from what CRI asks to the five sets of the OCI runtime spec."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from engines.base import Security
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.kernel import capabilities
from forgeone_shim.kernel.capabilities import KNOWN

DEFAULT = capabilities.DEFAULT
_ALL = "ALL"


def _names(field: str, given: Iterable[str]) -> tuple[bool, frozenset[str]]:
    """Whether ``ALL`` is among ``given``, and the rest with their prefix."""
    found = set()
    everything = False
    for raw in given:
        name = raw.upper()
        if name in {_ALL, f"CAP_{_ALL}"}:
            everything = True
            continue
        name = name if name.startswith("CAP_") else f"CAP_{name}"
        if name not in KNOWN:
            raise InvalidInput(field, f"{raw!r} is no capability")
        found.add(name)
    return everything, frozenset(found)


def named(field: str, given: Iterable[str]) -> frozenset[str]:
    """Single capabilities with their prefix, ``ALL`` left out; InvalidInput names ``field`` for one that is none."""
    return _names(field, given)[1]


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(names, key=KNOWN.index)


def sets(security: Security, available: frozenset[str]) -> Mapping[str, list[str]]:
    """The sets for a container on a host that can give ``available``.

    ``ALL`` and the defaults give what the host has; a capability named but not to be had is an error.
    """
    path = "linux.security_context.capabilities"
    add_all, add = _names(f"{path}.add_capabilities", security.add_capabilities)
    drop_all, drop = _names(f"{path}.drop_capabilities", security.drop_capabilities)
    ambient_all, ambient = _names(f"{path}.add_ambient_capabilities", security.add_ambient_capabilities)
    if security.privileged:
        return {name: _sorted(available) for name in ("bounding", "effective", "permitted")}
    missing = (add | ambient) - available
    if missing:
        raise FailedPrecondition(
            f"this host cannot give {', '.join(_sorted(missing))}", fix="run forgeoned with these capabilities"
        )
    ambient = available if ambient_all else ambient
    # "ALL" comes before the single names, so that drop ALL + add X leaves X (as containerd and CRI-O read it).
    base = available if add_all else DEFAULT & available
    if drop_all:
        base = frozenset()
    held = (base | add | ambient) - drop
    ambient = ambient & held
    result = {name: _sorted(held) for name in ("bounding", "effective", "permitted")}
    if ambient:
        # capabilities(7): a capability can be ambient only while it is permitted and inheritable.
        result |= {"inheritable": _sorted(ambient), "ambient": _sorted(ambient)}
    return result
