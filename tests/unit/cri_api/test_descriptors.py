"""The interface is CRI's: compared with an independent build of an earlier CRI, and with what came later by name."""

from __future__ import annotations

import subprocess
import sys

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from cri.api import runtime_pb2 as pb
from cri.api import runtime_pb2_grpc

# Both define runtime.v1: in one process the second would be refused as a duplicate.
_THEIRS = "import sys; from cri_api.v1 import api_pb2; sys.stdout.buffer.write(api_pb2.DESCRIPTOR.serialized_pb)"

# Changed in CRI on purpose, wire-compatibly: string -> bytes in 1.36, and the signals' names in 1.37.
_RETYPED = {"KeyValue.value"}
_RENAMED_ENUMS = {"Signal"}

Field = FieldDescriptorProto


@pytest.fixture(scope="module")
def theirs() -> FileDescriptorProto:
    done = subprocess.run([sys.executable, "-c", _THEIRS], capture_output=True, check=True, timeout=60)
    return FileDescriptorProto.FromString(done.stdout)


@pytest.fixture(scope="module")
def ours() -> FileDescriptorProto:
    return FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)


def messages(file: FileDescriptorProto) -> dict[str, DescriptorProto]:
    found: dict[str, DescriptorProto] = {}

    def add(prefix: str, message: DescriptorProto) -> None:
        found[prefix + message.name] = message
        for nested in message.nested_type:
            add(f"{prefix}{message.name}.", nested)

    for message in file.message_type:
        add("", message)
    return found


def fields(file: FileDescriptorProto) -> dict[str, Field]:
    return {f"{name}.{field.name}": field for name, message in messages(file).items() for field in message.field}


def enums(file: FileDescriptorProto) -> dict[str, EnumDescriptorProto]:
    nested = {f"{name}.{enum.name}": enum for name, message in messages(file).items() for enum in message.enum_type}
    return nested | {enum.name: enum for enum in file.enum_type}


def rpcs(file: FileDescriptorProto) -> dict[str, tuple[str, str, bool, bool]]:
    return {
        f"{service.name}/{rpc.name}": (
            rpc.input_type,
            rpc.output_type,
            rpc.client_streaming,
            rpc.server_streaming,
        )
        for service in file.service
        for rpc in service.method
    }


def shape(field: Field) -> tuple[int, int, int, str]:
    return field.number, field.type, field.label, field.type_name


def test_the_other_build_is_of_the_same_interface(theirs: FileDescriptorProto) -> None:
    assert theirs.package == "runtime.v1"
    assert len(messages(theirs)) > 100


def test_every_message_they_have_is_here(ours: FileDescriptorProto, theirs: FileDescriptorProto) -> None:
    assert set(messages(theirs)) <= set(messages(ours))


def test_shared_fields_agree_in_number_type_and_label(ours: FileDescriptorProto, theirs: FileDescriptorProto) -> None:
    mine, other = fields(ours), fields(theirs)
    shared = set(mine) & set(other)
    assert len(shared) > 400
    assert {n: shape(mine[n]) for n in shared - _RETYPED} == {n: shape(other[n]) for n in shared - _RETYPED}


def test_no_number_means_something_else(ours: FileDescriptorProto, theirs: FileDescriptorProto) -> None:
    def by_number(file: FileDescriptorProto) -> dict[tuple[str, int], str]:
        return {(name, field.number): field.name for name, m in messages(file).items() for field in m.field}

    mine, other = by_number(ours), by_number(theirs)
    assert {key: mine[key] for key in mine.keys() & other.keys()} == {
        key: other[key] for key in mine.keys() & other.keys()
    }


def test_shared_enums_agree(ours: FileDescriptorProto, theirs: FileDescriptorProto) -> None:
    def values(file: FileDescriptorProto) -> dict[str, dict[str, int]]:
        return {name: {value.name: value.number for value in enum.value} for name, enum in enums(file).items()}

    mine, other = values(ours), values(theirs)
    shared = (mine.keys() & other.keys()) - _RENAMED_ENUMS
    assert len(shared) >= 10
    assert {name: mine[name] for name in shared} == {name: other[name] for name in shared}


