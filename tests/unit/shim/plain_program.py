"""A fork server whose containers are plain functions: what a supervisor does with them is what is tested."""

from __future__ import annotations

import functools
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

import msgspec

from forgeone_shim.errors import InvalidInput, Kind
from forgeone_shim.kernel.syscalls import number, syscall
from forgeone_shim.shim import forks
from forgeone_shim.shim.channel import Channel
from forgeone_shim.shim.forks import Answer, Fork
from forgeone_shim.shim.supervision import Failed, Supervision, encode
from forgeone_shim.shim.supervisor import supervise

_CLONE_NEWPID = 0x20000000


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A container whose process runs ``function(channel, *words)``."""

    supervision: Supervision
    function: str
    words: tuple[str, ...] = ()
    namespace: bool = False
    cgroup: str = ""


def main() -> None:
    forks.serve(handle)


def handle(data: bytearray, fds: list[int]) -> Answer | Fork:
    if data == b"pid":
        return Answer(str(os.getpid()).encode())
    if data.startswith(b"back "):
        return Answer(bytes(data), tuple(os.dup(fd) for fd in fds))
    run = msgspec.json.decode(data, type=msgspec.Raw)
    return Fork(child=functools.partial(_supervise, run), failed=_no_child, lasts=True)


def _no_child(error: OSError) -> bytes:
    return encode(Failed(step="fork", error=Kind.EXHAUSTED, message=str(error)))


def _supervise(asked: msgspec.Raw, connection: socket.socket) -> None:
    run = msgspec.json.decode(asked, type=Run)

    def enter() -> None:
        if run.function == "no_entry":
            raise FileNotFoundError(2, "No such file or directory", "/proc/0/ns/pid")
        if run.namespace:
            syscall(number("unshare"), _CLONE_NEWPID)

    def launch(channel: Channel) -> int:
        if run.cgroup:
            with open(f"{run.cgroup}/cgroup.procs", "w") as file:
                file.write("0")
        function: Callable[..., int] = globals()[run.function]
        return function(channel, *run.words)

    supervise(run.supervision, enter, launch, connection)


def no_entry(channel: Channel) -> int:
    raise AssertionError


def _held(channel: Channel) -> None:
    channel.catch()
    channel.ready()
    channel.await_start()


def say(channel: Channel, out: str, err: str = "", code: str = "0") -> int:
    _held(channel)
    os.write(1, out.encode())
    os.write(2, err.encode())
    return int(code)


def exit_with(channel: Channel, code: str, reason: str, message: str) -> int:
    _held(channel)
    channel.ending(reason, message)
    return int(code)


def spin(channel: Channel) -> int:
    """As wasm does: no Python code runs, so none that handles a signal either."""
    _held(channel)
    # One call into C that takes for ever and never looks for signals.
    return sum(iter(int, 1))


def sleep(channel: Channel) -> int:
    _held(channel)
    os.write(1, b"here\n")
    while True:
        time.sleep(60)


def default_signals(channel: Channel) -> int:
    channel.ready()
    channel.await_start()
    while True:
        time.sleep(60)


def graceful(channel: Channel) -> int:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    channel.ready()
    channel.await_start()
    os.write(1, b"here\n")
    while not stopped:
        time.sleep(0.01)
    os.write(1, b"done\n")
    return 0


def echo(channel: Channel) -> int:
    _held(channel)
    while data := os.read(0, 65536):
        os.write(1, data)
    os.write(2, b"end of input\n")
    return 0


def terminal(channel: Channel) -> int:
    _held(channel)
    os.write(1, f"{os.isatty(0)} {os.isatty(1)} {os.isatty(2)}\n".encode())
    while line := os.read(0, 4096):
        if line == b"size\n":
            size = os.get_terminal_size(0)
            os.write(1, f"{size.columns}x{size.lines}\n".encode())
        else:
            os.write(2, b"<" + line.strip() + b">\n")
    return 3


def flood(channel: Channel, line: str, mebibytes: str, target: str = "1") -> int:
    _held(channel)
    piece = (line.encode() + b"\n") * (65536 // (len(line) + 1))
    for _ in range(int(mebibytes) * (1 << 20) // len(piece)):
        view = memoryview(piece)
        while view:
            view = view[os.write(int(target), view) :]
    return 0


def refuse(channel: Channel) -> int:
    raise InvalidInput("command", "no such module")


def break_down(channel: Channel, when: str) -> int:
    if when == "after":
        _held(channel)
    raise ValueError("of no use")


def die(channel: Channel) -> int:
    os._exit(9)


def wait_forever(channel: Channel, where: str) -> int:
    """Is never ready."""
    with open(where, "w") as file:
        file.write(f"{os.getpid()} {os.getppid()}")
    os.rename(where, where + ".done")
    time.sleep(600)
    return 0


def lie(channel: Channel) -> int:
    """What a guest that took over its process may say."""
    channel.ready()
    for word in (b"{}", b"x" * 40_000, b'{"kind":"ready"}', b'{"kind":"broken","error":"internal","message":"m"}'):
        try:
            channel._words.send(word)
        except OSError as error:
            print(error, file=sys.stderr)
    channel.await_start()
    # Who says too much is not heard any more, and would wait for ever.
    channel._words.setblocking(False)
    for _ in range(1000):
        channel.ending("Lie", "x" * 10_000)
    os.write(channel.wakeup, b"\xff")
    os.write(1, b"still here\n")
    return 5


def descriptors(channel: Channel) -> int:
    _held(channel)
    known = {0, 1, 2, *channel.fds}
    left = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if int(fd) not in known and os.path.exists(f"/proc/self/fd/{fd}")
    ]
    os.write(1, repr(left).encode())
    return 0


def who(channel: Channel) -> int:
    _held(channel)
    os.write(1, f"{os.getpid()} {os.getppid()}".encode())
    return 0


def hog(channel: Channel) -> int:
    _held(channel)
    held = []
    while True:
        held.append(b"x" * (1 << 20))
