"""``wasi:http/types`` (WASI 0.2): the resources of both directions, and what guests may do with them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, Protocol

from engines.wasm.guest.http import kinds, wire
from engines.wasm.guest.http.bodies import Intake, Sink
from engines.wasm.guest.http.session import Err, Refused, Session, Source, Waits
from engines.wasm.guest.http.wasi_io import InputStream, OutputStream, Pollable

_FIELDS_MAX: Final = 128 * 1024
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
_PATH: Final = re.compile(r"[/?*][\x21-\x7e]*")
_AUTHORITY: Final = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+;=%]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


class Handle:
    """A resource that needs nothing done when its handle is dropped."""

    __slots__ = ()
    kind = 0

    def drop(self) -> None:
        """Nothing to let go."""


class Fields(Handle):
    """Headers or trailers. ``frozen`` ones belong to a message."""

    __slots__ = ("entries", "frozen", "size")
    kind = kinds.FIELDS

    def __init__(self, entries: wire.Headers, *, frozen: bool = False) -> None:
        self.entries = entries
        self.frozen = frozen
        self.size = sum(len(name) + len(value) for name, value in entries)

    def thawed(self) -> None:
        if self.frozen:
            raise Err("immutable")

    def grow(self, entries: wire.Headers) -> None:
        self.size += sum(len(name) + len(value) for name, value in entries)
        if self.size > _FIELDS_MAX:
            raise Refused(f"the guest made headers of more than {_FIELDS_MAX} bytes")
        self.entries += entries

    def remove(self, name: str) -> None:
        self.entries = [entry for entry in self.entries if entry[0] != name]
        self.size = sum(len(key) + len(value) for key, value in self.entries)


class IncomingRequest(Handle):
    __slots__ = ("body", "fields", "request")
    kind = kinds.INCOMING_REQUEST

    def __init__(self, request: wire.Request, intake: Intake) -> None:
        self.request = request
        self.fields: Fields | None = None
        self.body: Intake | None = intake


class IncomingResponse(Handle):
    __slots__ = ("body", "fields", "status")
    kind = kinds.INCOMING_RESPONSE

    def __init__(self, status: int, headers: wire.Headers, intake: Intake) -> None:
        self.status = status
        self.fields = Fields(headers, frozen=True)
        self.body: Intake | None = intake

    def drop(self) -> None:
        if self.body is not None:
            self.body.close()


class IncomingBody(Handle):
    __slots__ = ("intake", "streamed")
    kind = kinds.INCOMING_BODY

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self.streamed = False

    def drop(self) -> None:
        self.intake.close()


class FutureTrailers(Handle):
    __slots__ = ("intake", "taken")
    kind = kinds.FUTURE_TRAILERS

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self.taken = False

    def drop(self) -> None:
        self.intake.close()

    def ready(self) -> bool:
        return self.intake.skip()

    def await_in(self, waits: Waits) -> None:
        self.intake.await_in(waits)


class OutgoingBody(Handle):
    """What the guest sends behind a message's head."""

    __slots__ = ("sink", "streamed")
    kind = kinds.OUTGOING_BODY

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.streamed = False

    def drop(self) -> None:
        """Without having been finished it is not whole, and whoever receives it must be able to tell."""
        self.sink.abandon()


class OutgoingResponse(Handle):
    __slots__ = ("body", "fields", "status")
    kind = kinds.OUTGOING_RESPONSE

    def __init__(self, fields: Fields) -> None:
        fields.frozen = True
        self.fields = fields
        self.status = 200
        self.body: OutgoingBody | None = None


class OutgoingRequest(Handle):
    __slots__ = ("authority", "body", "fields", "method", "path", "scheme")
    kind = kinds.OUTGOING_REQUEST

    def __init__(self, fields: Fields) -> None:
        fields.frozen = True
        self.fields = fields
        self.method: Any = "get"
        self.path: str | None = None
        self.scheme: Any = None
        self.authority: str | None = None
        self.body: OutgoingBody | None = None


class RequestOptions(Handle):
    """Time limits in nanoseconds, ``None`` where none was set."""

    __slots__ = ("between_bytes", "connect", "first_byte")
    kind = kinds.REQUEST_OPTIONS

    def __init__(self) -> None:
        self.connect: int | None = None
        self.first_byte: int | None = None
        self.between_bytes: int | None = None


class ResponseOutparam(Handle):
    """``answer`` takes the guest's response, or its error."""

    __slots__ = ("answer",)
    kind = kinds.RESPONSE_OUTPARAM

    def __init__(self, answer: Callable[[Session, tuple[str, Any]], None]) -> None:
        self.answer = answer


class Pending(Source, Protocol):
    """An outgoing request on its way (:mod:`client`)."""

    def outcome(self) -> tuple[str, Any]:
        """Its response or its error, once it is ready."""

    def cancel(self) -> None:
        """Nobody wants the response any more."""


