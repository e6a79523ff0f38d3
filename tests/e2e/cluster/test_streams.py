"""What ``kubectl`` does with a container that runs: exec, attach, logs, port-forward, debug."""

from __future__ import annotations

import http.client
from typing import Any

import pytest
import yaml
from kubernetes import client, stream
from kubernetes.stream import ws_client

from hack.lab.settings import patient
from tests.e2e.cluster.api import Cluster, main, over, ready, restarted
from tests.e2e.cluster.conftest import ENGINES, LINUX, Classes, Images, Web
from tests.e2e.cluster.objects import PORT, executes, pod, probe, shell


@pytest.fixture(scope="module")
def sleepers(cluster: Cluster, namespace: str, images: Images, classes: Classes) -> dict[str, str]:
    """A pod that waits, on each engine that executes programs of Linux."""
    names = {}
    for engine in LINUX:
        if engine in classes.names:
            names[engine] = f"sleeper-{engine}"
            body = pod(names[engine], shell(images.busybox, "exec sleep 123456"), runtime_class=classes[engine])
            cluster.core.create_namespaced_pod(namespace, body)
    for name in names.values():
        cluster.pod(namespace, name, ready)
    return names


def session(cluster: Cluster, namespace: str, name: str, *command: str, **options: Any) -> Any:
    """An exec whose streams stay open; without a command an attachment."""
    core = client.CoreV1Api(client.ApiClient(cluster.connection.configuration))
    wanted = {"stdin": True, "stdout": True, "stderr": True, "tty": False, "_preload_content": False, **options}
    if command:
        wanted |= {"command": list(command), "container": "main"}
        return stream.stream(core.connect_get_namespaced_pod_exec, name, namespace, **wanted)
    return stream.stream(core.connect_get_namespaced_pod_attach, name, namespace, **wanted)


def refused(session: Any) -> str:
    """What a user is told of an exec that could not begin."""
    session.run_forever(timeout=patient(30))
    said = yaml.safe_load(session.read_channel(ws_client.ERROR_CHANNEL))
    assert said["status"] == "Failure"
    return str(said["message"])


def test_exec_keeps_the_streams_apart_and_gives_the_exit_code(
    cluster: Cluster, namespace: str, sleepers: dict[str, str], engine: str
) -> None:
    with_streams = session(cluster, namespace, sleepers[engine], "sh", "-c", "echo out; echo err >&2; exit 7")
    with_streams.run_forever(timeout=patient(30))
    assert (with_streams.read_stdout(), with_streams.read_stderr()) == ("out\n", "err\n")
    assert with_streams.returncode == 7


def test_exec_of_what_does_not_exist_is_an_error(
    cluster: Cluster, namespace: str, sleepers: dict[str, str], engine: str
) -> None:
    assert "/no/such" in refused(session(cluster, namespace, sleepers[engine], "/no/such", stdin=False))


def test_exec_reads_what_it_is_sent_on_a_terminal(
    cluster: Cluster, namespace: str, sleepers: dict[str, str], engine: str
) -> None:
    terminal = session(cluster, namespace, sleepers[engine], "sh", tty=True)
    terminal.write_stdin("tty; expr 6 \\* 7; exit 5\n")
    terminal.run_forever(timeout=patient(30))
    said = terminal.read_stdout()
    assert "/dev/pts/" in said and "42" in said
    assert terminal.returncode == 5


