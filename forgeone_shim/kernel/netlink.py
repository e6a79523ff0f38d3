"""A netlink codec of the size that is needed here: pack requests, send many in one sendmsg, read every answer.

The messages of a pod's attach are few and fixed. Packing them here costs microseconds and keeps a general netlink
library (100 ms to import) out of forgeoned. Layout: linux/netlink.h, rfc3549.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_DUMP: Final = 0x300

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12

_NLA_F_NESTED: Final = 0x8000
_NLA_TYPE_MASK: Final = 0x3FFF
_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_SO_SNDBUFFORCE: Final = 32
_NLM_F_CAPPED: Final = 0x100
_NLM_F_ACK_TLVS: Final = 0x200
_NLMSGERR_ATTR_MSG: Final = 1
_RECEIVE_BYTES: Final = 1 << 18
MAX_REQUESTS: Final = 64

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ERRNO: Final = struct.Struct("=i")
_U32: Final = struct.Struct("=I")


class NetlinkError(OSError):
    """The kernel refused a request; ``index`` is the request's place in its batch."""

    def __init__(self, code: int, label: str, text: str, index: int) -> None:
        super().__init__(code, f"{label}: {os.strerror(code)}" + (f" ({text})" if text else ""))
        self.index = index


@dataclass(frozen=True, slots=True)
class Request:
    """One message without its header. ``label`` says in words what it asks for; ``flags`` beside REQUEST."""

    type: int
    flags: int
    body: bytes
    label: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A message the kernel sent that is neither an acknowledgement nor an error."""

    type: int
    body: bytes


def attribute(kind: int, payload: bytes) -> bytes:
    """A type-length-value item, padded to four bytes."""
    return _ATTRIBUTE.pack(len(payload) + 4, kind) + payload + b"\0" * (-len(payload) % 4)


def nested(kind: int, *items: bytes) -> bytes:
    """An item made of items."""
    return attribute(kind | _NLA_F_NESTED, b"".join(items))


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """A number in host byte order."""
    return attribute(kind, _U32.pack(value))


def attributes(data: bytes) -> dict[int, bytes]:
    """The items of a message or a nested item, by type; of several with one type the last."""
    return dict(iterate_attributes(data))


def iterate_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The items of a message in order; what is cut off ends it."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            return
        yield kind & _NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def split_messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """``(type, flags, sequence, body)`` of each message in what one recv(2) gave."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def parse_ack(flags: int, body: bytes) -> tuple[int, str]:
    """The errno (0: done) of an NLMSG_ERROR and the kernel's own words, if it had any."""
    code = -_ERRNO.unpack_from(body)[0]
    if not flags & _NLM_F_ACK_TLVS:
        return code, ""
    echoed = _U32.unpack_from(body, 4)[0]
    start = 4 + (_HEADER.size if flags & _NLM_F_CAPPED else (echoed + 3) & ~3)
    return code, attributes(body[start:]).get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")


class Netlink:
    """A netlink socket in the network namespace of the thread that makes it, for one thread at a time.

    The kernel drops answers that nobody reads: at most :data:`MAX_REQUESTS` go out at once.
    """

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._sequence = itertools.count(1)

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def ask(self, *requests: Request) -> list[Reply]:
        """Send the requests in one system call; returns what came back once each is acknowledged.

        The kernel goes on after a failed request, so all are done or refused when this returns.

        :raises NetlinkError: the first request that was refused.
        """
        replies, errors = self.try_all(requests)
        if errors:
            raise errors[0]
        return replies

    def try_all(self, requests: Sequence[Request]) -> tuple[list[Reply], list[NetlinkError]]:
        """As :meth:`ask`, but refusals are returned, in the order of the requests."""
        first = next(self._sequence)
        sequences = [first, *(next(self._sequence) for _ in requests[1:])]
        self._socket.send(
            b"".join(_pack(request, sequence, NLM_F_ACK) for request, sequence in zip(requests, sequences, strict=True))
        )
        return self._collect(requests, first, set(sequences))

    def batch(self, requests: Sequence[Request], begin: Request, end: Request) -> list[NetlinkError]:
        """Send an nfnetlink transaction: all requests take effect or, when a refusal is returned, none does."""
        first = next(self._sequence)
        sequences = [first, *(next(self._sequence) for _ in requests[1:])]
        parts = [_pack(begin, 0, 0)]
        # Refusals come unasked, all before the last request's answer: that many more would only fill the socket.
        parts += [_pack(request, sequence, 0) for request, sequence in zip(requests[:-1], sequences, strict=False)]
        parts += [_pack(requests[-1], sequences[-1], NLM_F_ACK), _pack(end, 0, 0)]
        self._socket.send(b"".join(parts))
        return self._collect(requests, first, {sequences[-1]})[1]

    def grow(self, size: int) -> None:
        """Make room for messages of ``size`` bytes at once, as far as this process may."""
        with suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)

    def _collect(
        self, requests: Sequence[Request], first: int, waiting: set[int]
    ) -> tuple[list[Reply], list[NetlinkError]]:
        replies: list[Reply] = []
        errors: list[NetlinkError] = []
        while waiting:
            for kind, flags, sequence, body in split_messages(self._socket.recv(_RECEIVE_BYTES)):
                if sequence and not first <= sequence < first + len(requests):
                    continue
                if kind == NLMSG_ERROR:
                    code, words = parse_ack(flags, body)
                    if sequence == 0:
                        # The batch as a whole was refused, so no request of it is acknowledged.
                        return replies, [NetlinkError(code or errno.EIO, "netlink batch", words, 0)]
                    waiting.discard(sequence)
                    if code:
                        index = sequence - first
                        errors.append(NetlinkError(code, requests[index].label, words, index))
                elif kind == NLMSG_DONE:
                    waiting.discard(sequence)
                else:
                    replies.append(Reply(kind, body))
        return replies, sorted(errors, key=lambda error: error.index)


class Pool:
    """Netlink sockets of one protocol kept open, as many as were ever in use at once. Thread-safe.

    Closing a netfilter socket makes the kernel wait (10 ms) until what was deleted by any is freed.
    """

    def __init__(self, protocol: int) -> None:
        self._protocol = protocol
        self._free: deque[Netlink] = deque()

    @contextmanager
    def borrow(self) -> Iterator[Netlink]:
        """A socket of one's own for a while; one that failed is not used again."""
        try:
            netlink = self._free.pop()
        except IndexError:
            netlink = Netlink(self._protocol)
        try:
            yield netlink
        except BaseException:
            netlink.close()
            raise
        self._free.append(netlink)

    def close(self) -> None:
        """Close the sockets nobody uses."""
        while self._free:
            self._free.pop().close()


def _pack(request: Request, sequence: int, flags: int) -> bytes:
    body = request.body
    padding = b"\0" * (-len(body) % 4)
    header = _HEADER.pack(_HEADER.size + len(body), request.type, request.flags | NLM_F_REQUEST | flags, sequence, 0)
    return header + body + padding
