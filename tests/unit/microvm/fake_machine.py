"""The fork server of keepers, with machines whose monitor is a process of Python's and whose agent does as it is told.

What a program's first argument names is what it does; some are what no agent would do.
"""

from __future__ import annotations

import functools
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.microvm.keeper import orders, process, saving
from engines.microvm.keeper.orders import Save
from engines.microvm.shares import orders as shares
from engines.microvm.shares.client import FileServer
from engines.microvm.vmm.base import Confinement, Event, Machine, Template
from engines.microvm.wire import fields, frames, messages
from engines.microvm.wire.frames import Receiver, Side, Window
from engines.microvm.wire.protocol import CONTROL_PORT, DATA_MAX, SHARE_PORT, STDERR, STDOUT, VERSION, WINDOW, Kind
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import InvalidInput
from forgeone_shim.kernel import privileges
from forgeone_shim.kernel.descriptors import close_all_but
from forgeone_shim.shim import forks, wire
from forgeone_shim.shim.forks import Fork

_LINE = b"0123456789abcdef" * 8 + b"\n"


def main() -> None:
    forks.serve(handle)


def handle(data: bytearray, fds: list[int]) -> Fork:
    asked = orders.decode_request(data)
    if isinstance(asked, Save):
        return Fork(child=functools.partial(saving.save, asked, list(fds), FakeVmm), failed=_no_child)
    means = process.Means(FakeVmm, serve_files, _unconfined)
    return Fork(child=functools.partial(process.keep, asked, list(fds), means), failed=_no_child, lasts=True)


def _unconfined() -> None:
    """Tests are not root."""


def _no_child(error: OSError) -> bytes:
    raise error


class FakeVmm:
    """A machine's kernel is where the disks are noted that it has; its initrd says what is wrong with it."""

    def __init__(self) -> None:
        self.pid = 0
        self._pidfd = -1
        self._channels: dict[str, socket.socket] = {}
        self._disks: set[int] = set()

    @property
    def fds(self) -> tuple[int, ...]:
        return (self._pidfd,) if self._pidfd >= 0 else ()

    @property
    def luns(self) -> int:
        return 256

    @property
    def slots(self) -> int:
        return 1

    def start(
        self,
        machine: Machine,
        tap: int,
        who: Confinement,
        deadline: Deadline,
        template: Template | None = None,
        *,
        memory: int = -1,
    ) -> None:
        self._machine = machine
        if machine.initrd == "broken":
            raise InvalidInput("kernel", "it is none")
        pairs = {name: socket.socketpair() for name in machine.ports}
        if memory >= 0:
            os.ftruncate(memory, machine.memory)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                privileges.die_with_parent()
                ends = [pairs[name][1] for name in (CONTROL_PORT, SHARE_PORT)]
                close_all_but((0, 1, 2, *(end.fileno() for end in ends)))
                FakeAgent(ends[0], machine.initrd).run()
            finally:
                os._exit(0)
        self._pidfd = os.pidfd_open(self.pid)
        for name, (ours, theirs) in pairs.items():
            theirs.close()
            self._channels[name] = ours

    def channels(self) -> dict[str, socket.socket]:
        return self._channels

    def add_disk(self, lun: int, image: int, *, readonly: bool, deadline: Deadline) -> None:
        os.fstat(image)
        self._disks.add(lun)
        self._note()

    def remove_disk(self, lun: int, deadline: Deadline) -> None:
        self._disks.discard(lun)
        self._note()

    def _note(self) -> None:
        Path(self._machine.kernel).write_text(" ".join(map(str, sorted(self._disks))))

    def pause(self, deadline: Deadline) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self, deadline: Deadline) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def snapshot(self, state: int, deadline: Deadline) -> None:
        os.write(state, b"saved")

    def events(self) -> list[Event]:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return [Event("exited", "as it was killed\n")] if poll.poll(0) else []

    def stop(self) -> None:
        if self._pidfd >= 0:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self._pidfd)
            self._pidfd = -1


