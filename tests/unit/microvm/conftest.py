"""What tests of the room share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.microvm.agents import compiled


@pytest.fixture(scope="session")
def agent_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent's core for this host, compiled with the sanitizers."""
    return compiled(tmp_path_factory.mktemp("agent"))
