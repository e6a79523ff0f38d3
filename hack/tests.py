"""Every test: python -m hack.tests [options of pytest]

Those that need root mostly wait, so they run in two halves beside each other, and those that need none beside them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parent.parent
_FIRST_OF_SECOND: Final = "test_packages"
"""By this name the halves take about as long as each other."""


def main(options: Sequence[str]) -> int:
    """The output of the first half as it comes, then that of the others. Returns the first exit code that is not 0."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    files = sorted((_ROOT / "tests/e2e").glob("test_*.py"))
    first = [str(file) for file in files if file.name < _FIRST_OF_SECOND]
    second = [str(file) for file in files if file.name >= _FIRST_OF_SECOND]
    with tempfile.TemporaryFile("w+") as unit, tempfile.TemporaryFile("w+") as late:
        beside = [
            (subprocess.Popen([*command, *tests], cwd=_ROOT, stdout=said, stderr=subprocess.STDOUT), said)
            for tests, said in (([str(_ROOT / "tests/unit")], unit), (second, late))
        ]
        shown = subprocess.Popen([*command, *first], cwd=_ROOT)
        codes = [_ended(process) for process in (shown, *(process for process, _ in beside))]
        for _, said in beside:
            said.seek(0)
            sys.stdout.write(said.read())
            sys.stdout.flush()
    return next((code for code in codes if code), 0)


def _ended(process: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # A terminal tells them all: each takes down what it has made first.
            continue


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
