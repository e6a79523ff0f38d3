"""Remote command as the client speaks it: ``v5.channel.k8s.io`` over WebSocket, bytes in, events out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from cri.streaming import websocket
from forgeone_shim.cli.client import RemoteError
from forgeone_shim.errors import Unavailable

PROTOCOL: Final = "v5.channel.k8s.io"
STDOUT: Final = 1
STDERR: Final = 2

_STDIN, _STATUS, _RESIZE, _CLOSE = 0, 3, 4, 255
_MAX_STATUS: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes of the process on :data:`STDOUT` or :data:`STDERR`, which are this process's descriptors too."""

    fd: int
    data: bytes


class Remote:
    """One remote command. What :meth:`take` returns has to be sent."""

    def __init__(self) -> None:
        self._conn = websocket.Connection(client=True)
        self._channel = -1
        self._status = bytearray()
        self.over = False

    def receive(self, data: bytes) -> list[Output]:
        """What the next bytes mean; afterwards :attr:`over` says whether they were the last.

        :raises RemoteError: they mean nothing.
        """
        found: list[Output] = []
        try:
            for event in self._conn.receive(data):
                if isinstance(event, websocket.Closed):
                    self.over = True
                else:
                    found += self._said(event)
        except websocket.ProtocolError as error:
            raise RemoteError("INTERNAL", f"the stream cannot be read: {error}") from None
        return found

    def _said(self, piece: websocket.Piece) -> list[Output]:
        data = piece.data
        if piece.first:
            if not data:
                return []
            self._channel, data = data[0], data[1:]
        if self._channel in (STDOUT, STDERR) and data:
            return [Output(self._channel, data)]
        if self._channel == _STATUS and len(self._status) < _MAX_STATUS:
            self._status += data
        return []

    def ask(self) -> None:
        """Ask for a sign of life; :attr:`answered` says whether one has come."""
        self._conn.ping()

    @property
    def answered(self) -> bool:
        """Whether there was an answer to :meth:`ask`."""
        return self._conn.pongs > 0

    def input(self, data: bytes) -> None:
        """Bytes for the process."""
        self._conn.send(bytes([_STDIN]) + data)

    def end_input(self) -> None:
        """The process gets no more input."""
        self._conn.send(bytes([_CLOSE, _STDIN]))

    def resize(self, columns: int, rows: int) -> None:
        """The terminal's size."""
        self._conn.send(bytes([_RESIZE]) + json.dumps({"Width": columns, "Height": rows}).encode())

    def take(self) -> bytes:
        """What is to be sent now."""
        return self._conn.take()

    def outcome(self) -> int:
        """The exit code.

        :raises RemoteError: there is none, for a reason that forgeoned gives.
        :raises Unavailable: the connection ended before it was told.
        """
        if not self._status:
            raise Unavailable("the connection ended before the command's exit code was told")
        return exit_code(bytes(self._status))


def exit_code(status: bytes) -> int:
    """What a ``metav1.Status`` says.

    :raises RemoteError: not an exit code.
    """
    try:
        found = json.loads(status)
        if found["status"] == "Success":
            return 0
        if found.get("reason") == "NonZeroExitCode":
            return next(int(cause["message"]) for cause in found["details"]["causes"] if cause["reason"] == "ExitCode")
        why = str(found["message"])
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError):
        raise RemoteError("INTERNAL", f"the outcome cannot be read: {status[:200]!r}") from None
    raise RemoteError(str(found.get("reason", "UNKNOWN")), why)


class Detach:
    """Finds the keys that let go of a terminal in what is typed."""

    def __init__(self, keys: bytes = b"\x10\x11") -> None:
        """``keys`` in order; by default ctrl-p, ctrl-q."""
        self._keys, self._held = keys, b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What is to be passed on, and whether the keys were typed; a beginning of them waits for what follows."""
        text = self._held + data
        at = text.find(self._keys)
        if at >= 0:
            self._held = b""
            return text[:at], True
        held = next(n for n in range(min(len(self._keys) - 1, len(text)), -1, -1) if text.endswith(self._keys[:n]))
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False
