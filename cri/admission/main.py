"""``forgeone-admission``: options, certificates, what is known of the cluster, the server, until a signal ends it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import structlog

from cri.admission import options, tls
from cri.admission.api import Cluster
from cri.admission.certificates import Pair
from cri.admission.following import Following
from cri.admission.keeping import Keeper
from cri.admission.metrics import Metrics
from cri.admission.options import Options
from cri.admission.server import Limits, Server
from cri.admission.service import Service
from cri.signals import Signals
from forgeone_shim.config.logging import setup
from forgeone_shim.config.model import LogConfig
from forgeone_shim.errors import ForgeError
from forgeone_shim.version import VERSION

LEAVING: Final = 5.0
"""Seconds that connections are taken after a signal: the API server has to hear first that this replica goes."""

STOP_GRACE: Final = 5.0
"""Seconds that requests under way have after that."""

_CERTIFICATE: Final = "a certificate"
_LEAVING: Final = "its end"

_log: structlog.stdlib.BoundLogger = structlog.get_logger("admission")


class Readiness:
    """What is still waited for, from several threads."""

    def __init__(self, service: Service) -> None:
        self._service, self._lock = service, threading.Lock()
        self._cluster: frozenset[str] = frozenset({"the cluster"})
        self._own: frozenset[str] = frozenset({_CERTIFICATE})

    def cluster(self, missing: frozenset[str]) -> None:
        """Of what is followed, that has not been seen yet."""
        with self._lock:
            self._cluster = missing
            self._service.lacks(self._cluster | self._own)

    def own(self, *missing: str) -> None:
        """Of this process. Its end is not waited for: nothing comes after it."""
        with self._lock:
            if _LEAVING not in self._own:
                self._own = frozenset(missing)
            self._service.lacks(self._cluster | self._own)


def serve(settings: Options, signals: Signals) -> None:
    """Serve until a signal says stop.

    :raises ForgeError: there is no API server, or nothing to listen on.
    """
    meters = Metrics()
    callers = frozenset(settings.client_names) if settings.client_ca else None
    service = Service(meters, callers=callers)
    ready = Readiness(service)
    cluster = Cluster(settings.kubeconfig)
    limits = Limits(settings.max_connections, settings.max_body, float(settings.request_seconds))
    server = Server((settings.address, settings.port), service, limits)

    secured = tls.Secured(server.secure, settings.client_ca)

    def use(pair: Pair) -> None:
        secured.certificate(pair)
        meters.certificate(tls.expires(pair))
        ready.own()

    with ExitStack() as stack:
        stack.callback(server.stop, STOP_GRACE)
        server.start()
        following = Following(cluster, settings, service.follow, ready.cluster, meters)
        stack.callback(following.stop)
        service.asking(following.look_for)
        following.start()
        if settings.client_ca:
            _watch(stack, tls.Watched(Path(settings.client_ca).parent, secured.authorities), "callers")
        if settings.tls_dir:
            _watch(stack, tls.Directory(Path(settings.tls_dir), use), "certificates")
        else:
            keeper = Keeper(cluster, settings, use)
            stack.callback(keeper.stop)
            keeper.start()
        _log.info("serving", port=server.port, version=VERSION, pid=os.getpid())
        signals.until_stop(lambda: None)
        _log.info("leaving")
        ready.own(_LEAVING)
        # A second signal comes from somebody who does not want to wait.
        leaving = threading.Timer(LEAVING, os.kill, (os.getpid(), signal.SIGTERM))
        leaving.daemon = True
        leaving.start()
        signals.until_stop(lambda: None)
        leaving.cancel()
        _log.info("stopping")


def _watch(stack: ExitStack, directory: tls.Watched, name: str) -> None:
    stack.callback(directory.stop)
    threading.Thread(target=directory.run, name=name, daemon=True).start()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    try:
        settings = options.parse(argv, os.environ)
        setup(LogConfig(level=settings.log_level, format=settings.log_format))
        serve(settings, Signals())
    except ForgeError as error:
        sys.stderr.write(f"forgeone-admission: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
