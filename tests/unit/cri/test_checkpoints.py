"""Checkpoints over CRI: what is handed on, and what is refused before anything is done."""

from __future__ import annotations

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from cri.api.runtime_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from tests.unit.cri.conftest import container_config, pod_config
from tests.unit.cri.fakes import FakeRuntime


def refused(call: object, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call()  # type: ignore[operator]
    assert caught.value.code() is code
    return str(caught.value.details())


def test_a_container_s_checkpoint_has_the_callers_time_or_our_own(
    cri: RuntimeServiceStub, runtime: FakeRuntime
) -> None:
    for timeout in (0, 7):
        request = pb.CheckpointContainerRequest(container_id="c", location="/x.tar", timeout=timeout)
        cri.CheckpointContainer(request)
    (id_, location, default), (_, _, given) = runtime.checkpoints
    assert (id_, location) == ("c", "/x.tar")
    assert 100 < default <= 120  # type: ignore[operator]
    assert 6 < given <= 7  # type: ignore[operator]


def test_a_container_s_checkpoint_names_what_and_where(cri: RuntimeServiceStub) -> None:
    assert "container_id" in refused(lambda: cri.CheckpointContainer(pb.CheckpointContainerRequest(location="/x")))
    assert "location" in refused(lambda: cri.CheckpointContainer(pb.CheckpointContainerRequest(container_id="c")))
    negative = pb.CheckpointContainerRequest(container_id="c", location="/x", timeout=-1)
    assert "timeout" in refused(lambda: cri.CheckpointContainer(negative))


def test_a_pod_s_checkpoint_must_have_a_deadline(cri: RuntimeServiceStub, runtime: FakeRuntime) -> None:
    request = pb.CheckpointPodRequest(pod_sandbox_id="p", output_path="/x", container_ids=["c"], options={"a": "b"})
    assert "deadline" in refused(lambda: cri.CheckpointPod(request))
    cri.CheckpointPod(request, timeout=5)
    assert runtime.checkpoints == [("p", "/x", ("c",), {"a": "b"})]
    assert "deadline" in refused(
        lambda: cri.RestorePod(pb.RestorePodRequest(checkpoint_path="/x", config=pod_config()))
    )


def test_a_restored_pod_tells_its_containers(cri: RuntimeServiceStub, images: ImageServiceStub) -> None:
    images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image="busybox")))
    request = pb.RestorePodRequest(checkpoint_path="/x", config=pod_config(), container_configs=[container_config()])
    answer = cri.RestorePod(request, timeout=5)
    [one] = answer.restored_containers
    assert (one.name, bool(one.container_id), bool(answer.pod_sandbox_id)) == (
        container_config().metadata.name,
        True,
        True,
    )


def test_a_restored_container_that_cannot_be_is_named_by_its_place(cri: RuntimeServiceStub) -> None:
    bad = container_config()
    bad.ClearField("image")
    request = pb.RestorePodRequest(
        checkpoint_path="/x", config=pod_config(), container_configs=[container_config(), bad]
    )
    assert "container_configs[1].image" in refused(lambda: cri.RestorePod(request, timeout=5))
