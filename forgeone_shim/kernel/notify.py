"""sd_notify(3): tells the service manager how this process is doing."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
RELOADING: Final = "RELOADING=1"


def notify(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send ``state`` to the socket of ``NOTIFY_SOCKET``; says whether there was one and it took it.

    A service manager that does not listen is no reason to fail.
    """
    path = environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    # A leading @ stands for the NUL of the abstract namespace (unix(7)).
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.connect(address)
            sender.sendall(state.encode())
        except OSError:
            return False
    return True
