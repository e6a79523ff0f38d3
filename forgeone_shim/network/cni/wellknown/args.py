"""``CNI_ARGS`` as the programs take them: keys a plugin does not know are refused unless it is told to ignore them."""

from __future__ import annotations

from collections.abc import Mapping

from forgeone_shim.network.cni.plugin import CniError, Invocation
from forgeone_shim.network.cni.wellknown.result import INTERNAL

_TRUE = ("1", "true")
_IGNORE = "IgnoreUnknown"


def known_args(invocation: Invocation, *known: str) -> Mapping[str, str]:
    """The arguments of an invocation.

    :raises CniError: one of them is unknown.
    """
    args = invocation.args
    unknown = [f"{key}={value}" for key, value in args.items() if key not in (*known, _IGNORE)]
    if unknown and args.get(_IGNORE, "").lower() not in _TRUE:
        raise CniError(INTERNAL, f"ARGS: unknown args {unknown}")
    return args
