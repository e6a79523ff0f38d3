"""Whether a command exists inside a container, by the rules of execvp(3)."""

from __future__ import annotations

import os
from collections.abc import Sequence

from forgeone_shim.kernel.mounts import open_in_root

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def candidates(command: str, environment: Sequence[str], cwd: str) -> list[str]:
    """The absolute paths that ``command`` may mean."""
    if "/" in command:
        return [f"{cwd}/{command}" if not command.startswith("/") else command]
    path = next((entry.partition("=")[2] for entry in environment if entry.startswith("PATH=")), _DEFAULT_PATH)
    return [
        f"{directory}/{command}" if directory.startswith("/") else f"{cwd}/{directory}/{command}"
        for directory in path.split(":")
    ]


def command_exists(root: str, command: str, environment: Sequence[str], cwd: str) -> bool:
    """``False`` only when it is certain that no file of that name is there; ``root`` is a ``/proc/PID/root``."""
    try:
        base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        for path in candidates(command, environment, cwd):
            try:
                os.close(open_in_root(base, path.lstrip("/"), os.O_PATH))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                pass
            return True
        return False
    finally:
        os.close(base)
