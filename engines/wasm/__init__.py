"""WebAssembly containers: wasmtime in processes forked from a warm one. The daemon never imports wasmtime."""

# Without the future import that other modules have: it would hide the module of that name, `annotations`.
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.base import Engine

__all__ = ["build"]


def build(config: Mapping[str, Any]) -> Engine:
    """The engine for ``{"wasm": {...}, "native": {...}, "root": ..., "state": ...}``; unknown settings are an error."""
    # The package is also that of the zygote and the compile helper, which are to be small.
    from engines.wasm import settings
    from engines.wasm.engine import WasmEngine

    return WasmEngine(settings.read(config), Path(str(config["root"])), Path(str(config["state"])))
