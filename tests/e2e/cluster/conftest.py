"""Against the cluster that ``KUBECONFIG`` names: what a pod of each engine is to whoever uses Kubernetes.

Each run has namespaces and RuntimeClasses of its own, and removes them. In the environment:

``KUBECONFIG``
    The cluster, with the rights of its administrator. Without it all of this is skipped.
``LAB_REGISTRY``, ``LAB_REGISTRY_INSIDE``
    A registry without TLS and passwords that the images of the tests are pushed to (``127.0.0.1:5000``), and its name
    for the nodes, where that is another one.
``LAB_SERVICES``
    ``none`` where nothing (no kube-proxy) makes addresses of Services work.
``LAB_REBOOT``
    A command that reboots the node whose name it is given as its last argument.
``LAB_POLICIES``
    ``none`` where nodes follow no policies of the cluster.
``LAB_CHART_VALUES``
    A file of values that the chart's tests give to helm besides their own: of an image that nodes can pull.

===============  =====================================================================================================
``cluster``      the API server (whole session)
``images``       references of the images (whole session)
``classes``      the RuntimeClass of each engine that a node has (whole session)
``namespace``    a namespace (whole module)
``engine``       a test that asks for it runs once on each engine that can execute programs of Linux
===============  =====================================================================================================
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import pytest
from kubernetes import client, config
from wasmtime import wat2wasm

from hack.lab import images as lab_images
from hack.lab import modules
from hack.lab.http_guest import guest
from tests.e2e.cluster.api import Cluster
from tests.e2e.cluster.objects import Object, container, spec

ENGINES: Final = ("native", "wasm", "microvm", "auto")
LINUX: Final = ("native", "microvm")
_ADDRESS: Final = "WASMTIME_HTTP_PROXY_SOCKET_ADDR"


@dataclass(frozen=True, slots=True)
class Images:
    """References as the nodes know them: busybox with a small web site, and a component that serves HTTP."""

    busybox: str
    component: str


@dataclass(frozen=True, slots=True)
class Classes:
    """Names of RuntimeClasses by engine."""

    names: Mapping[str, str]

    def __getitem__(self, engine: str) -> str:
        """The RuntimeClass; the test is skipped where no node has the engine."""
        if engine not in self.names:
            pytest.skip(f"no node of this cluster has the runtime handler forgeone-{engine}")
        return self.names[engine]


@pytest.fixture(scope="session")
def run() -> str:
    """The name of this run, which all of its objects have. One that begins with ``forgeone-`` would say an engine."""
    return f"e2e-forgeone-{uuid.uuid4().hex[:6]}"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    path = os.environ.get("KUBECONFIG", "")
    if not path:
        pytest.skip("there is no cluster: KUBECONFIG is not set")
    settings = client.Configuration()
    config.load_kube_config(path, client_configuration=settings)
    found = Cluster(client.ApiClient(settings))
    yield found
    found.close()


@pytest.fixture(scope="session")
def images(cluster: Cluster) -> Images:
    outside = os.environ.get("LAB_REGISTRY", "127.0.0.1:5000")
    inside = os.environ.get("LAB_REGISTRY_INSIDE", outside)
    host, _, port = outside.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        pytest.skip(f"no registry for the tests' images at {outside}: {error}; see LAB_REGISTRY")
    # In both answers the same: whoever balances between engines need not know which one it was.
    site = [lab_images.Entry("www/h", b"Hello\n"), lab_images.Entry("www/index.html", b"Hello\n")]
    built = {
        "busybox": lab_images.busybox(extra=site),
        "component": modules.compat(bytes(wat2wasm(guest())), Env=[f"{_ADDRESS}=0.0.0.0:8080"]),
    }
    # Named by what they hold: nodes keep what earlier runs brought.
    pushed = {
        name: lab_images.push(outside, f"forgeone-e2e/{name}:{image.digest[7:19]}", image)
        for name, image in built.items()
    }
    return Images(**{name: reference.replace(outside, inside, 1) for name, reference in pushed.items()})


@pytest.fixture(scope="session")
def classes(cluster: Cluster, run: str) -> Iterator[Classes]:
    there = cluster.handlers()
    with ExitStack() as stack:
        yield Classes(
            {
                engine: stack.enter_context(cluster.runtime_class(f"{run}-{engine}", engine))
                for engine in ENGINES
                if f"forgeone-{engine}" in there
            }
        )


@pytest.fixture(scope="module")
def namespace(cluster: Cluster, run: str, request: pytest.FixtureRequest) -> Iterator[str]:
    module = request.module.__name__.rpartition("test_")[2].replace("_", "-")
    with cluster.namespace(f"{run}-{module}") as name:
        yield name


@pytest.fixture(params=LINUX)
def engine(request: pytest.FixtureRequest, classes: Classes) -> str:
    assert classes[request.param]
    return str(request.param)


Web = Callable[..., Object]


@pytest.fixture(scope="session")
def web(images: Images, classes: Classes) -> Web:
    """``web("wasm") -> a pod's spec``: a server on that engine, whose ``/h`` says ``Hello``."""

    def made(engine: str, **fields: object) -> Object:
        # Ready as soon as it answers, and still answering while it is taken out of its Services.
        fields = {
            "readinessProbe": {"httpGet": {"path": "/h", "port": 8080}, "periodSeconds": 1},
            "lifecycle": {"preStop": {"sleep": {"seconds": 3}}},
            **fields,
        }
        server = (
            container(images.component, **fields)
            if engine == "wasm"
            else container(images.busybox, "httpd", "-f", "-p", "8080", "-h", "/www", **fields)
        )
        return spec(server, runtime_class=classes[engine], terminationGracePeriodSeconds=10)

    return made
