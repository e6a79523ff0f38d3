"""The verbs over the wire: what goes in comes out, repeated calls succeed, filters filter."""

from __future__ import annotations

import json

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from cri.api.runtime_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from cri.runtime.chunks import ITEMS
from engines.base import ExecResult, Features
from forgeone_shim.lifecycle.machine import State
from forgeone_shim.registry.model import Image, ImageConfig
from forgeone_shim.version import VERSION
from tests.unit.cri.conftest import MESSAGE_LIMIT, container_config, pod_config
from tests.unit.cri.fakes import FakeRuntime


@pytest.fixture
def pod(cri: RuntimeServiceStub) -> str:
    return run(cri, "web", labels={"app": "web", "tier": "front"})


@pytest.fixture
def container(cri: RuntimeServiceStub, images: ImageServiceStub, pod: str) -> str:
    images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image="busybox")))
    return create(cri, pod)


def run(cri: RuntimeServiceStub, name: str, **fields: object) -> str:
    return str(cri.RunPodSandbox(pb.RunPodSandboxRequest(config=pod_config(name, **fields))).pod_sandbox_id)


def create(cri: RuntimeServiceStub, pod: str, name: str = "app", **fields: object) -> str:
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=container_config(name, **fields))
    return str(cri.CreateContainer(request).container_id)


def status(cri: RuntimeServiceStub, container: str) -> pb.ContainerStatus:
    return cri.ContainerStatus(pb.ContainerStatusRequest(container_id=container)).status  # type: ignore[no-any-return]


def invalid(call: object) -> str:
    with pytest.raises(grpc.RpcError) as raised:
        call()  # type: ignore[operator]
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return str(raised.value.details())


# -- the runtime itself


def test_version(cri: RuntimeServiceStub) -> None:
    answer = cri.Version(pb.VersionRequest())
    assert (answer.runtime_name, answer.runtime_version, answer.runtime_api_version) == ("forgeone", VERSION, "v1")


def test_status_has_its_conditions_and_every_handler(cri: RuntimeServiceStub, runtime: FakeRuntime) -> None:
    runtime.features = Features(recursive_read_only_mounts=True, supplemental_groups_policy=True)
    answer = cri.Status(pb.StatusRequest())
    conditions = {c.type: (c.status, c.reason) for c in answer.status.conditions}
    assert conditions == {
        "RuntimeReady": (True, ""),
        "NetworkReady": (False, "NoBridge"),
        "ConfigurationLoaded": (True, ""),
        "AuditLogSound": (True, ""),
    }
    handlers = {h.name: h.features.recursive_read_only_mounts for h in answer.runtime_handlers}
    assert handlers == {"": True, "forgeone-native": True}
    assert answer.features.supplemental_groups_policy
    assert not answer.info


def test_a_verbose_status_shows_the_configuration_as_json(cri: RuntimeServiceStub) -> None:
    assert json.loads(cri.Status(pb.StatusRequest(verbose=True)).info["config"]) == {}


def test_runtime_config_names_the_cgroup_driver(cri: RuntimeServiceStub, runtime: FakeRuntime) -> None:
    assert cri.RuntimeConfig(pb.RuntimeConfigRequest()).linux.cgroup_driver == pb.CGROUPFS
    runtime.cgroup_driver = "systemd"
    assert cri.RuntimeConfig(pb.RuntimeConfigRequest()).linux.cgroup_driver == pb.SYSTEMD


def test_the_pod_cidr_is_handed_on(cri: RuntimeServiceStub, runtime: FakeRuntime) -> None:
    network = pb.NetworkConfig(pod_cidr="10.1.0.0/24, fd01::/64")
    cri.UpdateRuntimeConfig(pb.UpdateRuntimeConfigRequest(runtime_config=pb.RuntimeConfig(network_config=network)))
    assert runtime.pod_cidr == "10.1.0.0/24,fd01::/64"
    cri.UpdateRuntimeConfig(pb.UpdateRuntimeConfigRequest())
    assert runtime.pod_cidr == "10.1.0.0/24,fd01::/64"


