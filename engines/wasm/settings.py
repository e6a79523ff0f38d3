"""The engine's part of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from forgeone_shim.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The same names as ``[wasm]`` has, and the two of ``[native]`` that count for every engine.

    Times in seconds, sizes in bytes; 0 where there is no limit.
    """

    compile_timeout: float = 300.0
    compile_memory: int = 2 << 30
    log_size_max: int = 0
    log_rate: int = 0
    cgroup_driver: str = "auto"
    seccomp_profile_root: str = ""


_SHARED = ("cgroup_driver", "seccomp_profile_root")


def read(config: Mapping[str, Any]) -> Settings:
    """From ``{"wasm": {...}, "native": {...}}``; an unknown setting is an error."""
    given = dict(config.get("wasm", {}))
    native = config.get("native", {})
    unknown = set(given) - ({field.name for field in fields(Settings)} - set(_SHARED))
    if unknown:
        raise InvalidInput("wasm", f"unknown setting {sorted(unknown)[0]!r}")
    return Settings(**given, **{name: native[name] for name in _SHARED if name in native})
