"""The daemon's side of conmon's contract, where the supervisor is not what it was a moment ago."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.shim import contract, supervision


def test_who_is_asked_as_it_ends_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / supervision.CONTROL)
    reader = os.open(tmp_path / supervision.CONTROL, os.O_RDONLY | os.O_NONBLOCK)
    ending = threading.Timer(0.05, os.close, [reader])
    ending.start()
    began = time.monotonic()
    try:
        with pytest.raises(FailedPrecondition, match="has no supervisor to ask"):
            contract.reopen_log(str(tmp_path), "it", str(tmp_path / "log"))
    finally:
        ending.join()
    assert time.monotonic() - began < 4


def test_a_log_whose_directory_is_gone_is_no_fault_of_forgeoneds(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for directory in ("none", "file/below"):
        with pytest.raises(FailedPrecondition, match=f"has no directory any more: .*/{directory}$"):
            contract.reopen_log(str(tmp_path), "it", str(tmp_path / directory / "0.log"))
