"""Exec, attach and port-forward through the streaming port, and that nothing of a session outlives its reason."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from hack.lab.daemon import Daemon
from tests.e2e.pods import Pod
from tests.e2e.streams import SocketClient, SpdyClient, eventually, exit_code

pytestmark = pytest.mark.root

V4, V5 = "v4.channel.k8s.io", "v5.channel.k8s.io"


@pytest.fixture(scope="module")
def image(forgeoned: Daemon, busybox: str) -> str:
    request = pb.PullImageRequest(image=pb.ImageSpec(image=busybox))
    return str(forgeoned.images.PullImage(request, timeout=60).image_ref)


@pytest.fixture
def pod(forgeoned: Daemon, nothing_left: None) -> Iterator[Pod]:
    pod = Pod.plan(forgeoned).run()
    yield pod
    pod.remove()


@pytest.fixture
def container(pod: Pod, image: str) -> str:
    return pod.start(pod.container(image))


def exec_url(pod: Pod, container: str, *command: str, **streams: bool) -> str:
    request = pb.ExecRequest(container_id=container, cmd=command, **streams)
    return str(pod.daemon.runtime.Exec(request, timeout=30).url)


def forward_url(pod: Pod, *ports: int) -> str:
    request = pb.PortForwardRequest(pod_sandbox_id=pod.id, port=ports)
    return str(pod.daemon.runtime.PortForward(request, timeout=30).url)


def sleepers(seconds: str) -> list[str]:
    """Processes of the host that sleep for so long, by their pids."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().split(b"\0")[:2] == [b"sleep", seconds.encode()]:
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_a_command_over_spdy_has_its_streams_and_its_exit_code(pod: Pod, container: str) -> None:
    script = "cat; echo problem >&2; exit 7"
    url = exec_url(pod, container, "sh", "-c", script, stdin=True, stdout=True, stderr=True)
    with SpdyClient(url, V4) as client:
        error, stdin, stdout, stderr = (client.open(streamType=k) for k in ("error", "stdin", "stdout", "stderr"))
        body = b"all of it\n" * 100_000
        sender = threading.Thread(target=client.say, args=(stdin, body), kwargs={"fin": True})
        sender.start()
        client.rest()
        sender.join()
    assert client.heard[stdout] == body
    assert client.heard[stderr] == b"problem\n"
    assert exit_code(client.heard[error]) == 7
    assert {error, stdout, stderr} <= client.ended


def test_input_is_half_closed_over_websocket_5(pod: Pod, container: str) -> None:
    with SocketClient(exec_url(pod, container, "wc", "-c", stdin=True, stdout=True), V5) as client:
        client.say(0, b"12345")
        client.say(255, b"\0")
        client.rest()
    assert client.heard[1].strip() == b"5"
    assert exit_code(client.heard[3]) == 0


def test_a_terminal_has_the_clients_size_and_follows_it(pod: Pod, container: str) -> None:
    url = exec_url(pod, container, "sh", stdin=True, stdout=True, tty=True)
    with SocketClient(url, V5) as client:
        client.say(4, b'{"Width":101,"Height":41}')
        client.say(0, b"tty; stty size\n")
        client.until(lambda: b"41 101" in client.heard[1] and b"/dev/pts/" in client.heard[1])
        client.say(4, b'{"Width":77,"Height":33}')
        client.say(0, b"stty size; exit 4\n")
        client.rest()
    assert b"33 77" in client.heard[1]
    assert exit_code(client.heard[3]) == 4


def test_a_command_that_is_not_there_is_an_error_of_the_stream(pod: Pod, container: str) -> None:
    with SocketClient(exec_url(pod, container, "no-such", stdout=True), V4) as client:
        client.rest()
    assert b"no-such" in client.heard[3]
    assert b'"Failure"' in client.heard[3]


@pytest.mark.parametrize("tty", [False, True])
def test_a_command_is_killed_when_its_client_vanishes(pod: Pod, container: str, tty: bool) -> None:
    url = exec_url(pod, container, "sh", "-c", "echo up; sleep 98731; true", stdout=True, tty=tty)
    with SocketClient(url, V4) as client:
        client.until(lambda: b"up" in client.heard[1])
        eventually(lambda: bool(sleepers("98731")))
    eventually(lambda: not sleepers("98731"))


def test_a_session_ends_with_its_container(pod: Pod, container: str) -> None:
    with SocketClient(exec_url(pod, container, "sleep", "98732", stdout=True), V4) as client:
        eventually(lambda: bool(sleepers("98732")))
        pod.stop_container(container)
        client.rest()
    assert client.heard[3]
    assert not sleepers("98732")


def test_what_a_child_left_behind_holds_open_does_not_hold_the_session(pod: Pod, container: str) -> None:
    url = exec_url(pod, container, "sh", "-c", "sleep 5 & echo done", stdout=True)
    with SocketClient(url, V4) as client:
        client.sock.settimeout(3)
        client.rest()
    assert client.heard[1] == b"done\n"


def test_attached_clients_share_the_containers_streams(pod: Pod, image: str) -> None:
    config = pod.container(image, "sh", "-c", "while read line; do echo got $line; done; echo over")
    config.stdin = config.stdin_once = True
    container = pod.start(config)

    def url(stdin: bool) -> str:
        request = pb.AttachRequest(container_id=container, stdin=stdin, stdout=True, stderr=True)
        return str(pod.daemon.runtime.Attach(request, timeout=30).url)

    with SpdyClient(url(True), V4) as writer:
        error, stdin, stdout, _ = (writer.open(streamType=k) for k in ("error", "stdin", "stdout", "stderr"))
        writer.say(stdin, b"one\n")
        writer.until(lambda: writer.heard[stdout] == b"got one\n")
        writer.say(stdin, b"two\n", fin=True)
        writer.rest()
        assert writer.heard[stdout] == b"got one\ngot two\nover\n"
        assert exit_code(writer.heard[error]) == 0
    assert pod.wait(container).exit_code == 0
    assert pod.log(container) == "got one\ngot two\nover\n"


