"""A connection to another CRI runtime. What it answers stays bytes, and what it refuses stays in its own words."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from cri.api import runtime_pb2 as pb
from cri.call import Call, Metadata, Relayed

RUNTIME: Final[ServiceDescriptor] = pb.DESCRIPTOR.services_by_name["RuntimeService"]
IMAGE: Final[ServiceDescriptor] = pb.DESCRIPTOR.services_by_name["ImageService"]
METHODS: Final = MappingProxyType({method.name: method for service in (RUNTIME, IMAGE) for method in service.methods})
"""Every method of CRI; no two services have one of the same name."""

_METADATA: Final = 16 * 1024 * 1024
_OPTIONS: Final = (
    # Go's servers refuse the path of a socket as the name of a host.
    ("grpc.default_authority", "localhost"),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    # What is passed on is bounded where it is served.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # What a failure says is as long as Go's servers and clients take it: a longer one would be another failure.
    ("grpc.max_metadata_size", _METADATA),
    ("grpc.absolute_max_metadata_size", _METADATA),
    # It is on this host: trying costs nothing, and a runtime that is back is missed by every pod.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
# What belongs to one connection, or is said anew on the next.
_HOP: Final = frozenset({"user-agent", "content-type", "te"})
# What went through a link once, and comes again, would go round until nobody has a thread left.
_VIA: Final = "forgeone-via"
_DETAILS: Final = "grpc-status-details-bin"
# Whoever asked waited no longer: that says nothing of who was asked.
_UNTOLD: Final = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED})


class Link:
    """Calls to the runtime at a socket, which need not be there yet. Thread-safe.

    ``answers_now`` is whether it answered the last call; ``None`` before the first.
    """

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self.answers_now: bool | None = None
        self._mark = (_VIA, secrets.token_hex(8))
        self._channel = grpc.insecure_channel(f"unix:{quote(socket)}", options=_OPTIONS)
        self._unary: Mapping[str, Any] = {
            name: self._channel.unary_unary(_path(method), _serialized)
            for name, method in METHODS.items()
            if not method.server_streaming
        }
        self._streams: Mapping[str, Any] = {
            name: self._channel.unary_stream(_path(method), _serialized)
            for name, method in METHODS.items()
            if method.server_streaming
        }
        self._lock = threading.Lock()
        self._under_way = 0
        self._retired = False
        self._on_retire: set[Callable[[], object]] = set()

    def ask(self, name: str, request: Message, call: Call) -> bytes:
        """The answer, waited for in this thread: for what does not take long, as its client cannot cancel it.

        :raises Relayed: it refused or failed, or does not answer (UNAVAILABLE).
        """
        left = call.deadline.remaining()
        if left is None:
            # Then only the client's going ends the wait for a runtime that hangs.
            return self.begin(name, request, call)()
        with self._busy(), self._relaying():
            return bytes(self._unary[name](request, timeout=left, metadata=self._onward(call)))

    def begin(self, name: str, request: Message, call: Call, at_most: float | None = None) -> Callable[[], bytes]:
        """Ask without waiting: the returned function does, and fails as :meth:`ask` does.

        It is cancelled when the client goes away, or after ``at_most`` seconds.
        """
        self._enter()
        try:
            future = self._unary[name].future(
                request, timeout=call.deadline.remaining(at_most), metadata=self._onward(call)
            )
        except BaseException:
            self._leave()
            raise

        def cancel() -> None:
            future.cancel()

        def done(_: object) -> None:
            call.deadline.ignore(cancel)
            self._leave()

        def wait() -> bytes:
            with self._relaying():
                return bytes(future.result())

        call.deadline.listen(cancel)
        future.add_done_callback(done)
        return wait

    def answers(self, call: Call, *, patient: bool, at_most: float) -> None:
        """Return once the runtime answers; ``patient``: as soon as it is there, however long that takes.

        :raises Relayed: it does not in ``at_most`` seconds, the client goes away, or this link is retired.
        """
        with self._busy():
            future = self._unary["Version"].future(
                pb.VersionRequest(),
                timeout=call.deadline.remaining(None if patient else at_most),
                metadata=self._onward(call),
                wait_for_ready=patient,
            )

        def cancel() -> None:
            future.cancel()

        forget = self.when_retired(cancel)
        call.deadline.listen(cancel)
        try:
            with self._relaying():
                future.result()
        finally:
            forget()
            call.deadline.ignore(cancel)

    def stream(self, name: str, request: Message, call: Call) -> Stream:
        """The answers as they come. It is cancelled when the client goes away, or this link is retired."""
        with self._busy():
            answers = self._streams[name](request, timeout=call.deadline.remaining(), metadata=self._onward(call))
            return Stream(self, answers, call)

    def retire(self) -> None:
        """Take no new streams, end those there are, and close the connection once the calls under way have ended."""
        with self._lock:
            self._retired = True
            told, idle = list(self._on_retire), not self._under_way
        for cancel in told:
            cancel()
        if idle:
            self._close()

    def when_retired(self, tell: Callable[[], object]) -> Callable[[], None]:
        """Have ``tell`` called by :meth:`retire`, at once if that has been; the returned function takes that back."""
        with self._lock:
            self._on_retire.add(tell)
            retired = self._retired
        if retired:
            tell()
        return lambda: self._on_retire.discard(tell)

    def _onward(self, call: Call) -> tuple[tuple[str, str | bytes], ...]:
        """:raises Relayed: the call has come through here before: the socket is ForgeOne's own, by another path."""
        metadata = call.metadata()
        if self._mark in map(tuple, metadata):
            raise Relayed(grpc.StatusCode.FAILED_PRECONDITION, f"upstream.socket {self.socket} leads back to ForgeOne")
        return (*forwarded(metadata), self._mark)

    @contextmanager
    def _relaying(self) -> Iterator[None]:
        try:
            with _relaying():
                yield
        except Relayed as error:
            if error.code not in _UNTOLD:
                self.answers_now = error.code is not grpc.StatusCode.UNAVAILABLE
            raise
        self.answers_now = True

    @contextmanager
    def _busy(self) -> Iterator[None]:
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def _enter(self) -> None:
        """:raises Relayed: it is closed: a reload came between the caller's look at the configuration and now."""
        with self._lock:
            if self._retired and not self._under_way:
                raise Relayed(grpc.StatusCode.UNAVAILABLE, f"{self.socket} is not the upstream runtime any more")
            self._under_way += 1

    def _leave(self) -> None:
        with self._lock:
            self._under_way -= 1
            last = self._retired and not self._under_way
        if last:
            self._close()

    def _close(self) -> None:
        # The last call may end in the connection's own thread, which closing waits for.
        threading.Thread(target=self._channel.close, name="upstream-close", daemon=True).start()


