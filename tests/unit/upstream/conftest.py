"""Two runtimes in memory behind real sockets: one is ForgeOne's, the other one what it forwards to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog

from cri.api import runtime_pb2 as pb
from cri.api.runtime_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from cri.image.service import ImageService
from cri.runtime.service import RuntimeService
from cri.server import Server
from cri.upstream import front
from cri.upstream.link import IMAGE, RUNTIME
from cri.upstream.side import Links
from forgeone_shim.config.model import GrpcConfig, UpstreamConfig
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import Denied, NotFound
from forgeone_shim.runtime.views import HandlerStatus, NodeStatus
from tests.unit.cri.fakes import FakeRuntime, FakeStreaming

CONFIG = GrpcConfig(threads=16)
PATIENT = 20.0


class Memory(FakeRuntime):
    """Ids of two of these differ by their first letter."""

    def __init__(self, letter: str) -> None:
        super().__init__()
        self.letter = letter

    def wasm_first(self, handler: str, pod: str = "") -> bool:
        return False

    def _id(self) -> str:
        return self.letter + super()._id()[1:]


class Beside:
    """What the audit log would be told."""

    def __init__(self, runtime: Here) -> None:
        self._runtime = runtime
        self.told: list[tuple[str, Mapping[str, Any], str, str]] = []
        self.refused: list[tuple[Mapping[str, Any], str, str]] = []
        self.floors: set[str] = set()

    def handles(self, handler: str) -> bool:
        return handler in ("", "forgeone-native", "gpu")

    def owns(self, id_: str) -> bool:
        return any(view.id == id_ for view in (*self._runtime.sandboxes(), *self._runtime.containers()))

    def has_image(self, name: str) -> bool:
        try:
            self._runtime.images.resolve(name)
        except NotFound:
            return False
        return True

    def forwarded(self, sandbox_id: str, pod: Mapping[str, Any], handler: str, upstream: str) -> None:
        self.told.append((sandbox_id, pod, handler, upstream))

    def refuse(self, pod: Mapping[str, Any], annotation: str, handler: str, deadline: Deadline) -> None:
        self.refused.append((pod, annotation, handler))
        raise Denied("upstream/contract", f"{handler!r} does not keep {annotation}", "audit:1", starts=True)

    def demand(self, pod: Mapping[str, Any], annotations: Mapping[str, str], handler: str, deadline: Deadline) -> None:
        if pod["namespace"] in self.floors:
            raise Denied("upstream/policies", f"{handler!r} keeps none", "audit:1", starts=True)


class Here(Memory):
    """ForgeOne."""

    def __init__(self) -> None:
        super().__init__("a")
        self.beside = Beside(self)

    def status(self) -> NodeStatus:
        status = super().status()
        names = ("", "forgeone-native")
        return NodeStatus(status.runtime, status.network, tuple(HandlerStatus(name, self.features) for name in names))


class Other:
    """The runtime upstream: any of its verbs may be replaced in ``verbs``, and it may go and come back."""

    def __init__(self, path: Path) -> None:
        self.path, self.runtime = path, Memory("b")
        self.verbs: dict[str, Callable[..., Any]] = {}
        self.calls: list[tuple[str, Any, Any]] = []
        self._server: Server | None = None

    def start(self) -> Other:
        """Serve."""
        streaming = FakeStreaming()
        own: dict[Any, object] = {
            RUNTIME: RuntimeService(self.runtime, info={"of": "other"}, message_limit=1 << 24, streaming=streaming),
            IMAGE: ImageService(self.runtime),
        }
        self._server = Server(
            CONFIG, {service: _Verbs(self, servicer) for service, servicer in own.items()}, path=self.path
        )
        self._server.start()
        return self

    def stop(self) -> None:
        """Nobody answers any more."""
        if self._server is not None:
            self._server.stop(0)
            self.path.unlink()
            self._server = None


class _Verbs:
    def __init__(self, other: Other, servicer: object) -> None:
        self._other, self._servicer = other, servicer

    def __getattr__(self, name: str) -> Callable[[Any, Any], Any]:
        def verb(request: Any, call: Any) -> Any:
            self._other.calls.append((name, request, call))
            replaced = self._other.verbs.get(name)
            return replaced(request, call) if replaced else getattr(self._servicer, name)(request, call)

        return verb


class Front:
    """ForgeOne's own server, and clients of it."""

    def __init__(self, path: Path, runtime: Here, config: UpstreamConfig) -> None:
        self.path, self.runtime, self.links = path, runtime, Links(config)
        own: dict[Any, object] = {
            RUNTIME: RuntimeService(runtime, info={}, message_limit=1 << 24, streaming=FakeStreaming()),
            IMAGE: ImageService(runtime),
        }
        self.ended: list[tuple[str, str]] = []
        self.server = Server(
            CONFIG,
            front.services(own, runtime, self.links),
            path=path,
            gid=os.getgid(),
            observe=lambda method, code, _: self.ended.append((method, code)),
        )
        self.server.start()
        self._stack = ExitStack()
        self.cri = RuntimeServiceStub(self.channel())
        self.images = ImageServiceStub(self.channel())

    def channel(self) -> grpc.Channel:
        options = [("grpc.use_local_subchannel_pool", 1)]
        return self._stack.enter_context(grpc.insecure_channel(f"unix:{self.path}", options=options))

    def close(self) -> None:
        self._stack.close()
        self.server.stop(0)
        self.links.close()


@pytest.fixture(autouse=True)
def _plain_log() -> Iterator[None]:
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)],
        cache_logger_on_first_use=False,
    )
    yield
    structlog.reset_defaults()


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="up-") as path:
        yield Path(path)


@pytest.fixture
def other(directory: Path) -> Iterator[Other]:
    other = Other(directory / "other.sock").start()
    yield other
    other.stop()


@pytest.fixture
def here() -> Here:
    return Here()


@pytest.fixture
def node(directory: Path, here: Here, other: Other) -> Iterator[Front]:
    node = Front(directory / "s.sock", here, UpstreamConfig(socket=str(other.path)))
    yield node
    node.close()


def pod_config(name: str = "web", **annotations: str) -> pb.PodSandboxConfig:
    metadata = pb.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="default")
    return pb.PodSandboxConfig(metadata=metadata, annotations=annotations, labels={"app": name})


def run(node: Front, name: str = "web", handler: str = "", **annotations: str) -> str:
    """RunPodSandbox; its id."""
    request = pb.RunPodSandboxRequest(config=pod_config(name, **annotations), runtime_handler=handler)
    return str(node.cri.RunPodSandbox(request, timeout=PATIENT).pod_sandbox_id)


def pull(node: Front, image: str, pod: str = "", handler: str = "") -> str:
    """PullImage, for a pod of that name if any; the image's id."""
    request = pb.PullImageRequest(image=pb.ImageSpec(image=image, runtime_handler=handler))
    if pod:
        request.sandbox_config.CopyFrom(pod_config(pod))
    return str(node.images.PullImage(request, timeout=PATIENT).image_ref)


def create(node: Front, pod_id: str, image: str, name: str = "app") -> str:
    """CreateContainer; its id."""
    config = pb.ContainerConfig(metadata=pb.ContainerMetadata(name=name), image=pb.ImageSpec(image=image))
    request = pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=config, sandbox_config=pod_config())
    return str(node.cri.CreateContainer(request, timeout=PATIENT).container_id)
