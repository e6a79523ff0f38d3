"""Probes: what serves is ready, what hangs is restarted."""

from __future__ import annotations

import pytest

from tests.e2e.cluster.api import Cluster, condition, main, ready, restarted
from tests.e2e.cluster.conftest import ENGINES, Classes, Images, Web
from tests.e2e.cluster.objects import executes, pod, probe, shell

_SERVER = "mkdir /site; echo Hello > /site/h; exec httpd -f -p 8080 -h /site"


def test_a_command_decides_whether_a_container_is_ready(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    asks = probe(executes("test", "-e", "/tmp/serves"))
    name = f"ready-{engine}"
    body = pod(name, shell(images.busybox, "exec sleep 100000", readinessProbe=asks), runtime_class=classes[engine])
    made = cluster.run(namespace, body, lambda one: (status := main(one)) and status.state.running)
    assert condition(made, "Ready") == "False"
    cluster.exec(namespace, name, "touch", "/tmp/serves")
    cluster.pod(namespace, name, ready)
    cluster.exec(namespace, name, "rm", "/tmp/serves")
    cluster.pod(namespace, name, lambda one: condition(one, "Ready") == "False")
    assert "Readiness probe failed" in cluster.event(namespace, name, "Unhealthy")


def test_a_server_that_fails_its_http_probe_is_restarted(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    name = f"http-{engine}"
    asks = probe({"httpGet": {"path": "/h", "port": 8080}}, initialDelaySeconds=1)
    server = shell(images.busybox, _SERVER, livenessProbe=asks, readinessProbe=asks)
    first = main(cluster.run(namespace, pod(name, server, runtime_class=classes[engine]))).container_id
    cluster.exec(namespace, name, "rm", "/site/h")
    again = cluster.pod(namespace, name, lambda one: restarted(one) and ready(one))
    assert main(again).container_id != first
    assert "404" in cluster.event(namespace, name, "Unhealthy")


@pytest.mark.parametrize("handler", ["wasm", "auto"])
def test_a_component_serves_its_http_probes(
    cluster: Cluster, namespace: str, web: Web, classes: Classes, handler: str
) -> None:
    asks = probe({"httpGet": {"path": "/h", "port": 8080}})
    body = pod(f"component-{handler}", runtime_class="")
    # The node sees what the image is, and which engine can run it.
    body["spec"] = web("wasm", livenessProbe=asks, readinessProbe=asks) | {"runtimeClassName": classes[handler]}
    cluster.run(namespace, body)


def test_a_component_that_traps_at_its_probe_is_restarted(
    cluster: Cluster, namespace: str, web: Web, classes: Classes
) -> None:
    body = pod("trapping", runtime_class=classes["wasm"])
    # Asked for this path the component traps, which its server answers with 500.
    body["spec"] = web("wasm", livenessProbe=probe({"httpGet": {"path": "/t", "port": 8080}}), lifecycle={})
    cluster.run(namespace, body, restarted)
    assert "500" in cluster.event(namespace, "trapping", "Unhealthy")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_port_that_is_open_makes_a_container_ready(
    cluster: Cluster, namespace: str, web: Web, classes: Classes, engine: str
) -> None:
    body = pod(f"tcp-{engine}", runtime_class=classes[engine])
    opened = probe({"tcpSocket": {"port": 8080}})
    body["spec"] = web(engine, startupProbe=opened | {"failureThreshold": 30}, readinessProbe=opened)
    cluster.run(namespace, body)


def test_a_probe_that_takes_too_long_counts_as_failed(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    name = f"slow-{engine}"
    asks = probe(executes("sleep", "30"), timeoutSeconds=1, failureThreshold=1)
    body = pod(name, shell(images.busybox, "exec sleep 100000", livenessProbe=asks), runtime_class=classes[engine])
    cluster.run(namespace, body, lambda one: (status := main(one)) and status.restart_count)
    assert "timed out" in cluster.event(namespace, name, "Unhealthy")
