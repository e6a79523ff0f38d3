"""The microvm engine: a virtual machine for each pod."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.base import Engine

__all__ = ["build"]


def build(config: Mapping[str, Any]) -> Engine:
    """The engine for ``{"microvm": {...}, "native": {...}, "root": ..., "state": ...}``; an unknown key is an error."""
    # The package is also that of keepers, which are to be small.
    from engines.microvm import settings
    from engines.microvm.engine import MicrovmEngine

    return MicrovmEngine(settings.read(config), Path(str(config["root"])), Path(str(config["state"])))
