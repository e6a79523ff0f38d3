"""Remote command and port-forward over SPDY and WebSocket, without I/O."""

from __future__ import annotations

import base64
import json

import pytest

from cri.streaming import command, forward, spdy, websocket
from cri.streaming.command import Channel, Input, InputEnded, Left, Resized, Sizes
from cri.streaming.status import Outcome, encode
from engines.base import Stdio

SHELL = Stdio(stdin=True, stdout=True, tty=True)
PIPES = Stdio(stdin=True, stdout=True, stderr=True)


def open_streams(link: command.SpdyLink, client: spdy.Connection, *kinds: str) -> dict[str, int]:
    streams = {kind: client.open({"streamType": kind}) for kind in kinds}
    link.receive(client.take())
    return streams


def messages(client: websocket.Connection, data: bytes) -> list[bytes]:
    return [event.data for event in client.receive(data) if isinstance(event, websocket.Piece)]


def test_a_command_waits_for_every_stream_it_needs() -> None:
    link, client = command.SpdyLink(SHELL, 4), spdy.Connection(client=True)
    for kind in ("error", "stdin", "stdout"):
        open_streams(link, client, kind)
        assert not link.ready
    open_streams(link, client, "resize")
    assert link.ready


def test_before_version_3_a_terminal_has_no_size() -> None:
    link, client = command.SpdyLink(SHELL, 2), spdy.Connection(client=True)
    open_streams(link, client, "error", "stdin", "stdout")
    assert link.ready


def test_a_stream_that_was_not_asked_for_is_refused() -> None:
    link, client = command.SpdyLink(Stdio(stdout=True), 4), spdy.Connection(client=True)
    streams = open_streams(link, client, "stdin", "stdout", "stdout", "nonsense")
    answers = client.receive(link.take())
    assert [event.stream for event in answers if isinstance(event, spdy.Reset)] == [1, streams["stdout"], 7]


def test_input_its_end_and_sizes_arrive_over_spdy() -> None:
    link, client = command.SpdyLink(SHELL, 4), spdy.Connection(client=True)
    streams = open_streams(link, client, "error", "stdin", "stdout", "resize")
    client.send(streams["stdin"], b"ls\n", fin=True)
    client.send(streams["resize"], b'{"Width":80,"Height":24}\n{"Wid')
    client.send(streams["resize"], b'th":100,"Height":50}')
    assert link.receive(client.take()) == [Input(b"ls\n"), InputEnded(), Resized(80, 24), Resized(100, 50)]


