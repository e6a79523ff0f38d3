"""Trees of the tests are in no danger of a power cut."""

from __future__ import annotations

import pytest

from forgeone_shim.node import files, versions


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "fsync", lambda _: None)
    monkeypatch.setattr(versions, "syncfs", lambda _: None)