def test_shared_rpcs_agree(ours: FileDescriptorProto, theirs: FileDescriptorProto) -> None:
    mine, other = rpcs(ours), rpcs(theirs)
    assert other.items() <= mine.items()


RUNTIME_UNARY = [
    "Version",
    "Status",
    "RunPodSandbox",
    "StopPodSandbox",
    "RemovePodSandbox",
    "PodSandboxStatus",
    "ListPodSandbox",
    "UpdatePodSandboxResources",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "ContainerStatus",
    "ListContainers",
    "UpdateContainerResources",
    "ReopenContainerLog",
    "ExecSync",
    "Exec",
    "Attach",
    "PortForward",
    "ContainerStats",
    "ListContainerStats",
    "PodSandboxStats",
    "ListPodSandboxStats",
    "ListMetricDescriptors",
    "ListPodSandboxMetrics",
    "CheckpointContainer",
    "CheckpointPod",
    "RestorePod",
    "RuntimeConfig",
    "UpdateRuntimeConfig",
]
RUNTIME_STREAMS = [
    "StreamPodSandboxes",
    "StreamContainers",
    "StreamContainerStats",
    "StreamPodSandboxStats",
    "StreamPodSandboxMetrics",
]
IMAGE_UNARY = ["ListImages", "ImageStatus", "PullImage", "RemoveImage", "ImageFsInfo"]


def test_there_are_exactly_the_43_rpcs_of_1_37(ours: FileDescriptorProto) -> None:
    def row(name: str, *, stream: bool) -> tuple[str, str, bool, bool]:
        return f".runtime.v1.{name}Request", f".runtime.v1.{name}Response", False, stream

    expected = {f"RuntimeService/{name}": row(name, stream=False) for name in RUNTIME_UNARY}
    expected |= {f"RuntimeService/{name}": row(name, stream=True) for name in RUNTIME_STREAMS}
    expected |= {f"ImageService/{name}": row(name, stream=False) for name in IMAGE_UNARY}
    expected["ImageService/StreamImages"] = row("StreamImages", stream=True)
    expected["RuntimeService/GetContainerEvents"] = (
        ".runtime.v1.GetEventsRequest",
        ".runtime.v1.ContainerEventResponse",
        False,
        True,
    )
    assert len(expected) == 43
    assert rpcs(ours) == expected


