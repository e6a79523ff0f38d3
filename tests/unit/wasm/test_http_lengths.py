"""Messages whose body is not as long as they say: nothing behind their end is ever sent."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from engines.wasm.guest.http import wire
from engines.wasm.guest.http.bodies import Sink
from engines.wasm.guest.http.client import FUNCTIONS
from engines.wasm.guest.http.exchange import Clock, Exchange, Limits
from engines.wasm.guest.http.session import Refused, Session, Surroundings
from engines.wasm.guest.http.transport import Plain
from engines.wasm.guest.http.wasi_http import Fields, OutgoingBody, OutgoingRequest, OutgoingResponse

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
SECOND = b"okHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(5)
    with ours, theirs:
        yield ours, theirs


def exchange(ours: socket.socket, session: Session, head: bytes = REQUEST) -> Exchange:
    found = Exchange(Plain(ours), wire.parse_request(head), b"", limits=Limits(), clock=Clock(), stays=lambda: True)
    found.begin(session)
    return found


def body(message: OutgoingResponse | OutgoingRequest) -> Sink:
    message.body = OutgoingBody(Sink())
    return message.body.sink


def test_a_response_that_was_written_before_it_was_given_is_no_longer_than_it_says(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    session = Session(0, 0, Surroundings())
    served = exchange(pair[0], session)
    response = OutgoingResponse(Fields([("content-length", b"2")]))
    body(response).write(SECOND)
    with pytest.raises(Refused, match="more than its Content-Length"):
        served.answer(session, ("ok", response))
    assert served.refuse(500)
    pair[0].close()
    answer = pair[1].recv(4096)
    assert answer.startswith(b"HTTP/1.1 500 ") and b"evil" not in answer


@pytest.mark.parametrize("said", [b"2", b"900"])
def test_a_request_whose_body_is_of_another_length_fails(said: bytes) -> None:
    session = Session(0, 0, Surroundings())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        request = OutgoingRequest(Fields([("content-length", said)]))
        request.method, request.scheme, request.path = "post", "HTTP", "?a"
        request.authority = f"127.0.0.1:{listener.getsockname()[1]}"
        sink = body(request)
        sink.write(SECOND)
        future = FUNCTIONS["wasi:http/outgoing-handler#handle"](session, request, None)
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(5)
            until = time.monotonic() + 5
            while not (future.exchange.ready() or sink.sent) and time.monotonic() < until:
                time.sleep(0.01)
            sink.finish()
            session.wait((future.exchange,))
            assert future.exchange.outcome() == ("err", ("HTTP-request-body-size", None))
            came = b"".join(iter(lambda: accepted.recv(4096), b""))
        # Of what is too long nothing is sent; of what is too short, whatever there is.
        assert came == b"" if said == b"2" else came.startswith(b"POST /?a HTTP/1.1\r\n") and b"evil" in came
    session.close()
