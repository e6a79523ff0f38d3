"""What a message's bytes are sent in."""

from __future__ import annotations

from engines.wasm.guest.http import wire
from engines.wasm.guest.http.bodies import Sink
from engines.wasm.guest.http.session import Waits


class _Recorder:
    """A transport that takes everything, and notes it with whether more was said to follow."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bool]] = []

    def receive(self, limit: int) -> bytes | None:
        return None

    def send(self, data: bytes | bytearray | memoryview, more: bool = False) -> int:
        self.sent.append((bytes(data), more))
        return len(data)

    def push(self) -> None:
        self.sent.append((b"", False))

    def await_receive(self, waits: Waits) -> None:
        """Never waited for."""

    def await_send(self, waits: Waits) -> None:
        """Never waited for."""

    def close(self) -> None:
        """Nothing to close."""


def _attached() -> tuple[Sink, _Recorder]:
    sink, transport = Sink(), _Recorder()
    sink.attach(transport, lambda _framing, _length: b"head,", 30.0, wire.Framing.CHUNKED)
    return sink, transport


def test_an_answer_that_is_flushed_and_ends_wakes_its_client_once() -> None:
    sink, transport = _attached()
    sink.write(b"all")
    assert sink.flush()
    assert sink.finish()
    assert transport.sent == [(b"head,3\r\nall\r\n", True), (b"0\r\n\r\n", False)]


def test_what_was_flushed_goes_when_its_guest_waits() -> None:
    sink, transport = _attached()
    sink.write(b"a")
    assert sink.flush()
    assert not sink.move()
    assert not sink.move()
    assert transport.sent == [(b"head,1\r\na\r\n", True), (b"", False)]


def test_an_answer_in_parts_is_sent_at_each_flush_from_the_second_on() -> None:
    sink, transport = _attached()
    for part in (b"a", b"b", b"c"):
        sink.write(part)
        assert sink.flush()
    assert [more for _, more in transport.sent] == [True, False, False]


def test_a_body_of_known_length_that_was_flushed_before_its_end_is_not_held_back() -> None:
    sink, transport = Sink(), _Recorder()
    sink.attach(transport, lambda _framing, _length: b"head,", 30.0, wire.Framing.LENGTH, 3)
    sink.write(b"all")
    assert sink.flush()
    assert sink.finish()
    assert transport.sent == [(b"head,all", True), (b"", False)]
