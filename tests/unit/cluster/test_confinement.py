"""What the watch's process, and what it executes, can still do."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from forgeone_shim.kernel import landlock
from forgeone_shim.kernel.bpf import Compiler

TRIES = """
import ctypes, os, socket, subprocess, sys
from pathlib import Path
from forgeone_shim.cluster.confinement import confine

kept, scratch = Path(sys.argv[1]), Path(sys.argv[2])
confine(scratch)
libc = ctypes.CDLL(None, use_errno=True)

def attempt(name, work):
    try:
        found = -ctypes.get_errno() if work() == -1 else "done"
    except OSError as error:
        found = -error.errno
    print(name, found, flush=True)

def family(number):
    return lambda: libc.syscall(SOCKET, ctypes.c_long(number), 1, 0)

SOCKET, CLONE, CLONE3, UNSHARE = map(int, sys.argv[3:])
for number in (2, 10, 1, 1 + 2**32, 17, 40):
    attempt(f"socket {number}", family(number))
attempt("pair", lambda: [one.close() for one in socket.socketpair()] and None)
attempt("unshare", lambda: libc.syscall(UNSHARE, 0x10000000))
attempt("clone", lambda: libc.syscall(CLONE, ctypes.c_long(0x10000000 | 17), 0, 0, 0, 0))
attempt("clone3", lambda: libc.syscall(CLONE3, 0, 0))
attempt("execute", lambda: subprocess.run(["true"], check=True) and None)
attempt("scratch", lambda: scratch.joinpath("a").write_text("x"))
attempt("write", lambda: kept.write_text("x"))
attempt("chown", lambda: os.chown(scratch, 1, 1))
"""
NUMBERS = {"x86_64": (41, 56, 435, 272), "aarch64": (198, 220, 435, 97)}


@pytest.mark.skipif(not Compiler().usable, reason="no libseccomp")
def test_it_asks_the_network_and_reads_and_can_do_nothing_else(tmp_path: Path) -> None:
    machine = platform.machine()
    kept, scratch = tmp_path / "kept", tmp_path / "scratch"
    kept.write_text("as it was")
    scratch.mkdir()
    argv = [sys.executable, "-c", TRIES, str(kept), str(scratch), *map(str, NUMBERS[machine])]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    found = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    eperm, eacces, enosys = "-1", "-13", "-38"
    wanted = {
        "socket 2": "done",
        "socket 10": "done",
        **dict.fromkeys(("socket 1", f"socket {1 + 2**32}", "socket 17", "socket 40"), eacces),
        "pair": "done",
        "unshare": eperm,
        "clone": eperm,
        "clone3": enosys,
        "execute": "done",
        "scratch": "done",
        "write": eacces,
        "chown": eperm,
    }
    if not landlock.version():
        del wanted["write"], found["write"]
    assert found == wanted
    assert kept.read_text() == "as it was" or not landlock.version()
