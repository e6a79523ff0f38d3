"""The gRPC server on CRI's socket, and the one way every call passes.

Each verb of a service is wrapped once, when the server is made: the client's deadline becomes a Deadline, an error its
gRPC code, and the call one line of the log. Requests are never logged: they hold credentials and environments.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NoReturn

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from structlog.contextvars import bound_contextvars

from cri import socket
from cri.call import Call, Relayed
from forgeone_shim.config.model import GrpcConfig
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ForgeError, InternalError, Kind

CODES: Final[Mapping[Kind, grpc.StatusCode]] = MappingProxyType(
    {
        Kind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
        Kind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
        Kind.EXISTS: grpc.StatusCode.ALREADY_EXISTS,
        Kind.PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
        Kind.DENIED: grpc.StatusCode.PERMISSION_DENIED,
        Kind.UNTRUSTED: grpc.StatusCode.UNKNOWN,
        Kind.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
        Kind.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
        Kind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
        Kind.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
        Kind.INTERNAL: grpc.StatusCode.INTERNAL,
    }
)

# A status message travels in the trailers, which clients cap at 8 KiB or more.
_DETAILS_MAX: Final = 4096
_FOREVER: Final = 10 * 365 * 86400.0
# Kubelets list and look at everything each second; what changes nothing is logged only when something is looked for.
_CHANGES: Final = (
    "Run",
    "Stop",
    "Remove",
    "Create",
    "Start",
    "Pull",
    "Update",
    "Checkpoint",
    "Restore",
    "Reopen",
    "Reload",
    "Rotate",
    "Accept",
    "Import",
)
# The only fields of a request that reach the log.
_SUBJECTS: Final = ("pod_sandbox_id", "container_id")

_log: structlog.stdlib.BoundLogger = structlog.get_logger("cri")
_numbers = itertools.count(1)

Behaviour = Callable[[Any, Call], Any]
Observe = Callable[[str, str, float | None], None]
"""Told of each call that has ended: its method, its code, and its seconds; ``None`` for a stream."""


def unobserved(_method: str, _code: str, _seconds: float | None) -> None:
    """Nobody counts calls."""


class _Verb:
    """One method of one service: names for the log, and the behaviour behind it."""

    __slots__ = ("_behaviour", "_changes", "_name", "_observe", "_streams", "_subject")

    def __init__(self, method: MethodDescriptor, servicer: object, observe: Observe) -> None:
        self._name, self._observe, self._streams = method.name, observe, method.server_streaming
        self._behaviour: Behaviour = getattr(servicer, method.name)
        self._changes = method.name.startswith(_CHANGES)
        self._subject = next((name for name in _SUBJECTS if name in method.input_type.fields_by_name), "")

    def unary(self, request: Any, context: grpc.ServicerContext) -> Message | bytes:
        """Answer with one message; the request may be an iterator of them."""
        call, started = _call(context), time.perf_counter()
        with bound_contextvars(request_id=call.id):
            try:
                response: Message | bytes = self._behaviour(request, call)
            except Exception as error:
                self._abort(context, request, call, started, error)
            self._succeeded(request, started)
            return response

    def stream(self, request: Message, context: grpc.ServicerContext) -> Iterator[Message | bytes]:
        """Answer with many."""
        call, started = _call(context), time.perf_counter()
        try:
            yield from self._behaviour(request, call)
        except Exception as error:
            self._abort(context, request, call, started, error)
        self._succeeded(request, started)

    def _abort(
        self, context: grpc.ServicerContext, request: Any, call: Call, started: float, error: Exception
    ) -> NoReturn:
        if isinstance(error, Relayed):
            context.set_trailing_metadata(tuple(error.trailing))
        context.abort(*self._failed(request, call, started, error))
        raise error  # abort() has raised

    def _succeeded(self, request: Any, started: float) -> None:
        write = _log.info if self._changes else _log.debug
        write("rpc", method=self._name, ms=_ms(started), code="OK", **self._about(request))
        self._told("OK", started)

    def _failed(self, request: Any, call: Call, started: float, error: Exception) -> tuple[grpc.StatusCode, str]:
        if isinstance(error, Relayed):
            return self._passed_on(request, call, started, error)
        expected = isinstance(error, ForgeError)
        kind = error.kind if isinstance(error, ForgeError) else Kind.INTERNAL
        # What an unforeseen exception says may be anything, so the client gets only the way to the log.
        text = str(error) if expected else f"{type(error).__name__}; see request {call.id} in forgeoned's log"
        text = _fitting(text)
        about = self._about(request) | {"method": self._name, "ms": _ms(started), "code": CODES[kind].name}
        if kind is Kind.INTERNAL:
            _log.error("rpc", error=text, exc_info=error, request_id=call.id, **about)
        elif kind in (Kind.NOT_FOUND, Kind.UNIMPLEMENTED):
            _log.info("rpc", error=text, request_id=call.id, **about)
        else:
            _log.warning("rpc", error=text, request_id=call.id, **about)
        self._told(CODES[kind].name, started)
        return CODES[kind], text

    def _passed_on(self, request: Any, call: Call, started: float, error: Relayed) -> tuple[grpc.StatusCode, str]:
        expected = error.code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED)
        write = _log.info if expected else _log.warning
        about = self._about(request) | {"method": self._name, "ms": _ms(started), "code": error.code.name}
        write("rpc", error=_fitting(error.details), relayed=True, request_id=call.id, **about)
        self._told(error.code.name, started)
        return error.code, error.details

    def _told(self, code: str, started: float) -> None:
        self._observe(self._name, code, None if self._streams else time.perf_counter() - started)

    def _about(self, request: Any) -> dict[str, str]:
        return {self._subject: getattr(request, self._subject)} if self._subject else {}


def _call(context: grpc.ServicerContext) -> Call:
    left = context.time_remaining()
    # Without a deadline grpcio says None or centuries, depending on where the call came in.
    deadline = Deadline.after(left if left is not None and left < _FOREVER else None)
    if not context.add_callback(deadline.abandon):
        deadline.abandon()
    return Call(
        f"{os.getpid():x}-{next(_numbers):x}",
        deadline,
        lambda: context.send_initial_metadata(()),
        lambda: tuple(context.invocation_metadata()),
    )


def _fitting(text: str) -> str:
    """As much of a message as fits: what is no ASCII, and may be others' words, travels as ``%E2%82%AC``."""
    left = _DETAILS_MAX
    for at, character in enumerate(text):
        left -= 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode("utf-8", "replace"))
        if left < 0:
            return text[:at]
    return text