class FutureIncomingResponse(Handle):
    __slots__ = ("exchange", "taken")
    kind = kinds.FUTURE_INCOMING_RESPONSE

    def __init__(self, exchange: Pending) -> None:
        self.exchange = exchange
        self.taken = False

    def drop(self) -> None:
        if not self.taken:
            self.exchange.cancel()


def method_in(method: Any) -> str:
    """A method's name on the wire; ``method`` is the interface's variant."""
    return str(method[1]) if isinstance(method, tuple) else method.upper()


def _method_out(method: str) -> Any:
    return method.lower() if method in _METHODS else ("other", method)


def _name(name: str) -> str:
    if not wire.is_name(name):
        raise Err("invalid-syntax")
    lower = name.lower()
    if lower in wire.CONNECTION_HEADERS:
        raise Err("forbidden")
    return lower


def _value(value: bytes) -> bytes:
    if not wire.is_value(value):
        raise Err("invalid-syntax")
    return value


def _from_list(_session: Session, entries: list[tuple[str, bytes]]) -> Fields:
    fields = Fields([])
    fields.grow([(_name(name), _value(value)) for name, value in entries])
    return fields


def _get(_session: Session, fields: Fields, name: str) -> list[bytes]:
    lower = name.lower()
    return [value for key, value in fields.entries if key == lower]


def _has(_session: Session, fields: Fields, name: str) -> bool:
    lower = name.lower()
    return any(key == lower for key, _ in fields.entries)


def _set(_session: Session, fields: Fields, name: str, values: list[bytes]) -> None:
    fields.thawed()
    lower, checked = _name(name), [_value(value) for value in values]
    fields.remove(lower)
    fields.grow([(lower, value) for value in checked])


def _append(_session: Session, fields: Fields, name: str, value: bytes) -> None:
    fields.thawed()
    fields.grow([(_name(name), _value(value))])


def _delete(_session: Session, fields: Fields, name: str) -> None:
    fields.thawed()
    fields.remove(_name(name))


def _request_headers(_session: Session, request: IncomingRequest) -> Fields:
    if request.fields is None:
        visible = [entry for entry in request.request.headers if entry[0] not in wire.CONNECTION_HEADERS]
        request.fields = Fields(visible, frozen=True)
    return request.fields


def _consume(_session: Session, message: IncomingRequest | IncomingResponse) -> IncomingBody:
    if message.body is None:
        raise Err
    intake, message.body = message.body, None
    return IncomingBody(intake)


def _body_stream(_session: Session, body: IncomingBody) -> InputStream:
    if body.streamed:
        raise Err
    body.streamed = True
    return InputStream(body.intake)


def _body_finish(_session: Session, body: IncomingBody) -> FutureTrailers:
    return FutureTrailers(body.intake)


def _trailers_get(_session: Session, future: FutureTrailers) -> Any:
    if not future.ready():
        return None
    if future.taken:
        return "err", None
    future.taken = True
    failure = future.intake.failure
    if failure is not None:
        return "ok", ("err", failure.http)
    trailers = future.intake.trailers
    if trailers is None:
        return "ok", ("ok", None)
    kept = [entry for entry in trailers if entry[0] not in wire.CONNECTION_HEADERS]
    return "ok", ("ok", Fields(kept, frozen=True))


def _body(_session: Session, message: OutgoingResponse | OutgoingRequest) -> OutgoingBody:
    if message.body is not None:
        raise Err
    message.body = OutgoingBody(Sink())
    return message.body


def _body_write(_session: Session, body: OutgoingBody) -> OutputStream:
    if body.streamed:
        raise Err
    body.streamed = True
    return OutputStream(body.sink)


def _outgoing_finish(_session: Session, body: OutgoingBody, trailers: Fields | None) -> None:
    if not body.sink.finish(None if trailers is None else trailers.entries):
        raise Err("HTTP-protocol-error" if not body.sink.too_much else ("HTTP-response-body-size", None))


def _set_status(_session: Session, response: OutgoingResponse, status: int) -> None:
    # 1xx are no answers, and 101 would turn the connection into something else.
    if not 200 <= status <= 999:
        raise Err
    response.status = status


def _set_method(_session: Session, request: OutgoingRequest, method: Any) -> None:
    if not wire.is_name(method_in(method)):
        raise Err
    request.method = _method_out(method_in(method))


def _set_path(_session: Session, request: OutgoingRequest, path: str | None) -> None:
    if path and not _PATH.fullmatch(path):
        raise Err
    request.path = path


def _set_scheme(_session: Session, request: OutgoingRequest, scheme: Any) -> None:
    if isinstance(scheme, tuple) and not wire.is_name(scheme[1]):
        raise Err
    request.scheme = scheme


