"""Short ways to say what a test's pod looks like over CRI."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from cri.api import runtime_pb2 as pb
from hack.lab.daemon import Daemon
from hack.lab.settings import patient

SLEEP = ("sleep", "1000")


@dataclass
class Pod:
    """A sandbox and the containers made in it, on one daemon."""

    daemon: Daemon
    config: pb.PodSandboxConfig
    id: str = ""

    @classmethod
    def plan(cls, daemon: Daemon, *, pid: int = pb.CONTAINER, **linux: object) -> Pod:
        """A pod that is not running yet, of a name no other has."""
        uid = str(uuid.uuid4())
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=f"pod-{uid[:8]}", uid=uid, namespace="tests"),
            hostname="tester",
            log_directory=str(daemon.directory / "logs" / uid),
        )
        config.linux.security_context.namespace_options.pid = pid
        for key, value in linux.items():
            setattr(config.linux, key, value)
        return cls(daemon, config)

    def run(self, timeout: float = 60) -> Pod:
        """RunPodSandbox."""
        request = pb.RunPodSandboxRequest(config=self.config)
        self.id = self.daemon.runtime.RunPodSandbox(request, timeout=patient(timeout)).pod_sandbox_id
        return self

    def container(self, image: str, *command: str, name: str = "main", attempt: int = 0) -> pb.ContainerConfig:
        """A container's configuration, to be changed at will."""
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name, attempt=attempt),
            image=pb.ImageSpec(image=image),
            command=command or SLEEP,
            log_path=f"{name}-{attempt}.log",
        )
        config.linux.security_context.namespace_options.pid = self.config.linux.security_context.namespace_options.pid
        return config

    def create(self, config: pb.ContainerConfig, timeout: float = 60) -> str:
        """CreateContainer."""
        request = pb.CreateContainerRequest(pod_sandbox_id=self.id, config=config, sandbox_config=self.config)
        return str(self.daemon.runtime.CreateContainer(request, timeout=patient(timeout)).container_id)

    def start(self, config: pb.ContainerConfig) -> str:
        """CreateContainer and StartContainer."""
        id_ = self.create(config)
        self.daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=id_), timeout=patient(60))
        return id_

    def status(self, container_id: str) -> pb.ContainerStatus:
        """ContainerStatus."""
        request = pb.ContainerStatusRequest(container_id=container_id)
        return self.daemon.runtime.ContainerStatus(request, timeout=patient(30)).status

    def wait(self, container_id: str, state: int = pb.CONTAINER_EXITED, seconds: float = 30) -> pb.ContainerStatus:
        """Until the container is in that state."""
        until = time.monotonic() + patient(seconds)
        while (status := self.status(container_id)).state != state:
            assert time.monotonic() < until, f"container is {pb.ContainerState.Name(status.state)}"
            time.sleep(0.02)
        return status

    def log(self, container_id: str) -> str:
        """The container's output, stripped of the CRI log format's time, stream and tag."""
        path = Path(self.status(container_id).log_path)
        return "".join(line.split(" ", 3)[3] + "\n" for line in path.read_text().splitlines())

    def output(self, image: str, *command: str, **changes: object) -> str:
        """Run a command to its end in a container of its own; its output. It must succeed."""
        config = self.container(image, *command, name=f"c{os.urandom(3).hex()}")
        for key, value in changes.items():
            setattr(config, key, value)
        id_ = self.start(config)
        status = self.wait(id_)
        text = self.log(id_)
        assert status.exit_code == 0, text
        return text

    def exec(self, container_id: str, *command: str, timeout: int = 30) -> pb.ExecSyncResponse:
        """ExecSync."""
        request = pb.ExecSyncRequest(container_id=container_id, cmd=command, timeout=timeout)
        return self.daemon.runtime.ExecSync(request, timeout=patient(timeout + 30))

    def stop_container(self, container_id: str, grace: int = 0) -> None:
        """StopContainer."""
        request = pb.StopContainerRequest(container_id=container_id, timeout=grace)
        self.daemon.runtime.StopContainer(request, timeout=patient(grace + 60))

    def ready(self) -> bool:
        """PodSandboxStatus: whether the sandbox is ready."""
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=self.id)
        return bool(self.daemon.runtime.PodSandboxStatus(request, timeout=patient(30)).status.state == pb.SANDBOX_READY)

    def stop(self) -> None:
        """StopPodSandbox."""
        self.daemon.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=self.id), timeout=patient(60))

    def remove(self) -> None:
        """StopPodSandbox and RemovePodSandbox."""
        self.stop()
        self.daemon.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=self.id), timeout=patient(60))
