"""A pod's life over the CRI socket, on the native engine, from an image in a real registry."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from hack.lab.daemon import Daemon
from tests.e2e.pods import Pod

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def image(forgeoned: Daemon, busybox: str) -> str:
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    return busybox


@pytest.fixture
def pod(forgeoned: Daemon, image: str) -> Iterator[Pod]:
    pod = Pod.plan(forgeoned).run()
    yield pod
    pod.remove()


def test_a_pod_prints_its_log_line(pod: Pod, image: str) -> None:
    id_ = pod.start(pod.container(image, "sh", "-c", "echo hello; echo oops >&2; exit 3"))
    status = pod.wait(id_)
    assert (status.exit_code, status.reason) == (3, "Error")
    assert status.created_at <= status.started_at <= status.finished_at
    lines = Path(status.log_path).read_text().splitlines()
    assert sorted(line.split(" ", 1)[1] for line in lines) == ["stderr F oops", "stdout F hello"]
    images = pod.daemon.images.ListImages(pb.ListImagesRequest()).images
    assert status.image_id in {i.id for i in images}


def test_the_pod_has_its_own_hostname_hosts_resolver_and_loopback(pod: Pod, image: str) -> None:
    address = pod.daemon.runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=pod.id)).status.network.ip
    text = pod.output(image, "sh", "-c", "hostname; cat /etc/hosts; ifconfig lo; ls /etc/resolv.conf")
    assert text.startswith("tester\n")
    assert address in text
    assert "127.0.0.1" in text


def test_two_containers_of_a_pod_share_network_and_shared_memory_but_not_processes(pod: Pod, image: str) -> None:
    first = pod.start(pod.container(image, "sh", "-c", "echo x >/dev/shm/f; nc -l -p 8000 -e echo hi", name="a"))
    pod.wait(first, pb.CONTAINER_RUNNING)
    second = pod.start(pod.container(image, name="b"))
    until = time.monotonic() + 10
    while b"x" not in (seen := pod.exec(second, "cat", "/dev/shm/f")).stdout:
        assert time.monotonic() < until, seen
    assert pod.exec(second, "sh", "-c", "nc 127.0.0.1 8000 </dev/null").stdout == b"hi\n"
    assert b"nc" not in pod.exec(second, "ps").stdout


def test_in_a_pod_wide_process_namespace_containers_see_each_other(forgeoned: Daemon, image: str) -> None:
    pod = Pod.plan(forgeoned, pid=pb.POD).run()
    try:
        pod.start(pod.container(image, "sleep", "1234", name="a"))
        other = pod.start(pod.container(image, name="b"))
        assert b"sleep 1234" in pod.exec(other, "ps").stdout
        # An orphan is reaped by the pod's init.
        assert pod.exec(other, "sh", "-c", "(true &) ; sleep 0.1; ps | grep -c '[Zz]ombie' || true").stdout == b"0\n"
    finally:
        pod.remove()


def test_exec_gives_both_streams_and_the_exit_code(pod: Pod, image: str) -> None:
    id_ = pod.start(pod.container(image))
    result = pod.exec(id_, "sh", "-c", "echo out; echo err >&2; exit 9")
    assert (result.stdout, result.stderr, result.exit_code) == (b"out\n", b"err\n", 9)
    many = pod.exec(id_, "sh", "-c", "yes | head -c 3000000")
    assert len(many.stdout) == 3_000_000


def test_exec_is_killed_at_its_timeout_and_the_container_lives_on(pod: Pod, image: str) -> None:
    id_ = pod.start(pod.container(image))
    with pytest.raises(grpc.RpcError) as error:
        pod.exec(id_, "sleep", "555", timeout=1)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert b"555" not in pod.exec(id_, "ps").stdout
    assert pod.status(id_).state == pb.CONTAINER_RUNNING


def test_a_graceful_stop_lets_the_container_finish_its_work(pod: Pod, image: str) -> None:
    script = "trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.05; done"
    id_ = pod.start(pod.container(image, "sh", "-c", script))
    until = time.monotonic() + 10
    while "ready" not in pod.log(id_):
        assert time.monotonic() < until
    pod.stop_container(id_, grace=10)
    assert pod.status(id_).exit_code == 4
    assert "bye" in pod.log(id_)


def test_a_stop_kills_after_its_grace_period_and_a_second_one_shortens_it(pod: Pod, image: str) -> None:
    id_ = pod.start(pod.container(image, "sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"))
    time.sleep(0.2)
    began = time.monotonic()
    patient = threading.Thread(target=lambda: pod.stop_container(id_, grace=60))
    patient.start()
    time.sleep(0.2)
    pod.stop_container(id_, grace=1)
    patient.join(10)
    assert not patient.is_alive()
    assert time.monotonic() - began < 10
    assert pod.status(id_).exit_code == 137


def test_the_same_name_and_attempt_again_is_the_same_pod_and_container(pod: Pod, image: str) -> None:
    again = Pod(pod.daemon, pod.config).run()
    assert again.id == pod.id
    config = pod.container(image)
    assert pod.create(config) == pod.create(config)


def test_calls_for_one_pod_at_the_same_time_make_one_pod(forgeoned: Daemon, image: str) -> None:
    plan = Pod.plan(forgeoned)
    pods = [Pod(forgeoned, plan.config) for _ in range(6)]
    threads = [threading.Thread(target=pod.run) for pod in pods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({pod.id for pod in pods}) == 1
    pods[0].remove()


@pytest.mark.usefixtures("nothing_left")
def test_a_deadline_that_passes_undoes_what_was_done(forgeoned: Daemon, image: str) -> None:
    for micros in range(1000, 60_000, 3000):
        pod = Pod.plan(forgeoned)
        try:
            pod.run(timeout=micros / 1e6)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED, error
        # The caller cannot know how far it came: asking again settles it, and nothing is reserved.
        pod.run()
        pod.remove()


@pytest.mark.usefixtures("nothing_left")
def test_a_command_that_does_not_exist_is_said_so_and_leaves_nothing(forgeoned: Daemon, image: str) -> None:
    pod = Pod.plan(forgeoned).run()
    with pytest.raises(grpc.RpcError) as error:
        pod.start(pod.container(image, "/no/such/program"))
    assert "/no/such/program" in error.value.details()
    listed = forgeoned.runtime.ListContainers(
        pb.ListContainersRequest(filter=pb.ContainerFilter(pod_sandbox_id=pod.id))
    )
    assert not [c for c in listed.containers if c.state == pb.CONTAINER_RUNNING]
    pod.remove()


def test_a_command_that_does_not_exist_ends_its_container_when_it_is_started(pod: Pod, image: str) -> None:
    id_ = pod.create(pod.container(image, "/no/such/program"))
    assert pod.status(id_).state == pb.CONTAINER_CREATED
    with pytest.raises(grpc.RpcError, match="/no/such/program"):
        pod.daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=id_), timeout=60)
    ended = pod.status(id_)
    assert (ended.state, ended.exit_code, ended.reason) == (pb.CONTAINER_EXITED, 128, "StartError")
    assert "/no/such/program" in ended.message
    assert ended.finished_at
    assert not ended.started_at
    with pytest.raises(grpc.RpcError, match="cannot start"):
        pod.daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=id_), timeout=60)
    assert pod.daemon.runtime.ListContainerStats(pb.ListContainerStatsRequest(), timeout=60)
    assert pod.output(image, "echo", "another") == "another\n"


@pytest.mark.parametrize("how", ["stop", "remove", "restart"])
def test_a_container_that_cannot_start_can_be_let_go_before(
    fresh_forgeoned: Daemon, busybox: str, how: str, request: pytest.FixtureRequest
) -> None:
    daemon = fresh_forgeoned
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    pod = Pod.plan(daemon).run()
    request.addfinalizer(pod.remove)
    id_ = pod.create(pod.container(busybox, "/no/such/program"))
    if how == "restart":
        daemon.kill()
        daemon.start()
        assert pod.status(id_).state == pb.CONTAINER_CREATED
        with pytest.raises(grpc.RpcError, match="/no/such/program"):
            daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=id_), timeout=60)
    began = time.monotonic()
    if how == "remove":
        daemon.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=id_), timeout=60)
    else:
        pod.stop_container(id_, grace=30)
        assert pod.status(id_).exit_code == 128
    assert time.monotonic() - began < 5


@pytest.mark.usefixtures("nothing_left")
def test_stop_and_remove_are_idempotent_and_remove_forces(forgeoned: Daemon, image: str) -> None:
    pod = Pod.plan(forgeoned).run()
    id_ = pod.start(pod.container(image))
    forgeoned.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=id_))
    forgeoned.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=id_))
    pod.start(pod.container(image, attempt=1))
    forgeoned.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod.id))
    pod.remove()
    pod.remove()


def test_memory_beyond_the_limit_is_reported_as_oom(pod: Pod, image: str) -> None:
    config = pod.container(image, "sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1")
    config.linux.resources.memory_limit_in_bytes = 16 << 20
    status = pod.wait(pod.start(config))
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


def test_a_child_killed_for_memory_is_told_at_the_container_s_end(pod: Pod, image: str) -> None:
    config = pod.container(image, "sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1; echo went on; exit 3")
    config.linux.resources.memory_limit_in_bytes = 16 << 20
    id_ = pod.start(config)
    status = pod.wait(id_)
    assert "went on" in pod.log(id_)
    assert (status.exit_code, status.reason) == (3, "OOMKilled")


def test_the_log_is_reopened_after_a_rotation_without_losing_a_line(pod: Pod, image: str) -> None:
    script = "i=0; while [ $i -lt 400 ]; do echo line-$i; i=$((i+1)); usleep 2000 2>/dev/null || sleep 0.002; done"
    id_ = pod.start(pod.container(image, "sh", "-c", script))
    path = Path(pod.status(id_).log_path)
    time.sleep(0.2)
    rotated = path.with_suffix(".1")
    path.rename(rotated)
    pod.daemon.runtime.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=id_))
    assert path.exists()
    pod.wait(id_)
    text = rotated.read_text() + path.read_text()
    assert [line.rsplit(" ", 1)[1] for line in text.splitlines()] == [f"line-{i}" for i in range(400)]


def test_a_host_network_pod_sees_the_hosts_links(forgeoned: Daemon, image: str) -> None:
    pod = Pod.plan(forgeoned)
    pod.config.hostname = ""
    pod.config.linux.security_context.namespace_options.network = pb.NODE
    pod.run()
    try:
        config = pod.container(image, "ifconfig", "-a")
        config.linux.security_context.namespace_options.network = pb.NODE
        id_ = pod.start(config)
        pod.wait(id_)
        assert forgeoned.config.network.bridge in pod.log(id_)
    finally:
        pod.remove()


def test_pods_reach_each_other_and_a_host_port(forgeoned: Daemon, image: str) -> None:
    server = Pod.plan(forgeoned)
    mapping = server.config.port_mappings.add(container_port=8080, host_port=28080)
    assert mapping.protocol == pb.TCP
    server.run()
    client = Pod.plan(forgeoned).run()
    try:
        id_ = server.start(server.container(image, "nc", "-ll", "-p", "8080", "-e", "echo", "served"))
        server.wait(id_, pb.CONTAINER_RUNNING)
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=server.id)
        address = forgeoned.runtime.PodSandboxStatus(request).status.network.ip
        caller = client.start(client.container(image))
        until = time.monotonic() + 10
        while client.exec(caller, "sh", "-c", f"nc {address} 8080 </dev/null").stdout != b"served\n":
            assert time.monotonic() < until
    finally:
        server.remove()
        client.remove()


def test_an_image_can_be_a_volume_that_nobody_writes_to(pod: Pod, image: str, forgeoned: Daemon) -> None:
    config = pod.container(image)
    config.mounts.add(container_path="/image", readonly=True).image.image = image
    config.mounts.add(container_path="/etc-of-it", readonly=True, image_sub_path="etc").image.image = image
    id_ = pod.start(config)
    found = pod.exec(id_, "sh", "-c", "ls /image/bin/sh /etc-of-it/passwd; /image/bin/sh -c 'echo ran'; touch /image/x")
    assert found.stdout == b"/etc-of-it/passwd\n/image/bin/sh\nran\n"
    assert b"Read-only" in found.stderr
    status = forgeoned.runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=id_)).status
    assert [(one.container_path, one.image.image_ref) for one in status.mounts] == [
        ("/image", status.image_id),
        ("/etc-of-it", status.image_id),
    ]


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("readonly", False, grpc.StatusCode.INVALID_ARGUMENT),
        ("image_sub_path", "no/such", grpc.StatusCode.INVALID_ARGUMENT),
        ("image", pb.ImageSpec(image="no-such-image:x"), grpc.StatusCode.NOT_FOUND),
    ],
)
def test_an_image_volume_that_cannot_be_is_refused(
    pod: Pod, image: str, field: str, value: object, code: grpc.StatusCode
) -> None:
    config = pod.container(image)
    one = config.mounts.add(container_path="/image", readonly=True)
    one.image.image = image
    if isinstance(value, pb.ImageSpec):
        one.image.CopyFrom(value)
    else:
        setattr(one, field, value)
    with pytest.raises(grpc.RpcError) as caught:
        pod.create(config)
    assert caught.value.code() is code
    request = pb.ListContainersRequest(filter=pb.ContainerFilter(pod_sandbox_id=pod.id))
    assert not pod.daemon.runtime.ListContainers(request).containers
