"""What happens to pods as nodes are emptied and rebooted."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from hack.lab.settings import patient
from tests.e2e.cluster.api import Cluster, condition, main, ready
from tests.e2e.cluster.conftest import Classes, Images, Web
from tests.e2e.cluster.objects import deployment, pod, service, shell

_TOO_MANY = 429


def pods(cluster: Cluster, namespace: str, app: str) -> list[Any]:
    """Those of a Deployment that are not on their way out."""
    found = cluster.core.list_namespaced_pod(namespace, label_selector=f"app={app}").items
    return [one for one in found if one.metadata.deletion_timestamp is None]


def evict(cluster: Cluster, one: Any) -> None:
    """Ask for a pod to go, as a drain does."""
    name, namespace = one.metadata.name, one.metadata.namespace
    cluster.core.create_namespaced_pod_eviction(name, namespace, {"metadata": {"name": name, "namespace": namespace}})


@contextmanager
def cordoned(cluster: Cluster, node: str) -> Iterator[None]:
    """No new pods for a node."""
    cluster.core.patch_node(node, {"spec": {"unschedulable": True}})
    try:
        yield
    finally:
        cluster.core.patch_node(node, {"spec": {"unschedulable": None}})


def test_an_eviction_waits_for_the_disruption_budget(
    cluster: Cluster, namespace: str, web: Web, classes: Classes, engine: str
) -> None:
    name = f"budget-{engine}"
    budget = {"metadata": {"name": name}, "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": name}}}}
    cluster.policy.create_namespaced_pod_disruption_budget(namespace, budget)
    cluster.deploy(namespace, deployment(name, web(engine), replicas=3))
    listing = cluster.policy.list_namespaced_pod_disruption_budget
    cluster.until(listing, namespace, name, lambda one: one.status.disruptions_allowed == 1)
    first, second, _ = pods(cluster, namespace, name)
    evict(cluster, first)
    with pytest.raises(ApiException) as refused:
        evict(cluster, second)
    assert refused.value.status == _TOO_MANY
    cluster.gone(cluster.core.list_namespaced_pod, namespace, first.metadata.name)
    cluster.until(listing, namespace, name, lambda one: one.status.disruptions_allowed == 1)


def test_a_node_that_is_drained_hands_its_pods_to_another(
    cluster: Cluster, namespace: str, web: Web, classes: Classes, engine: str
) -> None:
    able = cluster.handlers()[f"forgeone-{engine}"]
    if len(able) < 2:
        pytest.skip(f"one node of this cluster has the engine {engine}: there is none to take its pods")
    name = f"drained-{engine}"
    cluster.core.create_namespaced_service(namespace, service(name))
    cluster.deploy(namespace, deployment(name, web(engine), replicas=4))
    node = pods(cluster, namespace, name)[0].spec.node_name
    with cordoned(cluster, node):
        for one in pods(cluster, namespace, name):
            if one.spec.node_name == node:
                evict(cluster, one)
                cluster.gone(cluster.core.list_namespaced_pod, namespace, one.metadata.name)
        listing = cluster.apps.list_namespaced_deployment
        cluster.until(listing, namespace, name, lambda one: one.status.available_replicas == 4, seconds=120)
        assert all(one.spec.node_name != node for one in pods(cluster, namespace, name))
        assert cluster.get(namespace, name, "/h") == (200, "Hello\n")


def test_the_kubelet_s_figures_have_the_pods_of_each_engine(
    cluster: Cluster, namespace: str, web: Web, classes: Classes
) -> None:
    for engine in classes.names:
        body = pod(f"figures-{engine}", runtime_class="") | {"spec": web(engine)}
        cluster.core.create_namespaced_pod(namespace, body)
    for engine in classes.names:
        one = cluster.pod(namespace, f"figures-{engine}", ready, seconds=90)
        assert memory(cluster, one) > 0, engine


def memory(cluster: Cluster, pod: Any) -> int:
    """Bytes that a kubelet says a pod's container uses, once it has taken them."""
    deadline = time.monotonic() + patient(60)
    while True:
        figures = cluster.raw(f"/api/v1/nodes/{pod.spec.node_name}/proxy/stats/summary")
        for one in figures["pods"]:
            if one["podRef"]["uid"] == pod.metadata.uid:
                for each in one["containers"]:
                    used = each.get("memory", {}).get("workingSetBytes", 0)
                    if each["name"] == "main" and used:
                        return int(used)
        assert time.monotonic() < deadline, f"the kubelet has no figures of {pod.metadata.name}"
        # It looks every ten seconds or so, and tells nobody.
        time.sleep(1)


def test_pods_run_again_after_their_node_was_rebooted(
    cluster: Cluster, namespace: str, images: Images, web: Web, classes: Classes
) -> None:
    reboot = os.environ.get("LAB_REBOOT")
    if not reboot:
        pytest.skip("no node is rebooted: LAB_REBOOT names no command")
    seen = {"volumeMounts": [{"name": "seen", "mountPath": "/seen"}]}
    program = "echo started >> /seen/starts; exec sleep 100000"
    first = shell(images.busybox, program, **seen)
    body = pod("stays", first, runtime_class=classes["native"], volumes=[{"name": "seen", "emptyDir": {}}])
    node = cluster.run(namespace, body).spec.node_name
    others = {}
    for engine in classes.names:
        body = pod(f"stays-{engine}", runtime_class="") | {"spec": web(engine) | {"nodeName": node}}
        others[engine] = main(cluster.run(namespace, body, seconds=90)).container_id
    command = [*shlex.split(reboot), node]
    subprocess.run(command, check=True, timeout=patient(300), stdin=subprocess.DEVNULL)
    cluster.until(cluster.core.list_node, "", node, lambda one: condition(one, "Ready") == "True", seconds=300)
    # What the kubelet keeps of a pod is there, and its containers are new.
    again = cluster.pod(namespace, "stays", lambda one: ready(one) and main(one).restart_count == 1, seconds=300)
    assert again.spec.node_name == node
    assert len(cluster.exec(namespace, "stays", "cat", "/seen/starts").split()) == 2
    for engine, before in others.items():
        one = cluster.pod(
            namespace,
            f"stays-{engine}",
            lambda one, before=before: ready(one) and main(one).container_id != before,
            seconds=300,
        )
        assert main(one).restart_count == 1, engine