@pytest.mark.parametrize("cidr", ["10.1.0.0", "10.1.0.5/24", "x", "10.1.0.0/24,10.2.0.0/24"])
def test_a_pod_cidr_that_is_none_is_refused(cri: RuntimeServiceStub, cidr: str) -> None:
    config = pb.RuntimeConfig(network_config=pb.NetworkConfig(pod_cidr=cidr))
    request = pb.UpdateRuntimeConfigRequest(runtime_config=config)
    if cidr == "10.1.0.0":
        # An address is a range of one.
        cri.UpdateRuntimeConfig(request)
    else:
        assert "pod_cidr" in invalid(lambda: cri.UpdateRuntimeConfig(request))


# -- sandboxes


def test_a_pod_comes_back_as_it_was_asked_for(cri: RuntimeServiceStub) -> None:
    options = pb.NamespaceOption(network=pb.POD, pid=pb.CONTAINER, ipc=pb.NODE)
    config = pod_config(labels={"a": "b"}, annotations={"c": "d"})
    config.metadata.attempt = 3
    config.linux.security_context.namespace_options.CopyFrom(options)
    request = pb.RunPodSandboxRequest(config=config, runtime_handler="forgeone-native")
    pod = cri.RunPodSandbox(request).pod_sandbox_id
    found = cri.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status
    assert found.id == pod
    assert found.metadata == config.metadata
    assert found.state == pb.SANDBOX_READY
    assert found.created_at > 0
    assert (found.network.ip, [ip.ip for ip in found.network.additional_ips]) == ("10.0.0.9", ["fd00::9"])
    assert found.linux.namespaces.options == options
    assert (dict(found.labels), dict(found.annotations)) == ({"a": "b"}, {"c": "d"})
    assert found.runtime_handler == "forgeone-native"


def test_a_retried_run_is_the_same_pod(cri: RuntimeServiceStub) -> None:
    assert run(cri, "web") == run(cri, "web")


def test_a_verbose_pod_status_is_json(cri: RuntimeServiceStub, pod: str) -> None:
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
    info = json.loads(cri.PodSandboxStatus(request).info["info"])
    assert info["config"]["name"] == "web"
    assert info["networkNamespace"] == "/ns/net"


def test_a_stopped_pod_is_not_ready(cri: RuntimeServiceStub, pod: str) -> None:
    for _ in range(2):
        cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    found = cri.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status
    assert (found.state, found.network.ip) == (pb.SANDBOX_NOTREADY, "")


def test_stop_and_remove_of_what_is_missing_succeed(cri: RuntimeServiceStub, images: ImageServiceStub) -> None:
    cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id="none"))
    cri.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id="none"))
    cri.StopContainer(pb.StopContainerRequest(container_id="none"))
    cri.RemoveContainer(pb.RemoveContainerRequest(container_id="none"))
    images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image="none")))


def test_the_status_of_what_is_missing_is_not_found(cri: RuntimeServiceStub) -> None:
    for call in (
        lambda: cri.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id="none")),
        lambda: cri.ContainerStatus(pb.ContainerStatusRequest(container_id="none")),
        lambda: cri.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id="none")),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            call()
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_an_empty_id_is_refused_by_name(cri: RuntimeServiceStub) -> None:
    assert "pod_sandbox_id" in invalid(lambda: cri.StopPodSandbox(pb.StopPodSandboxRequest()))
    assert "pod_sandbox_id" in invalid(lambda: cri.PodSandboxStatus(pb.PodSandboxStatusRequest()))
    assert "container_id" in invalid(lambda: cri.RemoveContainer(pb.RemoveContainerRequest()))
    assert "container_id" in invalid(lambda: cri.ContainerStatus(pb.ContainerStatusRequest()))


def test_a_request_without_a_configuration_is_refused(cri: RuntimeServiceStub, pod: str) -> None:
    assert "config" in invalid(lambda: cri.RunPodSandbox(pb.RunPodSandboxRequest()))
    assert "config" in invalid(lambda: cri.CreateContainer(pb.CreateContainerRequest(pod_sandbox_id=pod)))


def test_pods_are_listed_by_every_filter(cri: RuntimeServiceStub, pod: str) -> None:
    other = run(cri, "db", labels={"app": "db", "tier": "back"})
    cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=other))

    def ids(**wanted: object) -> list[str]:
        request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(**wanted))  # type: ignore[arg-type]
        return [item.id for item in cri.ListPodSandbox(request).items]

    ready, stopped = (pb.PodSandboxStateValue(state=s) for s in (pb.SANDBOX_READY, pb.SANDBOX_NOTREADY))
    assert ids() == [pod, other]
    assert ids(id=pod) == [pod]
    assert ids(id=other[:4]) == [other]
    assert ids(id="none") == []
    assert ids(state=ready) == [pod]
    assert ids(state=stopped) == [other]
    assert ids(label_selector={"app": "web", "tier": "front"}) == [pod]
    assert ids(label_selector={"app": "web", "tier": "back"}) == []
    assert ids(id=pod, state=stopped) == []