def test_attach_talks_to_the_first_process(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    name = f"attach-{engine}"
    program = "read line; echo got $line; sleep 1; exit 4"
    talks = shell(images.busybox, program, stdin=True)
    cluster.run(namespace, pod(name, talks, runtime_class=classes[engine], restartPolicy="Never"))
    attached = session(cluster, namespace, name)
    attached.write_stdin("this\n")
    attached.run_forever(timeout=patient(30))
    assert attached.read_stdout() == "got this\n"
    assert main(cluster.pod(namespace, name, over)).state.terminated.exit_code == 4


def test_a_log_is_followed_until_its_container_ends(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    name = f"follow-{engine}"
    program = "for i in $(seq 20); do echo line $i; sleep 0.1; done"
    talks = pod(name, shell(images.busybox, program), runtime_class=classes[engine], restartPolicy="Never")
    cluster.run(namespace, talks, lambda one: (status := main(one)) and not status.state.waiting)
    lines = [f"line {i}\n" for i in range(1, 21)]
    assert cluster.logs(namespace, name, follow=True) == "".join(lines)
    assert cluster.logs(namespace, name, tail_lines=2) == "".join(lines[-2:])


def test_the_log_of_the_container_before_is_kept(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    name = f"previous-{engine}"
    # What it wrote into a volume tells it that it was here before.
    program = (
        "echo start $(ls /seen | wc -l); touch /seen/$(date +%N); [ $(ls /seen | wc -l) = 2 ] && sleep 100000; exit 3"
    )
    talks = shell(images.busybox, program, volumeMounts=[{"name": "seen", "mountPath": "/seen"}])
    body = pod(name, talks, runtime_class=classes[engine], volumes=[{"name": "seen", "emptyDir": {}}])
    again = cluster.run(namespace, body, restarted)
    assert main(again).last_state.terminated.exit_code == 3
    assert cluster.logs(namespace, name, previous=True) == "start 0\n"
    assert cluster.lines(namespace, name, 1) == ["start 1"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_port_is_forwarded(cluster: Cluster, namespace: str, web: Web, classes: Classes, engine: str) -> None:
    name = f"forward-{engine}"
    body = pod(name, runtime_class=classes[engine])
    body["spec"] = web(engine)
    cluster.run(namespace, body)
    core = client.CoreV1Api(client.ApiClient(cluster.connection.configuration))
    forwarded = stream.portforward(core.connect_get_namespaced_pod_portforward, name, namespace, ports=str(PORT))
    said = http.client.HTTPConnection("forwarded", PORT, timeout=patient(20))
    said.sock = forwarded.socket(PORT)
    said.request("GET", "/h", headers={"Connection": "close"})
    answer = said.getresponse()
    assert (answer.status, answer.read()) == (200, b"Hello\n")
    assert forwarded.error(PORT) is None
    said.close()


def test_an_ephemeral_container_sees_the_processes_of_its_target(
    cluster: Cluster, namespace: str, images: Images, sleepers: dict[str, str], engine: str
) -> None:
    debugger = shell(images.busybox, "ps; echo done; exec sleep 100000", name="debugger")
    added = {"spec": {"ephemeralContainers": [debugger | {"targetContainerName": "main"}]}}
    cluster.core.patch_namespaced_pod_ephemeralcontainers(sleepers[engine], namespace, added)
    cluster.pod(namespace, sleepers[engine], lambda one: (status := main(one, "debugger")) and not status.state.waiting)
    said = cluster.exec(namespace, sleepers[engine], "ps", container="debugger")
    assert "sleep 123456" in said


def test_a_component_has_no_programs_to_execute(cluster: Cluster, namespace: str, web: Web, classes: Classes) -> None:
    body = pod("no-shell", runtime_class=classes["wasm"])
    body["spec"] = web("wasm")
    cluster.run(namespace, body)
    assert "is no WebAssembly module" in refused(session(cluster, namespace, "no-shell", "sh", stdin=False))


def test_containers_of_a_pod_are_told_apart(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, engine: str
) -> None:
    name = f"two-{engine}"
    written = probe(executes("test", "-e", "/which"), failureThreshold=30)
    both = [
        shell(images.busybox, f"echo {one} > /which; exec sleep 100000", name=one, readinessProbe=written)
        for one in ("main", "other")
    ]
    cluster.run(namespace, pod(name, *both, runtime_class=classes[engine]))
    assert cluster.exec(namespace, name, "cat", "/which") == "main\n"
    assert cluster.exec(namespace, name, "cat", "/which", container="other") == "other\n"