def _set_authority(_session: Session, request: OutgoingRequest, authority: str | None) -> None:
    if authority is not None and not _AUTHORITY.fullmatch(authority):
        raise Err
    request.authority = authority


def _setter(name: str) -> Callable[..., None]:
    def put(_session: Session, options: RequestOptions, value: int | None) -> None:
        setattr(options, name, value)

    return put


def _outparam_set(session: Session, outparam: ResponseOutparam, response: tuple[str, Any]) -> None:
    outparam.answer(session, response)


def _response_get(_session: Session, future: FutureIncomingResponse) -> Any:
    if not future.exchange.ready():
        return None
    if future.taken:
        return "err", None
    future.taken = True
    return "ok", future.exchange.outcome()


_T: Final = "wasi:http/types#"
_OPTIONS: Final = f"{_T}[method]request-options."

FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    f"{_T}http-error-code": lambda _session, error: error.http,
    f"{_T}[constructor]fields": lambda _session: Fields([]),
    f"{_T}[static]fields.from-list": _from_list,
    f"{_T}[method]fields.get": _get,
    f"{_T}[method]fields.has": _has,
    f"{_T}[method]fields.set": _set,
    f"{_T}[method]fields.append": _append,
    f"{_T}[method]fields.delete": _delete,
    f"{_T}[method]fields.entries": lambda _session, fields: fields.entries,
    f"{_T}[method]fields.clone": lambda _session, fields: Fields(list(fields.entries)),
    f"{_T}[method]incoming-request.method": lambda _session, request: _method_out(request.request.method),
    f"{_T}[method]incoming-request.path-with-query": lambda _session, request: request.request.path,
    f"{_T}[method]incoming-request.scheme": lambda _session, _request: "HTTP",
    f"{_T}[method]incoming-request.authority": lambda _session, request: request.request.authority or None,
    f"{_T}[method]incoming-request.headers": _request_headers,
    f"{_T}[method]incoming-request.consume": _consume,
    f"{_T}[static]response-outparam.set": _outparam_set,
    f"{_T}[method]incoming-body.stream": _body_stream,
    f"{_T}[static]incoming-body.finish": _body_finish,
    f"{_T}[method]future-trailers.subscribe": lambda _session, future: Pollable(future),
    f"{_T}[method]future-trailers.get": _trailers_get,
    f"{_T}[constructor]outgoing-response": lambda _session, fields: OutgoingResponse(fields),
    f"{_T}[method]outgoing-response.status-code": lambda _session, response: response.status,
    f"{_T}[method]outgoing-response.set-status-code": _set_status,
    f"{_T}[method]outgoing-response.headers": lambda _session, response: response.fields,
    f"{_T}[method]outgoing-response.body": _body,
    f"{_T}[method]outgoing-body.write": _body_write,
    f"{_T}[static]outgoing-body.finish": _outgoing_finish,
    f"{_T}[constructor]outgoing-request": lambda _session, fields: OutgoingRequest(fields),
    f"{_T}[method]outgoing-request.body": _body,
    f"{_T}[method]outgoing-request.method": lambda _session, request: request.method,
    f"{_T}[method]outgoing-request.set-method": _set_method,
    f"{_T}[method]outgoing-request.path-with-query": lambda _session, request: request.path,
    f"{_T}[method]outgoing-request.set-path-with-query": _set_path,
    f"{_T}[method]outgoing-request.scheme": lambda _session, request: request.scheme,
    f"{_T}[method]outgoing-request.set-scheme": _set_scheme,
    f"{_T}[method]outgoing-request.authority": lambda _session, request: request.authority,
    f"{_T}[method]outgoing-request.set-authority": _set_authority,
    f"{_T}[method]outgoing-request.headers": lambda _session, request: request.fields,
    f"{_T}[constructor]request-options": lambda _session: RequestOptions(),
    f"{_OPTIONS}connect-timeout": lambda _session, options: options.connect,
    f"{_OPTIONS}set-connect-timeout": _setter("connect"),
    f"{_OPTIONS}first-byte-timeout": lambda _session, options: options.first_byte,
    f"{_OPTIONS}set-first-byte-timeout": _setter("first_byte"),
    f"{_OPTIONS}between-bytes-timeout": lambda _session, options: options.between_bytes,
    f"{_OPTIONS}set-between-bytes-timeout": _setter("between_bytes"),
    f"{_T}[method]incoming-response.status": lambda _session, response: response.status,
    f"{_T}[method]incoming-response.headers": lambda _session, response: response.fields,
    f"{_T}[method]incoming-response.consume": _consume,
    f"{_T}[method]future-incoming-response.subscribe": lambda _session, future: Pollable(future.exchange),
    f"{_T}[method]future-incoming-response.get": _response_get,
}
