"""Native containers: crun under conmon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from engines.base import Engine
from engines.native.engine import NativeEngine, Settings
from forgeone_shim.errors import InvalidInput

__all__ = ["NativeEngine", "Settings", "build"]


def build(config: Mapping[str, Any]) -> Engine:
    """The engine for ``{"native": {...}, "state": "/run/forgeone"}``; unknown settings are an error."""
    given = dict(config.get("native", {}))
    unknown = set(given) - {field.name for field in fields(Settings)}
    if unknown:
        raise InvalidInput("native", f"unknown setting {sorted(unknown)[0]!r}")
    return NativeEngine(Settings(**given), Path(str(config["state"])))
