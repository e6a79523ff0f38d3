"""What the CRI services need of ForgeOne: no more of it is called from here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from cri.streaming.server import Grant
from engines.base import ContainerSpec, ExecResult, HostCalls, Resources, SandboxSpec
from forgeone_shim.deadline import Deadline
from forgeone_shim.metrics.meter import Meter
from forgeone_shim.registry.model import Credentials, Image, LayerProgress
from forgeone_shim.rpc.behaviour import Behaviours
from forgeone_shim.runtime.checkpoints import RestoredContainer
from forgeone_shim.runtime.events import Feed
from forgeone_shim.runtime.views import ContainerView, FilesystemUsage, NodeStatus, SandboxView


class ImagesPort(Protocol):
    """The images of this node. Names are as users write them, or ids."""

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
        """Bring an image here, for a pod of that namespace if one is known.

        Of a name that stands for two, ``wasm`` asks for the WebAssembly one.
        """

    def resolve(self, ref: str, *, wasm: bool = False) -> Image:
        """The image of that name; NotFound where there is none."""

    def named(self, ref: str) -> list[Image]:
        """Every image of that name."""

    def list(self) -> list[Image]:
        """All images."""

    def remove(self, ref: str) -> None:
        """Forget the image with all its names; a missing one is no error."""

    def export(self, names: Sequence[str]) -> Iterator[bytes]:
        """Images as an archive, a piece at a time."""

    def receive(self, pieces: Iterable[bytes], deadline: Deadline, name: str = "") -> tuple[Image, ...]:
        """Bring the images of an archive here."""


class StreamingPort(Protocol):
    """The port that clients stream through."""

    def url(self, grant: Grant) -> str:
        """Where, and with which token, a client may use ``grant`` within a minute, once."""


class RuntimePort(Protocol):
    """The verbs of pods and containers. Ids may be unique prefixes; NotFound where there is none."""

    @property
    def images(self) -> ImagesPort:
        """The images."""

    def image_wanted(self, image: Image, handler: str, pod: str, deadline: Deadline) -> None:
        """An image was pulled for pods of that handler, or for the one with that key."""

    def wasm_first(self, handler: str, pod: str = "") -> bool:
        """Whether pods of that handler, or else the pod of that key, want WebAssembly where an image has it.

        InvalidInput where there is no such runtime handler.
        """

    @property
    def meter(self) -> Meter:
        """What they use."""

    @property
    def cgroup_driver(self) -> str:
        """``systemd`` or ``cgroupfs``."""

    def run_sandbox(self, spec: SandboxSpec, deadline: Deadline) -> str:
        """Returns the id of a ready sandbox."""

    def stop_sandbox(self, id_: str, deadline: Deadline) -> None:
        """A missing one is no error."""

    def remove_sandbox(self, id_: str, deadline: Deadline) -> None:
        """A missing one is no error."""

    def update_sandbox(self, id_: str, overhead: Resources | None, resources: Resources | None) -> None:
        """``None`` leaves what it had."""

    def sandbox(self, id_: str) -> SandboxView:
        """One."""

    def sandboxes(self) -> list[SandboxView]:
        """All."""

    def create_container(self, sandbox_id: str, spec: ContainerSpec, deadline: Deadline) -> str:
        """Returns the id of a container that waits to be started."""

    def start_container(self, id_: str, deadline: Deadline) -> None:
        """Let it run."""

    def stop_container(self, id_: str, timeout: float, deadline: Deadline) -> None:
        """``timeout`` in seconds; a missing one is no error."""

    def remove_container(self, id_: str, deadline: Deadline) -> None:
        """Kill it if need be; a missing one is no error."""

    def update_container(self, id_: str, resources: Resources, deadline: Deadline) -> None:
        """Change the limits that are set; all or none of them."""

    def pause_container(self, id_: str, deadline: Deadline) -> None:
        """Stop its processes where they are; one that is paused already is no error."""

    def resume_container(self, id_: str, deadline: Deadline) -> None:
        """Let a paused one go on; one that runs is no error."""

    def host_calls(self, id_: str, deadline: Deadline, *, follow: bool) -> Iterator[HostCalls]:
        """What a traced container's guest asked of its host; with ``follow`` until it ends."""

    def inspect(self, id_: str) -> dict[str, Any]:
        """Everything that is known of a container or a pod."""

    @property
    def behaviours(self) -> Behaviours:
        """What containers do, and what is usual for their images."""

    def paused_containers(self) -> list[str]:
        """Their ids."""

    def container(self, id_: str) -> ContainerView:
        """One."""

    def containers(self, sandbox_id: str = "") -> list[ContainerView]:
        """All, or those of the sandbox of that id."""

    def listen(self) -> Feed:
        """What happens from now on."""

    def checkpoint_container(self, id_: str, location: str, deadline: Deadline) -> None:
        """Save a running container into an archive."""

    def checkpoint_pod(
        self, id_: str, path: str, container_ids: Sequence[str], options: Mapping[str, str], deadline: Deadline
    ) -> None:
        """Save running containers of a pod into a directory."""

    def restore_pod(
        self,
        path: str,
        spec: SandboxSpec,
        containers: Sequence[ContainerSpec],
        options: Mapping[str, str],
        deadline: Deadline,
    ) -> tuple[str, tuple[RestoredContainer, ...]]:
        """A pod of a checkpoint, and its containers, waiting to be started."""

    def rotate_audit_key(self, deadline: Deadline) -> str:
        """Sign the audit log with a new key; what it is verified with."""

    def accept_audit_damage(self, deadline: Deadline) -> None:
        """Let things start again after the audit log was found damaged."""

    def may_exec(self, id_: str, argv: tuple[str, ...], *, tty: bool = False) -> None:
        """Denied where ``argv`` may not be run in it."""

    def may_attach(self, id_: str) -> None:
        """Denied where its streams may not be had."""

    def may_forward(self, sandbox_id: str, ports: tuple[int, ...]) -> None:
        """Denied where these ports of a pod may not be reached; none named: all of them."""

    def exec_sync(self, id_: str, argv: tuple[str, ...], timeout: float | None) -> ExecResult:
        """Run ``argv`` inside; DeadlineExceeded ``timeout`` seconds later."""

    def reopen_log(self, id_: str) -> None:
        """After a log rotation."""

    def status(self) -> NodeStatus:
        """Conditions and handlers."""

    def update_pod_cidr(self, cidr: str) -> None:
        """The control plane's ranges for this node's pods, with a comma between them."""

    def network_details(self, sandbox_id: str) -> dict[str, object]:
        """What there is to tell people of a pod's network."""

    def image_filesystem(self) -> FilesystemUsage:
        """What images take."""

    def container_filesystem(self) -> FilesystemUsage:
        """What containers have written."""
