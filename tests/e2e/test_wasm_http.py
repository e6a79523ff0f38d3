"""A component that serves wasi:http, as a container over the CRI socket."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from wasmtime import wat2wasm

from cri.api import runtime_pb2 as pb
from hack.lab.daemon import Daemon
from hack.lab.http_guest import guest
from hack.lab.tls import certificate, tls_answer
from tests.e2e.conftest import Push
from tests.e2e.streams import eventually
from tests.e2e.wasm_pods import WasmPod, image, pull

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def component(forgeoned: Daemon, push: Push) -> str:
    return pull(forgeoned, push("http:latest", image({"served.wasm": bytes(wat2wasm(guest()))})))


def host_pod(daemon: Daemon) -> WasmPod:
    pod = WasmPod.plan(daemon)
    pod.config.linux.security_context.namespace_options.network = pb.NODE
    return pod.run()


@pytest.fixture
def pod(forgeoned: Daemon) -> Iterator[WasmPod]:
    pod = host_pod(forgeoned)
    yield pod
    pod.remove()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def served(pod: WasmPod, component: str, port: int, name: str = "main") -> str:
    config = pod.container(component, name=name)
    config.envs.add(key="WASMTIME_HTTP_PROXY_SOCKET_ADDR", value=f"127.0.0.1:{port}".encode())
    return pod.start(config)


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path)
    answer = connection.getresponse()
    try:
        return answer.status, answer.read()
    finally:
        connection.close()


def answers(port: int) -> bool:
    try:
        return get(port, "/h") == (200, b"Hello\n")
    except ConnectionRefusedError:
        return False


def test_a_component_serves_logs_its_traps_and_ends_well_when_it_is_stopped(pod: WasmPod, component: str) -> None:
    port = free_port()
    id_ = served(pod, component, port)
    eventually(lambda: answers(port))
    assert get(port, "/t")[0] == 500
    assert get(port, "/h") == (200, b"Hello\n")
    assert len(get(port, "/b")[1]) == 1 << 20
    log = pod.log(id_)
    assert "GET /t: " in log and "wasm backtrace" in log
    began = time.monotonic()
    pod.stop_container(id_, grace=60)
    assert time.monotonic() - began < 10
    status = pod.status(id_)
    assert (status.exit_code, status.reason) == (0, "Completed")


def test_a_component_asks_another_one(pod: WasmPod, component: str) -> None:
    front, back = free_port(), free_port()
    served(pod, component, back, name="back")
    eventually(lambda: answers(back))
    served(pod, component, front, name="front")
    eventually(lambda: answers(front))
    assert get(front, f"/f127.0.0.1:{back}") == (200, b"Hello\n")


def test_requests_under_way_are_answered_before_the_container_ends(pod: WasmPod, component: str) -> None:
    port = free_port()
    id_ = served(pod, component, port)
    eventually(lambda: answers(port))
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(b"GET /w HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.2)
        pod.stop_container(id_, grace=60)
        data = b""
        while part := client.recv(4096):
            data += part
    assert data.startswith(b"HTTP/1.1 200 OK") and b"Hello" in data
    assert pod.status(id_).exit_code == 0


def test_a_component_asks_by_tls_in_its_own_root_directory(pod: WasmPod, component: str, tmp_path: Path) -> None:
    port = free_port()
    paths = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*paths)
    config = pod.container(component)
    config.envs.add(key="WASMTIME_HTTP_PROXY_SOCKET_ADDR", value=f"127.0.0.1:{port}".encode())
    config.envs.add(key="SSL_CERT_FILE", value=b"/trusted.pem")
    config.mounts.add(container_path="/trusted.pem", host_path=str(paths[0]), readonly=True)
    id_ = pod.start(config)
    eventually(lambda: answers(port))
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret"
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        pool.submit(tls_answer, listener, context, answer)
        assert get(port, f"/Flocalhost:{listener.getsockname()[1]}") == (200, b"secret"), pod.log(id_)