def serve_files(_port: socket.socket) -> FileServer:
    """One that serves nothing, and a volume that is to be read only for less than it is."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            privileges.die_with_parent()
            close_all_but((0, 1, 2, theirs.fileno()))
            while True:
                message = wire.receive(theirs)
                order = shares.decode_order(message.data)
                if isinstance(order, shares.Add) and len(message.fds) != len(order.volumes):
                    break
                message.close()
                wire.send(theirs, shares.encode(shares.Done(order.ticket)))
        finally:
            os._exit(0)
    theirs.close()
    ours.setblocking(False)
    return FileServer(pid, ours)


class Proc:
    """A process of the guest's."""

    def __init__(self, agent: FakeAgent, number: int, args: tuple[str, ...]) -> None:
        self.agent, self.number, self.args = agent, number, args
        self.windows = {STDOUT: Window(), STDERR: Window()}
        self.over = False

    def write(self, data: bytes, which: int = STDOUT) -> None:
        for at in range(0, len(data), DATA_MAX):
            piece = data[at : at + DATA_MAX]
            self.windows[which].sent(len(piece))
            self.agent.send(frames.frame(Kind.DATA, frames.stream(self.number, which), piece))

    def exit(self, code: int, *, oom: bool = False) -> None:
        self.over = True
        for which in (STDOUT, STDERR):
            self.agent.send(frames.frame(Kind.EOF, frames.stream(self.number, which)))
        self.agent.send(frames.message(Kind.EXITED, self.number, messages.Exited(code=code, oom=oom)))
        del self.agent.procs[self.number]

    def run(self) -> None:
        run = getattr(self, "do_" + self.args[0].replace("-", "_"))
        run(*self.args[1:])

    def do_sleep(self) -> None:
        """Until a signal."""

    do_cat = do_size = do_sleep

    def do_echo(self, *words: str) -> None:
        self.write(" ".join(words).encode() + b"\n")
        self.exit(0)

    def do_err(self, word: str) -> None:
        self.write(word.encode() + b"\n", STDERR)
        self.exit(1)

    def do_exit(self, code: str) -> None:
        self.exit(int(code))

    def do_oom(self) -> None:
        self.exit(137, oom=True)

    def do_flood(self, size: str = "0") -> None:
        """So many bytes, or for ever."""
        left = int(size) or 1 << 60
        self.left = left
        self.more()

    def more(self) -> None:
        if self.args[0] != "flood" or self.over:
            return
        window = self.windows[STDOUT]
        while window.left >= len(_LINE) and self.left > 0:
            size = min(window.left, DATA_MAX) // len(_LINE) * len(_LINE)
            size = min(size, self.left)
            self.write((_LINE * (size // len(_LINE) + 1))[:size])
            self.left -= size
        if self.left <= 0:
            self.exit(0)

    def data(self, data: bytes) -> None:
        if self.args[0] == "cat":
            self.write(data)
        self.agent.send(frames.credit(frames.stream(self.number, 0), len(data)))

    def eof(self) -> None:
        if self.args[0] == "cat":
            self.exit(0)

    # What none would do

    def do_huge(self) -> None:
        self.agent.send(struct.pack("<IHHI", 0xFFFFFFF0, Kind.REPLY, 0, 1))

    def do_kind(self) -> None:
        self.agent.send(struct.pack("<IHHI", 0, 999, 0, 1))

    def do_request(self) -> None:
        self.agent.send(frames.frame(Kind.POWEROFF, 1))

    def do_window(self) -> None:
        for _ in range(WINDOW // DATA_MAX + 1):
            stream = frames.stream(self.number, STDOUT)
            self.agent.send(frames.frame(Kind.DATA, stream, bytes(DATA_MAX)))

    def do_empty(self) -> None:
        self.agent.send(frames.frame(Kind.DATA, frames.stream(self.number, STDOUT)))

    def do_stranger(self) -> None:
        self.agent.send(frames.message(Kind.EXITED, 4711, messages.Exited(code=0)))

    def do_other_stream(self) -> None:
        self.agent.send(frames.frame(Kind.DATA, frames.stream(4711, STDOUT), b"x"))

    def do_code(self) -> None:
        self.agent.send(frames.frame(Kind.EXITED, self.number, struct.pack("<HIQ", 15, 8, 1 << 40)))

    def do_twice(self) -> None:
        for _ in range(2):
            self.agent.send(frames.message(Kind.EXITED, self.number, messages.Exited(code=0)))

    def do_reply(self) -> None:
        self.agent.send(frames.frame(Kind.REPLY, 4711))

    def do_credit(self) -> None:
        self.agent.send(frames.credit(frames.stream(self.number, 0), WINDOW))

    def do_late(self) -> None:
        """Not much of a fault."""
        self.exit(0)
        self.agent.send(frames.credit(frames.stream(self.number, 0), WINDOW))

    def do_notes(self) -> None:
        for _ in range(2000):
            self.agent.send(frames.message(Kind.NOTE, 0, messages.Note(message="note")))

    def do_note(self, text: str) -> None:
        self.agent.send(frames.message(Kind.NOTE, 0, messages.Note(message=text)))
        self.exit(0)

    def do_letters(self) -> None:
        self.agent.send(frames.frame(Kind.NOTE, 0, struct.pack("<HI", 6, 2) + b"\xff\xfe"))

    def do_half(self) -> None:
        self.agent.send(struct.pack("<IHHI", 1000, Kind.REPLY, 0, 1) + bytes(10))
        os._exit(0)

    def do_deaf(self) -> None:
        """Floods for ever, as far as it was granted before, and reads nothing any more."""
        self.write(bytes(WINDOW))
        signal.pause()

    def do_crumbs(self, size: str) -> None:
        """A window of both streams by turns, in pieces of that size."""
        piece = bytes(int(size))
        for _ in range(WINDOW // len(piece) // 64):
            self.agent.send(
                b"".join(
                    frames.frame(Kind.DATA, frames.stream(self.number, which), piece)
                    for which in (STDOUT, STDERR)
                    for _ in range(64)
                )
            )

    def do_burst(self) -> None:
        """All that it may say at once, and its end."""
        for which in (STDOUT, STDERR):
            self.write(bytes(WINDOW), which)
        self.exit(0)

    def do_garbage(self) -> None:
        self.agent.send(os.urandom(4096))


class FakeAgent:
    """Takes requests one after the other."""

    def __init__(self, channel: socket.socket, kind: str) -> None:
        self.channel, self.kind = channel, kind
        self.receiver = Receiver(Side.HOST)
        self.procs: dict[int, Proc] = {}
        self.containers: dict[str, Proc] = {}
        self.quiet = False

    def send(self, data: bytes) -> None:
        self.channel.sendall(data)

    def run(self) -> None:
        if self.kind == "mute":
            signal.pause()
        while size := self.channel.recv_into(self.receiver.space()):
            for frame in list(self.receiver.received(size)):
                self.heard(frame.kind, frame.id, bytes(frame.payload))

    def heard(self, kind: Kind, ident: int, payload: bytes) -> None:
        proc = self.procs.get(ident // 4)
        if kind is Kind.DATA and proc:
            proc.data(payload)
        elif kind is Kind.EOF and proc:
            proc.eof()
        elif kind is Kind.CREDIT and proc:
            proc.windows[ident % 4].granted(struct.unpack("<Q", payload)[0])
            proc.more()
        elif kind is Kind.RESIZE:
            size = fields.decode(messages.Resize, payload)
            if ident in self.procs:
                self.procs[ident].write(f"{size.width}x{size.height}\n".encode())
        elif kind in messages.REQUESTS:
            self.request(kind, ident, fields.decode(messages.REQUESTS[kind][0], payload))

    def request(self, kind: Kind, ident: int, asked: Any) -> None:
        if self.quiet:
            return
        after: Callable[[], None] | None = None
        answer: Any = messages.Done()
        if kind is Kind.HELLO:
            version = VERSION + 1 if self.kind == "newer" else VERSION
            answer = messages.Greeting(version=version, release="6.1\n", features=("share",))
        elif kind is Kind.CREATE:
            if (refused := self.refusal(asked)) is not None:
                answer = refused
            else:
                self.containers[asked.container] = self.made(asked)
                answer = messages.Created(pid=7)
        elif kind is Kind.EXEC:
            if (refused := self.refusal(asked)) is not None:
                answer = refused
            else:
                after = self.made(asked).run
                answer = messages.Created(pid=8)
        elif kind is Kind.START:
            after = self.containers[asked.container].run
        elif kind is Kind.SIGNAL:
            answer, after = self.signalled(asked)
        elif kind is Kind.DELETE:
            found = self.containers.pop(asked.container, None)
            if found is None:
                answer = messages.Failed(errno=2, step="find", message="there is none", field="container")
            elif not found.over:
                found.exit(137)
        elif kind is Kind.DIAL:
            if asked.port == 1:
                answer = messages.Failed(errno=111, step="connect", message="refused")
            else:
                self.procs[asked.process] = Proc(self, asked.process, ("cat",))
        elif kind is Kind.STATS:
            stats = [messages.Stats(container=one, state="running") for one in self.containers]
            answer = messages.StatsReply(containers=tuple(stats))
        elif kind is Kind.SETUP and asked.hostname == "quiet":
            self.quiet = True
        self.send(frames.message(Kind.FAILED if isinstance(answer, messages.Failed) else Kind.REPLY, ident, answer))
        if after is not None:
            after()

    def refusal(self, asked: Any) -> messages.Failed | None:
        if asked.program.args[0] == "missing":
            return messages.Failed(errno=2, step="exec", message='exec: "missing": not found\x1b[31m', field="command")
        if asked.program.args[0] == "full":
            return messages.Failed(errno=12, step="fork", message="no memory")
        if asked.program.args[0] == "diskless":
            return messages.Failed(errno=110, step="wait for a disk", message="timed out")
        return None

    def made(self, asked: Any) -> Proc:
        proc = self.procs[asked.process] = Proc(self, asked.process, asked.program.args)
        return proc

    def signalled(self, asked: Any) -> tuple[Any, Callable[[], None] | None]:
        proc = self.procs.get(asked.process) if asked.process is not None else self.containers.get(asked.container)
        if proc is None or proc.over:
            return messages.Failed(errno=3, step="signal", message="it has ended"), None
        return messages.Done(), functools.partial(proc.exit, 128 + asked.signo)
