"""Fixtures of the WebAssembly engine's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.wasm.aot.cache import Cache
from hack.guests import cache as guests_cache
from tests.unit.wasm.guests import Guests


def make_cache(directory: Path) -> Cache:
    return Cache(directory, compile_timeout=120.0, compile_memory=4 << 30)


@pytest.fixture(scope="session")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guests]:
    """With a cache of their own."""
    return Guests(make_cache(tmp_path_factory.mktemp("wasm") / "aot"))


@pytest.fixture(scope="session")
def real_guests() -> Guests:
    """With a cache that stays beside the real guests: large ones take half a minute to compile."""
    return Guests(make_cache(guests_cache() / "aot"))
