"""What is remembered of a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.wasm import notes
from forgeone_shim.errors import InternalError, NotFound


def test_of_a_note_of_another_version_the_log_is_known(tmp_path: Path) -> None:
    (tmp_path / notes.NAME).write_text('{"log_path": "/logs/0.log", "new": {"field": [1]}}')
    assert notes.log_path(str(tmp_path), "id") == "/logs/0.log"
    with pytest.raises(InternalError, match="not as it was written"):
        notes.read(str(tmp_path), "id")


def test_without_a_note_there_is_no_container(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        notes.log_path(str(tmp_path), "id")
