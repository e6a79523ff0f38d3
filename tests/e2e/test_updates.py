"""Limits of a running container, as this kernel keeps them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from forgeone_shim.kernel.cgroups import Mode
from hack.lab.daemon import Daemon
from hack.lab.settings import cgroup_host
from tests.e2e.pods import Pod

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

MIB = 1 << 20
HOST = cgroup_host()


@pytest.fixture(scope="module")
def image(forgeoned: Daemon, busybox: str) -> str:
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    return busybox


@pytest.fixture
def pod(forgeoned: Daemon) -> Iterator[Pod]:
    pod = Pod.plan(forgeoned).run()
    yield pod
    pod.remove()


def start(pod: Pod, image: str, *command: str, memory: int = 64 * MIB) -> str:
    config = pod.container(image, *command)
    config.linux.resources.memory_limit_in_bytes = memory
    config.linux.resources.cpu_shares = 100
    return pod.start(config)


def update(pod: Pod, id_: str, **limits: object) -> None:
    request = pb.UpdateContainerResourcesRequest(container_id=id_, linux=pb.LinuxContainerResources(**limits))
    pod.daemon.runtime.UpdateContainerResources(request, timeout=60)


def limit(pod: Pod, id_: str, controller: str, v1: str, v2: str) -> str:
    parent = pod.daemon.config.cgroup_root
    directory = HOST.directory(controller, HOST.container(parent, id_))
    return Path(directory or "", v2 if HOST.mode is Mode.V2 else v1).read_text().strip()


def memory(pod: Pod, id_: str) -> int:
    return int(limit(pod, id_, "memory", "memory.limit_in_bytes", "memory.max"))


def test_new_limits_are_the_kernels_and_are_shown_and_outlive_forgeoned(pod: Pod, image: str) -> None:
    id_ = start(pod, image)
    update(pod, id_, memory_limit_in_bytes=128 * MIB, cpu_quota=50000, cpu_period=200000, cpu_shares=512)
    update(pod, id_, memory_limit_in_bytes=32 * MIB)
    assert memory(pod, id_) == 32 * MIB
    quota = limit(pod, id_, "cpu", "cpu.cfs_quota_us", "cpu.max")
    assert quota == ("50000 200000" if HOST.mode is Mode.V2 else "50000")
    pod.daemon.kill()
    pod.daemon.start()
    shown = pod.status(id_).resources.linux
    assert (shown.memory_limit_in_bytes, shown.cpu_quota, shown.cpu_period) == (32 * MIB, 50000, 200000)
    assert shown.cpu_shares == 512
    assert memory(pod, id_) == 32 * MIB
    assert pod.exec(id_, "true").exit_code == 0


def test_a_container_that_waits_can_be_updated(pod: Pod, image: str) -> None:
    config = pod.container(image)
    id_ = pod.create(config)
    update(pod, id_, memory_limit_in_bytes=48 * MIB)
    assert memory(pod, id_) == 48 * MIB


def test_a_limit_below_what_is_in_use_is_refused_with_figures_and_undone(pod: Pod, image: str) -> None:
    # What is on a tmpfs can only be swapped out, which this container may not.
    fill = "head -c 20000000 /dev/zero > /dev/shm/x && echo full; sleep 1000"
    id_ = start(pod, image, "sh", "-c", fill, memory=256 * MIB)
    while "full" not in pod.log(id_):
        time.sleep(0.02)
    with pytest.raises(grpc.RpcError) as raised:
        update(pod, id_, memory_limit_in_bytes=4 * MIB, cpu_shares=512)
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"{4 * MIB} bytes is below the " in raised.value.details()
    assert memory(pod, id_) == 256 * MIB
    assert limit(pod, id_, "cpu", "cpu.shares", "cpu.weight") == ("4" if HOST.mode is Mode.V2 else "100")
    assert pod.status(id_).resources.linux.cpu_shares == 100
    assert pod.status(id_).state == pb.CONTAINER_RUNNING


def test_a_cpu_the_pod_has_not_is_refused(pod: Pod, image: str) -> None:
    id_ = start(pod, image)
    with pytest.raises(grpc.RpcError, match=r"cpuset_cpus: 0-4095 is not within its pod's"):
        update(pod, id_, cpuset_cpus="0-4095")
    update(pod, id_, cpuset_cpus="0")
    assert limit(pod, id_, "cpuset", "cpuset.cpus", "cpuset.cpus") == "0"


def test_an_ended_container_is_not_updated(pod: Pod, image: str) -> None:
    id_ = start(pod, image, "true")
    pod.wait(id_)
    with pytest.raises(grpc.RpcError, match="its limits cannot change"):
        update(pod, id_, cpu_shares=512)


def test_a_pods_resources_are_kept(pod: Pod) -> None:
    resources = pb.LinuxContainerResources(memory_limit_in_bytes=99 * MIB)
    request = pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod.id, resources=resources)
    pod.daemon.runtime.UpdatePodSandboxResources(request, timeout=60)
    asked = pb.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True)
    assert str(99 * MIB) in pod.daemon.runtime.PodSandboxStatus(asked, timeout=60).info["info"]
