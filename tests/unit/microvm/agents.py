"""The agent's core on this host, over a socket, with processes of this host's for containers (``agent/seam.c``)."""

from __future__ import annotations

import os
import selectors
import shutil
import socket
import subprocess
import time
from collections import deque
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from engines.microvm.boot.agent import SOURCES
from engines.microvm.wire import frames
from engines.microvm.wire.fields import decode, encode
from engines.microvm.wire.frames import Allowance, Receiver, Side, Window
from engines.microvm.wire.messages import (
    REQUESTS,
    Caps,
    Create,
    Created,
    Done,
    Exec,
    Exited,
    Failed,
    Note,
    Program,
    Rootfs,
    Setup,
    Start,
)
from engines.microvm.wire.protocol import DATA_MAX, STDERR, STDIN, STDOUT, Kind

_CORE = (
    *("loop", "port", "fields", "reply", "errors", "program"),
    *("requests", "orders", "ends", "streams", "processes", "dial"),
)
_FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Werror")
_SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
_PATIENCE = 20.0

NO_CAPS = Caps(bounding=0, effective=0, permitted=0, inheritable=0, ambient=0)
Answer = TypeVar("Answer", bound=msgspec.Struct)


def compiled(directory: Path) -> Path:
    """The agent for this host, with the sanitizers."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no gcc for the guest's agent")
    target = directory / "agent"
    sources = [*(str(SOURCES / f"{name}.c") for name in _CORE), str(Path(__file__).parent / "agent" / "seam.c")]
    argv = [compiler, *_FLAGS, *_SANITIZE, f"-I{SOURCES}", "-o", str(target), *sources]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


class Failure(Exception):
    """The agent said no."""

    def __init__(self, what: Failed) -> None:
        super().__init__(f"{what.step}: {what.message}")
        self.what = what


class Output:
    """What a process has said."""

    def __init__(self) -> None:
        self.streams = {STDOUT: bytearray(), STDERR: bytearray()}
        self.ended: set[int] = set()
        self.exited: Exited | None = None
        self.allowances = {STDOUT: Allowance(), STDERR: Allowance()}
        self.window = Window()


class Agent:
    """One, that is talked to; what it says of processes is kept until asked for."""

    def __init__(self, program: Path) -> None:
        ours, theirs = socket.socketpair()
        self.sock = ours
        self.errors = program.parent / f"errors-{os.getpid()}-{id(self)}"
        with theirs, self.errors.open("wb") as errors:
            self.process = subprocess.Popen([program], stdin=theirs, stderr=errors)
        self.receiver = Receiver(Side.AGENT)
        self.outputs: dict[int, Output] = {}
        self.answers: dict[int, tuple[Kind, bytes]] = {}
        self.notes: deque[str] = deque()
        self.id = 0
        self.grants = True

    def close(self) -> None:
        self.sock.close()
        try:
            code = self.process.wait(timeout=_PATIENCE)
        finally:
            self.process.kill()
        said = self.errors.read_text(errors="replace")
        assert code == 0, (code, said[-4000:])
        assert not said, said[-4000:]

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def step(self, patience: float = _PATIENCE) -> bool:
        """Read once; False: the agent has gone, or says nothing."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.sock, selectors.EVENT_READ)
            if not selector.select(patience):
                return False
        try:
            got = self.sock.recv_into(self.receiver.space())
        except ConnectionResetError:
            return False
        if not got:
            return False
        for frame in self.receiver.received(got):
            self._frame(frame)
        return True

    def _frame(self, frame: frames.Frame) -> None:
        if frame.kind in (Kind.REPLY, Kind.FAILED):
            assert frame.id not in self.answers, "answered twice"
            self.answers[frame.id] = (frame.kind, bytes(frame.payload))
        elif frame.kind is Kind.NOTE:
            self.notes.append(decode(Note, frame.payload).message)
        elif frame.kind is Kind.EXITED:
            output = self.outputs[frame.id]
            assert output.exited is None
            output.exited = decode(Exited, frame.payload)
        else:
            self._stream(frame, *divmod(frame.id, 4))

    def _stream(self, frame: frames.Frame, number: int, which: int) -> None:
        output = self.outputs[number]
        assert output.exited is None, "a word of what has ended"
        if frame.kind is Kind.CREDIT:
            assert which == STDIN
            output.window.granted(frames.credited(frame))
            return
        assert which not in output.ended
        if frame.kind is Kind.EOF:
            output.ended.add(which)
            return
        output.allowances[which].received(len(frame.payload))
        output.streams[which] += frame.payload
        if self.grants:
            grant = output.allowances[which].consumed(len(frame.payload))
            if grant:
                self.send(frames.credit(frame.id, grant))

    def asked(self, kind: Kind, what: msgspec.Struct) -> int:
        self.id += 1
        self.send(frames.frame(kind, self.id, encode(what)))
        return self.id

    def answer(self, ident: int, kind: type[Answer]) -> Answer:
        end = time.monotonic() + _PATIENCE
        while ident not in self.answers:
            assert self.step(end - time.monotonic()), (self.notes, self.errors.read_text(errors="replace")[-3000:])
        found, payload = self.answers.pop(ident)
        if found is Kind.FAILED:
            raise Failure(decode(Failed, payload))
        return decode(kind, payload)

    def ask(self, kind: Kind, what: msgspec.Struct) -> msgspec.Struct:
        return self.answer(self.asked(kind, what), REQUESTS[kind][1])

    def setup(self) -> None:
        self.ask(Kind.SETUP, Setup(time=1, entropy=bytes(32), hostname="pod", machine_id="0" * 32))

    def create(self, name: str, *args: str, number: int, tty: bool = False, stdin: bool = False) -> Created:
        rootfs = Rootfs(lun=0, fstype="erofs")
        what = Create(container=name, rootfs=rootfs, program=program(*args, tty=tty, stdin=stdin), process=number)
        return self._run(Kind.CREATE, what, number)

    def start(self, name: str) -> None:
        assert self.ask(Kind.START, Start(container=name)) == Done()

    def execute(self, name: str, *args: str, number: int, tty: bool = False, stdin: bool = False) -> Created:
        what = Exec(container=name, program=program(*args, tty=tty, stdin=stdin), process=number)
        return self._run(Kind.EXEC, what, number)

    def _run(self, kind: Kind, what: Create | Exec, number: int) -> Created:
        before = self.outputs.get(number)
        self.outputs[number] = Output()
        try:
            return self.answer(self.asked(kind, what), Created)
        except Failure:
            self.outputs.pop(number)
            if before is not None:
                self.outputs[number] = before
            raise

    def write(self, number: int, data: bytes) -> None:
        """Into the process, as far as it takes it."""
        output, at = self.outputs[number], 0
        while at < len(data):
            size = min(len(data) - at, output.window.left, DATA_MAX)
            if not size:
                assert self.step()
                continue
            self.send(frames.frame(Kind.DATA, number * 4 + STDIN, data[at : at + size]))
            output.window.sent(size)
            at += size

    def end(self, number: int) -> None:
        self.send(frames.frame(Kind.EOF, number * 4 + STDIN))

    def wait(self, number: int) -> tuple[int, bytes, bytes]:
        output = self.outputs[number]
        end = time.monotonic() + _PATIENCE
        while output.exited is None:
            assert self.step(end - time.monotonic()), (self.notes, self.errors.read_text(errors="replace")[-3000:])
        return output.exited.code, bytes(output.streams[STDOUT]), bytes(output.streams[STDERR])

    def gone(self) -> bool:
        """It has given up, and said nothing to complain of."""
        end = time.monotonic() + _PATIENCE
        while self.step(end - time.monotonic()):
            pass
        return self.process.wait(timeout=_PATIENCE) == 0


def program(*args: str, tty: bool = False, stdin: bool = False) -> Program:
    path = f"PATH={os.environ['PATH']}"
    return Program(
        args=args, env=(path,), cwd="/", uid=os.getuid(), gid=os.getgid(), caps=NO_CAPS, tty=tty, stdin=stdin
    )