def test_an_attached_terminal_is_resized_and_outlives_its_client(pod: Pod, image: str) -> None:
    config = pod.container(image, "sh")
    config.stdin = config.tty = True
    container = pod.start(config)
    request = pb.AttachRequest(container_id=container, stdin=True, stdout=True, tty=True)
    with SocketClient(pod.daemon.runtime.Attach(request, timeout=30).url, V5) as client:
        client.say(4, b'{"Width":91,"Height":31}')
        eventually(lambda: pod.exec(container, "stty", "-F", "/proc/1/fd/0", "size").stdout == b"31 91\n")
        client.say(0, b"echo $((6*7))\n")
        client.until(lambda: b"42" in client.heard[1])
    assert pod.status(container).state == pb.CONTAINER_RUNNING


def test_of_sizes_that_come_at_once_the_last_one_counts(pod: Pod, image: str) -> None:
    # As kubectl does it: first one too large, so that programs draw anew.
    config = pod.container(image, "sh")
    config.stdin = config.tty = True
    container = pod.start(config)
    request = pb.AttachRequest(container_id=container, stdin=True, stdout=True, tty=True)
    with SocketClient(pod.daemon.runtime.Attach(request, timeout=30).url, V5) as client:
        for width in (81, 99, 80):
            client.conn.send(b"\4" + json.dumps({"Width": width, "Height": 24}).encode())
        client.sock.sendall(client.conn.take())
        client.say(0, b"echo $((6*7))\n")
        client.until(lambda: b"42" in client.heard[1])
        eventually(lambda: pod.exec(container, "stty", "-F", "/proc/1/fd/0", "size").stdout == b"24 80\n")


@pytest.mark.parametrize("protocol", ["spdy", "websocket"])
def test_ports_of_the_pod_are_reached_at_its_localhost(pod: Pod, image: str, protocol: str) -> None:
    server = "while true; do echo served | nc -l -p 8099 127.0.0.1; done"
    container = pod.start(pod.container(image, "sh", "-c", server))
    eventually(lambda: b":1FA3" in pod.exec(container, "cat", "/proc/net/tcp").stdout)
    if protocol == "websocket":
        with SocketClient(forward_url(pod, 8099), V4) as socket_client:
            socket_client.say(0, b"hi\n")
            socket_client.until(lambda: socket_client.heard[0] == (8099).to_bytes(2, "little") + b"served\n")
        return
    with SpdyClient(forward_url(pod), "portforward.k8s.io") as client:
        headers = {"port": "8099", "requestID": "1"}
        error, data = (client.open(streamType=kind, **headers) for kind in ("error", "data"))
        client.say(error, b"", fin=True)
        client.say(data, b"hi\n", fin=True)
        client.until(lambda: {error, data} <= client.ended)
        assert (client.heard[data], client.heard[error]) == (b"served\n", b"")
        headers = {"port": "4", "requestID": "2"}
        error, data = (client.open(streamType=kind, **headers) for kind in ("error", "data"))
        client.until(lambda: {error, data} <= client.ended)
        assert b"localhost:4 cannot be reached" in client.heard[error]


def test_a_token_is_good_for_one_client(pod: Pod, container: str) -> None:
    url = exec_url(pod, container, "true", stdout=True)
    with SocketClient(url.replace("/exec/", "/attach/x"), V4) as wrong:
        assert wrong.status == 404
    with SocketClient(url, V4) as first:
        assert first.status == 101
        first.rest()
    with SocketClient(url, V4) as second:
        assert second.status == 404


def refused(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    code: grpc.StatusCode = caught.value.code()
    return code


def test_what_cannot_be_streamed_is_refused_by_the_verb(pod: Pod, container: str) -> None:
    runtime, invalid = pod.daemon.runtime, grpc.StatusCode.INVALID_ARGUMENT
    assert refused(lambda: exec_url(pod, container, "sh")) is invalid
    assert refused(lambda: exec_url(pod, container, "sh", stdout=True, stderr=True, tty=True)) is invalid
    assert refused(lambda: exec_url(pod, container, stdout=True)) is invalid
    assert refused(lambda: forward_url(pod, 70000)) is invalid
    attach = pb.AttachRequest(container_id=container, stdin=True, stdout=True)
    assert refused(lambda: runtime.Attach(attach)) is grpc.StatusCode.FAILED_PRECONDITION
    pod.stop_container(container)
    assert refused(lambda: exec_url(pod, container, "sh", stdout=True)) is grpc.StatusCode.FAILED_PRECONDITION


def test_sessions_end_when_forgeoned_stops(fresh_forgeoned: Daemon, busybox: str) -> None:
    fresh_forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    pod = Pod.plan(fresh_forgeoned).run()
    container = pod.start(pod.container(busybox))
    with SocketClient(exec_url(pod, container, "sleep", "98733", stdout=True), V4) as client:
        eventually(lambda: bool(sleepers("98733")))
        fresh_forgeoned.stop()
        client.rest()
        assert b"forgeoned stops" in client.heard[3]
    eventually(lambda: not sleepers("98733"))
    fresh_forgeoned.start()
    assert pod.status(container).state == pb.CONTAINER_RUNNING
