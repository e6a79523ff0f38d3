"""The metrics of this process, put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    make_wsgi_app,
)

from cri.exposition.calls import Calls
from cri.exposition.containers import ContainerCollector
from cri.exposition.node import NodeCollector
from cri.exposition.server import MetricsServer
from cri.runtime.ports import RuntimePort
from forgeone_shim.config.model import MetricsConfig
from forgeone_shim.metrics.figures import Figures

NODE: Final = "/metrics"
CONTAINERS: Final = "/metrics/containers"
"""Apart from the node's own: dozens of lines a container, which a kubelet may be telling already."""


class Exposition:
    """Serves them from :meth:`start` to :meth:`stop`; ``calls`` is the observer of the CRI server's."""

    def __init__(self, config: MetricsConfig, runtime: RuntimePort, rooms: Sequence[Figures] = ()) -> None:
        # When each series began is a series more for each, and of no use to Prometheus' text format.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        node, containers = CollectorRegistry(), CollectorRegistry()
        self.calls = Calls(node)
        self._node = node
        node.register(NodeCollector(runtime, rooms))
        ProcessCollector(registry=node)
        containers.register(ContainerCollector(runtime))
        self._server = MetricsServer(config, {NODE: make_wsgi_app(node), CONTAINERS: make_wsgi_app(containers)})

    @property
    def port(self) -> int:
        """What it listens on."""
        return self._server.port

    def text(self) -> bytes:
        """What the node would answer now, in Prometheus' text format."""
        return generate_latest(self._node)

    def start(self) -> None:
        """Listen.

        :raises InvalidInput: a certificate cannot be used.
        :raises InternalError: the address cannot be had.
        """
        self._server.start()

    def stop(self) -> None:
        """Listen no more; again is no error."""
        self._server.stop()
