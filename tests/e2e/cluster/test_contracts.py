"""Contracts and policies: what is denied, and that whoever wrote the pod is told why."""

from __future__ import annotations

import pytest
from kubernetes.client.exceptions import ApiException

from tests.e2e.cluster.api import Cluster, main
from tests.e2e.cluster.conftest import Classes, Images
from tests.e2e.cluster.objects import PORT, executes, pod, probe, shell
from tests.e2e.cluster.test_streams import session

_ZTA = "zta.forgeone.dev/"


def test_a_pod_that_breaks_its_contract_is_denied_in_its_events(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    name = f"host-{engine}"
    body = pod(name, shell(images.busybox, "true"), runtime_class=classes[engine], hostIPC=True)
    body["metadata"]["annotations"] = {_ZTA + "host_ipc": "false"}
    cluster.core.create_namespaced_pod(namespace, body)
    said = cluster.event(namespace, name, "FailedCreatePodSandBox")
    assert "denied by" in said and "host_ipc" in said and "[audit:" in said


def test_a_container_of_an_image_that_its_contract_does_not_know_is_denied(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    name = f"image-{engine}"
    contract = {_ZTA + "images": "registry.example/**"}
    body = pod(name, shell(images.busybox, "true"), runtime_class=classes[engine], annotations=contract)
    made = cluster.run(
        namespace, body, lambda one: (status := main(one)) and status.state.waiting.reason == "CreateContainerError"
    )
    said = main(made).state.waiting.message
    assert "denied by" in said and images.busybox.rpartition(":")[0] in said and "[audit:" in said


def test_a_contract_that_is_none_refuses_the_pod(
    cluster: Cluster, namespace: str, images: Images, classes: Classes
) -> None:
    body = pod("none", shell(images.busybox, "true"), runtime_class=classes["native"])
    body["metadata"]["annotations"] = {_ZTA + "no_such_field": "true"}
    cluster.core.create_namespaced_pod(namespace, body)
    assert "no_such_field" in cluster.event(namespace, "none", "FailedCreatePodSandBox")


def test_a_contract_for_another_engine_refuses_the_pod(
    cluster: Cluster, namespace: str, images: Images, classes: Classes
) -> None:
    """Whoever demanded a virtual machine does not get a process of the host."""
    body = pod("weaker", shell(images.busybox, "true"), runtime_class=classes["native"])
    body["metadata"]["annotations"] = {_ZTA + "exec_mode": "microvm"}
    cluster.core.create_namespaced_pod(namespace, body)
    said = cluster.event(namespace, "weaker", "FailedCreatePodSandBox")
    assert "exec_mode" in said and "microvm" in said


def test_exec_that_a_contract_forbids_is_denied_to_people_and_probes(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    name = f"exec-{engine}"
    server = shell(images.busybox, "exec sleep 100000", readinessProbe=probe(executes("true")))
    body = pod(name, server, runtime_class=classes[engine], annotations={_ZTA + "exec": "false"})
    cluster.run(namespace, body, lambda one: (status := main(one)) and status.state.running)
    with pytest.raises(ApiException, match=r"denied by .*exec is not allowed"):
        session(cluster, namespace, name, "sh", stdin=False)
    assert "exec is not allowed" in cluster.event(namespace, name, "Unhealthy")


def test_egress_that_a_contract_does_not_name_is_dropped(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    served = f"served-{engine}"
    opened = probe({"tcpSocket": {"port": PORT}})
    server = shell(images.busybox, "exec httpd -f -p 8080 -h /www", readinessProbe=opened)
    address = cluster.run(namespace, pod(served, server, runtime_class=classes["native"])).status.pod_ip
    for allowed, answer in ((f"{address}/32 tcp/8080", "Hello\n"), ("none", "")):
        name = f"egress-{engine}-{'none' if allowed == 'none' else 'some'}"
        contract = {_ZTA + "egress": allowed}
        asks = shell(images.busybox, "exec sleep 100000")
        cluster.run(namespace, pod(name, asks, runtime_class=classes[engine], annotations=contract))
        said = cluster.exec(namespace, name, "timeout", "3", "wget", "-q", "-O", "-", f"http://{address}:8080/h")
        assert said.startswith(answer) if answer else "Hello" not in said