def test_a_streamed_list_has_everything_once(cri: RuntimeServiceStub) -> None:
    count = ITEMS + 3
    pods = [run(cri, f"p{number}") for number in range(count)]
    pieces = list(cri.StreamPodSandboxes(pb.StreamPodSandboxesRequest()))
    assert [len(piece.pod_sandboxes) for piece in pieces] == [ITEMS, 3]
    assert [one.id for piece in pieces for one in piece.pod_sandboxes] == pods


def test_a_streamed_empty_list_has_no_message(cri: RuntimeServiceStub, images: ImageServiceStub) -> None:
    assert list(cri.StreamContainers(pb.StreamContainersRequest())) == []
    assert list(images.StreamImages(pb.StreamImagesRequest())) == []


# -- containers


def test_a_containers_life_shows_in_its_status(cri: RuntimeServiceStub, container: str) -> None:
    assert status(cri, container).state == pb.CONTAINER_CREATED
    cri.StartContainer(pb.StartContainerRequest(container_id=container))
    running = status(cri, container)
    assert (running.state, running.started_at > 0, running.reason) == (pb.CONTAINER_RUNNING, True, "")
    cri.StopContainer(pb.StopContainerRequest(container_id=container, timeout=3))
    ended = status(cri, container)
    assert (ended.state, ended.exit_code, ended.reason) == (pb.CONTAINER_EXITED, 137, "Error")
    assert ended.finished_at >= ended.started_at
    cri.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
    assert list(cri.ListContainers(pb.ListContainersRequest()).containers) == []


@pytest.mark.parametrize(
    ("code", "given", "shown"), [(0, "", "Completed"), (1, "", "Error"), (137, "OOMKilled", "OOMKilled")]
)
def test_the_reason_of_an_end(
    cri: RuntimeServiceStub, runtime: FakeRuntime, container: str, code: int, given: str, shown: str
) -> None:
    runtime.change(container, state=State.TERMINATED, exit_code=code, reason=given)
    assert status(cri, container).reason == shown


@pytest.mark.parametrize("state", [State.PAUSED, State.STOPPING])
def test_a_container_that_is_paused_or_stopping_still_runs(
    cri: RuntimeServiceStub, runtime: FakeRuntime, container: str, state: State
) -> None:
    runtime.change(container, state=state)
    assert status(cri, container).state == pb.CONTAINER_RUNNING


def test_a_container_comes_back_as_it_was_asked_for(
    cri: RuntimeServiceStub, images: ImageServiceStub, pod: str
) -> None:
    image_id = images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image="busybox"))).image_ref
    mounts = [
        pb.Mount(container_path="/data", host_path="/srv", readonly=True, recursive_read_only=True),
        pb.Mount(container_path="/up", host_path="/up", propagation=pb.PROPAGATION_BIDIRECTIONAL),
    ]
    limits = pb.LinuxContainerResources(
        cpu_shares=512,
        memory_limit_in_bytes=1 << 20,
        hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=4)],
        unified={"memory.high": "max"},
    )
    container = create(
        cri,
        pod,
        image=image_id,
        mounts=mounts,
        labels={"x": "y"},
        annotations={"z": ""},
        log_path="app/0.log",
        linux=pb.LinuxContainerConfig(resources=limits),
        stop_signal=pb.SIGNAL_SIGRTMINPLUS3,
    )
    found = status(cri, container)
    assert found.image_id == image_id
    assert list(found.mounts) == mounts
    assert found.resources.linux == limits
    assert found.log_path == "/logs/app/0.log"
    assert found.stop_signal == pb.SIGNAL_SIGRTMINPLUS3
    assert found.user.linux == pb.LinuxContainerUser(uid=5, gid=6, supplemental_groups=[6, 7])
    assert (dict(found.labels), dict(found.annotations)) == ({"x": "y"}, {"z": ""})
    [item] = cri.ListContainers(pb.ListContainersRequest()).containers
    assert (item.id, item.image_id, item.metadata.name) == (container, image_id, "app")


