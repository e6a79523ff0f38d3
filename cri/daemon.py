"""``forgeoned``: configuration, runtime, server, until a signal ends it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import structlog
from google.protobuf.descriptor import ServiceDescriptor

from cri.api import runtime_pb2 as pb
from cri.image.service import ImageService
from cri.reload import Hangups, Reload
from cri.runtime.ports import RuntimePort, StreamingPort
from cri.runtime.service import RuntimeService
from cri.server import Server, unobserved
from cri.signals import Signals
from cri.streaming.server import StreamingServer
from cri.upstream import front
from cri.upstream.about import about
from cri.upstream.side import Links
from forgeone_shim.config.loader import load, load_or_exit
from forgeone_shim.config.logging import setup
from forgeone_shim.config.model import Config
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ForgeError
from forgeone_shim.kernel import notify
from forgeone_shim.rpc import node_pb2
from forgeone_shim.rpc.node import NodeServicer, Upstream, nobody
from forgeone_shim.runtime.runtime import Runtime
from forgeone_shim.version import VERSION

if TYPE_CHECKING:
    from cri.exposition.exposition import Exposition

STOP_GRACE: Final = 5.0
"""Seconds that calls under way have when forgeoned is told to stop; what they had done is undone or finished later."""

CLOSE_PATIENCE: Final = 10.0
"""Seconds that work beside the calls has after that."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger("forgeoned")


def services(
    config: Config,
    runtime: RuntimePort,
    reload: Reload,
    streaming: StreamingPort,
    upstream: Callable[[Deadline], Upstream] = nobody,
) -> Mapping[ServiceDescriptor, object]:
    """What is served on the socket."""
    described = pb.DESCRIPTOR.services_by_name
    return {
        described["RuntimeService"]: RuntimeService(
            runtime, info=reload.info, message_limit=config.grpc.max_message_bytes, streaming=streaming
        ),
        described["ImageService"]: ImageService(runtime),
        node_pb2.DESCRIPTOR.services_by_name["Node"]: NodeServicer(runtime, reload, upstream),
    }


def serve(config: Config, signals: Signals, read: Callable[[], Config]) -> None:
    """Serve until a signal says stop; ``read`` gives the configuration anew at each SIGHUP.

    :raises ForgeError: the runtime or the socket cannot be had.
    """
    runtime = Runtime.open(config)
    streaming, links = StreamingServer(config.streaming, runtime), Links(config.upstream)
    exposition = _exposition(config, runtime, streaming, links)
    try:
        streaming.start()
        reload = Reload(config, read, runtime, streaming, links)
        server = Server(
            config.grpc,
            front.services(services(config, runtime, reload, streaming, about(links)), runtime, links),
            path=Path(config.socket),
            gid=config.socket_gid,
            observe=exposition.calls if exposition else unobserved,
        )
        if exposition:
            exposition.start()
        server.start()
        _log.info("serving", socket=config.socket, version=VERSION, pid=os.getpid())
        notify.notify(notify.READY)
        signals.until_stop(Hangups(reload))
        _log.info("stopping")
        notify.notify(notify.STOPPING)
        server.stop(STOP_GRACE)
    finally:
        if exposition:
            exposition.stop()
        streaming.stop()
        links.close()
        _close(runtime)


def _exposition(config: Config, runtime: Runtime, streaming: StreamingServer, links: Links) -> Exposition | None:
    if not config.metrics.address:
        return None
    # The library costs time and memory, which nodes that nobody looks at do not pay.
    from cri.exposition.exposition import Exposition

    return Exposition(config.metrics, runtime, (runtime.figures, streaming.figures, links.figures))


def _close(runtime: Runtime) -> None:
    """What is stuck must not hold up the end, which lets go of the rest; the next start finishes it."""
    closer = threading.Thread(target=runtime.close, name="close", daemon=True)
    closer.start()
    closer.join(CLOSE_PATIENCE)
    if closer.is_alive():
        _log.warning("ends with work under way")


def main() -> NoReturn:
    """The program. Exit code 0: told to stop; 1: it could not run; 2: wrong configuration."""
    config = load_or_exit(sys.argv[1:], os.environ)
    setup(config.log)
    # Modes are given where things are made; what is made by others (a socket, a log) must not be open to all.
    os.umask(0o022)
    signals, code = Signals(), 0
    try:
        serve(config, signals, lambda: load(sys.argv[1:], os.environ))
    except ForgeError as error:
        _log.error("cannot run", error=str(error))
        code = 1
    except Exception:
        _log.exception("cannot run")
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Calls that outlived their grace still hold threads, which the interpreter's own end would wait for.
    os._exit(code)


if __name__ == "__main__":
    main()
