"""The servicer of ``forgeone.v1.Node``. Errors are raised as they are: the server it is added to maps them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Protocol

import msgspec

from engines.base import HostCall, HostCalls
from forgeone_shim.config.reload import Outcome
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded
from forgeone_shim.registry.model import Credentials, Image, LayerProgress, LayerState
from forgeone_shim.rpc import node_pb2
from forgeone_shim.rpc.behaviour import BehaviourMethods, Behaviours
from forgeone_shim.runtime.views import ContainerView, SandboxView

# One message for so many parts of a layer, or for so many bytes, whichever is more: enough for a progress bar.
_PARTS, _STEP = 100, 256 * 1024
# Calls of a guest in one message: what clients take by default is 4 MiB.
_CALLS = 512

_STATES = {
    LayerState.WAITING: node_pb2.LAYER_STATE_WAITING,
    LayerState.DOWNLOADING: node_pb2.LAYER_STATE_DOWNLOADING,
    LayerState.EXISTS: node_pb2.LAYER_STATE_EXISTS,
    LayerState.DONE: node_pb2.LAYER_STATE_DONE,
}


class Puller(Protocol):
    """The part of :class:`~forgeone_shim.registry.service.ImageService` this service uses."""

    def pull(
        self,
        image: str,
        auth: Credentials | None,
        deadline: Deadline,
        progress: Callable[[LayerProgress], None] | None = None,
        *,
        wasm: bool = False,
    ) -> Image:
        """Pull ``image``, reporting to ``progress`` from any thread; ``wasm`` chooses between two of one name."""

    def export(self, names: Sequence[str]) -> Iterator[bytes]:
        """The images as an archive, a piece at a time."""

    def receive(self, pieces: Iterable[bytes], deadline: Deadline, name: str = "") -> tuple[Image, ...]:
        """The images of an archive that comes in pieces."""


class Node(Protocol):
    """The part of :class:`~forgeone_shim.runtime.runtime.Runtime` this service uses."""

    @property
    def images(self) -> Puller:
        """The node's images."""

    def wasm_first(self, handler: str) -> bool:
        """Whether pods of that handler want WebAssembly where an image has it; InvalidInput: there is no such one."""

    def pause_container(self, id_: str, deadline: Deadline) -> None:
        """Stop a container's processes where they are."""

    def resume_container(self, id_: str, deadline: Deadline) -> None:
        """Let a paused container go on."""

    def paused_containers(self) -> list[str]:
        """Their ids."""

    def sandboxes(self) -> list[SandboxView]:
        """All of them."""

    def containers(self, sandbox_id: str = "") -> list[ContainerView]:
        """All of them."""

    def host_calls(self, id_: str, deadline: Deadline, *, follow: bool) -> Iterator[HostCalls]:
        """What a traced container's guest asked of its host."""

    def rotate_audit_key(self, deadline: Deadline) -> str:
        """Sign the audit log with a new key; what it is verified with."""

    def accept_audit_damage(self, deadline: Deadline) -> None:
        """Let things start again."""

    def inspect(self, id_: str) -> dict[str, Any]:
        """Everything that is known of a container or a pod."""

    @property
    def behaviours(self) -> Behaviours:
        """What containers do."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """The other runtime behind the socket; without a ``socket`` there is none. ``problem``: why it does not answer."""

    socket: str = ""
    name: str = ""
    version: str = ""
    problem: str = ""
    image_ids: tuple[str, ...] = ()


def nobody(_deadline: Deadline) -> Upstream:
    """There is no other runtime."""
    return Upstream()


class Call(Protocol):
    """The call under way, as the server hands it to a method beside the request."""

    @property
    def deadline(self) -> Deadline:
        """The client's."""


