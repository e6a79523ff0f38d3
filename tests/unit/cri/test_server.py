"""The server: errors, deadlines, the socket's hand-over, what is logged."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from pathlib import Path

import grpc
import pytest
import structlog
from structlog.testing import capture_logs

from cri.api import runtime_pb2 as pb
from cri.api.runtime_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from cri.server import CODES, options
from forgeone_shim import errors
from forgeone_shim.config.model import GrpcConfig
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ForgeError, InternalError, Kind
from forgeone_shim.registry.model import Image
from tests.unit.cri.conftest import Node, answers, container_config, pod_config
from tests.unit.cri.fakes import FakeRuntime


def run_pod(cri: RuntimeServiceStub, name: str = "web", timeout: float | None = None) -> str:
    answer = cri.RunPodSandbox(pb.RunPodSandboxRequest(config=pod_config(name)), timeout=timeout)
    return str(answer.pod_sandbox_id)


def failure(cri: RuntimeServiceStub) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as raised:
        run_pod(cri)
    return raised.value


def raising(error: BaseException) -> object:
    def during() -> None:
        raise error

    return during


def test_every_kind_of_error_has_a_code_of_its_own() -> None:
    assert set(CODES) == set(Kind)
    assert len(set(CODES.values())) == len(Kind)


@pytest.mark.parametrize("kind", list(Kind))
def test_an_error_reaches_the_client_by_code_and_text(
    cri: RuntimeServiceStub, runtime: FakeRuntime, kind: Kind
) -> None:
    class Sample(ForgeError):
        pass

    Sample.kind = kind
    runtime.during = raising(Sample("the disk is full", fix="free some"))  # type: ignore[assignment]
    error = failure(cri)
    assert error.code() is CODES[kind]
    assert error.details() == "the disk is full (free some)"


def test_an_unforeseen_exception_is_internal_and_its_text_stays_in_the_log(
    cri: RuntimeServiceStub, runtime: FakeRuntime
) -> None:
    runtime.during = raising(ValueError("password=hunter2"))  # type: ignore[assignment]
    with capture_logs() as logs:
        error = failure(cri)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "hunter2" not in error.details()
    [line] = [line for line in logs if line["event"] == "rpc"]
    assert isinstance(line["exc_info"], ValueError)
    assert line["request_id"] in error.details()


def test_a_long_error_is_cut_to_what_clients_take(cri: RuntimeServiceStub, runtime: FakeRuntime) -> None:
    runtime.during = raising(InternalError("x" * 100_000))  # type: ignore[assignment]
    assert len(failure(cri).details()) == 4096
    # What a registry or a certificate says may be in any letters.
    runtime.during = raising(InternalError(f"€ {'€%' * 100_000}"))  # type: ignore[assignment]
    error = failure(cri)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == f"€ {'€%' * 340}"


def test_an_error_of_a_stream_reaches_the_client_too(
    cri: RuntimeServiceStub, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "containers", raising(errors.Unavailable("not yet")))
    with pytest.raises(grpc.RpcError) as raised:
        list(cri.StreamContainers(pb.StreamContainersRequest()))
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_clients_deadline_is_handed_down(cri: RuntimeServiceStub, runtime: FakeRuntime) -> None:
    run_pod(cri, timeout=30)
    [remaining] = runtime.deadlines
    assert remaining is not None
    # gRPC rounds what it sends.
    assert 25 < remaining <= 31


def test_no_deadline_is_none(cri: RuntimeServiceStub, runtime: FakeRuntime) -> None:
    run_pod(cri)
    assert runtime.deadlines == [None]


def test_a_pull_whose_time_is_over_is_deadline_exceeded(images: ImageServiceStub, runtime: FakeRuntime) -> None:
    runtime.images.arrived.clear()
    request = pb.PullImageRequest(image=pb.ImageSpec(image="busybox"))
    with pytest.raises(grpc.RpcError) as raised:
        images.PullImage(request, timeout=0.05)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_call_that_its_client_cancels_is_abandoned(images: ImageServiceStub, runtime: FakeRuntime) -> None:
    begun, gone = threading.Event(), threading.Event()

    def pull(_image: str, _auth: object, deadline: Deadline, **_more: object) -> Image:
        deadline.listen(gone.set)
        begun.set()
        gone.wait(5)
        deadline.check("during the pull")
        raise AssertionError("somebody waits")

    runtime.images.pull = pull  # type: ignore[assignment]
    call = images.PullImage.future(pb.PullImageRequest(image=pb.ImageSpec(image="busybox")))
    assert begun.wait(5)
    assert not gone.is_set()
    call.cancel()
    assert gone.wait(5)


def test_every_verb_is_built() -> None:
    from cri.image.service import ImageService
    from cri.runtime.service import RuntimeService

    services = pb.DESCRIPTOR.services_by_name
    names = [(RuntimeService, m.name) for m in services["RuntimeService"].methods]
    names += [(ImageService, m.name) for m in services["ImageService"].methods]
    assert len(names) == 43
    assert all(callable(getattr(service, name)) for service, name in names)


def test_a_message_over_the_limit_is_refused(cri: RuntimeServiceStub) -> None:
    config = pod_config(annotations={"big": "x" * 3 * 1024 * 1024})
    with pytest.raises(grpc.RpcError) as raised:
        cri.RunPodSandbox(pb.RunPodSandboxRequest(config=config))
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_connection_age_is_set_only_when_asked_for() -> None:
    assert "grpc.max_connection_age_ms" not in dict(options(GrpcConfig()))
    assert dict(options(GrpcConfig(max_connection_age_ms=500)))["grpc.max_connection_age_ms"] == 500


# -- the log


def test_a_call_that_changes_something_is_one_line(cri: RuntimeServiceStub) -> None:
    with capture_logs() as logs:
        pod = run_pod(cri)
        cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    run, stop = (line for line in logs if line["event"] == "rpc")
    assert (run["method"], run["code"], run["log_level"]) == ("RunPodSandbox", "OK", "info")
    assert (stop["method"], stop["pod_sandbox_id"]) == ("StopPodSandbox", pod)
    assert run["ms"] >= 0


def test_a_call_that_only_looks_is_for_debugging(cri: RuntimeServiceStub) -> None:
    with capture_logs() as logs:
        cri.ListContainers(pb.ListContainersRequest())
    assert [line["log_level"] for line in logs] == ["debug"]


def test_secrets_are_not_logged(images: ImageServiceStub, cri: RuntimeServiceStub, runtime: FakeRuntime) -> None:
    secret = "s3cr3t"
    auth = pb.AuthConfig(username=secret, password=secret, auth=secret, identity_token=secret, registry_token=secret)
    with capture_logs() as logs:
        images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image="busybox"), auth=auth))
        config = container_config(envs=[pb.KeyValue(key="TOKEN", value=secret.encode())])
        pod = run_pod(cri)
        cri.CreateContainer(pb.CreateContainerRequest(pod_sandbox_id=pod, config=config))
        with pytest.raises(grpc.RpcError):
            images.PullImage(pb.PullImageRequest(auth=auth))
    assert len(logs) == 4
    assert secret not in repr(logs)
    assert secret not in repr(runtime.images.pulled_with)
    assert runtime.images.pulled_with[0] is not None
    assert runtime.images.pulled_with[0].registry_token == secret


def test_log_lines_of_one_call_share_its_request_id(cri: RuntimeServiceStub, runtime: FakeRuntime) -> None:
    seen: list[str] = []
    runtime.during = lambda: seen.append(structlog.contextvars.get_contextvars()["request_id"])
    run_pod(cri, "one")
    run_pod(cri, "two")
    assert len(set(seen)) == 2
    assert structlog.contextvars.get_contextvars() == {}


# -- the socket


def test_the_socket_is_for_its_owner_and_group_only(node: Node) -> None:
    found = node.path.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o660
    assert found.st_gid == os.getgid()


def test_nothing_is_left_beside_the_socket(node: Node) -> None:
    assert os.listdir(node.path.parent) == [node.path.name]


def test_a_successor_takes_over_while_the_first_still_serves(node: Node, directory: Path) -> None:
    old = RuntimeServiceStub(node.channel())
    old.Version(pb.VersionRequest())
    later = FakeRuntime()
    successor = Node(later, node.path, GrpcConfig(threads=4))
    # In one process both have the same pid, hence the same name beside the path: the first has left it by now.
    successor.server.start()
    try:
        run_pod(RuntimeServiceStub(successor.channel()))
        assert len(later.sandboxes()) == 1
        old.Version(pb.VersionRequest())
        node.server.stop(0)
        assert answers(node.path)
        run_pod(RuntimeServiceStub(successor.channel()), "two")
        assert len(later.sandboxes()) == 2
    finally:
        successor.close()


def test_an_abandoned_socket_is_taken_over(runtime: FakeRuntime, directory: Path) -> None:
    first = Node(runtime, directory / "s.sock", GrpcConfig(threads=2))
    first.server.start()
    first.close()
    assert (directory / "s.sock").exists()
    second = Node(runtime, directory / "s.sock", GrpcConfig(threads=2))
    second.server.start()
    assert RuntimeServiceStub(second.channel()).Version(pb.VersionRequest()).runtime_name == "forgeone"
    second.close()


def test_sockets_of_servers_killed_on_their_way_are_swept_and_no_others(runtime: FakeRuntime, directory: Path) -> None:
    dead = "4194304"  # no process has it: pids are below pid_max, which is at most this
    with socket.socket(socket.AF_UNIX) as gone, socket.socket(socket.AF_UNIX) as alive:
        gone.bind(str(directory / f"s.sock.{dead}"))
        alive.bind(str(directory / f"s.sock.{dead}0"))
        alive.listen()
        (directory / f"s.sock.{dead}00").write_text("precious")
        with socket.socket(socket.AF_UNIX) as starting, socket.socket(socket.AF_UNIX) as other:
            starting.bind(str(directory / f"s.sock.{os.getppid()}"))
            other.bind(str(directory / f"t.sock.{dead}"))
        node = Node(runtime, directory / "s.sock", GrpcConfig(threads=2))
        node.server.start()
        left = {"s.sock", f"s.sock.{dead}0", f"s.sock.{dead}00", f"s.sock.{os.getppid()}", f"t.sock.{dead}"}
        assert set(os.listdir(directory)) == left
        node.close()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_not_replaced(runtime: FakeRuntime, directory: Path, kind: str) -> None:
    path = directory / "s.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/etc/passwd")
    node = Node(runtime, path, GrpcConfig(threads=2))
    with pytest.raises(InternalError, match="is not a socket"):
        node.server.start()
    assert not stat.S_ISSOCK(path.lstat().st_mode)
    node.close()


def test_a_stop_lets_a_call_under_way_finish(node: Node, runtime: FakeRuntime) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def during() -> None:
        begun.set()
        go_on.wait(10)

    runtime.during = during
    call = RuntimeServiceStub(node.channel()).RunPodSandbox.future(pb.RunPodSandboxRequest(config=pod_config()))
    assert begun.wait(10)
    stopper = threading.Thread(target=node.server.stop, args=(10,))
    stopper.start()
    go_on.set()
    assert call.result(timeout=10).pod_sandbox_id
    stopper.join(10)
    assert not stopper.is_alive()


def test_a_stop_does_not_wait_longer_than_its_grace(node: Node, runtime: FakeRuntime) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def during() -> None:
        begun.set()
        go_on.wait(30)

    runtime.during = during
    call = RuntimeServiceStub(node.channel()).RunPodSandbox.future(pb.RunPodSandboxRequest(config=pod_config()))
    assert begun.wait(10)
    started = time.monotonic()
    node.server.stop(0.1)
    assert time.monotonic() - started < 5
    assert call.exception(timeout=10) is not None
    go_on.set()
