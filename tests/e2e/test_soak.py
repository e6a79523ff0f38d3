"""The soak, for long enough that it is known to work and short enough for every change."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from hack.lab.daemon import REPOSITORY

pytestmark = pytest.mark.root


def test_random_pods_outlive_kills_of_forgeoned() -> None:
    argv = [sys.executable, "-m", "hack.soak", "--minutes", "0.5", "--workers", "3", "--kill-after", "2", "6"]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    summary = json.loads(done.stdout)
    assert (summary["failures"], summary["left"], summary["doubles"]) == (0, [], [])
    assert summary["kills"] > 0
    assert summary["calls"] > 100