class NodeServicer(BehaviourMethods):
    """``forgeone.v1.Node`` over a runtime."""

    def __init__(
        self, node: Node, reload: Callable[[], Outcome], upstream: Callable[[Deadline], Upstream] = nobody
    ) -> None:
        """``reload`` reads the configuration again and says what came of it; ``upstream`` tells of another runtime."""
        super().__init__(node)
        self._node, self._reload, self._upstream = node, reload, upstream

    def GetUpstream(self, _request: node_pb2.GetUpstreamRequest, call: Call) -> node_pb2.GetUpstreamResponse:
        """The runtime that other handlers' pods run on."""
        return node_pb2.GetUpstreamResponse(**asdict(self._upstream(call.deadline)))

    def Reload(self, _request: node_pb2.ReloadRequest, _call: Call) -> node_pb2.ReloadResponse:
        """What applies now, and what waits for a restart."""
        outcome = self._reload()
        return node_pb2.ReloadResponse(changed=outcome.changed, needs_restart=outcome.restart)

    def RotateAuditKey(self, _request: node_pb2.RotateAuditKeyRequest, call: Call) -> node_pb2.RotateAuditKeyResponse:
        """The new key."""
        return node_pb2.RotateAuditKeyResponse(key=self._node.rotate_audit_key(call.deadline))

    def AcceptAuditDamage(
        self, _request: node_pb2.AcceptAuditDamageRequest, call: Call
    ) -> node_pb2.AcceptAuditDamageResponse:
        """Things may start again."""
        self._node.accept_audit_damage(call.deadline)
        return node_pb2.AcceptAuditDamageResponse()

    def PauseContainer(self, request: node_pb2.PauseContainerRequest, call: Call) -> node_pb2.PauseContainerResponse:
        """None of its processes runs any more."""
        self._node.pause_container(request.container_id, call.deadline)
        return node_pb2.PauseContainerResponse()

    def ResumeContainer(self, request: node_pb2.ResumeContainerRequest, call: Call) -> node_pb2.ResumeContainerResponse:
        """It goes on."""
        self._node.resume_container(request.container_id, call.deadline)
        return node_pb2.ResumeContainerResponse()

    def ListPausedContainers(
        self, _request: node_pb2.ListPausedContainersRequest, _call: Call
    ) -> node_pb2.ListPausedContainersResponse:
        """What CRI has no word for."""
        return node_pb2.ListPausedContainersResponse(container_ids=self._node.paused_containers())

    def ListEngines(self, _request: node_pb2.ListEnginesRequest, _call: Call) -> node_pb2.ListEnginesResponse:
        """What CRI has no word for either."""
        pods = {one.id: node_pb2.PodEngine(engine=one.engine, placed=one.placed) for one in self._node.sandboxes()}
        return node_pb2.ListEnginesResponse(
            pods=pods, containers={one.id: one.engine for one in self._node.containers()}
        )

    def TraceContainer(
        self, request: node_pb2.TraceContainerRequest, call: Call
    ) -> Iterator[node_pb2.TraceContainerResponse]:
        """Calls as they are read, some at a time."""
        for found in self._node.host_calls(request.container_id, call.deadline, follow=request.follow):
            lost = found.lost
            for at in range(0, max(1, len(found.calls)), _CALLS):
                piece = map(_host_call, found.calls[at : at + _CALLS])
                yield node_pb2.TraceContainerResponse(calls=piece, lost=lost)
                lost = 0

    def Inspect(self, request: node_pb2.InspectRequest, _call: Call) -> node_pb2.InspectResponse:
        """One document."""
        document = self._node.inspect(request.id)
        return node_pb2.InspectResponse(document=msgspec.json.encode(document).decode())

    def PullImage(self, request: node_pb2.PullImageRequest, call: Call) -> Iterator[node_pb2.PullImageResponse]:
        """Progress of each layer, then the image."""
        pull, auth, wasm = _Pull(), _credentials(request), self._node.wasm_first(request.runtime_handler)

        def work() -> Image:
            return self._node.images.pull(request.image, auth, call.deadline, pull.progress, wasm=wasm)

        threading.Thread(target=pull.run, args=(work,), name="pull", daemon=True).start()
        for update in pull.updates():
            yield node_pb2.PullImageResponse(
                layer=node_pb2.LayerProgress(
                    digest=update.digest, total=update.total, done=update.done, state=_STATES[update.state]
                )
            )
        yield node_pb2.PullImageResponse(image=_pulled(pull.result()))

    def ExportImages(
        self, request: node_pb2.ExportImagesRequest, _call: Call
    ) -> Iterator[node_pb2.ExportImagesResponse]:
        """The archive."""
        for data in self._node.images.export(request.images):
            yield node_pb2.ExportImagesResponse(data=data)

    def ImportImages(
        self, requests: Iterator[node_pb2.ImportImagesRequest], call: Call
    ) -> node_pb2.ImportImagesResponse:
        """What is here now, once all of it is."""
        coming = _coming(requests)
        first = next(coming, None) or node_pb2.ImportImagesRequest()
        pieces = chain([first.data], (each.data for each in coming))
        images = self._node.images.receive(pieces, call.deadline, first.name)
        return node_pb2.ImportImagesResponse(images=[_pulled(image) for image in images])


class _Pull:
    """Between the threads of a pull, which report as they go, and the one that sends: only news worth a message."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._news: dict[str, LayerProgress] = {}
        self._told: dict[str, LayerProgress] = {}
        self._outcome: Image | BaseException | None = None

    def run(self, pull: Callable[[], Image]) -> None:
        """Do the work and keep its outcome."""
        outcome: Image | BaseException
        try:
            outcome = pull()
        except BaseException as error:
            outcome = error
        with self._changed:
            self._outcome = outcome
            self._changed.notify()

    def progress(self, update: LayerProgress) -> None:
        """Called from any thread."""
        with self._changed:
            if _worth_telling(self._told.get(update.digest), update):
                self._told[update.digest] = self._news[update.digest] = update
                self._changed.notify()

    def updates(self) -> Iterator[LayerProgress]:
        """News until the work is done; of several about a layer, the latest."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._news or self._outcome is not None)
                news, self._news = list(self._news.values()), {}
                done = self._outcome is not None
            yield from news
            if done:
                return

    def result(self) -> Image:
        """The image, or the error the work ended with."""
        if isinstance(self._outcome, Image):
            return self._outcome
        raise self._outcome or AssertionError("asked before the end")


def _coming(requests: Iterator[node_pb2.ImportImagesRequest]) -> Iterator[node_pb2.ImportImagesRequest]:
    try:
        yield from requests
    except Exception as error:
        raise DeadlineExceeded("the caller went away while an archive came") from error


def _pulled(image: Image) -> node_pb2.PulledImage:
    return node_pb2.PulledImage(
        id=image.id, repo_tags=image.repo_tags, repo_digests=image.repo_digests, size=image.size
    )


def _worth_telling(told: LayerProgress | None, update: LayerProgress) -> bool:
    if told is None or told.state is not update.state:
        return True
    return update.done - told.done >= max(_STEP, update.total // _PARTS) or (update.done == update.total != told.done)


def _host_call(made: HostCall) -> node_pb2.HostCall:
    return node_pb2.HostCall(
        number=made.number,
        at=made.at,
        duration=made.duration,
        interface=made.interface,
        function=made.function,
        arguments=made.arguments,
        returned=made.result is not None,
        result=made.result or "",
    )


def _credentials(request: node_pb2.PullImageRequest) -> Credentials | None:
    given = request.credentials
    found = Credentials(
        username=given.username,
        password=given.password,
        auth=given.auth,
        server_address=given.server_address,
        identity_token=given.identity_token,
        registry_token=given.registry_token,
    )
    return found or None
