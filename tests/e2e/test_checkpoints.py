"""Checkpoints of containers and pods, and pods made from them.

They need CRIU and a crun that was built with it, which not every distribution has: ``crun`` if it is such a one, or
what ``FORGEONE_TEST_CRUN`` names. What a host without them answers is tested everywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from hack.lab.daemon import Daemon
from hack.lab.settings import patient
from tests.e2e.pods import Pod

pytestmark = pytest.mark.root

COUNT = "i=0; while :; do i=$((i+1)); echo $i; echo $i > /counted; sleep 0.05; done"


def _crun() -> str:
    path = os.environ.get("FORGEONE_TEST_CRUN", "crun")
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return path if "+CRIU" in said.split() and shutil.which("criu") else ""


with_criu = pytest.mark.skipif(not _crun(), reason="no crun built with CRIU here, or no criu")


@pytest.fixture
def node(daemon_factory: Callable[..., Daemon], busybox: str) -> Daemon:
    daemon = daemon_factory({"native.crun": shutil.which(_crun()) or _crun()})
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)))
    return daemon


@pytest.fixture
def pod(node: Daemon) -> Iterator[Pod]:
    running = Pod.plan(node).run()
    yield running
    running.remove()


def _counted(pod: Pod, container_id: str) -> int:
    return int(pod.log(container_id).split()[-1])


def _counts_on(pod: Pod, container_id: str) -> int:
    before, until = _counted(pod, container_id), time.monotonic() + 10
    while (now := _counted(pod, container_id)) <= before:
        assert time.monotonic() < until, "it does not go on"
        time.sleep(0.05)
    return now


def _await_count(pod: Pod, container_id: str, number: int) -> None:
    until = time.monotonic() + patient(20)
    while len(pod.log(container_id).split()) < number:
        assert time.monotonic() < until
        time.sleep(0.05)


@with_criu
def test_a_running_container_is_saved_into_an_archive_and_goes_on(pod: Pod, busybox: str, tmp_path: Path) -> None:
    id_ = pod.start(pod.container(busybox, "sh", "-c", f"rm /etc/group; ln -s x /link; {COUNT}"))
    _await_count(pod, id_, 3)
    location = tmp_path / "checkpoint.tar"
    location.write_text("an older one")
    request = pb.CheckpointContainerRequest(container_id=id_, location=str(location))
    pod.daemon.runtime.CheckpointContainer(request, timeout=60)
    _counts_on(pod, id_)
    assert pod.exec(id_, "true").exit_code == 0
    assert oct(location.stat().st_mode & 0o777) == "0o600"
    with tarfile.open(location) as archive:
        names = archive.getnames()
        assert {"config.dump", "spec.dump", "rootfs-diff.tar", "deleted.files", "dump.log", "stats-dump"} <= set(names)
        assert any(name.startswith("checkpoint/core-") for name in names)
        config = json.load(archive.extractfile("config.dump"))  # type: ignore[arg-type]
        assert (config["id"], config["rootfsImageName"]) == (id_, busybox)
        assert json.load(archive.extractfile("deleted.files")) == ["etc/group"]  # type: ignore[arg-type]
        with tarfile.open(fileobj=archive.extractfile("rootfs-diff.tar")) as diff:
            assert {"counted", "link", "etc/.wh.group"} <= set(diff.getnames())
    assert not list(Path(pod.daemon.config.root, "checkpoints").iterdir())


@with_criu
def test_a_pod_goes_on_in_another_pod_where_it_was_saved(pod: Pod, busybox: str, tmp_path: Path) -> None:
    daemon = pod.daemon
    names = ("first", "second")
    configs = [pod.container(busybox, "sh", "-c", f"rm -f /etc/group; {COUNT}", name=name) for name in names]
    ids = [pod.start(config) for config in configs]
    for id_ in ids:
        _await_count(pod, id_, 3)
    request = pb.CheckpointPodRequest(pod_sandbox_id=pod.id, output_path=str(tmp_path), container_ids=ids)
    daemon.runtime.CheckpointPod(request, timeout=60)
    saved = [_counts_on(pod, id_) for id_ in ids]
    other = Pod.plan(daemon)
    restore = pb.RestorePodRequest(
        checkpoint_path=str(tmp_path), config=other.config, container_configs=list(reversed(configs))
    )
    answer = daemon.runtime.RestorePod(restore, timeout=60)
    again = daemon.runtime.RestorePod(restore, timeout=60)
    assert answer == again, "a repeated call is the same pod"
    other.id = answer.pod_sandbox_id
    try:
        assert other.id != pod.id
        restored = {one.name: one.container_id for one in answer.restored_containers}
        assert set(restored) == set(names)
        shutil.rmtree(tmp_path)
        daemon.kill()
        for id_ in restored.values():
            # As of a restore that was cut off.
            Path(daemon.config.state, "exits", id_).write_text("5")
        daemon.start()
        for name, before in zip(names, saved, strict=True):
            id_ = restored[name]
            assert other.status(id_).state == pb.CONTAINER_CREATED
            daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=id_), timeout=60)
            _await_count(other, id_, 1)
            first = int(other.log(id_).split()[0])
            assert 3 <= first <= before, "it went on from the checkpoint, neither anew nor later"
            _counts_on(other, id_)
            # The file is empty for a moment each time it is written.
            wait = "until [ -s /tmp/x ]; do cat /counted > /tmp/x; done; cat /tmp/x"
            said = other.exec(id_, "sh", "-c", f"ls /etc/group; hostname; {wait}")
            assert b"No such file" in said.stderr
            assert int(said.stdout.split()[-1]) >= first
        address = other.exec(restored["first"], "sh", "-c", "ip -4 -o addr show eth0").stdout.decode()
        status = daemon.runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=other.id)).status
        assert status.network.ip in address
        daemon.kill()
        daemon.start()
        _counts_on(other, restored["second"])
        other.stop_container(restored["second"])
        assert other.status(restored["second"]).exit_code == 137
    finally:
        other.remove()


@with_criu
def test_a_restored_container_that_is_never_started_can_be_removed(pod: Pod, busybox: str, tmp_path: Path) -> None:
    config = pod.container(busybox, "sh", "-c", COUNT)
    id_ = pod.start(config)
    _await_count(pod, id_, 1)
    request = pb.CheckpointPodRequest(pod_sandbox_id=pod.id, output_path=str(tmp_path), container_ids=[id_])
    pod.daemon.runtime.CheckpointPod(request, timeout=60)
    other = Pod.plan(pod.daemon)
    restore = pb.RestorePodRequest(checkpoint_path=str(tmp_path), config=other.config, container_configs=[config])
    answer = pod.daemon.runtime.RestorePod(restore, timeout=60)
    other.id = answer.pod_sandbox_id
    other.stop()
    assert other.status(answer.restored_containers[0].container_id).state == pb.CONTAINER_EXITED
    other.remove()


@with_criu
def test_a_restored_pod_whose_engine_is_open_gets_the_one_that_it_was_saved_on(
    pod: Pod, busybox: str, tmp_path: Path
) -> None:
    config = pod.container(busybox, "sh", "-c", COUNT)
    id_ = pod.start(config)
    _await_count(pod, id_, 1)
    request = pb.CheckpointPodRequest(pod_sandbox_id=pod.id, output_path=str(tmp_path), container_ids=[id_])
    pod.daemon.runtime.CheckpointPod(request, timeout=60)
    other, demanding = Pod.plan(pod.daemon), Pod.plan(pod.daemon)
    demanding.config.annotations["zta.forgeone.dev/exec_mode"] = "wasm"
    first, second = (
        pb.RestorePodRequest(
            checkpoint_path=str(tmp_path),
            config=one.config,
            container_configs=[config],
            runtime_handler="forgeone-auto",
        )
        for one in (other, demanding)
    )
    answer = pod.daemon.runtime.RestorePod(first, timeout=60)
    other.id, made = answer.pod_sandbox_id, answer.restored_containers[0].container_id
    pod.daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=made), timeout=60)
    assert other.status(made).state == pb.CONTAINER_RUNNING
    other.remove()
    with pytest.raises(grpc.RpcError, match=r"denied by scheduler: .* its checkpoint is of the native engine"):
        pod.daemon.runtime.RestorePod(second, timeout=60)


@with_criu
def test_a_restore_of_something_else_is_refused_and_leaves_nothing(pod: Pod, busybox: str, tmp_path: Path) -> None:
    daemon = pod.daemon
    config = pod.container(busybox, "sh", "-c", COUNT)
    id_ = pod.start(config)
    _await_count(pod, id_, 1)
    request = pb.CheckpointPodRequest(pod_sandbox_id=pod.id, output_path=str(tmp_path), container_ids=[id_])
    daemon.runtime.CheckpointPod(request, timeout=60)

    def refused(code: grpc.StatusCode, **changes: object) -> None:
        other = Pod.plan(daemon)
        changed = pb.ContainerConfig()
        changed.CopyFrom(config)
        fields: dict[str, object] = {"container_configs": [changed], "checkpoint_path": str(tmp_path), **changes}
        if "command" in changes:
            del changed.command[:]
            changed.command.extend(fields.pop("command"))  # type: ignore[arg-type]
        with pytest.raises(grpc.RpcError) as caught:
            daemon.runtime.RestorePod(pb.RestorePodRequest(config=other.config, **fields), timeout=60)  # type: ignore[arg-type]
        assert caught.value.code() == code, caught.value.details()

    refused(grpc.StatusCode.FAILED_PRECONDITION, command=["sleep", "1"])
    refused(grpc.StatusCode.INVALID_ARGUMENT, container_configs=[])
    refused(grpc.StatusCode.INVALID_ARGUMENT, container_configs=[config, config])
    refused(grpc.StatusCode.INVALID_ARGUMENT, options={"x": "y"})
    refused(grpc.StatusCode.INVALID_ARGUMENT, checkpoint_path=str(tmp_path / "containers"))
    refused(grpc.StatusCode.INVALID_ARGUMENT, runtime_handler="no-such")
    for field, value in (("privileged", True), ("no_new_privs", not config.linux.security_context.no_new_privs)):
        stronger = pb.ContainerConfig()
        stronger.CopyFrom(config)
        setattr(stronger.linux.security_context, field, value)
        refused(grpc.StatusCode.FAILED_PRECONDITION, container_configs=[stronger])
    tmp_path.chmod(0o777)
    refused(grpc.StatusCode.FAILED_PRECONDITION)
    tmp_path.chmod(0o700)
    (tmp_path / "containers" / "0" / "images" / "evil").symlink_to("/etc/shadow")
    refused(grpc.StatusCode.FAILED_PRECONDITION)
    pods = daemon.runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items
    assert [one.id for one in pods] == [pod.id]


@with_criu
def test_a_kill_in_the_middle_leaves_no_container_frozen(pod: Pod, busybox: str, tmp_path: Path) -> None:
    id_ = pod.start(pod.container(busybox, "sh", "-c", f"head -c 200000000 /dev/zero > /big; {COUNT}"))
    _await_count(pod, id_, 1)

    def save() -> None:
        request = pb.CheckpointContainerRequest(container_id=id_, location=str(tmp_path / "x.tar"))
        with contextlib.suppress(grpc.RpcError, ValueError):
            pod.daemon.runtime.CheckpointContainer(request, timeout=60)

    for wait in (0.1, 0.3, 0.6):
        saving = threading.Thread(target=save)
        saving.start()
        time.sleep(wait)
        pod.daemon.kill()
        saving.join(30)
        pod.daemon.start()
        _counts_on(pod, id_)
        assert not Path(pod.daemon.config.root, "checkpoints").exists()


# Half a gigabyte of memory, which takes CRIU a while.
LARGE = f"mkfifo /f; (head -c 500000000 /dev/zero; cat /f) | tail & {COUNT}"


def _is_saved_no_more(pod: Pod) -> None:
    until, checkpoints = time.monotonic() + 60, Path(pod.daemon.config.root, "checkpoints")
    while checkpoints.exists() and any(checkpoints.iterdir()):
        assert time.monotonic() < until, "it never gives up"
        time.sleep(0.1)


@with_criu
def test_a_checkpoint_that_takes_too_long_leaves_nothing_frozen(pod: Pod, busybox: str, tmp_path: Path) -> None:
    id_ = pod.start(pod.container(busybox, "sh", "-c", LARGE))
    _await_count(pod, id_, 60)
    for seconds in (0.3, 0.6, 1.0):
        request = pb.CheckpointContainerRequest(container_id=id_, location=str(tmp_path / "x.tar"))
        with contextlib.suppress(grpc.RpcError):
            pod.daemon.runtime.CheckpointContainer(request, timeout=seconds)
        _is_saved_no_more(pod)
        _counts_on(pod, id_)


@with_criu
def test_a_kill_while_criu_is_at_work_leaves_nothing_frozen(pod: Pod, busybox: str, tmp_path: Path) -> None:
    id_ = pod.start(pod.container(busybox, "sh", "-c", LARGE))
    _await_count(pod, id_, 60)
    request = pb.CheckpointContainerRequest(container_id=id_, location=str(tmp_path / "x.tar"))
    with contextlib.suppress(grpc.RpcError):
        pod.daemon.runtime.CheckpointContainer(request, timeout=0.4)
    pod.daemon.kill()
    pod.daemon.start()
    _counts_on(pod, id_)
    words = ["pgrep", "-f", f"^crun.* checkpoint .*{id_}"]
    until = time.monotonic() + 60
    while not subprocess.run(words, capture_output=True, check=False).returncode:
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(0.2)
    _counts_on(pod, id_)


@with_criu
def test_a_stop_does_not_wait_for_a_checkpoint(pod: Pod, busybox: str, tmp_path: Path) -> None:
    # A file that is nearly all hole would take long to save.
    id_ = pod.start(pod.container(busybox, "sh", "-c", f"dd of=/big bs=1 count=0 seek=1000000000000; {COUNT}"))
    _await_count(pod, id_, 1)
    said: list[grpc.StatusCode] = []

    def save() -> None:
        request = pb.CheckpointContainerRequest(container_id=id_, location=str(tmp_path / "x.tar"))
        try:
            pod.daemon.runtime.CheckpointContainer(request, timeout=120)
        except grpc.RpcError as error:
            said.append(error.code())

    saving = threading.Thread(target=save)
    saving.start()
    time.sleep(1.0)
    began = time.monotonic()
    pod.stop_container(id_)
    assert time.monotonic() - began < patient(8)
    saving.join(60)
    assert said == [grpc.StatusCode.FAILED_PRECONDITION]
    assert pod.status(id_).exit_code == 137
    assert not list(tmp_path.iterdir())


def test_a_host_without_criu_says_what_to_install(forgeoned: Daemon, busybox: str, tmp_path: Path) -> None:
    if _crun() == "crun":
        pytest.skip("this host's crun has CRIU")
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)))
    pod = Pod.plan(forgeoned).run()
    try:
        id_ = pod.start(pod.container(busybox))
        single = pb.CheckpointContainerRequest(container_id=id_, location=str(tmp_path / "x.tar"))
        whole = pb.CheckpointPodRequest(pod_sandbox_id=pod.id, output_path=str(tmp_path), container_ids=[id_])
        for call in (
            lambda: forgeoned.runtime.CheckpointContainer(single, timeout=60),
            lambda: forgeoned.runtime.CheckpointPod(whole, timeout=60),
        ):
            with pytest.raises(grpc.RpcError, match=r"CRIU|criu") as refused:
                call()
            assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert not list(tmp_path.iterdir())
        assert pod.exec(id_, "true").exit_code == 0
    finally:
        pod.remove()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"container_ids": []}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"container_ids": ["no-such"]}, grpc.StatusCode.NOT_FOUND),
        ({"output_path": "relative"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"output_path": "/no/such/directory"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"options": {"x": "y"}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"pod_sandbox_id": "no-such"}, grpc.StatusCode.NOT_FOUND),
    ],
)
def test_a_checkpoint_that_cannot_be_asked_for_is_refused(
    forgeoned: Daemon, busybox: str, tmp_path: Path, changes: dict[str, object], code: grpc.StatusCode
) -> None:
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)))
    pod = Pod.plan(forgeoned).run()
    try:
        id_ = pod.start(pod.container(busybox))
        fields = {"pod_sandbox_id": pod.id, "output_path": str(tmp_path), "container_ids": [id_], **changes}
        with pytest.raises(grpc.RpcError) as refused:
            forgeoned.runtime.CheckpointPod(pb.CheckpointPodRequest(**fields), timeout=60)  # type: ignore[arg-type]
        assert refused.value.code() == code, refused.value.details()
        assert not list(tmp_path.iterdir())
    finally:
        pod.remove()
