"""Pulls that several callers share, apart from what a pull does."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from forgeone_shim.config.model import PackagesConfig, RegistryConfig, SignaturesConfig
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import InternalError
from forgeone_shim.registry.fetch import BlobFolder, LayerFetcher, Turns
from forgeone_shim.registry.flights import Flight, Flights, Order
from forgeone_shim.registry.manifest import Platform
from forgeone_shim.registry.model import Image
from forgeone_shim.registry.reference import Reference
from forgeone_shim.registry.settings import Settings
from forgeone_shim.registry.transport import TlsContexts

from .layers_double import DirectoryLayers

ORDER = Order(Reference.parse("acme.example/app:v1"), None, wasm=False, namespace="", vetting=None)
IMAGE = Image(id="sha256:" + "a" * 64)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    fetcher = LayerFetcher(DirectoryLayers(tmp_path / "layers"), Turns(), BlobFolder(tmp_path), 1, keep=False)
    return Settings(RegistryConfig(), PackagesConfig(), SignaturesConfig(), None, None, fetcher, Platform("linux"))


def test_a_pull_without_a_thread_is_in_nobodys_way(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    flights = Flights(TlsContexts(), lambda flight: IMAGE)

    def fails(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fails)
        with pytest.raises(RuntimeError):
            flights.take(ORDER, settings, Deadline.after(5), None)
    assert flights.take(ORDER, settings, Deadline.after(5), None) == IMAGE
    flights.close()


def test_an_unforeseen_failure_is_told_by_its_place_and_not_by_its_words(settings: Settings) -> None:
    """They may be anything, credentials included."""

    def fails(flight: Flight) -> Image:
        raise ValueError("password=hunter2")

    with pytest.raises(InternalError, match=r"pull of acme.example/app:v1 failed: ValueError at test_flights.py:\d+$"):
        Flights(TlsContexts(), fails).take(ORDER, settings, Deadline.after(5), None)
