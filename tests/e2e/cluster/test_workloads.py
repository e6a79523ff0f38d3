"""Deployments on every engine, Services between them, and changes that no client notices."""

from __future__ import annotations

import os

import pytest

from tests.e2e.cluster.api import Cluster, main, over
from tests.e2e.cluster.conftest import ENGINES, Classes, Images, Web
from tests.e2e.cluster.objects import deployment, pod, service, shell


@pytest.fixture(scope="module")
def services(cluster: Cluster, namespace: str, web: Web, classes: Classes) -> dict[str, str]:
    """A Service of a Deployment on each engine that is there: their addresses."""
    addresses = {}
    for engine in classes.names:
        cluster.core.create_namespaced_service(namespace, service(engine))
        cluster.apps.create_namespaced_deployment(namespace, deployment(engine, web(engine), replicas=2))
    for engine in classes.names:
        cluster.until(
            cluster.apps.list_namespaced_deployment, namespace, engine, lambda one: one.status.ready_replicas == 2, 120
        )
        addresses[engine] = cluster.core.read_namespaced_service(engine, namespace).spec.cluster_ip
    return addresses


@pytest.fixture(scope="module")
def inside(cluster: Cluster, namespace: str, images: Images, classes: Classes) -> str:
    """The name of a pod that can reach Services."""
    if os.environ.get("LAB_SERVICES") == "none":
        pytest.skip("this cluster has nothing that makes addresses of Services work: LAB_SERVICES is none")
    cluster.run(namespace, pod("client", shell(images.busybox, "exec sleep 100000"), runtime_class=classes["native"]))
    return "client"


def asked(cluster: Cluster, namespace: str, client: str, url: str) -> str:
    """What a pod is told by an HTTP server."""
    return cluster.exec(namespace, client, "timeout", "10", "wget", "-q", "-O", "-", url)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_deployment_of_each_runtime_class_serves(
    cluster: Cluster, namespace: str, classes: Classes, services: dict[str, str], engine: str
) -> None:
    assert classes[engine]
    assert cluster.get(namespace, engine, "/h") == (200, "Hello\n")
    pods = cluster.core.list_namespaced_pod(namespace, label_selector=f"app={engine}").items
    assert [one.spec.runtime_class_name for one in pods] == [classes[engine]] * 2
    assert all(main(one).container_id.startswith("forgeone://") for one in pods)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_service_of_each_runtime_class_is_reached_from_a_pod(
    cluster: Cluster, namespace: str, classes: Classes, services: dict[str, str], inside: str, engine: str
) -> None:
    assert classes[engine]
    assert asked(cluster, namespace, inside, f"http://{services[engine]}/h") == "Hello\n"


def test_a_request_goes_from_engine_to_engine(
    cluster: Cluster, namespace: str, classes: Classes, services: dict[str, str], inside: str
) -> None:
    """A native pod asks a component, which asks a virtual machine, each by a Service's address."""
    assert classes["wasm"] and classes["microvm"]
    way = f"http://{services['wasm']}/f{services['microvm']}"
    assert asked(cluster, namespace, inside, way) == "Hello\n"


def test_a_service_is_found_by_its_name_where_there_is_dns(
    cluster: Cluster, namespace: str, services: dict[str, str], inside: str
) -> None:
    if not cluster.core.list_namespaced_pod("kube-system", label_selector="k8s-app=kube-dns").items:
        pytest.skip("this cluster has no DNS")
    assert asked(cluster, namespace, inside, "http://native/h") == "Hello\n"


def test_a_rolling_update_from_engine_to_engine_fails_no_request(
    cluster: Cluster, namespace: str, images: Images, web: Web, classes: Classes, services: dict[str, str], inside: str
) -> None:
    engines = [engine for engine in ("native", "wasm", "microvm", "native") if engine in classes.names]
    cluster.core.create_namespaced_service(namespace, service("rolling"))
    address = cluster.core.read_namespaced_service("rolling", namespace).spec.cluster_ip
    cluster.deploy(namespace, deployment("rolling", web(engines[0]), replicas=2))
    program = f"""
        trap 'echo "$good good, $bad bad"; exit 0' TERM
        good=0 bad=0
        while :; do
          if [ "$(timeout 5 wget -q -O - http://{address}/h)" = Hello ]; then good=$((good+1)); else bad=$((bad+1)); fi
        done"""
    asks = pod("asks", shell(images.busybox, program), runtime_class=classes["native"], restartPolicy="Never")
    cluster.run(namespace, asks | {"spec": asks["spec"] | {"terminationGracePeriodSeconds": 20}})
    for engine in engines[1:]:
        cluster.deploy(namespace, deployment("rolling", web(engine), replicas=2))
    cluster.exec(namespace, "asks", "kill", "-TERM", "1")
    cluster.pod(namespace, "asks", over)
    told = cluster.logs(namespace, "asks").splitlines()[-1]
    good, bad = (int(part.split()[0]) for part in told.split(","))
    assert bad == 0 and good > 50
