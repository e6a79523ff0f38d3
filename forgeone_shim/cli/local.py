"""A forgeoned for one call, where none runs: started, waited for, and stopped at the end."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, socket
from typing import Final

from forgeone_shim.cli.client import unreachable
from forgeone_shim.errors import Unavailable

READY_SECONDS: Final = 60.0
"""Its predecessor may still be giving up what it holds."""

STOP_SECONDS: Final = 30.0
_TAIL: Final = 2000
# ``python -m`` would import from the directory this was called in, whosever that is. And however its caller ends, this
# ends: its lock would keep a forgeoned that is started afterwards from its root.
_DAEMON: Final = (
    "import os, signal, sys; from forgeone_shim.kernel.privileges import die_with_parent; "
    "die_with_parent(signal.SIGTERM); os.getppid() == int(sys.argv.pop(1)) or sys.exit(1); "
    "from cri.daemon import main; main()"
)


@contextmanager
def forgeoned(config: str, path: str) -> Iterator[tuple[str, bool]]:
    """The socket of the forgeoned at ``path``, or of one that lives as long as the block; and whether it is that.

    It is configured as any other on this host would be, ``config`` being the file if not the usual one, but for its
    socket.

    :raises Unavailable: there is none, and none could be started.
    """
    if not unreachable(path):
        yield path, False
        return
    if os.geteuid() != 0:
        raise Unavailable(f"no forgeoned answers at {path}, and only root can start one", fix="sudo forge run ...")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forge-run-")))
        address = str(folder / "forgeone.sock")
        argv = [sys.executable, "-P", "-c", _DAEMON, str(os.getpid()), "--socket", address]
        argv += ["--config", config] if config else []
        process = _start(argv, folder)
        stack.callback(_stop, process)
        yield address, True


def _start(argv: list[str], folder: Path) -> subprocess.Popen[bytes]:
    log = folder / "log"
    with socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC) as listener, log.open("ab") as out:
        listener.bind(str(folder / "notify"))
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify")},
            # ctrl-c is for the container; the daemon is needed to take it away.
            start_new_session=True,
        )
        try:
            if _ready(process.pid, listener):
                return process
        except BaseException:
            _stop(process)
            raise
    _stop(process)
    text = log.read_text(errors="replace")[-_TAIL:].strip()
    raise Unavailable(f"forgeoned did not start:\n{text}" if text else "forgeoned did not start")


def _ready(pid: int, listener: socket) -> bool:
    """sd_notify(3): it says READY=1, or ends."""
    ended = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(ended, select.POLLIN)
        while events := poll.poll(READY_SECONDS * 1000):
            if any(fd != ended for fd, _ in events):
                if b"READY=1" in listener.recv(4096).split(b"\n"):
                    return True
            else:
                return False
    finally:
        os.close(ended)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
        return
    process.kill()
    process.wait()
