"""The streams of a container in a client's hands, by its supervisor's attach socket."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import Final

from engines.base import Output, Stdio
from forgeone_shim.errors import FailedPrecondition, ForgeError, NotFound
from forgeone_shim.shim import contract, supervision

_PACKET: Final = supervision.ATTACH_DATA_MAX + 64
# A size is said again after so long, and so often until the supervisor has read what it was told before.
_REPEAT_SECONDS: Final = 0.1
_REPEATS: Final = 50
_PIPES: Final = {supervision.ATTACH_STDOUT: Output.STDOUT, supervision.ATTACH_STDERR: Output.STDERR}


class AttachConsole:
    """Implements :class:`engines.base.Console` for a container: conmon's attach socket (conmon(8), --full-attach)."""

    def __init__(self, container_id: str, bundle: str, stdio: Stdio) -> None:
        self._container_id, self._bundle, self._stdio = container_id, bundle, stdio
        self._wanted = {output for output, on in _wanted(stdio) if on}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._input, self._open = stdio.stdin, True
        self._size: tuple[int, int] | None = None
        self._repeat: threading.Timer | None = None
        try:
            self._connect()
        except BaseException:
            self._socket.close()
            raise

    def _connect(self) -> None:
        try:
            directory = os.open(self._bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise NotFound("container", self._container_id) from error
        try:
            self._socket.connect(f"/proc/self/fd/{directory}/{supervision.ATTACH}")
        except OSError as error:
            raise FailedPrecondition(
                f"container {self._container_id} has no supervisor to attach to: {error.strerror}"
            ) from error
        finally:
            os.close(directory)
        self._socket.setblocking(False)

    @property
    def readers(self) -> tuple[int, ...]:
        """The socket."""
        return (self._socket.fileno(),) if self._open else ()

    @property
    def writer(self) -> int:
        """The socket, too."""
        return self._socket.fileno() if self._input else -1

    @property
    def exited(self) -> int:
        """None: conmon closes the socket."""
        return -1

    def read(self, fd: int) -> tuple[Output, bytes] | None:
        """One packet; one of a stream that was not asked for is nothing."""
        self._tell_size()
        try:
            packet = os.read(fd, _PACKET)
        except BlockingIOError:
            return None
        except ConnectionError:
            packet = b""
        if not packet:
            self._open = self._input = False
            return Output.STDOUT, b""
        output = _PIPES.get(packet[0])
        if output is None or output not in self._wanted or len(packet) == 1:
            return None
        return output, packet[1:]

    def write(self, data: bytes) -> int:
        """Some input, raw; conmon takes no more than a packet at once."""
        self._tell_size()
        if not self._input:
            return len(data)
        try:
            return self._socket.send(data[: supervision.ATTACH_DATA_MAX])
        except BlockingIOError:
            return 0
        except OSError:
            self._input = False
            return len(data)

    def end_input(self) -> None:
        """Half-close: conmon closes the container's input unless it is to stay open."""
        if self._input:
            self._input = False
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    def resize(self, width: int, height: int) -> None:
        """By conmon's control fifo: at once, or as soon as something else happens here after conmon has read it.

        Said again a moment later: of sizes that reach conmon together it heeds the first alone, and does not tell.
        """
        if self._stdio.tty:
            self._size = width, height
            self._tell_size()
            self._say_again(width, height, _REPEATS)

    def _say_again(self, width: int, height: int, times: int) -> None:
        if self._repeat is not None:
            self._repeat.cancel()
        self._repeat = threading.Timer(_REPEAT_SECONDS, self._repeated, (width, height, times))
        self._repeat.daemon = True
        self._repeat.start()

    def _repeated(self, width: int, height: int, times: int) -> None:
        with contextlib.suppress(ForgeError):
            if not contract.resize(self._bundle, self._container_id, width, height) and times > 1 and self._open:
                self._say_again(width, height, times - 1)

    def _tell_size(self) -> None:
        if self._size is None:
            return
        with contextlib.suppress(ForgeError):
            if not contract.resize(self._bundle, self._container_id, *self._size):
                return
        self._size = None

    def finish(self) -> int:
        """How the container ended is told by its status, not here."""
        return 0

    def close(self) -> None:
        """Detach."""
        self._open = self._input = False
        if self._repeat is not None:
            self._repeat.cancel()
        self._socket.close()


def _wanted(stdio: Stdio) -> tuple[tuple[Output, bool], ...]:
    return ((Output.STDOUT, stdio.stdout), (Output.STDERR, stdio.stderr))