def test_output_and_the_outcome_go_out_over_spdy_and_every_stream_ends() -> None:
    link, client = command.SpdyLink(PIPES, 4), spdy.Connection(client=True)
    streams = open_streams(link, client, "error", "stdin", "stdout", "stderr")
    client.receive(link.take())
    link.send(Channel.STDOUT, b"out")
    link.send(Channel.STDERR, b"err")
    link.finish(Outcome(code=3))
    events = client.receive(link.take())
    data = {event.stream: event.data for event in events if isinstance(event, spdy.Data)}
    assert (data[streams["stdout"]], data[streams["stderr"]]) == (b"out", b"err")
    assert json.loads(data[streams["error"]])["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
    assert {event.stream for event in events if isinstance(event, spdy.Ended)} == set(streams.values())
    assert events[-1] == spdy.GoneAway()


def test_a_client_that_resets_the_error_stream_has_gone() -> None:
    link, client = command.SpdyLink(PIPES, 4), spdy.Connection(client=True)
    streams = open_streams(link, client, "error", "stdin", "stdout", "stderr")
    client.reset(streams["stdin"], spdy.Status.CANCEL)
    client.reset(streams["error"], spdy.Status.CANCEL)
    assert link.receive(client.take()) == [InputEnded(), Left()]


@pytest.mark.parametrize("version", [1, 4, 5])
def test_websocket_channels_carry_everything(version: int) -> None:
    link, client = command.WebSocketLink(SHELL, version, encoded=False), websocket.Connection(client=True)
    assert messages(client, link.take()) == [b"\x01"]
    client.send(b"\x00ls\n")
    client.send(b'\x04{"Width":80,"Height":24}')
    client.send(b"\xff\x00")
    ended = [InputEnded()] if version == 5 else []
    assert link.receive(client.take()) == [Input(b"ls\n"), Resized(80, 24), *ended]
    link.send(Channel.STDOUT, b"hi")
    link.finish(Outcome())
    status = [b'\x03{"metadata":{},"status":"Success"}'] if version >= 4 else []
    assert messages(client, link.take()) == [b"\x01hi", *status]


def test_websocket_messages_can_be_base64() -> None:
    link, client = command.WebSocketLink(PIPES, 4, encoded=True), websocket.Connection(client=True)
    assert messages(client, link.take()) == [b"1"]
    client.send(b"0" + base64.b64encode(b"in"), text=True)
    assert link.receive(client.take()) == [Input(b"in")]
    link.send(Channel.STDERR, b"err")
    assert messages(client, link.take()) == [b"2" + base64.b64encode(b"err")]
    client.send(b"0***", text=True)
    with pytest.raises(websocket.ProtocolError):
        link.receive(client.take())


def test_a_closed_websocket_is_a_client_that_left() -> None:
    link, client = command.WebSocketLink(PIPES, 4, encoded=False), websocket.Connection(client=True)
    client.close()
    assert link.receive(client.take()) == [Left()]


@pytest.mark.parametrize("text", ["[]", '{"Width":0,"Height":1}', '{"Width":"a"}', '{"Width":70000,"Height":1}', "{}"])
def test_what_is_no_size_is_dropped(text: str) -> None:
    assert Sizes().feed(text.encode() + b'{"Width":1,"Height":2}') == [Resized(1, 2)]


def test_a_size_without_end_does_not_pile_up() -> None:
    sizes = Sizes()
    sizes.feed(b'{"Width":"' + b"x" * 5000)
    assert sizes.feed(b'{"Width":1,"Height":2}') == [Resized(1, 2)]


@pytest.mark.parametrize(
    ("outcome", "version", "said"),
    [
        (Outcome(), 1, b""),
        (Outcome(code=2), 3, b"command terminated with non-zero exit code: 2"),
        (Outcome(error="no"), 1, b"no"),
    ],
)
def test_old_versions_say_the_outcome_in_words(outcome: Outcome, version: int, said: bytes) -> None:
    assert encode(outcome, version) == said


def pair(client: spdy.Connection, port: str, request: str) -> tuple[int, int]:
    named = {"port": port, **({"requestID": request} if request else {})}
    return client.open({"streamType": "error", **named}), client.open({"streamType": "data", **named})


@pytest.mark.parametrize("request_id", ["0", ""])
def test_two_streams_are_one_connection(request_id: str) -> None:
    link, client = forward.SpdyLink(), spdy.Connection(client=True)
    errors, data = pair(client, "80", request_id)
    client.send(data, b"GET", fin=True)
    assert link.receive(client.take()) == [
        forward.Wanted(data, 80),
        forward.Input(data, b"GET"),
        forward.InputEnded(data),
    ]
    link.send(data, b"200")
    link.done(data, "oh no")
    events = client.receive(link.take())
    assert [e for e in events if isinstance(e, spdy.Data)] == [spdy.Data(data, b"200"), spdy.Data(errors, b"oh no")]
    assert {e.stream for e in events if isinstance(e, spdy.Ended)} == {errors, data}


@pytest.mark.parametrize("port", ["", "0", "65536", "-1", "8O", "١"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    link, client = forward.SpdyLink(), spdy.Connection(client=True)
    client.open({"streamType": "data", "port": port.encode().decode("latin-1") if port == "١" else port})
    assert link.receive(client.take()) == []
    assert client.receive(link.take()) == [spdy.Reset(1, spdy.Status.REFUSED_STREAM)]


def test_connections_that_pile_up_are_refused() -> None:
    link, client = forward.SpdyLink(), spdy.Connection(client=True)
    for number in range(forward.MAX_PAIRS + 1):
        last = client.open({"streamType": "error", "port": "80", "requestID": str(number)})
    link.receive(client.take())
    assert spdy.Reset(last, spdy.Status.REFUSED_STREAM) in client.receive(link.take())


def test_a_dropped_data_stream_drops_the_connection() -> None:
    link, client = forward.SpdyLink(), spdy.Connection(client=True)
    _, data = pair(client, "80", "1")
    client.reset(data, spdy.Status.CANCEL)
    assert link.receive(client.take()) == [forward.Wanted(data, 80), forward.Dropped(data)]


def test_ports_over_websocket_have_two_channels_each() -> None:
    link, client = forward.WebSocketLink((80, 443), encoded=False), websocket.Connection(client=True)
    ports = [(80).to_bytes(2, "little"), (443).to_bytes(2, "little")]
    greeting = [bytes([channel]) + ports[channel // 2] for channel in range(4)]
    assert messages(client, link.take()) == greeting
    client.send(b"\x02hi")
    client.send(b"\x03errors are ours")
    assert link.receive(client.take()) == [forward.Wanted(0, 80), forward.Wanted(1, 443), forward.Input(1, b"hi")]
    link.send(1, b"yo")
    link.done(0, "refused")
    link.done(1)
    heard = client.receive(link.take())
    assert [event.data for event in heard if isinstance(event, websocket.Piece)] == [b"\x02yo", b"\x01refused"]
    assert heard[-1] == websocket.Closed(1000)


def test_a_spdy_session_travels_in_websocket_messages() -> None:
    link, outer, inner = forward.TunnelLink(), websocket.Connection(client=True), spdy.Connection(client=True)
    _, data = pair(inner, "80", "1")
    said = inner.take()
    outer.send(said[:9])
    outer.send(said[9:])
    assert link.receive(outer.take()) == [forward.Wanted(data, 80)]
    link.send(data, b"x")
    heard = b"".join(messages(outer, link.take()))
    assert spdy.Data(data, b"x") in inner.receive(heard)
