"""The compile helper as root starts it: what a stranger's module would find if it took it over."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.wasm.aot import helper
from engines.wasm.aot.compiler import Order
from engines.wasm.aot.target import Variant
from forgeone_shim.kernel.syscalls import number, syscall

pytestmark = pytest.mark.root


def confined(empty: Path, body: Callable[[], bool]) -> bool:
    """What ``body`` says in a process that has been confined as the helper is."""
    order = Order(
        variant=Variant.PLAIN,
        fingerprint="",
        parent=os.getpid(),
        empty=str(empty),
        memory=1 << 30,
        seconds=10,
        code_max=1 << 20,
    )
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            signal.alarm(20)
            helper.confine(order)
            code = 0 if body() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def fails(call: Callable[[], object]) -> Callable[[], bool]:
    def body() -> bool:
        with contextlib.suppress(OSError):
            call()
            return False
        return True

    return body


def no_process() -> None:
    if os.fork() == 0:
        os._exit(0)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    directory = tmp_path / "empty"
    directory.mkdir(mode=0o555)
    return directory


DENIED: dict[str, Callable[[], object]] = {
    "a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "its directory": lambda: os.listdir("/"),
    "a new file": lambda: os.open("/new", os.O_WRONLY | os.O_CREAT),
    "a socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "a unix socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "a process": no_process,
    "a program": lambda: os.execv("/bin/true", ["true"]),
    "a signal": lambda: os.kill(os.getppid(), 0),
    "root": lambda: os.setresuid(0, 0, 0),
    "a namespace": lambda: syscall(number("unshare"), 0x10000000),
    "a descriptor of another": lambda: os.pidfd_open(os.getppid()),
}


@pytest.mark.parametrize("what", DENIED)
def test_the_helper_cannot_have(what: str, empty: Path) -> None:
    assert confined(empty, fails(DENIED[what]))


def test_the_helper_is_nobody_and_stays_so(empty: Path) -> None:
    read, write = os.pipe()
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        order = Order(
            variant=Variant.PLAIN,
            fingerprint="",
            parent=os.getppid(),
            empty=str(empty),
            memory=1 << 30,
            seconds=10,
            code_max=1,
        )
        try:
            signal.alarm(20)
            helper.confine(order)
            os.write(tell, b"x")
            os.read(read, 1)
        finally:
            os._exit(0)
    os.read(told, 1)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    os.write(write, b"x")
    os.waitpid(pid, 0)
    for fd in (read, write, told, tell):
        os.close(fd)
    assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
    assert status["Groups"].split() == []
    assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


SLOW = """
import os, sys
from pathlib import Path
from engines.wasm.aot.cache import Cache
from forgeone_shim.deadline import NEVER
deep = "(i32.add (local.get 0) " * 300 + "(local.get 0)" + ")" * 300
(Path(sys.argv[1]) / "m").write_text("(module " + f"(func (param i32) (result i32) {deep})" * 3000 + ")")
module = os.open(Path(sys.argv[1]) / "m", os.O_RDONLY)
Cache(Path(sys.argv[1]) / "aot", compile_timeout=60, compile_memory=4 << 30).entry(module, NEVER)
"""


def test_the_helper_ends_with_the_daemon(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)]) as daemon:
        child = first_child(daemon.pid)
        daemon.kill()
    try:
        assert select.select([child], [], [], 10)[0]
    finally:
        os.close(child)


def first_child(parent: int) -> int:
    """A pidfd of it, once it has been executed."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        for task in Path(f"/proc/{parent}/task").iterdir():
            for word in (task / "children").read_text().split():
                if b"engines.wasm.aot.helper" in Path(f"/proc/{word}/cmdline").read_bytes():
                    return os.pidfd_open(int(word))
        time.sleep(0.002)
    raise AssertionError("no helper was started")
