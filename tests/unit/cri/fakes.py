"""A runtime in memory: pods and containers are records, nothing runs."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from cri.streaming.server import Grant
from engines.base import ContainerSpec, ExecResult, Features, HostCalls, Resources, SandboxSpec, User
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, InvalidInput, NotFound
from forgeone_shim.lifecycle.machine import Event, Lifecycle, State, Subject, Transition
from forgeone_shim.metrics.meter import ContainerReading, Meter, PodReading, PodSamples
from forgeone_shim.metrics.network import Interface
from forgeone_shim.metrics.samples import Sample
from forgeone_shim.metrics.usage import Pressure, Stall, Usage
from forgeone_shim.registry.model import Credentials, Image, LayerProgress
from forgeone_shim.runtime.checkpoints import RestoredContainer
from forgeone_shim.runtime.events import EventHub, Feed, Happening
from forgeone_shim.runtime.records import sandbox_key
from forgeone_shim.runtime.views import (
    Condition,
    ContainerView,
    FilesystemUsage,
    HandlerStatus,
    NodeStatus,
    SandboxView,
)

V = TypeVar("V")

EVENTS = 8
"""Events a client may be behind."""


class FakeImages:
    """A registry that has everything."""

    def __init__(self) -> None:
        self.store: dict[str, Image] = {}
        self.namespaces: list[str] = []
        self.wasm: list[bool] = []
        self.pulled_with: list[Credentials | None] = []
        self.arrived = threading.Event()
        self.arrived.set()

    def pull(
        self,
        image: str,
        auth: Credentials | None,
        deadline: Deadline,
        progress: Callable[[LayerProgress], None] | None = None,
        *,
        namespace: str = "",
        wasm: bool = False,
    ) -> Image:
        self.namespaces.append(namespace)
        self.wasm.append(wasm)
        self.arrived.wait(deadline.remaining())
        deadline.check("during the pull")
        self.pulled_with.append(auth)
        made = Image(id=f"sha256:{len(self.store):064x}", repo_tags=(image,), size=7)
        self.store[made.id] = made
        return made

    def resolve(self, ref: str, *, wasm: bool = False) -> Image:
        self.wasm.append(wasm)
        for image in self.store.values():
            if ref == image.id or ref in image.repo_tags:
                return image
        raise NotFound("image", ref)

    def named(self, ref: str) -> list[Image]:
        return [image for image in self.store.values() if ref == image.id or ref in image.repo_tags]

    def list(self) -> list[Image]:
        return list(self.store.values())

    def remove(self, ref: str) -> None:
        try:
            del self.store[self.resolve(ref).id]
        except NotFound:
            return


class FakeStreaming:
    """Gives out URLs that nobody serves."""

    def __init__(self) -> None:
        self.grants: list[Grant] = []

    def url(self, grant: Grant) -> str:
        self.grants.append(grant)
        return f"http://127.0.0.1:1/{len(self.grants)}"


class FakeMeter(Meter):
    """Everything uses the same, but for processor time, which goes with the number of the process."""

    def __init__(self) -> None:
        """Reads nothing."""

    def container(self, view: ContainerView) -> ContainerReading:
        moment = Pressure(1.5, 0.5, 0.25, 9000)
        usage = Usage(at=5, cpu=view.pid * 1000, working_set=70, swap=0, io_stall=Stall(moment, moment))
        return ContainerReading(view, usage, 250, FilesystemUsage("/root", 30, 3, 4))

    def containers(self, views: Collection[ContainerView]) -> list[ContainerReading]:
        return [self.container(view) for view in views]

    def pods(
        self, wanted: Iterable[SandboxView], sandboxes: Collection[SandboxView], containers: Collection[ContainerView]
    ) -> list[PodReading]:
        links = tuple(Interface(name, 1, 2, 3, 4, 5, 6, 7, 8) for name in ("net1", "eth0"))
        return [
            PodReading(
                view=view,
                usage=Usage(at=6, cpu=9, working_set=8),
                nano_cores=None,
                processes=2,
                interfaces=links,
                containers=tuple(self.container(one) for one in containers if one.sandbox_id == view.id),
            )
            for view in wanted
        ]

    def samples(self, sandboxes: Iterable[SandboxView], containers: Collection[ContainerView]) -> list[PodSamples]:
        return [
            PodSamples(
                view=view,
                cgroup="/pods",
                at=7,
                pod=(Sample("container_network_receive_bytes_total", 4, ("eth0",)),),
                containers=tuple(
                    (one, one.cgroup, (Sample("container_processes", 3),))
                    for one in containers
                    if one.sandbox_id == view.id
                ),
            )
            for view in sandboxes
        ]


class FakeRuntime:
    """Every verb of RuntimePort over two dictionaries; ``during`` is called inside run_sandbox."""

    cgroup_driver = "cgroupfs"

    def __init__(self) -> None:
        self.images = FakeImages()
        self.meter = FakeMeter()
        self.deadlines: list[float | None] = []
        self.during: Callable[[], None] = lambda: None
        self.exec_answer = ExecResult(0, b"out", b"err")
        self.execs: list[tuple[str, tuple[str, ...], float | None]] = []
        self.stops: list[tuple[str, float]] = []
        self.reopened: list[str] = []
        self.wanted: list[tuple[str, str, str]] = []
        self.pod_cidr = ""
        self.checkpoints: list[tuple[object, ...]] = []
        self.features = Features()
        self.ready = True
        self._sandboxes: dict[str, SandboxView] = {}
        self._containers: dict[str, ContainerView] = {}
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._lifecycle = Lifecycle()
        self._events = EventHub(self._lifecycle, self._happening, limit=EVENTS)

    def checkpoint_container(self, id_: str, location: str, deadline: Deadline) -> None:
        self.checkpoints.append((id_, location, deadline.remaining()))

    def checkpoint_pod(
        self, id_: str, path: str, container_ids: Sequence[str], options: Mapping[str, str], deadline: Deadline
    ) -> None:
        self.checkpoints.append((id_, path, tuple(container_ids), dict(options)))

    def restore_pod(
        self,
        path: str,
        spec: SandboxSpec,
        containers: Sequence[ContainerSpec],
        options: Mapping[str, str],
        deadline: Deadline,
    ) -> tuple[str, tuple[RestoredContainer, ...]]:
        sandbox_id = self.run_sandbox(spec, deadline)
        return sandbox_id, tuple(
            RestoredContainer(one.name, self.create_container(sandbox_id, one, deadline)) for one in containers
        )

    def image_wanted(self, image: Image, handler: str, pod: str, _deadline: Deadline) -> None:
        self.wanted.append((image.id, handler, pod))

    def wasm_first(self, handler: str, pod: str = "") -> bool:
        if handler not in ("", "forgeone-native", "forgeone-wasm"):
            raise InvalidInput("runtime_handler", f"there is no handler {handler!r}")
        pods = (one for one in self.sandboxes() if pod and sandbox_key(one.spec) == pod)
        return (handler or next((one.handler for one in pods), "")) == "forgeone-wasm"

    def _id(self) -> str:
        with self._lock:
            return f"{next(self._ids):x}".rjust(4, "0") + "ab" * 30

    def run_sandbox(self, spec: SandboxSpec, deadline: Deadline) -> str:
        self.deadlines.append(deadline.remaining())
        self.during()
        for view in self._sandboxes.values():
            if view.spec == spec and view.ready:
                return view.id
        view = SandboxView(
            id=self._id(),
            spec=spec,
            created_at=time.time_ns(),
            state=State.BOOTED,
            ips=("10.0.0.9", "fd00::9"),
            handler=spec.runtime_handler,
            netns="/ns/net",
            cgroup=spec.cgroup_parent,
        )
        self._step(view, Event.BOOT, lambda _: self._sandboxes.setdefault(view.id, view), before=State.CREATED)
        return view.id

    def _step(
        self, view: SandboxView | ContainerView, event: Event, commit: Callable[[State], object], before: State
    ) -> None:
        subject = Subject.SANDBOX if isinstance(view, SandboxView) else Subject.CONTAINER
        sandbox_id = view.id if isinstance(view, SandboxView) else view.sandbox_id
        self._lifecycle.step(subject, view.id, sandbox_id=sandbox_id, before=before, event=event, commit=commit)

    def _happening(self, made: Transition) -> Happening:
        of_pod = tuple(view for view in self._containers.values() if view.sandbox_id == made.sandbox_id)
        return Happening(made, self._sandboxes.get(made.sandbox_id), of_pod)

    def stop_sandbox(self, id_: str, deadline: Deadline) -> None:
        if id_ in self._sandboxes:
            self._sandboxes[id_] = replace(self._sandboxes[id_], state=State.TERMINATED, ips=())

    def remove_sandbox(self, id_: str, deadline: Deadline) -> None:
        self._sandboxes.pop(id_, None)
        self._containers = {key: view for key, view in self._containers.items() if view.sandbox_id != id_}

    def update_sandbox(self, id_: str, overhead: Resources | None, resources: Resources | None) -> None:
        view = self.sandbox(id_)
        given = {"overhead": overhead, "resources": resources}
        spec = replace(view.spec, **{key: value for key, value in given.items() if value is not None})
        self._sandboxes[view.id] = replace(view, spec=spec)

    def sandbox(self, id_: str) -> SandboxView:
        return _find("sandbox", self._sandboxes, id_)

    def sandboxes(self) -> list[SandboxView]:
        return list(self._sandboxes.values())

    def create_container(self, sandbox_id: str, spec: ContainerSpec, deadline: Deadline) -> str:
        if not self.sandbox(sandbox_id).ready:
            raise FailedPrecondition(f"sandbox {sandbox_id} is not ready")
        image = self.images.resolve(spec.image)
        view = ContainerView(
            id=self._id(),
            sandbox_id=sandbox_id,
            spec=spec,
            image_id=image.id,
            image_ref=image.id,
            user=User(uid=5, gid=6, additional_gids=(6, 7)),
            state=State.BOOTED,
            created_at=time.time_ns(),
            started_at=0,
            finished_at=0,
            exit_code=0,
            reason="",
            message="",
            log_path=f"/logs/{spec.log_path}" if spec.log_path else "",
            stop_signal=spec.stop_signal or "SIGTERM",
            bundle="/state/bundle",
            pid=0,
            cgroup="/pods/container",
        )
        self._step(view, Event.BOOT, lambda _: self._containers.setdefault(view.id, view), before=State.CREATED)
        return view.id

    def start_container(self, id_: str, deadline: Deadline) -> None:
        view = self.container(id_)
        self._step(
            view,
            Event.START,
            lambda state: self.change(id_, state=state, started_at=time.time_ns(), pid=77),
            before=view.state,
        )

    def stop_container(self, id_: str, timeout: float, deadline: Deadline) -> None:
        self.stops.append((id_, timeout))
        if id_ in self._containers:
            view = self.container(id_)
            self._step(
                view,
                Event.EXIT,
                lambda state: self.change(id_, state=state, finished_at=time.time_ns(), exit_code=137, pid=0),
                before=view.state,
            )

    def remove_container(self, id_: str, deadline: Deadline) -> None:
        view = self._containers.get(id_)
        if view is not None:
            self._step(view, Event.REMOVE, lambda _: self._containers.pop(id_), before=State.TERMINATED)

    def update_container(self, id_: str, resources: Resources, deadline: Deadline) -> None:
        self.change(id_, spec=replace(self.container(id_).spec, resources=resources))

    def pause_container(self, id_: str, deadline: Deadline) -> None:
        self.change(id_, state=State.PAUSED)

    def resume_container(self, id_: str, deadline: Deadline) -> None:
        self.change(id_, state=State.RUNNING)

    def host_calls(self, id_: str, deadline: Deadline, *, follow: bool) -> Iterator[HostCalls]:
        yield HostCalls((), 0, 0)

    def paused_containers(self) -> list[str]:
        return [view.id for view in self._containers.values() if view.state is State.PAUSED]

    def container(self, id_: str) -> ContainerView:
        return _find("container", self._containers, id_)

    def containers(self, sandbox_id: str = "") -> list[ContainerView]:
        return [view for view in self._containers.values() if sandbox_id in ("", view.sandbox_id)]

    def change(self, id_: str, **fields: object) -> None:
        self._containers[id_] = replace(self.container(id_), **fields)  # type: ignore[arg-type]

    def listen(self) -> Feed:
        return self._events.listen()

    def rotate_audit_key(self, deadline: Deadline) -> str:
        return "node+00000000+A"

    def accept_audit_damage(self, deadline: Deadline) -> None:
        pass

    def may_exec(self, id_: str, argv: tuple[str, ...], *, tty: bool = False) -> None:
        self.container(id_)

    def may_attach(self, id_: str) -> None:
        self.container(id_)

    def may_forward(self, sandbox_id: str, ports: tuple[int, ...]) -> None:
        self.sandbox(sandbox_id)

    def exec_sync(self, id_: str, argv: tuple[str, ...], timeout: float | None) -> ExecResult:
        self.container(id_)
        self.execs.append((id_, argv, timeout))
        return self.exec_answer

    def reopen_log(self, id_: str) -> None:
        self.container(id_)
        self.reopened.append(id_)

    def status(self) -> NodeStatus:
        handlers = (HandlerStatus("", self.features), HandlerStatus("forgeone-native", self.features))
        return NodeStatus(Condition(self.ready), Condition(False, "NoBridge", "there is no bridge"), handlers)

    def update_pod_cidr(self, cidr: str) -> None:
        self.pod_cidr = cidr

    def network_details(self, sandbox_id: str) -> dict[str, object]:
        return {"cniResult": {}}

    def image_filesystem(self) -> FilesystemUsage:
        return FilesystemUsage("/root/layers", 70, 7, 1)

    def container_filesystem(self) -> FilesystemUsage:
        return FilesystemUsage("/root", 30, 3, 2)


def _find(noun: str, known: dict[str, V], id_: str) -> V:
    for key, view in known.items():
        if key.startswith(id_):
            return view
    raise NotFound(noun, id_)
