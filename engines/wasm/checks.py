"""What a host lacks for the wasm engine to work."""

from __future__ import annotations

import importlib.util
from typing import Final

from engines.base import Problem

INSTALL: Final = "install forgeone with its dependencies"


def problems() -> list[Problem]:
    """wasmtime is looked for, not imported: only the zygote does that. Native pods run without it."""
    if importlib.util.find_spec("wasmtime") is not None:
        return []
    why = "pods of the handler forgeone-wasm cannot run"
    return [Problem("the wasmtime package is not installed", why, INSTALL, fatal=False, unusable=True)]
