"""One worker's pods as a state machine (hypothesis.stateful): random verbs, and what must hold after each."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cri.api import runtime_pb2 as pb
from hack.soak.patient import Client, Refused

_PODS, _CONTAINERS = 3, 3
_LINES = 200
_ENDS_WITHIN = 60.0
_MIB = 1 << 20


@dataclass
class Container:
    """``code`` is what it must end with, if it ends by itself; ``state`` what it was last made to be."""

    config: pb.ContainerConfig
    id: str
    kind: str
    code: int | None
    state: str = "created"
    logs: list[Path] = field(default_factory=list)


@dataclass
class Pod:
    """A sandbox and its containers by name."""

    config: pb.PodSandboxConfig
    id: str
    ready: bool = True
    containers: dict[str, Container] = field(default_factory=dict)


KINDS = {
    "sleeper": ("sleep 10000", None),
    "stubborn": ("trap '' TERM; while :; do sleep 0.2; done", None),
    "lines": (f"i=0; while [ $i -lt {_LINES} ]; do echo line $i; i=$((i+1)); done", 0),
    "fails": ("sleep 0.1; exit 7", 7),
    "hungry": ("dd if=/dev/zero of=/dev/null bs=200M count=1; exit $?", 137),
    "children": ("sleep 10000 & sleep 10000 & echo forked; exit 3", 3),
}


class Life(RuleBasedStateMachine):
    """``client``, ``image``, ``logs`` (a directory) and ``worker`` (a label) are set on a subclass."""

    client: Client
    image: str
    logs: Path
    worker: str

    def __init__(self) -> None:
        super().__init__()
        self.pods: dict[str, Pod] = {}

    # -- choices

    def _pod(self, data: Any, *, ready: bool | None = None) -> Pod:
        fitting = [pod for pod in self.pods.values() if ready is None or pod.ready == ready]
        found: Pod = data.draw(st.sampled_from(fitting))
        return found

    def _container(self, data: Any, *states: str) -> tuple[Pod, Container]:
        found: tuple[Pod, Container] = data.draw(st.sampled_from(self._in(*states)))
        return found

    def _in(self, *states: str) -> list[tuple[Pod, Container]]:
        return [
            (pod, one)
            for pod in self.pods.values()
            for one in pod.containers.values()
            if not states or one.state in states
        ]

    # -- verbs of pods

    @precondition(lambda self: len(self.pods) < _PODS)
    @rule(
        pid=st.sampled_from([pb.CONTAINER, pb.CONTAINER, pb.POD, pb.NODE]),
        network=st.sampled_from([pb.POD, pb.POD, pb.POD, pb.NODE]),
        ipc=st.sampled_from([pb.POD, pb.NODE]),
    )
    def run_pod(self, pid: Any, network: Any, ipc: Any) -> None:
        uid = str(uuid.uuid4())
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=f"soak-{uid[:8]}", uid=uid, namespace="soak"),
            log_directory=str(self.logs / uid),
            labels={"worker": self.worker},
        )
        if network == pb.POD:
            config.hostname = "soak"
        options = config.linux.security_context.namespace_options
        options.pid, options.network, options.ipc = pid, network, ipc
        answer = self.client.RunPodSandbox(pb.RunPodSandboxRequest(config=config))
        self.pods[answer.pod_sandbox_id] = Pod(config, answer.pod_sandbox_id)

    @precondition(lambda self: any(pod.ready for pod in self.pods.values()))
    @rule(data=st.data())
    def run_pod_again(self, data: Any) -> None:
        pod = self._pod(data, ready=True)
        assert self.client.RunPodSandbox(pb.RunPodSandboxRequest(config=pod.config)).pod_sandbox_id == pod.id

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def stop_pod(self, data: Any) -> None:
        pod = self._pod(data)
        self.client.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod.id))
        pod.ready = False
        for one in pod.containers.values():
            if one.state in ("running", "created"):
                one.state = "killed"

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def remove_pod(self, data: Any) -> None:
        pod = self._pod(data)
        if pod.ready:
            self.client.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod.id))
        self.client.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod.id))
        del self.pods[pod.id]

    # -- verbs of containers

    @precondition(lambda self: any(pod.ready and len(pod.containers) < _CONTAINERS for pod in self.pods.values()))
    @rule(data=st.data(), kind=st.sampled_from(sorted(KINDS)), start=st.sampled_from([True, True, False]))
    def create(self, data: Any, kind: str, start: bool) -> None:
        fitting = [pod for pod in self.pods.values() if pod.ready and len(pod.containers) < _CONTAINERS]
        pod = data.draw(st.sampled_from(fitting))
        name = f"c{uuid.uuid4().hex[:6]}"
        script, code = KINDS[kind]
        config = self._config(pod, name, "sh", "-c", script)
        if kind == "hungry":
            config.linux.resources.memory_limit_in_bytes = 16 * _MIB
        id_ = self._create(pod, config)
        assert self._create(pod, config) == id_, "a repeated create made another container"
        pod.containers[name] = Container(config, id_, kind, code)
        if start:
            self._start(pod, pod.containers[name])

    def _config(self, pod: Pod, name: str, *command: str) -> pb.ContainerConfig:
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image=self.image),
            command=command,
            log_path=f"{name}.log",
            labels={"worker": self.worker},
        )
        options = pod.config.linux.security_context.namespace_options
        config.linux.security_context.namespace_options.CopyFrom(options)
        return config

    def _create(self, pod: Pod, config: pb.ContainerConfig) -> str:
        request = pb.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        return str(self.client.CreateContainer(request).container_id)

    @precondition(lambda self: self._in("created"))
    @rule(data=st.data())
    def start(self, data: Any) -> None:
        self._start(*self._container(data, "created"))

    def _start(self, pod: Pod, one: Container) -> None:
        try:
            self.client.StartContainer(pb.StartContainerRequest(container_id=one.id))
        except Refused as error:
            # An earlier try started it, and it has ended since.
            if not error.repeated or error.code != grpc.StatusCode.FAILED_PRECONDITION:
                raise
            assert self._status(one).state == pb.CONTAINER_EXITED, error
        one.state = "running"
        one.logs.append(Path(pod.config.log_directory, one.config.log_path))

    @precondition(lambda self: self._in("running"))
    @rule(data=st.data(), word=st.text("abc", min_size=1, max_size=8))
    def exec_sync(self, data: Any, word: str) -> None:
        _, one = self._container(data, "running")
        request = pb.ExecSyncRequest(container_id=one.id, cmd=["sh", "-c", f"echo {word}; exit 5"], timeout=30)
        try:
            answer = self.client.ExecSync(request)
        except Refused as error:
            assert one.code is not None, error
            return
        if one.code is None:
            assert (answer.exit_code, answer.stdout) == (5, f"{word}\n".encode())

    @precondition(lambda self: self._in("running"))
    @rule(data=st.data(), shares=st.integers(2, 2048))
    def update(self, data: Any, shares: int) -> None:
        _, one = self._container(data, "running")
        request = pb.UpdateContainerResourcesRequest(container_id=one.id)
        request.linux.cpu_shares = shares
        try:
            self.client.UpdateContainerResources(request)
        except Refused as error:
            assert one.code is not None, error
            return
        if one.code is None:
            assert self._status(one).resources.linux.cpu_shares == shares

    @precondition(lambda self: self._in("running"))
    @rule(data=st.data())
    def rotate(self, data: Any) -> None:
        _, one = self._container(data, "running")
        log = one.logs[-1]
        if one.code is not None or not log.exists():
            return
        one.logs.insert(-1, log.rename(f"{log}.{len(one.logs)}"))
        self.client.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=one.id))
        assert log.exists()

    @precondition(lambda self: self._in("running"))
    @rule(data=st.data())
    def await_end(self, data: Any) -> None:
        _, one = self._container(data, "running")
        if one.code is None:
            return
        until = time.monotonic() + _ENDS_WITHIN
        while (status := self._status(one)).state != pb.CONTAINER_EXITED:
            assert time.monotonic() < until, f"{one.kind} does not end"
            time.sleep(0.02)
        one.state = "ended"
        assert status.exit_code == one.code, f"{one.kind}: {status}"
        assert status.reason == ("OOMKilled" if one.kind == "hungry" else "Completed" if one.code == 0 else "Error")
        if one.kind == "lines":
            said = [line.split(" ", 3)[3] for log in one.logs for line in log.read_text().splitlines()]
            assert said == [f"line {number}" for number in range(_LINES)], f"{len(said)} lines"

    @precondition(lambda self: self._in("running", "created", "killed", "ended"))
    @rule(data=st.data(), grace=st.sampled_from([0, 0, 1]))
    def stop(self, data: Any, grace: int) -> None:
        _, one = self._container(data)
        self.client.StopContainer(pb.StopContainerRequest(container_id=one.id, timeout=grace))
        assert self._status(one).state == pb.CONTAINER_EXITED
        if one.state != "ended":
            one.state = "killed"

    @precondition(lambda self: self._in())
    @rule(data=st.data())
    def remove(self, data: Any) -> None:
        pod, one = self._container(data)
        self.client.RemoveContainer(pb.RemoveContainerRequest(container_id=one.id))
        del pod.containers[one.config.metadata.name]

    # -- what is refused leaves nothing

    @precondition(lambda self: any(not pod.ready for pod in self.pods.values()))
    @rule(data=st.data())
    def create_in_a_stopped_pod(self, data: Any) -> None:
        self._refused(self._pod(data, ready=False), grpc.StatusCode.FAILED_PRECONDITION, image=self.image)

    @precondition(lambda self: any(pod.ready for pod in self.pods.values()))
    @rule(data=st.data())
    def create_of_no_image(self, data: Any) -> None:
        self._refused(self._pod(data, ready=True), grpc.StatusCode.NOT_FOUND, image="no.such/image:v1")

    @precondition(lambda self: any(pod.ready and len(pod.containers) < _CONTAINERS for pod in self.pods.values()))
    @rule(data=st.data())
    def start_of_no_command(self, data: Any) -> None:
        fitting = [pod for pod in self.pods.values() if pod.ready and len(pod.containers) < _CONTAINERS]
        pod = data.draw(st.sampled_from(fitting))
        config = self._config(pod, f"n{uuid.uuid4().hex[:6]}", "/no/such/command")
        one = Container(config, self._create(pod, config), "nothing", 128)
        pod.containers[config.metadata.name] = one
        try:
            self.client.StartContainer(pb.StartContainerRequest(container_id=one.id))
        except Refused as error:
            wanted = {grpc.StatusCode.INVALID_ARGUMENT} | (
                {grpc.StatusCode.FAILED_PRECONDITION} if error.repeated else set()
            )
            assert error.code in wanted, error
        else:
            raise AssertionError("was started")
        one.state = "ended"
        status = self._status(one)
        assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 128, "StartError")

    def _refused(self, pod: Pod, code: grpc.StatusCode, *, image: str) -> None:
        config = self._config(pod, f"r{uuid.uuid4().hex[:6]}", "true")
        config.image.image = image
        try:
            self._create(pod, config)
        except Refused as error:
            assert error.code == code, error
        else:
            raise AssertionError("was not refused")

    # -- what holds

    def _status(self, one: Container) -> pb.ContainerStatus:
        found: pb.ContainerStatus = self.client.ContainerStatus(pb.ContainerStatusRequest(container_id=one.id)).status
        return found

    @invariant()
    def the_lists_are_what_was_asked_for(self) -> None:
        mine = {"worker": self.worker}
        pods = self.client.ListPodSandbox(pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(label_selector=mine)))
        assert {pod.id: pod.state == pb.SANDBOX_READY for pod in pods.items} == {
            pod.id: pod.ready for pod in self.pods.values()
        }
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(label_selector=mine))
        found = {one.id: one.state for one in self.client.ListContainers(request).containers}
        expected = {one.id: one for _, one in self._in()}
        assert set(found) == set(expected)
        for id_, state in found.items():
            assert state in _states(expected[id_]), f"{expected[id_]} is {pb.ContainerState.Name(state)}"

    @precondition(lambda self: self._in("running"))
    @invariant()
    def what_runs_has_stats(self) -> None:
        wanted = {one.id for _, one in self._in("running") if one.code is None}
        selector = pb.ContainerStatsFilter(label_selector={"worker": self.worker})
        stats = self.client.ListContainerStats(pb.ListContainerStatsRequest(filter=selector)).stats
        assert wanted <= {one.attributes.id for one in stats if one.memory.working_set_bytes.value}

    def teardown(self) -> None:
        """Everything goes."""
        for pod in self.pods.values():
            self.client.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod.id))
            self.client.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod.id))


def _states(one: Container) -> set[int]:
    if one.state == "created":
        return {pb.CONTAINER_CREATED}
    if one.state == "running":
        return {pb.CONTAINER_RUNNING} | ({pb.CONTAINER_EXITED} if one.code is not None else set())
    return {pb.CONTAINER_EXITED}
