"""What is done for nothing leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import os, sys
from forgeone_shim.shim import rehearsal
from forgeone_shim.kernel.descriptors import open_descriptors
before = open_descriptors(), os.getcwd(), open("/proc/self/oom_score_adj").read(), open("/proc/self/cmdline").read()
rehearsal.rehearse(sys.argv[1])
after = open_descriptors(), os.getcwd(), open("/proc/self/oom_score_adj").read(), open("/proc/self/cmdline").read()
assert before == after, (before, after)
assert len(os.listdir("/proc/self/task")) == 1
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("alone")
"""


def _rehearsed(directory: Path) -> str:
    argv = [sys.executable, "-c", _PROGRAM, str(directory)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def test_a_rehearsal_leaves_no_process_descriptor_or_file(tmp_path: Path) -> None:
    assert _rehearsed(tmp_path) == "alone\n"
    assert os.listdir(tmp_path) == []


def test_a_rehearsal_takes_over_what_one_that_was_killed_left(tmp_path: Path) -> None:
    (tmp_path / "rehearsal").mkdir()
    for name in ("log", "start", "attach", "pidfile"):
        (tmp_path / "rehearsal" / name).write_text("left")
    assert _rehearsed(tmp_path) == "alone\n"
    assert os.listdir(tmp_path) == []


def test_a_rehearsal_that_cannot_be_is_passed_over(tmp_path: Path) -> None:
    assert _rehearsed(tmp_path / "nowhere") == "alone\n"


def test_rehearsals_at_the_same_time_do_not_wait_for_each_other(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", _PROGRAM, str(tmp_path)]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(4)]
    assert [one.communicate(timeout=60)[0] for one in running] == [b"alone\n"] * 4


def test_a_rehearsal_that_does_not_end_is_ended(tmp_path: Path) -> None:
    late = (
        "import time\nfrom forgeone_shim.shim.channel import Channel\nChannel.await_start = lambda _: time.sleep(600)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", late + _PROGRAM, str(tmp_path)], capture_output=True, timeout=20, check=False
    )
    assert done.stdout == b"alone\n", done.stderr
