"""A node that keeps pods in memory, behind a real gRPC server on a real socket: what the CLI talks to in its tests."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import grpc

from cri.api import runtime_pb2 as cri
from cri.server import handler
from cri.streaming.server import ExecGrant, StreamingServer, StreamsPort
from engines.base import Output, Stdio
from forgeone_shim.config.model import StreamingConfig
from forgeone_shim.errors import NotFound, PermissionDenied, Unavailable, Unimplemented
from forgeone_shim.rpc import node_pb2


class Printed:
    """A console of a command that has printed all it had to and exited."""

    exited = writer = -1

    def __init__(self, texts: dict[Output, bytes], code: int) -> None:
        self._code, self._streams = code, {}
        for output, text in texts.items():
            reader, side = os.pipe()
            os.write(side, text)
            os.close(side)
            self._streams[reader] = output

    @property
    def readers(self) -> tuple[int, ...]:
        return tuple(self._streams)

    def read(self, fd: int) -> tuple[Output, bytes]:
        data = os.read(fd, 4096)
        output = self._streams[fd]
        if not data:
            os.close(fd)
            del self._streams[fd]
        return output, data

    def write(self, data: bytes) -> int:
        return len(data)

    def end_input(self) -> None:
        """It reads none."""

    def finish(self) -> int:
        return self._code

    def close(self) -> None:
        for fd in self._streams:
            os.close(fd)
        self._streams.clear()


class _Partly:
    """A service of which only some verbs are there."""

    def __getattr__(self, name: str) -> Any:
        if not name[0].isupper():
            raise AttributeError(name)

        def missing(_request: Any, _call: Any) -> Any:
            raise Unimplemented(f"{name} is not part of this double")

        return missing


class Pods(_Partly):
    """RuntimeService. A started container is a real process (``sleep``), so that pidfds work; ``exit`` ends it."""

    def __init__(self) -> None:
        self.pods: dict[str, Any] = {}
        self.configs: list[Any] = []
        self.containers: dict[str, Any] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.calls: list[str] = []
        self.output = b""
        self.ends_at_once: int | None = None
        self.fail_start = False
        self.streaming = StreamingServer(StreamingConfig(), cast(StreamsPort, self))
        self._ids = (f"{number:02x}" * 32 for number in itertools.count(0xA0))

    def exit(self, container_id: str, code: int) -> None:
        status = self.containers[container_id]
        status.state, status.exit_code = cri.CONTAINER_EXITED, code
        process = self.processes.pop(container_id, None)
        if process is not None:
            process.kill()
            process.wait()

    def Version(self, request: Any, call: Any) -> Any:
        return cri.VersionResponse(runtime_name="forgeone", runtime_version="9", runtime_api_version="v1")

    def RunPodSandbox(self, request: Any, call: Any) -> Any:
        self.calls.append("run")
        config, id_ = request.config, next(self._ids)
        self.configs.append(config)
        self.pods[id_] = cri.PodSandbox(
            id=id_,
            metadata=config.metadata,
            state=cri.SANDBOX_READY,
            created_at=len(self.pods) + 1,
            annotations=config.annotations,
            runtime_handler=request.runtime_handler,
        )
        return cri.RunPodSandboxResponse(pod_sandbox_id=id_)

    def StopPodSandbox(self, request: Any, call: Any) -> Any:
        self.calls.append("stop pod")
        self.pods[request.pod_sandbox_id].state = cri.SANDBOX_NOTREADY
        for id_, (pod, _) in self._of.items():
            if pod == request.pod_sandbox_id and self.containers[id_].state != cri.CONTAINER_EXITED:
                self.exit(id_, 137)
        return cri.StopPodSandboxResponse()

    def RemovePodSandbox(self, request: Any, call: Any) -> Any:
        self.calls.append("remove pod")
        del self.pods[request.pod_sandbox_id]
        for id_ in [id_ for id_, (pod, _) in self._of.items() if pod == request.pod_sandbox_id]:
            del self.containers[id_], self._of[id_]
        return cri.RemovePodSandboxResponse()

    def ListPodSandbox(self, request: Any, call: Any) -> Any:
        return cri.ListPodSandboxResponse(items=self.pods.values())

    def CreateContainer(self, request: Any, call: Any) -> Any:
        self.calls.append("create")
        id_ = next(self._ids)
        self._of[id_] = (request.pod_sandbox_id, request.config)
        log = Path(request.sandbox_config.log_directory) / request.config.log_path
        self.containers[id_] = cri.ContainerStatus(
            id=id_, metadata=request.config.metadata, state=cri.CONTAINER_CREATED, log_path=str(log)
        )
        return cri.CreateContainerResponse(container_id=id_)

    def StartContainer(self, request: Any, call: Any) -> Any:
        self.calls.append("start")
        if self.fail_start:
            raise PermissionDenied("not this one")
        status = self.containers[request.container_id]
        status.state = cri.CONTAINER_RUNNING
        self.processes[status.id] = subprocess.Popen(["sleep", "1000"])
        if self.output:
            Path(status.log_path).write_bytes(self.output)
        if self.ends_at_once is not None:
            self.exit(status.id, self.ends_at_once)
        return cri.StartContainerResponse()

    def StopContainer(self, request: Any, call: Any) -> Any:
        self.calls.append(f"stop container in {request.timeout} s")
        self.exit(request.container_id, 143)
        return cri.StopContainerResponse()

    def RemoveContainer(self, request: Any, call: Any) -> Any:
        self.calls.append("remove container")
        del self.containers[request.container_id], self._of[request.container_id]
        return cri.RemoveContainerResponse()

    def ListContainers(self, request: Any, call: Any) -> Any:
        return cri.ListContainersResponse(
            containers=[
                cri.Container(
                    id=id_,
                    pod_sandbox_id=self._of[id_][0],
                    metadata=status.metadata,
                    image=self._of[id_][1].image,
                    state=status.state,
                )
                for id_, status in self.containers.items()
                if request.filter.pod_sandbox_id in {"", self._of[id_][0]}
            ]
        )

    def ContainerStatus(self, request: Any, call: Any) -> Any:
        if request.container_id not in self.containers:
            raise NotFound("container", request.container_id)
        process = self.processes.get(request.container_id)
        info = {"info": json.dumps({"pid": process.pid if process else 0})} if request.verbose else {}
        return cri.ContainerStatusResponse(status=self.containers[request.container_id], info=info)

    def Exec(self, request: Any, call: Any) -> Any:
        stdio = Stdio(stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, tty=request.tty)
        return cri.ExecResponse(url=self.streaming.url(ExecGrant(request.container_id, tuple(request.cmd), stdio)))

    def exec_console(self, id_: str, argv: tuple[str, ...], stdio: Stdio) -> Any:
        return Printed({Output.STDOUT: " ".join(argv).encode() + b"\xff\n", Output.STDERR: b"oh\n"}, 42)

    @property
    def _of(self) -> dict[str, tuple[str, Any]]:
        return self.__dict__.setdefault("_made", {})


class Images(_Partly):
    """ImageService and ``forgeone.v1.Node`` in one."""

    def __init__(self) -> None:
        self.here: dict[str, Any] = {}
        self.info = {"platform": "wasi/wasm"}
        self.requests: list[Any] = []
        self.asked: list[Any] = []
        self.reloaded: Any = node_pb2.ReloadResponse()
        self.upstream: Any = node_pb2.GetUpstreamResponse()
        self.ours: dict[str, Any] = {}
        self.paused: set[str] = set()
        self.engines = node_pb2.ListEnginesResponse()
        self.documents: dict[str, Any] = {}
        self.archive: Any = ()
        self.imported: list[Any] = []
        self.received = ("", b"")

    def ExportImages(self, request: Any, call: Any) -> Any:
        self.requests.append(request)
        for data in self.archive:
            yield node_pb2.ExportImagesResponse(data=data)

    def ImportImages(self, requests: Any, call: Any) -> Any:
        messages = list(requests)
        self.received = (messages[0].name, b"".join(message.data for message in messages))
        return node_pb2.ImportImagesResponse(images=self.imported)

    def ListImages(self, request: Any, call: Any) -> Any:
        wanted = request.filter.image.image
        here = self.ours if request.filter.image.runtime_handler else self.here
        return cri.ListImagesResponse(images=[one for name, one in here.items() if wanted in {"", name, one.id}])

    def ImageStatus(self, request: Any, call: Any) -> Any:
        self.asked.append(request.image)
        here = {image.id: image for image in self.here.values()} | self.here
        info = {"info": json.dumps(self.info)} if request.verbose else {}
        return cri.ImageStatusResponse(image=here.get(request.image.image), info=info)

    def RemoveImage(self, request: Any, call: Any) -> Any:
        del self.here[request.image.image]
        return cri.RemoveImageResponse()

    def PullImage(self, request: Any, call: Any) -> Any:
        self.requests.append(request)
        if "secret" in request.image:
            raise PermissionDenied("the registry wants a login")
        if "down" in request.image:
            raise Unavailable("cannot connect to reg")
        digest = "sha256:" + "ab" * 32
        for state, done in ((node_pb2.LAYER_STATE_DOWNLOADING, 10), (node_pb2.LAYER_STATE_DONE, 2_000_000)):
            layer = node_pb2.LayerProgress(digest=digest, total=2_000_000, done=done, state=state)
            yield node_pb2.PullImageResponse(layer=layer)
        self.here[request.image] = cri.Image(id="sha256:" + "cd" * 32, repo_tags=[request.image], size=4_200_000)
        yield node_pb2.PullImageResponse(image=node_pb2.PulledImage(id="sha256:" + "cd" * 32))

    def Reload(self, request: Any, call: Any) -> Any:
        return self.reloaded

    def GetUpstream(self, request: Any, call: Any) -> Any:
        return self.upstream

    def PauseContainer(self, request: Any, call: Any) -> Any:
        self.paused.add(request.container_id)
        return node_pb2.PauseContainerResponse()

    def ResumeContainer(self, request: Any, call: Any) -> Any:
        self.paused.discard(request.container_id)
        return node_pb2.ResumeContainerResponse()

    def Inspect(self, request: Any, call: Any) -> Any:
        return node_pb2.InspectResponse(document=json.dumps(self.documents[request.id]))

    def TraceContainer(self, request: Any, call: Any) -> Any:
        calls = [
            node_pb2.HostCall(
                number=1,
                at=1_700_000_000_000_001_000,
                duration=18_000,
                interface="wasi_snapshot_preview1",
                function="path_open",
                arguments=["fd=4", 'path="a\x1b[2J"'],
                returned=True,
                result="noent",
            ),
            node_pb2.HostCall(number=2, at=5, interface="forgeone:log@1", function="write", returned=True, result="0"),
            node_pb2.HostCall(number=3, at=5, interface="wasi_unstable", function="proc_exit", arguments=["code=3"]),
        ]
        yield node_pb2.TraceContainerResponse(calls=calls[:2], lost=7)
        if request.follow:
            yield node_pb2.TraceContainerResponse(calls=calls[2:])

    def ListEngines(self, request: Any, call: Any) -> Any:
        return self.engines

    def ListPausedContainers(self, request: Any, call: Any) -> Any:
        return node_pb2.ListPausedContainersResponse(container_ids=self.paused)


class NodeDouble:
    """The server. A context manager."""

    def __init__(self, directory: Path) -> None:
        self.pods, self.images = Pods(), Images()
        self.socket = str(directory / "node.sock")
        self._server = grpc.server(ThreadPoolExecutor(4))
        services = cri.DESCRIPTOR.services_by_name
        pairs = (
            (services["RuntimeService"], self.pods),
            (services["ImageService"], self.images),
            (node_pb2.DESCRIPTOR.services_by_name["Node"], self.images),
        )
        self._server.add_generic_rpc_handlers(tuple(handler(*pair) for pair in pairs))
        self._server.add_insecure_port(f"unix://{self.socket}")

    def __enter__(self) -> NodeDouble:
        self.pods.streaming.start()
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None)
        self.pods.streaming.stop()
        for process in self.pods.processes.values():
            process.kill()
            process.wait()