def _encoded(message: Message | bytes) -> bytes:
    """What another server answered is passed on as it came."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def _ms(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)


def handler(service: ServiceDescriptor, servicer: object, observe: Observe = unobserved) -> grpc.GenericRpcHandler:
    """Every method of ``service``, those that ``servicer`` lacks included."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in service.methods:
        verb = _Verb(method, servicer, observe)
        decode = GetMessageClass(method.input_type).FromString
        if method.client_streaming:
            handlers[method.name] = grpc.stream_unary_rpc_method_handler(verb.unary, decode, _encoded)
        elif method.server_streaming:
            handlers[method.name] = grpc.unary_stream_rpc_method_handler(verb.stream, decode, _encoded)
        else:
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(verb.unary, decode, _encoded)
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def options(config: GrpcConfig) -> list[tuple[str, int]]:
    """gRPC's own settings."""
    limits = [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
    ]
    if not config.max_connection_age_ms:
        return limits
    # Clients move to a successor; what they have under way here ends in its own time.
    return [*limits, ("grpc.max_connection_age_ms", config.max_connection_age_ms)]


class Server:
    """Serves ``services`` on ``path`` from :meth:`start` to :meth:`stop`."""

    def __init__(
        self,
        config: GrpcConfig,
        services: Mapping[ServiceDescriptor, object],
        *,
        path: Path,
        gid: int = 0,
        observe: Observe = unobserved,
    ) -> None:
        self._path, self._gid = path, gid
        self._listening = socket.beside(path, os.getpid())
        self._pool = ThreadPoolExecutor(config.threads, thread_name_prefix="cri")
        self._server = grpc.server(self._pool, options=options(config))
        self._server.add_generic_rpc_handlers(tuple(handler(*pair, observe) for pair in services.items()))

    def start(self) -> None:
        """Listen, then take the path over.

        :raises InternalError: the socket cannot be made.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
        try:
            self._server.add_insecure_port(f"unix:{self._listening}")
        except RuntimeError as error:
            raise InternalError(f"cannot listen on {self._listening}: {error}") from None
        self._server.start()
        try:
            socket.take(self._listening, self._path, self._gid)
        except BaseException:
            self.stop(0)
            raise

    def stop(self, grace: float) -> None:
        """Take no new call, give those under way ``grace`` seconds, then cancel them.

        The path stays: it may be a successor's by now.
        """
        self._server.stop(grace).wait()
        self._pool.shutdown(wait=False, cancel_futures=True)
