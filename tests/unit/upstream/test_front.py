"""Verbs over two runtimes, through real sockets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from cri.api.runtime_pb2_grpc import ImageServiceStub
from cri.call import Call, Relayed
from cri.upstream import lists
from cri.upstream.choice import Choice, Side
from cri.upstream.image import ImageFront
from cri.upstream.link import IMAGE, RUNTIME, Link
from cri.upstream.runtime import RuntimeFront
from cri.upstream.side import Links, Sides
from forgeone_shim.config.model import UpstreamConfig
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, NotFound, Unimplemented
from tests.unit.upstream.conftest import PATIENT, Front, Here, Other, create, pod_config, pull, run

NATIVE = "forgeone-native"


def refused(verb: Callable[..., Any], request: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        verb(request, timeout=PATIENT)
    return raised.value.code(), raised.value.details()


def lacks(name: str) -> Callable[[Any, Any], Any]:
    def verb(_request: object, _call: object) -> None:
        raise Unimplemented(f"unknown method {name}")

    return verb


def test_every_verb_of_cri_has_its_way(here: Here) -> None:
    own = SimpleNamespace(**{method.name: None for service in (RUNTIME, IMAGE) for method in service.methods})
    links = Links(UpstreamConfig())
    sides = Sides(links, here)
    choice = Choice(sides.of_handler, lambda: 0)
    runtime = RuntimeFront(own, here, links, sides, choice).verbs
    assert set(runtime) == {method.name for method in RUNTIME.methods}
    assert set(ImageFront(own, here, links, sides, choice).verbs) == {method.name for method in IMAGE.methods}
    streams = {method.name for method in RUNTIME.methods if method.name.startswith("Stream")}
    assert {*lists.STREAMS, "StreamPodSandboxMetrics"} == streams


# -- pods and containers


def test_a_pod_goes_where_its_handler_is_and_its_verbs_follow(node: Front, here: Here, other: Other) -> None:
    mine, theirs, gpu, kata = run(node, "a", NATIVE), run(node, "b"), run(node, "c", "gpu"), run(node, "d", "kata")
    assert [id_[0] for id_ in (mine, theirs, gpu, kata)] == ["a", "b", "a", "b"]
    assert [view.handler for view in other.runtime.sandboxes()] == ["", "kata"]
    for id_, name in ((mine, "a"), (theirs, "b")):
        status = node.cri.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=id_), timeout=PATIENT).status
        assert (status.id, status.metadata.name) == (id_, name)
    pull(node, "busybox", "a")
    pull(node, "busybox", "b")
    for pod, runtime in ((mine, here), (theirs, other.runtime)):
        id_ = create(node, pod, "busybox")
        node.cri.StartContainer(pb.StartContainerRequest(container_id=id_), timeout=PATIENT)
        answer = node.cri.ExecSync(pb.ExecSyncRequest(container_id=id_, cmd=["x"]), timeout=PATIENT)
        assert (answer.stdout, [one[0] for one in runtime.execs]) == (b"out", [id_])
        node.cri.StopContainer(pb.StopContainerRequest(container_id=id_, timeout=3), timeout=PATIENT)
        assert runtime.stops == [(id_, 3)]
        node.cri.RemoveContainer(pb.RemoveContainerRequest(container_id=id_), timeout=PATIENT)
        node.cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=PATIENT)
        node.cri.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod), timeout=PATIENT)
        assert runtime.containers() == []
    assert [view.id for view in (*here.sandboxes(), *other.runtime.sandboxes())] == [gpu, kata]


def test_pods_that_name_no_handler_may_stay_here(directory: Path, here: Here, other: Other) -> None:
    node = Front(directory / "s.sock", here, UpstreamConfig(socket=str(other.path), default_runtime="forgeone"))
    try:
        assert [run(node, name, handler)[0] for name, handler in (("a", ""), ("b", "kata"))] == ["a", "b"]
    finally:
        node.close()


def test_the_log_is_told_which_pods_went_there(node: Front, here: Here, other: Other) -> None:
    run(node, "a", NATIVE)
    id_ = run(node, "b", "kata")
    pod = {"namespace": "default", "name": "b", "uid": "uid-b", "attempt": 0}
    assert here.beside.told == [(id_, pod, "kata", str(other.path))]


@pytest.mark.parametrize("handler", ["", "kata"])
def test_a_pod_with_a_contract_is_not_started_where_nobody_keeps_it(
    node: Front, here: Here, other: Other, handler: str
) -> None:
    asked = {"zta.forgeone.dev/policy": "strict", "other.example/x": "y"}
    request = pb.RunPodSandboxRequest(config=pod_config("a", **asked), runtime_handler=handler)
    code, words = refused(node.cri.RunPodSandbox, request)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "zta.forgeone.dev/policy" in words
    assert repr(handler) in words
    assert [(annotation, of) for _, annotation, of in here.beside.refused] == [("zta.forgeone.dev/policy", handler)]
    assert other.runtime.sandboxes() == []
    assert run(node, "a", NATIVE, **asked)[0] == "a"


def test_a_container_with_a_contract_is_not_made_there_either(node: Front, other: Other) -> None:
    id_ = run(node)
    config = pb.ContainerConfig(metadata=pb.ContainerMetadata(name="x"), annotations={"zta.forgeone.dev/policy": "a"})
    request = pb.CreateContainerRequest(pod_sandbox_id=id_, config=config, sandbox_config=pod_config())
    assert refused(node.cri.CreateContainer, request)[0] is grpc.StatusCode.FAILED_PRECONDITION
    assert "CreateContainer" not in [name for name, _, _ in other.calls]


def test_a_node_may_keep_pods_to_which_its_policies_apply_from_the_other_one(
    node: Front, here: Here, other: Other
) -> None:
    here.beside.floors = {"default"}
    assert run(node, "a")[0] == "b"
    node.links.follow(UpstreamConfig(socket=str(other.path), policies="deny"))
    ran = pb.RunPodSandboxRequest(config=pod_config("b"), runtime_handler="kata")
    restored = pb.RestorePodRequest(config=pod_config("b"), runtime_handler="kata")
    for verb, request in ((node.cri.RunPodSandbox, ran), (node.cri.RestorePod, restored)):
        assert refused(verb, request)[0] is grpc.StatusCode.FAILED_PRECONDITION
    assert run(node, "c", NATIVE)[0] == "a"
    here.beside.floors = {"payments"}
    assert run(node, "d")[0] == "b"
    assert len(other.runtime.sandboxes()) == 2


def test_a_failure_comes_through_as_it_is(node: Front, other: Other) -> None:
    def fail(_request: object, _call: object) -> None:
        raise Relayed(grpc.StatusCode.DATA_LOSS, "wörds of theirs", (("grpc-status-details-bin", b"\x01"), ("x", "y")))

    other.verbs["PodSandboxStatus"] = fail
    id_ = run(node)
    with pytest.raises(grpc.RpcError) as raised:
        node.cri.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=id_), timeout=PATIENT)
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.DATA_LOSS, "wörds of theirs")
    assert dict(raised.value.trailing_metadata()) == {"grpc-status-details-bin": b"\x01", "x": "y"}  # type: ignore[attr-defined]
    assert node.ended == [("RunPodSandbox", "OK"), ("PodSandboxStatus", "DATA_LOSS")]


def test_a_failure_of_many_words_comes_through_as_well(node: Front, other: Other) -> None:
    """Go takes sixteen megabytes of them, and runtimes tell of each mirror that they have tried."""

    def fail(_request: object, _call: object) -> None:
        raise Relayed(grpc.StatusCode.NOT_FOUND, "tried " * 10_000)

    other.verbs["PullImage"] = fail
    options = [("grpc.max_metadata_size", 1 << 20), ("grpc.absolute_max_metadata_size", 1 << 20)]
    with grpc.insecure_channel(f"unix:{node.path}", options=options) as channel:
        code, words = refused(ImageServiceStub(channel).PullImage, pb.PullImageRequest(image=pb.ImageSpec(image="x")))
    assert (code, len(words)) == (grpc.StatusCode.NOT_FOUND, 60_000)


def test_a_socket_that_leads_back_here_is_told_of(directory: Path, here: Here) -> None:
    (directory / "other.sock").symlink_to(directory / "s.sock")
    node = Front(directory / "s.sock", here, UpstreamConfig(socket=str(directory / "other.sock")))
    try:
        for verb, request in (
            (node.cri.ListPodSandbox, pb.ListPodSandboxRequest()),
            (node.cri.RunPodSandbox, pb.RunPodSandboxRequest(config=pod_config())),
            (node.cri.PodSandboxStatus, pb.PodSandboxStatusRequest(pod_sandbox_id="b" * 64)),
            (lambda *a, **k: list(node.cri.StreamContainers(*a, **k)), pb.StreamContainersRequest()),
        ):
            code, words = refused(verb, request)
            assert (code, "leads back" in words) == (grpc.StatusCode.FAILED_PRECONDITION, True)
        assert conditions(node)["RuntimeReady"] == (False, "UpstreamUnavailable")
        assert run(node, "a", NATIVE)[0] == "a"
    finally:
        node.close()


def test_deadline_and_metadata_go_along(node: Front, other: Other) -> None:
    node.cri.RunPodSandbox(
        pb.RunPodSandboxRequest(config=pod_config()),
        timeout=50,
        metadata=(("traceparent", "00-1-2-01"), ("x-bin", b"\0")),
    )
    [(_, _, call)] = [one for one in other.calls if one[0] == "RunPodSandbox"]
    metadata = dict(call.metadata())
    assert (metadata["traceparent"], metadata["x-bin"]) == ("00-1-2-01", b"\0")
    assert other.runtime.deadlines[0] is not None
    assert 40 < other.runtime.deadlines[0] <= 51


def test_what_its_client_gives_up_is_given_up_there(node: Front, other: Other) -> None:
    begun, gone = threading.Event(), threading.Event()

    def wait(_request: object, call: Any) -> None:
        call.deadline.listen(gone.set)
        begun.set()
        gone.wait(PATIENT)
        call.deadline.check("while waiting")

    other.verbs["RunPodSandbox"] = wait
    call = node.cri.RunPodSandbox.future(pb.RunPodSandboxRequest(config=pod_config()))
    assert begun.wait(PATIENT)
    call.cancel()
    assert gone.wait(PATIENT)


@pytest.mark.parametrize("name", ["StopPodSandbox", "RemovePodSandbox", "StopContainer", "RemoveContainer"])
def test_what_is_nowhere_can_be_stopped_and_removed(node: Front, other: Other, name: str) -> None:
    def fail(_request: object, _call: object) -> None:
        raise NotFound("pod", "c" * 64)

    other.verbs[name] = fail
    field = "pod_sandbox_id" if "Pod" in name else "container_id"
    getattr(node.cri, name)(getattr(pb, f"{name}Request")(**{field: "c" * 64}), timeout=PATIENT)
    assert other.calls[-1][0] == name
    other.stop()
    # Nobody knows whether it is there.
    request = getattr(pb, f"{name}Request")(**{field: "c" * 64})
    assert refused(getattr(node.cri, name), request)[0] is grpc.StatusCode.UNAVAILABLE


def test_the_beginning_of_an_id_is_good_where_it_is_of_one_only(node: Front, here: Here, other: Other) -> None:
    mine, theirs = run(node, "a", NATIVE), run(node, "b")
    for id_ in (mine, theirs):
        answer = node.cri.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=id_[:3]), timeout=PATIENT)
        assert answer.status.id == id_
    other.runtime.letter = "a"
    run(node, "c")
    code, words = refused(node.cri.PodSandboxStatus, pb.PodSandboxStatusRequest(pod_sandbox_id="a00"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "'a00'" in words
    other.stop()
    assert refused(node.cri.PodSandboxStatus, pb.PodSandboxStatusRequest(pod_sandbox_id=mine[:3]))[0] is (
        grpc.StatusCode.UNAVAILABLE
    )
    # So that what people copy from a list of theirs works without the other one.
    answer = node.cri.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=mine[:13]), timeout=PATIENT)
    assert answer.status.id == mine
    assert refused(node.cri.StopPodSandbox, pb.StopPodSandboxRequest())[0] is grpc.StatusCode.INVALID_ARGUMENT


# -- lists


def populated(node: Front) -> tuple[list[str], list[str]]:
    """A pod and a container of each."""
    pods = [run(node, "a", NATIVE), run(node, "b")]
    pull(node, "busybox", "a")
    pull(node, "busybox", "b")
    containers = [create(node, pod, "busybox") for pod in pods]
    for id_ in containers:
        node.cri.StartContainer(pb.StartContainerRequest(container_id=id_), timeout=PATIENT)
    return pods, containers


def ids(answers: Any, field: str) -> set[str]:
    found = [getattr(answer, field) for answer in (answers if isinstance(answers, list) else [answers])]
    return {getattr(getattr(one, "attributes", one), "id", "") or one.pod_sandbox_id for some in found for one in some}


LISTS = [
    ("ListPodSandbox", "items", "StreamPodSandboxes", "pod_sandboxes", True),
    ("ListContainers", "containers", "StreamContainers", "containers", False),
    ("ListContainerStats", "stats", "StreamContainerStats", "container_stats", False),
    ("ListPodSandboxStats", "stats", "StreamPodSandboxStats", "pod_sandbox_stats", True),
    ("ListPodSandboxMetrics", "pod_metrics", "StreamPodSandboxMetrics", "pod_sandbox_metrics", True),
]


@pytest.mark.parametrize(("name", "field", "stream", "piece", "pods"), LISTS)
def test_lists_hold_what_both_have_and_without_one_there_is_no_list(
    node: Front, other: Other, name: str, field: str, stream: str, piece: str, *, pods: bool
) -> None:
    both = set(populated(node)[0 if pods else 1])
    whole, pieces = getattr(node.cri, name), getattr(node.cri, stream)
    request, streamed = getattr(pb, f"{name}Request"), getattr(pb, f"{stream}Request")
    assert ids(whole(request(), timeout=PATIENT), field) == both
    assert ids(list(pieces(streamed(), timeout=PATIENT)), piece) == both
    other.verbs[stream] = lacks(stream)
    assert ids(list(pieces(streamed(), timeout=PATIENT)), piece) == both
    other.stop()
    assert refused(whole, request())[0] is grpc.StatusCode.UNAVAILABLE
    assert refused(lambda *a, **k: list(pieces(*a, **k)), streamed())[0] is grpc.StatusCode.UNAVAILABLE


def test_a_list_by_an_id_of_ours_needs_nobody_else(node: Front, other: Other) -> None:
    [mine, theirs], [container, _] = populated(node)
    pods, containers = pb.ListPodSandboxRequest, pb.ListContainersRequest
    by_theirs = pods(filter=pb.PodSandboxFilter(id=theirs))
    assert ids(node.cri.ListPodSandbox(by_theirs, timeout=PATIENT), "items") == {theirs}
    other.stop()
    of_pod = containers(filter=pb.ContainerFilter(pod_sandbox_id=mine))
    assert ids(node.cri.ListContainers(of_pod, timeout=PATIENT), "containers") == {container}
    of_id = pods(filter=pb.PodSandboxFilter(id=mine))
    assert ids(node.cri.ListPodSandbox(of_id, timeout=PATIENT), "items") == {mine}
    of_id.filter.id = mine[:13]
    assert ids(node.cri.ListPodSandbox(of_id, timeout=PATIENT), "items") == {mine}
    streamed = list(node.cri.StreamPodSandboxes(pb.StreamPodSandboxesRequest(filter=of_id.filter), timeout=PATIENT))
    assert ids(streamed, "pod_sandboxes") == {mine}
    assert refused(node.cri.ListPodSandbox, by_theirs)[0] is grpc.StatusCode.UNAVAILABLE


def test_a_list_in_pieces_that_fails_here_leaves_nothing_of_the_other_ones(
    node: Front, here: Here, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise Unimplemented("no")

    monkeypatch.setattr(here, "containers", fail)
    for _ in range(3):
        refused(lambda *a, **k: list(node.cri.StreamContainers(*a, **k)), pb.StreamContainersRequest())
    assert node.links.now is not None
    assert not node.links.now._on_retire


def test_an_older_runtime_has_no_metrics_and_a_kubelet_looks_elsewhere_for_stats(node: Front, other: Other) -> None:
    [mine, _], _ = populated(node)
    for name in ("ListPodSandboxMetrics", "StreamPodSandboxMetrics", "ListMetricDescriptors", "ListPodSandboxStats"):
        other.verbs[name] = lacks(name)
    metrics = node.cri.ListPodSandboxMetrics(pb.ListPodSandboxMetricsRequest(), timeout=PATIENT)
    assert ids(metrics, "pod_metrics") == {mine}
    streamed = list(node.cri.StreamPodSandboxMetrics(pb.StreamPodSandboxMetricsRequest(), timeout=PATIENT))
    assert ids(streamed, "pod_sandbox_metrics") == {mine}
    assert node.cri.ListMetricDescriptors(pb.ListMetricDescriptorsRequest(), timeout=PATIENT).descriptors
    stats = refused(node.cri.ListPodSandboxStats, pb.ListPodSandboxStatsRequest())
    assert stats[0] is grpc.StatusCode.UNIMPLEMENTED


def test_metrics_of_both_are_described(node: Front, other: Other) -> None:
    theirs = pb.ListMetricDescriptorsResponse(descriptors=[pb.MetricDescriptor(name="theirs")])
    other.verbs["ListMetricDescriptors"] = lambda *_: theirs
    found = node.cri.ListMetricDescriptors(pb.ListMetricDescriptorsRequest(), timeout=PATIENT).descriptors
    assert {"theirs", "container_cpu_usage_seconds_total"} <= {one.name for one in found}


# -- the node


def conditions(node: Front) -> dict[str, tuple[bool, str]]:
    answer = node.cri.Status(pb.StatusRequest(), timeout=PATIENT)
    return {one.type: (one.status, one.reason) for one in answer.status.conditions}


def test_a_node_is_not_ready_without_the_other_one_and_recovers_by_itself(
    node: Front, here: Here, other: Other
) -> None:
    run(node, "b")
    assert conditions(node)["RuntimeReady"] == (True, "")
    other.stop()
    assert conditions(node)["RuntimeReady"] == (False, "UpstreamUnavailable")
    mine = run(node, "a", NATIVE)
    assert node.cri.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=mine), timeout=PATIENT).status.id == mine
    node.cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=mine), timeout=PATIENT)
    other.start()
    grpc.channel_ready_future(node.links.now._channel).result(PATIENT)  # type: ignore[union-attr]
    assert conditions(node)["RuntimeReady"] == (True, "")
    assert len(node.cri.ListPodSandbox(pb.ListPodSandboxRequest(), timeout=PATIENT).items) == 2


def test_whether_the_other_one_answers_is_a_figure(node: Front, other: Other) -> None:
    def up() -> list[float]:
        return [value for figure in node.links.figures() for _, value in figure.values]

    assert up() == []
    other.verbs["PodSandboxStatus"] = lacks("PodSandboxStatus")
    refused(node.cri.PodSandboxStatus, pb.PodSandboxStatusRequest(pod_sandbox_id="b" * 64))
    assert up() == [1]
    other.stop()
    refused(node.cri.ListPodSandbox, pb.ListPodSandboxRequest())
    assert up() == [0]
    node.links.follow(UpstreamConfig())
    assert up() == []


def test_one_that_hangs_is_told_of_in_time(node: Front, other: Other, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cri.upstream.runtime.PATIENCE", 0.2)
    let_go = threading.Event()
    other.verbs["Status"] = lambda *_: let_go.wait(PATIENT)
    try:
        assert conditions(node)["RuntimeReady"] == (False, "UpstreamUnavailable")
    finally:
        let_go.set()


def test_cgroup_drivers_are_compared(node: Front, other: Other) -> None:
    other.runtime.cgroup_driver = "systemd"  # type: ignore[misc]
    assert conditions(node)["RuntimeReady"] == (False, "UpstreamCgroupDriver")
    other.verbs["RuntimeConfig"] = lacks("RuntimeConfig")
    assert conditions(node)["RuntimeReady"] == (True, "")
    assert node.cri.RuntimeConfig(pb.RuntimeConfigRequest(), timeout=PATIENT).linux.cgroup_driver == pb.CGROUPFS
    assert node.cri.Version(pb.VersionRequest(), timeout=PATIENT).runtime_name == "forgeone"


def test_both_learn_the_nodes_addresses(node: Front, here: Here, other: Other) -> None:
    request = pb.UpdateRuntimeConfigRequest()
    request.runtime_config.network_config.pod_cidr = "10.0.0.0/24"
    node.cri.UpdateRuntimeConfig(request, timeout=PATIENT)
    assert (here.pod_cidr, other.runtime.pod_cidr) == ("10.0.0.0/24", "10.0.0.0/24")


def test_another_socket_counts_at_once_and_none_is_ours_alone(node: Front, here: Here, other: Other) -> None:
    run(node, "b")
    node.links.follow(UpstreamConfig())
    assert node.cri.ListPodSandbox(pb.ListPodSandboxRequest(), timeout=PATIENT).items == []
    assert run(node, "c")[0] == "a"
    node.links.follow(UpstreamConfig(socket=str(other.path), default_runtime="forgeone"))
    assert len(node.cri.ListPodSandbox(pb.ListPodSandboxRequest(), timeout=PATIENT).items) == 2
    assert run(node, "d")[0] == "a"


def test_a_socket_is_not_given_up_while_its_pods_would_be_on_no_list(
    node: Front, other: Other, directory: Path
) -> None:
    """A kubelet would make them anew."""
    gone, moved = UpstreamConfig(), UpstreamConfig(socket=str(directory / "moved.sock"))
    node.links.check(gone)
    id_ = run(node, "b")
    node.links.check(UpstreamConfig(socket=str(other.path), default_runtime="forgeone"))
    for config, why in ((gone, f"1 pods on {other.path} .* {id_[:13]} .*restart forgeoned"), (moved, "cannot be told")):
        with pytest.raises(FailedPrecondition, match=why):
            node.links.check(config)
    Path(moved.socket).symlink_to(other.path)
    node.links.check(moved)
    other.stop()
    with pytest.raises(FailedPrecondition, match="cannot be told"):
        node.links.check(gone)


def test_a_call_under_way_ends_where_it_began(node: Front, other: Other) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(_request: object, _call: object) -> pb.RunPodSandboxResponse:
        begun.set()
        go_on.wait(PATIENT)
        return pb.RunPodSandboxResponse(pod_sandbox_id="b" * 64)

    other.verbs["RunPodSandbox"] = slow
    call = node.cri.RunPodSandbox.future(pb.RunPodSandboxRequest(config=pod_config()), timeout=PATIENT)
    assert begun.wait(PATIENT)
    node.links.follow(UpstreamConfig())
    go_on.set()
    assert call.result().pod_sandbox_id == "b" * 64


def test_a_call_that_comes_too_late_for_a_connection_says_so(other: Other) -> None:
    link = Link(str(other.path))
    link.retire()
    call = Call("1", Deadline.after(PATIENT))
    for ask in (
        lambda: link.ask("Version", pb.VersionRequest(), call),
        lambda: link.begin("Version", pb.VersionRequest(), call),
        lambda: link.stream("GetContainerEvents", pb.GetEventsRequest(), call),
        lambda: link.answers(call, patient=True, at_most=1),
    ):
        with pytest.raises(Relayed, match="not the upstream runtime any more"):
            ask()


# -- images


def look(node: Front, image: str, **annotations: str) -> str:
    request = pb.ImageStatusRequest(image=pb.ImageSpec(image=image, annotations=annotations))
    return str(node.images.ImageStatus(request, timeout=PATIENT).image.id)


def test_an_image_is_pulled_for_the_pod_that_it_is_for(node: Front, here: Here, other: Other) -> None:
    run(node, "a", NATIVE)
    run(node, "b")
    pull(node, "one", "a")
    pull(node, "two", "b")
    pull(node, "three")
    pull(node, "four", handler=NATIVE)
    assert [one.repo_tags[0] for one in here.images.list()] == ["one", "four"]
    assert [one.repo_tags[0] for one in other.runtime.images.list()] == ["two", "three"]


def test_an_image_that_only_the_other_one_has_is_absent_to_a_pod_that_misses_it(
    node: Front, here: Here, other: Other
) -> None:
    """As a kubelet goes about it that says nothing of the pod: look, create, fail; look again, pull, create."""
    mine, _ = run(node, "a", NATIVE), run(node, "b")
    pull(node, "busybox", "b")
    assert look(node, "busybox")
    config = pb.ContainerConfig(metadata=pb.ContainerMetadata(name="x"))
    config.image.image, config.image.user_specified_image = look(node, "busybox"), "busybox"
    request = pb.CreateContainerRequest(pod_sandbox_id=mine, config=config, sandbox_config=pod_config("a"))
    code, words = refused(node.cri.CreateContainer, request)
    assert code is grpc.StatusCode.NOT_FOUND
    assert "not found on ForgeOne" in words
    assert not look(node, "docker.io/library/busybox:latest")
    pull(node, "busybox", "a")
    assert look(node, "busybox")
    assert node.cri.CreateContainer(request, timeout=PATIENT).container_id[0] == "a"


def test_the_same_the_other_way_round(node: Front, here: Here, other: Other) -> None:
    _, theirs = run(node, "a", NATIVE), run(node, "b")
    pull(node, "busybox", "a")
    assert look(node, "busybox")
    assert refused_create(node, theirs) is grpc.StatusCode.NOT_FOUND
    assert not look(node, "busybox")
    node.cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=theirs), timeout=PATIENT)
    run(node, "c", "kata")
    assert look(node, "busybox")


def refused_create(node: Front, pod: str) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as raised:
        create(node, pod, "busybox")
    return raised.value.code()


def test_a_kubelets_annotations_say_whose_image_counts(node: Front, here: Here, other: Other) -> None:
    def seen(at: str) -> dict[str, str]:
        return {"kubernetes.io/config.seen": at}

    run(node, "a", NATIVE, **seen("1"))
    run(node, "b", **seen("2"))
    pull(node, "busybox", "b")
    assert not look(node, "busybox", **seen("1"))
    assert look(node, "busybox", **seen("2"))
    other.stop()
    assert not look(node, "busybox", **seen("1"))


def test_without_the_other_one_an_image_of_ours_is_there_and_no_other_is_known_to_be_absent(
    node: Front, other: Other
) -> None:
    pull(node, "busybox", handler=NATIVE)
    other.stop()
    assert look(node, "busybox")
    assert refused(node.images.ImageStatus, pb.ImageStatusRequest(image=pb.ImageSpec(image="nginx")))[0] is (
        grpc.StatusCode.UNAVAILABLE
    )
    for verb, request in (
        (node.images.ListImages, pb.ListImagesRequest()),
        (node.images.ImageFsInfo, pb.ImageFsInfoRequest()),
        (node.images.RemoveImage, pb.RemoveImageRequest(image=pb.ImageSpec(image="nginx"))),
    ):
        assert refused(verb, request)[0] is grpc.StatusCode.UNAVAILABLE


def test_images_are_listed_once_and_removed_from_both(node: Front, here: Here, other: Other) -> None:
    pull(node, "one", handler=NATIVE)
    pull(node, "one", handler="kata")
    pull(node, "two", handler="kata")
    for images in (
        node.images.ListImages(pb.ListImagesRequest(), timeout=PATIENT).images,
        [one for some in node.images.StreamImages(pb.StreamImagesRequest(), timeout=PATIENT) for one in some.images],
    ):
        assert [(list(one.repo_tags), one.size) for one in images] == [(["one"], 14), (["two"], 7)]
    for handler, expected in ((NATIVE, [["one"]]), ("kata", [["one"], ["two"]])):
        asked = pb.ListImagesRequest(filter=pb.ImageFilter(image=pb.ImageSpec(runtime_handler=handler)))
        found = node.images.ListImages(asked, timeout=PATIENT).images
        assert [list(one.repo_tags) for one in found] == expected
    only = pb.RemoveImageRequest(image=pb.ImageSpec(image="one", runtime_handler=NATIVE))
    node.images.RemoveImage(only, timeout=PATIENT)
    assert (len(here.images.list()), len(other.runtime.images.list())) == (0, 2)
    pull(node, "one", handler=NATIVE)
    node.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image="one")), timeout=PATIENT)
    assert (len(here.images.list()), len(other.runtime.images.list())) == (0, 1)


def test_space_is_told_of_both(node: Front) -> None:
    answer = node.images.ImageFsInfo(pb.ImageFsInfoRequest(), timeout=PATIENT)
    assert [one.fs_id.mountpoint for one in answer.image_filesystems]


def test_sides_have_names() -> None:
    assert (Side.OURS.other, Side.UPSTREAM.other) == (Side.UPSTREAM, Side.OURS)
