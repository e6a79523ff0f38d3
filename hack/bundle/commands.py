"""Programs that the build executes: started plainly, heard only when they fail."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from forgeone_shim.errors import FailedPrecondition, InternalError

_SECONDS: Final = 900.0
_TAIL: Final = 4000


def run(argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """What it writes to its standard output.

    :raises FailedPrecondition: it is not installed.
    :raises InternalError: it fails, or takes 15 minutes; carries the end of what it said.
    """
    words = [str(word) for word in argv]
    environ = {**os.environ, "LC_ALL": "C", **(env or {})}
    try:
        done = subprocess.run(
            words,
            env=environ,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_SECONDS,
        )
    except FileNotFoundError:
        raise FailedPrecondition(f"{words[0]} is not installed", fix="hack/packages") from None
    except subprocess.TimeoutExpired:
        raise InternalError(f"{' '.join(words[:6])} took longer than {_SECONDS:.0f} s") from None
    if done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace").strip()[-_TAIL:]
        raise InternalError(f"{' '.join(words[:6])} failed with code {done.returncode}: {said}")
    return done.stdout.decode(errors="replace")
