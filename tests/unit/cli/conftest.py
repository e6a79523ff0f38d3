from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from forgeone_shim.cli import main as cli
from tests.unit.cli.node_double import NodeDouble

Forge = Callable[..., int]


@pytest.fixture
def node() -> Iterator[NodeDouble]:
    # Not tmp_path: its length is near what a socket's path may have.
    # The server's log lines would mix with what the command prints.
    with tempfile.TemporaryDirectory() as directory, capture_logs(), NodeDouble(Path(directory)) as running:
        yield running


@pytest.fixture
def forge(node: NodeDouble, tmp_path: Path) -> Forge:
    """``forge VERB ...`` against the node double; ``run`` gets a log directory of the test's."""

    def call(verb: str, *argv: str) -> int:
        extra = ["--log-dir", str(tmp_path / "logs")] if verb == "run" else []
        return cli.main(["--socket", node.socket, verb, *extra, *argv])

    return call