def test_the_image_is_shown_as_the_pod_names_it(cri: RuntimeServiceStub, images: ImageServiceStub, pod: str) -> None:
    image_id = images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image="busybox"))).image_ref
    config = container_config(image=image_id)
    config.image.user_specified_image = "busybox:latest"
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    assert status(cri, cri.CreateContainer(request).container_id).image.image == "busybox:latest"


def test_a_verbose_container_status_is_json_without_the_environment(
    cri: RuntimeServiceStub, container: str, pod: str
) -> None:
    secret = create(cri, pod, "secret", envs=[pb.KeyValue(key="TOKEN", value=b"s3cr3t")])
    cri.StartContainer(pb.StartContainerRequest(container_id=secret))
    info = cri.ContainerStatus(pb.ContainerStatusRequest(container_id=secret, verbose=True)).info["info"]
    assert json.loads(info)["pid"] == 77
    assert json.loads(info)["runtimeSpec"] == "/state/bundle/config.json"
    assert "s3cr3t" not in info


def test_containers_are_listed_by_every_filter(cri: RuntimeServiceStub, container: str, pod: str) -> None:
    other_pod = run(cri, "db")
    other = create(cri, other_pod, labels={"app": "db"})
    cri.StartContainer(pb.StartContainerRequest(container_id=other))

    def ids(**wanted: object) -> list[str]:
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(**wanted))  # type: ignore[arg-type]
        return [item.id for item in cri.ListContainers(request).containers]

    assert ids() == [container, other]
    assert ids(id=container) == [container]
    assert ids(id=other[:4]) == [other]
    assert ids(pod_sandbox_id=pod) == [container]
    assert ids(pod_sandbox_id="none") == []
    assert ids(state=pb.ContainerStateValue(state=pb.CONTAINER_CREATED)) == [container]
    assert ids(state=pb.ContainerStateValue(state=pb.CONTAINER_RUNNING)) == [other]
    assert ids(state=pb.ContainerStateValue(state=pb.CONTAINER_UNKNOWN)) == []
    assert ids(label_selector={"app": "db"}) == [other]
    assert ids(pod_sandbox_id=pod, label_selector={"app": "db"}) == []


def test_the_grace_period_is_handed_on(cri: RuntimeServiceStub, runtime: FakeRuntime, container: str) -> None:
    cri.StopContainer(pb.StopContainerRequest(container_id=container, timeout=12))
    assert runtime.stops == [(container, 12)]
    assert "timeout" in invalid(lambda: cri.StopContainer(pb.StopContainerRequest(container_id=container, timeout=-1)))


def test_a_log_is_reopened(cri: RuntimeServiceStub, runtime: FakeRuntime, container: str) -> None:
    cri.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=container))
    assert runtime.reopened == [container]


# -- exec


def test_exec_answers_with_both_streams_and_the_code(
    cri: RuntimeServiceStub, runtime: FakeRuntime, container: str
) -> None:
    runtime.exec_answer = ExecResult(3, b"\xff out", b"err")
    answer = cri.ExecSync(pb.ExecSyncRequest(container_id=container, cmd=["ls", "-l"], timeout=9))
    assert (answer.exit_code, answer.stdout, answer.stderr) == (3, b"\xff out", b"err")
    assert runtime.execs == [(container, ("ls", "-l"), 9)]


def test_exec_without_a_timeout_ends_with_its_client(
    cri: RuntimeServiceStub, runtime: FakeRuntime, container: str
) -> None:
    request = pb.ExecSyncRequest(container_id=container, cmd=["ls"])
    cri.ExecSync(request)
    cri.ExecSync(request, timeout=20)
    assert runtime.execs[0][2] is None
    assert runtime.execs[1][2] is not None
    assert 15 < runtime.execs[1][2] <= 21


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"cmd": []}, "cmd"), ({"cmd": ["a", "b\0"]}, "cmd[1]"), ({"cmd": ["a"], "timeout": -1}, "timeout")],
)
def test_an_exec_that_cannot_be_is_refused(
    cri: RuntimeServiceStub, container: str, fields: dict[str, object], named: str
) -> None:
    request = pb.ExecSyncRequest(container_id=container, **fields)  # type: ignore[arg-type]
    assert invalid(lambda: cri.ExecSync(request)).startswith(named)


