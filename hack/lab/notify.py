"""Starting a program that says READY=1 when it serves (sd_notify(3)); no polling for its socket."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, socket

from hack.lab.settings import patient

_START_SECONDS = 60.0


def start(
    argv: Sequence[str], environ: Mapping[str, str], log: Path, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """The running, ready process; what it prints is appended to ``log``.

    :raises RuntimeError: it ended, or said nothing in time; carries the end of its log.
    """
    with (
        tempfile.TemporaryDirectory(prefix="notify-") as directory,
        socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC) as listener,
        log.open("ab") as out,
    ):
        listener.bind(f"{directory}/socket")
        process = subprocess.Popen(
            list(argv),
            cwd=cwd,
            env={**environ, "NOTIFY_SOCKET": f"{directory}/socket"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
        if _ready(process.pid, listener):
            return process
    process.kill()
    process.wait()
    raise RuntimeError(f"{argv[0]} did not start:\n{log.read_text(errors='replace')[-4000:]}")


def _ready(pid: int, listener: socket) -> bool:
    ended = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(ended, select.POLLIN)
        while events := poll.poll(patient(_START_SECONDS) * 1000):
            if all(fd == ended for fd, _ in events):
                return False
            if b"READY=1" in listener.recv(4096).split(b"\n"):
                return True
    finally:
        os.close(ended)
    return False
