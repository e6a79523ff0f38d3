"""Clients of an attach socket that are slow, gone or silent; what they send where nobody reads."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgeone_shim.shim import streams
from forgeone_shim.shim.loop import Loop
from forgeone_shim.shim.streams import Attachments


class Here:
    """A supervisor's part of it, turned by hand."""

    def __init__(self, path: Path) -> None:
        self.loop, self.path, self.flows = Loop(), str(path), 0
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(self.path)
        listener.listen()
        self.attached = Attachments(self.loop, listener, self._flow)

    def _flow(self) -> None:
        self.flows += 1

    def turn(self, times: int = 3) -> None:
        for _ in range(times):
            self.loop.turn(0)

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect(self.path)
        client.setblocking(False)
        self.turn()
        return client


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    made = Here(tmp_path / "attach")
    yield made
    with contextlib.suppress(OSError):
        made.attached.close()


def _all(client: socket.socket) -> bytes:
    got = b""
    with contextlib.suppress(BlockingIOError):
        while packet := client.recv(9000):
            assert packet[0] == 2
            got += packet[1:]
    return got


def test_one_that_is_slow_holds_the_output_back_and_gets_all_of_it(here: Here) -> None:
    client, data = here.connect(), os.urandom(256 * 1024)
    sent = b""
    while not here.attached.full:
        here.attached.send(1, data)
        sent += data
    got = _all(client)
    while here.attached.full:
        here.turn()
        got += _all(client)
    assert here.flows
    while len(got) < len(sent):
        here.turn()
        got += _all(client)
    assert got == sent


def test_one_that_takes_nothing_is_let_go_of(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    client = here.connect()
    while not here.attached.full:
        here.attached.send(1, bytes(1 << 18))
    here.attached.drop_stalled()
    assert here.attached.full
    left = here.attached.wait()
    assert left is not None
    assert left > 9
    monkeypatch.setattr(streams, "_STALLED_SECONDS", 0.02)
    time.sleep(0.03)
    here.attached.drop_stalled()
    assert not here.attached
    assert here.attached.wait() is None
    assert not _all(client)[:0]


def test_one_that_has_gone_is_noticed_without_output(here: Here) -> None:
    here.connect().close()
    here.turn()
    assert not here.attached
    half = here.connect()
    half.shutdown(socket.SHUT_WR)
    here.turn()
    assert here.attached, "it may still listen"
    here.attached.send(1, b"x")
    assert half.recv(10) == b"\2x"
    half.close()
    here.turn()
    assert not here.attached


def test_what_waits_is_still_sent_after_the_end(here: Here) -> None:
    client = here.connect()
    sent = 0
    while not here.attached.full:
        here.attached.send(1, bytes(1 << 18))
        sent += 1 << 18
    here.attached.close()
    got = 0
    while here.attached:
        here.turn()
        got += len(_all(client))
    assert got + len(_all(client)) == sent
    assert client.recv(1) == b""


def test_a_client_that_comes_with_the_end_sees_one(here: Here) -> None:
    late = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    late.connect(here.path)
    here.attached.close()
    assert late.recv(1) == b""


def test_input_that_nobody_reads_is_dropped_and_so_is_that_of_a_container_without(here: Here) -> None:
    client = here.connect()
    client.send(b"x")
    here.turn()
    read, write = os.pipe()
    here.attached.take_input(write, terminal=False, once=False)
    os.close(read)
    client.send(b"x")
    here.turn()
    client.send(b"x")
    here.turn()
    assert here.attached


def test_a_client_is_not_heard_while_its_input_is_not_taken(here: Here) -> None:
    read, write = os.pipe()
    here.attached.take_input(write, terminal=False, once=True)
    client = here.connect()
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            client.send(bytes(8192))
            sent += 8192
            here.turn(1)
    assert sent < 1 << 20
    assert here.attached.input.full
    client.shutdown(socket.SHUT_WR)
    got = 0
    while data := os.read(read, 65536):
        got += len(data)
        here.turn()
    assert got == sent
    os.close(read)


def test_only_so_many_are_served(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_CLIENTS_MAX", 2)
    clients = [here.connect() for _ in range(3)]
    assert clients[2].recv(1) == b""
    here.attached.send(2, b"x")
    assert [client.recv(9) for client in clients[:2]] == [b"\3x"] * 2