NEWER = {
    # 1.36
    "KeyValue.value": (2, Field.TYPE_BYTES, Field.LABEL_OPTIONAL, ""),
    "ImageSpec.image_ref": (20, Field.TYPE_STRING, Field.LABEL_OPTIONAL, ""),
    "RuntimeFeatures.user_namespaces_host_network": (2, Field.TYPE_BOOL, Field.LABEL_OPTIONAL, ""),
    "StreamPodSandboxesResponse.pod_sandboxes": (
        1,
        Field.TYPE_MESSAGE,
        Field.LABEL_REPEATED,
        ".runtime.v1.PodSandbox",
    ),
    "StreamContainersResponse.containers": (1, Field.TYPE_MESSAGE, Field.LABEL_REPEATED, ".runtime.v1.Container"),
    "StreamImagesResponse.images": (1, Field.TYPE_MESSAGE, Field.LABEL_REPEATED, ".runtime.v1.Image"),
    "StreamContainerStatsResponse.container_stats": (
        1,
        Field.TYPE_MESSAGE,
        Field.LABEL_REPEATED,
        ".runtime.v1.ContainerStats",
    ),
    "StreamPodSandboxStatsResponse.pod_sandbox_stats": (
        1,
        Field.TYPE_MESSAGE,
        Field.LABEL_REPEATED,
        ".runtime.v1.PodSandboxStats",
    ),
    "StreamPodSandboxMetricsResponse.pod_sandbox_metrics": (
        1,
        Field.TYPE_MESSAGE,
        Field.LABEL_REPEATED,
        ".runtime.v1.PodSandboxMetrics",
    ),
    # 1.37
    "Mount.mount_options": (11, Field.TYPE_STRING, Field.LABEL_REPEATED, ""),
    "RuntimeFeatures.mount_options": (3, Field.TYPE_BOOL, Field.LABEL_OPTIONAL, ""),
    "CheckpointPodRequest.pod_sandbox_id": (1, Field.TYPE_STRING, Field.LABEL_OPTIONAL, ""),
    "CheckpointPodRequest.output_path": (2, Field.TYPE_STRING, Field.LABEL_OPTIONAL, ""),
    "CheckpointPodRequest.container_ids": (3, Field.TYPE_STRING, Field.LABEL_REPEATED, ""),
    "CheckpointPodRequest.options": (
        4,
        Field.TYPE_MESSAGE,
        Field.LABEL_REPEATED,
        ".runtime.v1.CheckpointPodRequest.OptionsEntry",
    ),
    "RestorePodRequest.checkpoint_path": (1, Field.TYPE_STRING, Field.LABEL_OPTIONAL, ""),
    "RestorePodRequest.config": (2, Field.TYPE_MESSAGE, Field.LABEL_OPTIONAL, ".runtime.v1.PodSandboxConfig"),
    "RestorePodRequest.runtime_handler": (3, Field.TYPE_STRING, Field.LABEL_OPTIONAL, ""),
    "RestorePodRequest.options": (
        4,
        Field.TYPE_MESSAGE,
        Field.LABEL_REPEATED,
        ".runtime.v1.RestorePodRequest.OptionsEntry",
    ),
    "RestorePodRequest.container_configs": (
        5,
        Field.TYPE_MESSAGE,
        Field.LABEL_REPEATED,
        ".runtime.v1.ContainerConfig",
    ),
    "RestoredContainer.name": (1, Field.TYPE_STRING, Field.LABEL_OPTIONAL, ""),
    "RestoredContainer.container_id": (2, Field.TYPE_STRING, Field.LABEL_OPTIONAL, ""),
    "RestorePodResponse.pod_sandbox_id": (1, Field.TYPE_STRING, Field.LABEL_OPTIONAL, ""),
    "RestorePodResponse.restored_containers": (
        2,
        Field.TYPE_MESSAGE,
        Field.LABEL_REPEATED,
        ".runtime.v1.RestoredContainer",
    ),
}


@pytest.mark.parametrize("name", NEWER)
def test_what_came_later_is_here(ours: FileDescriptorProto, name: str) -> None:
    assert shape(fields(ours)[name]) == NEWER[name]


def test_signals_have_the_names_of_1_37_and_the_numbers_they_always_had(
    ours: FileDescriptorProto, theirs: FileDescriptorProto
) -> None:
    assert pb.Signal.Value("SIGNAL_RUNTIME_DEFAULT") == 0
    assert pb.Signal.Value("SIGNAL_SIGTERM") == 23
    assert pb.Signal.Value("SIGNAL_SIGRTMAX") == 65
    older = enums(theirs).get("Signal")
    if older is not None:
        newer = {value.number: value.name for value in enums(ours)["Signal"].value}
        assert {v.number: v.name.removeprefix("SIGNAL_") for v in older.value} == {
            number: name.removeprefix("SIGNAL_") for number, name in newer.items()
        }


def test_secrets_are_marked_for_redaction(ours: FileDescriptorProto) -> None:
    marked = {name for name, field in fields(ours).items() if field.options.debug_redact}
    assert marked == {f"AuthConfig.{name}" for name in ("password", "auth", "identity_token", "registry_token")}


def test_the_service_stubs_are_generated_too() -> None:
    assert hasattr(runtime_pb2_grpc, "RuntimeServiceStub")
    assert hasattr(runtime_pb2_grpc, "ImageServiceStub")
