"""What connections are made secure with, from certificates in memory or in somebody else's directory."""

from __future__ import annotations

import os
import select
import ssl
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509

from cri.admission.certificates import Pair
from forgeone_shim.errors import FailedPrecondition, ForgeError
from forgeone_shim.kernel.watches import Watches

CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
_MAX: Final = 1 << 20

_log: structlog.stdlib.BoundLogger = structlog.get_logger("admission")


def context(pair: Pair, client_ca: bytes = b"") -> ssl.SSLContext:
    """TLS 1.2 or newer with that certificate. With ``client_ca`` (PEM) callers may show theirs, and no bad one.

    :raises FailedPrecondition: certificate and key are not of one another, or there are no authorities.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_RENEGOTIATION
    try:
        with ExitStack() as stack:
            # ssl reads files alone. These are in memory, and have no name.
            made.load_cert_chain(*(_unnamed(stack, data) for data in (pair.certificate, pair.key)))
        if client_ca:
            # Probes of a kubelet show none, and ask for nothing but health.
            made.verify_mode = ssl.CERT_OPTIONAL
            made.load_verify_locations(cadata=client_ca.decode("ascii", "replace"))
    except (OSError, ValueError) as error:
        raise FailedPrecondition(f"the certificate cannot be used: {error}") from None
    return made


def expires(pair: Pair) -> float:
    """When its certificate ends, in seconds since the epoch. :raises FailedPrecondition: it is none."""
    try:
        return x509.load_pem_x509_certificate(pair.certificate).not_valid_after_utc.timestamp()
    except ValueError:
        raise FailedPrecondition("the certificate cannot be read") from None


class Secured:
    """The certificate and the authorities of callers together, each taken into use as it comes; from any thread."""

    def __init__(self, use: Callable[[ssl.SSLContext], None], client_ca: str = "") -> None:
        """:param use: takes what connections to come are made secure with."""
        self._use, self._client_ca = use, client_ca
        self._lock = threading.Lock()
        self._pair: Pair | None = None
        self._believed = b""

    def certificate(self, pair: Pair) -> None:
        """:raises FailedPrecondition: it cannot be used, and the one before is."""
        with self._lock:
            believed = _read(Path(self._client_ca)) if self._client_ca else b""
            self._use(context(pair, believed))
            self._pair, self._believed = pair, believed

    def authorities(self) -> None:
        """They may be others now. :raises FailedPrecondition: they cannot be used, and those before are."""
        with self._lock:
            believed = _read(Path(self._client_ca))
            if self._pair is not None and believed != self._believed:
                self._use(context(self._pair, believed))
                self._believed = believed
                _log.info("authorities of callers changed")


class Watched:
    """A directory that somebody else writes (a mounted Secret): looked at as it is there."""

    def __init__(self, directory: Path, look: Callable[[], None]) -> None:
        """:param look: what it raises (ForgeError) is logged."""
        self._directory, self._look = directory, look
        self._ended, self._end = os.pipe2(os.O_CLOEXEC)

    def run(self) -> None:
        """Until :meth:`stop`: look now, and whenever it changes."""
        watches = Watches(str(self._directory))
        try:
            while True:
                try:
                    self._look()
                except ForgeError as error:
                    # Half of a change, perhaps: the other half is told as well.
                    _log.warning("not used", why=str(error))
                while not watches.changed():
                    ready, _, _ = select.select([watches.fileno(), self._ended], [], [])
                    if self._ended in ready:
                        return
                # The way may lead to another directory now: a mounted Secret is replaced as a whole.
                watches.close()
                watches = Watches(str(self._directory))
        finally:
            watches.close()

    def stop(self) -> None:
        """From any thread."""
        os.close(self._end)


class Directory(Watched):
    """Certificate and key that somebody else makes, used as they are there."""

    def __init__(self, directory: Path, use: Callable[[Pair], None]) -> None:
        """:param use: takes them; what it raises (ForgeError) leaves those before in use."""
        super().__init__(directory, self._both)
        self._use = use
        self._used: Pair | None = None

    def _both(self) -> None:
        pair = Pair(*(_read(self._directory / name) for name in (CERTIFICATE, KEY)))
        if pair != self._used:
            self._use(pair)
            self._used = pair


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX)
    except OSError as error:
        raise FailedPrecondition(f"{path}: {error.strerror}") from None


def _unnamed(stack: ExitStack, data: bytes) -> str:
    file = stack.enter_context(os.fdopen(os.memfd_create("tls", os.MFD_CLOEXEC), "wb"))
    file.write(data)
    file.flush()
    return f"/proc/self/fd/{file.fileno()}"