@pytest.mark.parametrize(("out", "err"), [(5, 0), (0, 5), (3, 3), (5, 1)])
def test_output_is_cut_to_fit_one_message(
    cri: RuntimeServiceStub, runtime: FakeRuntime, container: str, out: int, err: int
) -> None:
    mebi = 1 << 20
    runtime.exec_answer = ExecResult(0, b"o" * (out * mebi), b"e" * (err * mebi))
    answer = cri.ExecSync(pb.ExecSyncRequest(container_id=container, cmd=["yes"]))
    assert answer.ByteSize() <= MESSAGE_LIMIT
    assert len(answer.stdout) + len(answer.stderr) == MESSAGE_LIMIT - 64
    assert len(answer.stdout) >= min(out * mebi, MESSAGE_LIMIT // 2 - 64)
    assert len(answer.stderr) >= min(err * mebi, MESSAGE_LIMIT // 2 - 64)


# -- usage


def test_the_usage_of_one_container(cri: RuntimeServiceStub, container: str) -> None:
    cri.StartContainer(pb.StartContainerRequest(container_id=container))
    stats = cri.ContainerStats(pb.ContainerStatsRequest(container_id=container)).stats
    assert (stats.attributes.id, stats.attributes.metadata.name) == (container, "app")
    assert (stats.cpu.timestamp, stats.cpu.usage_core_nano_seconds.value) == (5, 77_000)
    assert stats.memory.working_set_bytes.value == 70
    assert not stats.memory.HasField("usage_bytes")
    assert stats.swap.HasField("swap_usage_bytes")
    assert (stats.io.psi.Some.Total, stats.io.psi.Full.Avg10) == (9000, 1.5)


def test_usage_is_listed_by_every_filter(cri: RuntimeServiceStub, container: str, pod: str) -> None:
    other_pod = run(cri, "db")
    other = create(cri, other_pod, labels={"app": "db"})
    idle = create(cri, other_pod, "idle")
    for one in (container, other):
        cri.StartContainer(pb.StartContainerRequest(container_id=one))

    def ids(**wanted: object) -> list[str]:
        request = pb.ListContainerStatsRequest(filter=pb.ContainerStatsFilter(**wanted))  # type: ignore[arg-type]
        return [stats.attributes.id for stats in cri.ListContainerStats(request).stats]

    assert ids() == [container, other]
    assert ids(id=other[:4]) == [other]
    assert ids(id=idle) == []
    assert ids(pod_sandbox_id=pod) == [container]
    assert ids(label_selector={"app": "db"}) == [other]
    streamed = cri.StreamContainerStats(pb.StreamContainerStatsRequest())
    assert [stats.attributes.id for piece in streamed for stats in piece.container_stats] == [container, other]


# -- images


def pull(images: ImageServiceStub, name: str) -> str:
    return str(images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=name))).image_ref)


def test_an_image_is_found_by_name_and_id_until_it_is_removed(images: ImageServiceStub) -> None:
    image_id = pull(images, "busybox")
    for name in ("busybox", image_id):
        found = images.ImageStatus(pb.ImageStatusRequest(image=pb.ImageSpec(image=name))).image
        assert (found.id, list(found.repo_tags), found.size) == (image_id, ["busybox"], 7)
    images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image="busybox")))
    assert not images.ImageStatus(pb.ImageStatusRequest(image=pb.ImageSpec(image=image_id))).HasField("image")


def test_images_are_listed_all_or_by_name(images: ImageServiceStub) -> None:
    first, second = pull(images, "one"), pull(images, "two")

    def ids(name: str) -> list[str]:
        request = pb.ListImagesRequest(filter=pb.ImageFilter(image=pb.ImageSpec(image=name)))
        return [image.id for image in images.ListImages(request).images]

    assert ids("") == [first, second]
    assert ids("two") == [second]
    assert ids("three") == []
    streamed = images.StreamImages(pb.StreamImagesRequest())
    assert [image.id for piece in streamed for image in piece.images] == [first, second]


