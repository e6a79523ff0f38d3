"""The real server on a real unix socket, over a runtime in memory."""

from __future__ import annotations

import os
import socket as sockets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import structlog

from cri.api import runtime_pb2 as pb
from cri.api.runtime_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from cri.image.service import ImageService
from cri.runtime.service import RuntimeService
from cri.server import Server
from forgeone_shim.config.model import GrpcConfig
from tests.unit.cri.fakes import FakeRuntime, FakeStreaming

MESSAGE_LIMIT = 2 * 1024 * 1024


@pytest.fixture(autouse=True)
def _plain_log() -> Iterator[None]:
    # Not cached, so that capture_logs can step in; not the default renderer, which prints local variables.
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(default=str),
    ]
    structlog.configure(processors=processors, cache_logger_on_first_use=False)
    yield
    structlog.reset_defaults()


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def directory() -> Iterator[Path]:
    # A unix socket's path has at most 107 bytes, and pytest's own directories are long.
    with tempfile.TemporaryDirectory(prefix="cri-") as path:
        yield Path(path)


class Node:
    """A server, and clients of it."""

    def __init__(self, runtime: FakeRuntime, path: Path, config: GrpcConfig) -> None:
        self.path = path
        described = pb.DESCRIPTOR.services_by_name
        runtime_service = RuntimeService(
            runtime,
            info={"config": "{}"},
            message_limit=config.max_message_bytes,
            streaming=FakeStreaming(),
        )
        services = {
            described["RuntimeService"]: runtime_service,
            described["ImageService"]: ImageService(runtime),
        }
        self.server = Server(config, services, path=path, gid=os.getgid())
        self._stack = ExitStack()

    def channel(self) -> grpc.Channel:
        return self._stack.enter_context(
            grpc.insecure_channel(f"unix:{self.path}", options=[("grpc.use_local_subchannel_pool", 1)])
        )

    def close(self) -> None:
        self._stack.close()
        self.server.stop(0)


@pytest.fixture
def node(runtime: FakeRuntime, directory: Path) -> Iterator[Node]:
    node = Node(runtime, directory / "s.sock", GrpcConfig(threads=8, max_message_bytes=MESSAGE_LIMIT))
    node.server.start()
    yield node
    node.close()


@pytest.fixture
def cri(node: Node) -> RuntimeServiceStub:
    return RuntimeServiceStub(node.channel())


@pytest.fixture
def images(node: Node) -> ImageServiceStub:
    return ImageServiceStub(node.channel())


def pod_config(name: str = "web", **fields: object) -> pb.PodSandboxConfig:
    metadata = pb.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="default")
    return pb.PodSandboxConfig(metadata=metadata, **fields)  # type: ignore[arg-type]


def container_config(name: str = "app", image: str = "busybox", **fields: object) -> pb.ContainerConfig:
    metadata = pb.ContainerMetadata(name=name)
    return pb.ContainerConfig(metadata=metadata, image=pb.ImageSpec(image=image), **fields)  # type: ignore[arg-type]


def answers(path: Path) -> bool:
    with sockets.socket(sockets.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
