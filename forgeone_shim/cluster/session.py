"""The process that watches the cluster, as forgeoned sees it: started, listened to, and gone when it is done with."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from forgeone_shim.cluster import wire
from forgeone_shim.cluster.child import LINK, Order
from forgeone_shim.config.loader import ENVIRONMENT_PREFIX
from forgeone_shim.errors import InternalError, Unavailable
from forgeone_shim.kernel.spawn import spawn

SILENCE: Final = 900.0
"""Seconds without a word after which the watch counts as stuck: each of its requests has an end long before."""

_SEND: Final = 10.0
_CHUNK: Final = 1 << 16
_AT_ONCE: Final = 1 << 20


class Session:
    """One such process, made by :func:`opened`. One thread listens, any may speak."""

    def __init__(self, end: socket.socket, silence: float = SILENCE) -> None:
        self._end, self._silence = end, silence
        self._lines = wire.Lines()
        # A timeout is a socket's, and listening has others than speaking.
        self._mouth, self._lock = end.dup(), threading.Lock()
        self._mouth.settimeout(_SEND)

    def batch(self) -> list[wire.Told]:
        """What it says next, and all that it has said by then.

        :raises Unavailable: it ended, says nothing any more, or what cannot be understood.
        """
        try:
            self._end.settimeout(self._silence)
            data = self._end.recv(_CHUNK)
            found = self._lines.feed(data)
            read = len(data)
            # With a timeout Python waits for data whatever the flags say.
            self._end.setblocking(False)
            while data and read < _AT_ONCE:
                data = self._end.recv(_CHUNK)
                found += self._lines.feed(data)
                read += len(data)
        except BlockingIOError:
            pass  # That is all for now.
        except TimeoutError:
            raise Unavailable(f"the watch has said nothing for {self._silence:g} seconds") from None
        except OSError as error:
            raise Unavailable(f"the watch cannot be heard: {error.strerror}") from error
        except ValueError as error:
            raise Unavailable(f"the watch says what is no message: {error}") from error
        if not data and not found:
            raise Unavailable("the watch has ended")
        try:
            return [wire.told(line) for line in found]
        except ValueError as error:
            raise Unavailable(f"the watch says what is no message: {error}") from error

    def say(self, verdicts: Sequence[wire.Verdict]) -> None:
        """What the node thinks. :raises Unavailable: it does not listen."""
        try:
            with self._lock:
                self._mouth.sendall(b"".join(wire.line(one) for one in verdicts))
        except OSError as error:
            raise Unavailable(f"the watch cannot be told: {error.strerror or error}") from error

    def end(self) -> None:
        """From any thread: whoever listens is told that it ended."""
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Nobody listens or speaks any more."""
        self._mouth.close()


@contextmanager
def opened(kubeconfig: str, node: str, scratch: Path) -> Iterator[Session]:
    """A watch of its own process, which is gone with the ``with`` block, and with this thread.

    ``scratch`` is emptied before and after. :raises InternalError: it cannot be started.
    """
    with ExitStack() as stack:
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(mode=0o700)
            stack.callback(shutil.rmtree, scratch, ignore_errors=True)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            stack.enter_context(ours)
            with theirs:
                order = msgspec.json.encode(Order(kubeconfig=kubeconfig, node=node, scratch=str(scratch))).decode()
                argv = [sys.executable, "-I", "-c", _boot(), order]
                stack.enter_context(spawn(argv[0], argv, files={LINK: theirs.fileno(), 2: 2}, env=_environment()))
        except OSError as error:
            raise InternalError(f"start the watch of the cluster: {error.strerror or error}") from error
        session = Session(ours)
        stack.callback(session.close)
        yield session


def _boot() -> str:
    """The program text: what is imported here is what is imported there."""
    folders = [folder for folder in sys.path if folder]
    return f"import sys; sys.path[:] = {folders!r}; from forgeone_shim.cluster.child import main; main()"


def _environment() -> dict[str, str]:
    """Proxies, and what programs that give credentials ask for; nothing that is for forgeoned alone."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != "NOTIFY_SOCKET" and not name.startswith(ENVIRONMENT_PREFIX)
    }