@pytest.mark.parametrize(
    ("user", "uid", "username"),
    [("1002", 1002, ""), ("www", None, "www"), ("1003:users", 1003, ""), ("www:users", None, "www"), ("", None, "")],
)
def test_the_images_user_is_a_number_or_a_name(
    images: ImageServiceStub, runtime: FakeRuntime, user: str, uid: int | None, username: str
) -> None:
    image = Image(id="sha256:aa", repo_tags=("u",), config=ImageConfig(user=user), pinned=True)
    runtime.images.store[image.id] = image
    found = images.ImageStatus(pb.ImageStatusRequest(image=pb.ImageSpec(image="u"))).image
    assert (found.uid.value if found.HasField("uid") else None, found.username) == (uid, username)
    assert found.pinned


def test_a_verbose_image_status_is_json(images: ImageServiceStub) -> None:
    pull(images, "busybox")
    request = pb.ImageStatusRequest(image=pb.ImageSpec(image="busybox"), verbose=True)
    assert json.loads(images.ImageStatus(request).info["info"])["platform"] == "linux"


def test_an_image_without_a_name_is_refused(images: ImageServiceStub) -> None:
    assert "image.image" in invalid(lambda: images.PullImage(pb.PullImageRequest()))
    assert "image.image" in invalid(lambda: images.ImageStatus(pb.ImageStatusRequest()))
    assert "image.image" in invalid(lambda: images.RemoveImage(pb.RemoveImageRequest()))


def test_a_pull_without_credentials_is_anonymous(images: ImageServiceStub, runtime: FakeRuntime) -> None:
    pull(images, "busybox")
    assert runtime.images.pulled_with == [None]


def test_a_pull_tells_whose_pod_it_is_for(images: ImageServiceStub, runtime: FakeRuntime) -> None:
    request = pb.PullImageRequest(image=pb.ImageSpec(image="busybox", runtime_handler="forgeone-native"))
    request.sandbox_config.metadata.namespace = "blue"
    images.PullImage(request)
    assert runtime.images.namespaces == ["blue"]


def test_a_pull_is_for_the_handler_it_names_or_that_of_its_pod(
    cri: RuntimeServiceStub, images: ImageServiceStub, runtime: FakeRuntime
) -> None:
    config = pod_config("web")
    cri.RunPodSandbox(pb.RunPodSandboxRequest(config=config, runtime_handler="forgeone-wasm"))
    named = pb.ImageSpec(image="busybox", runtime_handler="forgeone-wasm")
    plain = pb.ImageSpec(image="busybox")
    images.PullImage(pb.PullImageRequest(image=named))
    images.PullImage(pb.PullImageRequest(image=plain, sandbox_config=config))
    images.PullImage(pb.PullImageRequest(image=plain))
    images.ImageStatus(pb.ImageStatusRequest(image=named))
    images.ImageStatus(pb.ImageStatusRequest(image=plain))
    assert runtime.images.wasm == [True, True, False, True, False]
    assert len(images.ListImages(pb.ListImagesRequest(filter=pb.ImageFilter(image=plain))).images) == 3


def test_a_container_is_told_of_without_the_handler_so_that_its_image_counts_as_used(
    cri: RuntimeServiceStub, images: ImageServiceStub, pod: str
) -> None:
    config = container_config(image=pull(images, "busybox"))
    config.image.runtime_handler = "forgeone-native"
    cri.CreateContainer(pb.CreateContainerRequest(pod_sandbox_id=pod, config=config))
    [item] = cri.ListContainers(pb.ListContainersRequest()).containers
    [image] = images.ListImages(pb.ListImagesRequest()).images
    assert (item.image.runtime_handler, image.spec.runtime_handler) == ("", "")


def test_a_pull_for_a_handler_that_is_not_there_is_refused(images: ImageServiceStub, runtime: FakeRuntime) -> None:
    request = pb.PullImageRequest(image=pb.ImageSpec(image="busybox", runtime_handler="gpu"))
    with pytest.raises(grpc.RpcError, match="no handler 'gpu'"):
        images.PullImage(request)
    assert runtime.images.pulled_with == []


def test_both_filesystems_are_told(images: ImageServiceStub) -> None:
    answer = images.ImageFsInfo(pb.ImageFsInfoRequest())
    [of_images], [of_containers] = answer.image_filesystems, answer.container_filesystems
    assert (of_images.fs_id.mountpoint, of_images.used_bytes.value, of_images.inodes_used.value) == (
        "/root/layers",
        70,
        7,
    )
    assert (of_containers.fs_id.mountpoint, of_containers.timestamp) == ("/root", 2)