class Stream:
    """Answers of one call, in a ``with`` of the thread that iterates; :meth:`close` may be called by any."""

    def __init__(self, link: Link, call: Any, of: Call) -> None:
        self._call = call
        self._undo = ExitStack()
        of.deadline.listen(self.close)
        self._undo.callback(of.deadline.ignore, self.close)
        self._undo.callback(link.when_retired(self.close))

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._undo.close()

    def __iter__(self) -> Iterator[bytes]:
        """:raises Relayed: it ended with a failure, or was cancelled."""
        with _relaying():
            for answer in self._call:
                yield bytes(answer)

    def close(self) -> None:
        """Want no more."""
        self._call.cancel()


def forwarded(metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
    """What of a client's metadata goes on to the next server: traces, say, and nothing of the connection."""
    return tuple((key, value) for key, value in metadata if key not in _HOP and not key.startswith((":", "grpc-")))


def _trailing(metadata: Iterable[Any]) -> tuple[tuple[str, str | bytes], ...]:
    return tuple((key, value) for key, value in metadata if key == _DETAILS or not key.startswith((":", "grpc-")))


def _path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


@contextmanager
def _relaying() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise Relayed(error.code(), error.details() or "", _trailing(error.trailing_metadata() or ())) from None
    except grpc.FutureCancelledError:
        raise Relayed(grpc.StatusCode.CANCELLED, "the client went away") from None
