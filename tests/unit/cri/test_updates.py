"""The updates over the wire."""

from __future__ import annotations

import json

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from cri.api.runtime_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from tests.unit.cri.test_services import create, invalid, run, status


def test_an_update_is_shown_by_the_status(cri: RuntimeServiceStub, images: ImageServiceStub) -> None:
    images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image="busybox")))
    id_ = create(cri, run(cri, "web"))
    limits = pb.LinuxContainerResources(cpu_shares=512, memory_limit_in_bytes=1 << 20)
    cri.UpdateContainerResources(pb.UpdateContainerResourcesRequest(container_id=id_, linux=limits))
    assert status(cri, id_).resources.linux == limits


def test_a_pods_update_is_shown_by_the_verbose_status(cri: RuntimeServiceStub) -> None:
    pod = run(cri, "web")
    overhead = pb.LinuxContainerResources(cpu_shares=9)
    cri.UpdatePodSandboxResources(pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, overhead=overhead))
    answer = cri.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True))
    assert json.loads(answer.info["info"])["config"]["overhead"]["cpu_shares"] == 9


def test_a_value_that_cannot_be_is_named(cri: RuntimeServiceStub) -> None:
    def update(**fields: object) -> None:
        cri.UpdateContainerResources(pb.UpdateContainerResourcesRequest(**fields))

    wrong = pb.LinuxContainerResources(cpu_period=-1)
    assert "container_id" in invalid(lambda: update(linux=wrong))
    assert "linux.cpu_period" in invalid(lambda: update(container_id="c", linux=wrong))
    assert "windows" in invalid(lambda: update(container_id="c", windows=pb.WindowsContainerResources()))


def test_what_does_not_exist_is_not_found(cri: RuntimeServiceStub) -> None:
    for call in (
        lambda: cri.UpdateContainerResources(pb.UpdateContainerResourcesRequest(container_id="c")),
        lambda: cri.UpdatePodSandboxResources(pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id="5")),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            call()
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
