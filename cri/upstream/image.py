"""ImageService of two runtimes, each with a store of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from cri.api import runtime_pb2 as pb
from cri.call import Call, Relayed
from cri.runtime.chunks import chunks
from cri.upstream import merge
from cri.upstream.choice import Asked, Choice, Pod, PodKey, Side
from cri.upstream.link import IMAGE, Link
from cri.upstream.side import Links, RuntimePort, Sides

_READY: Final = pb.PodSandboxFilter(state=pb.PodSandboxStateValue(state=pb.SANDBOX_READY))

PATIENCE: Final = 5.0
"""Seconds that the other runtime has to tell of its pods; then ours are judged by alone."""

Behaviour = Callable[[Any, Call], Any]


class ImageFront:
    """The verbs by their names, in :attr:`verbs`, over our own servicer."""

    def __init__(self, own: object, runtime: RuntimePort, links: Links, sides: Sides, choice: Choice) -> None:
        self._own: Mapping[str, Behaviour] = {method.name: getattr(own, method.name) for method in IMAGE.methods}
        self._runtime, self._links, self._sides, self._choice = runtime, links, sides, choice
        self.verbs: Mapping[str, Behaviour] = MappingProxyType(
            {
                "ListImages": self._beside("ListImages", self._list),
                "StreamImages": self._stream,
                "ImageStatus": self._beside("ImageStatus", self._look),
                "PullImage": self._beside("PullImage", self._pull),
                "RemoveImage": self._beside("RemoveImage", self._remove),
                "ImageFsInfo": self._beside("ImageFsInfo", self._filesystems),
            }
        )

    def _beside(self, name: str, does: Callable[[Any, Link, Call], Any]) -> Behaviour:
        own, links = self._own[name], self._links

        def verb(request: Any, call: Call) -> Any:
            link = links.now
            return own(request, call) if link is None else does(request, link, call)

        return verb

    def _list(self, request: pb.ListImagesRequest, link: Link, call: Call) -> Any:
        return pb.ListImagesResponse(images=self._images(request, link, call))

    def _stream(self, request: pb.StreamImagesRequest, call: Call) -> Iterator[Any]:
        """In pieces once it is whole: an image that both have is one."""
        link = self._links.now
        if link is None:
            yield from self._own["StreamImages"](request, call)
            return
        for piece in chunks(self._images(pb.ListImagesRequest(filter=request.filter), link, call)):
            yield pb.StreamImagesResponse(images=piece)

    def _images(self, request: pb.ListImagesRequest, link: Link, call: Call) -> list[pb.Image]:
        handler = request.filter.image.runtime_handler
        side = self._sides.of_handler(handler) if handler else None
        if side is Side.UPSTREAM:
            return list(pb.ListImagesResponse.FromString(link.ask("ListImages", request, call)).images)
        theirs = link.begin("ListImages", request, call) if side is None else None
        ours: pb.ListImagesResponse = self._own["ListImages"](request, call)
        if theirs is None:
            return list(ours.images)
        return merge.images(ours.images, pb.ListImagesResponse.FromString(theirs()).images)

    def _look(self, request: pb.ImageStatusRequest, link: Link, call: Call) -> Any:
        """The first image that counts: see :class:`~cri.upstream.choice.Choice`."""
        failed: Relayed | None = None
        answer: Any = pb.ImageStatusResponse()
        for side in self._choice.look(_asked(request.image), Around(self._runtime, link, call)):
            if side is Side.OURS:
                answer = found = self._own["ImageStatus"](request, call)
            else:
                try:
                    answer = link.ask("ImageStatus", request, call)
                except Relayed as error:
                    failed = error
                    continue
                found = pb.ImageStatusResponse.FromString(answer)
            if found.HasField("image"):
                return answer
        # That nobody has it is known only once both have said so.
        if failed is not None:
            raise failed
        return answer

    def _pull(self, request: pb.PullImageRequest, link: Link, call: Call) -> Any:
        """Into the store of whoever runs the pod that it is for."""
        of = request.sandbox_config.metadata
        key = PodKey(of.namespace, of.name, of.uid, of.attempt) if request.HasField("sandbox_config") else None
        # Kubelets say nothing of the pod with an image that they pull for it but in the pod's own configuration.
        asked = Asked(request.image.image, request.image.runtime_handler, dict(request.sandbox_config.annotations))
        side = self._choice.pull(asked, key, Around(self._runtime, link, call))
        if side is Side.OURS:
            answer = self._own["PullImage"](request, call)
            pulled: str = answer.image_ref
        else:
            answer = link.begin("PullImage", request, call)()
            pulled = pb.PullImageResponse.FromString(answer).image_ref
        self._choice.wanted.arrived((request.image.image, pulled), side)
        return answer

    def _remove(self, request: pb.RemoveImageRequest, link: Link, call: Call) -> Any:
        """Of both, or of that handler's."""
        handler = request.image.runtime_handler
        side = self._sides.of_handler(handler) if handler else None
        theirs = link.begin("RemoveImage", request, call) if side is not Side.OURS else None
        if side is not Side.UPSTREAM:
            self._own["RemoveImage"](request, call)
        if theirs is not None:
            try:
                theirs()
            except Relayed as error:
                # CRI: what is not there is no error; older runtimes differ.
                if error.code is not grpc.StatusCode.NOT_FOUND:
                    raise
        return pb.RemoveImageResponse()

    def _filesystems(self, request: pb.ImageFsInfoRequest, link: Link, call: Call) -> Any:
        theirs = link.begin("ImageFsInfo", request, call)
        ours: pb.ImageFsInfoResponse = self._own["ImageFsInfo"](request, call)
        upstream = pb.ImageFsInfoResponse.FromString(theirs())
        return merge.filesystems(ours, upstream, first=self._links.default, device=_device)


class Around:
    """The pods of both runtimes, for one call."""

    def __init__(self, runtime: RuntimePort, link: Link, call: Call) -> None:
        self._runtime, self._link, self._call = runtime, link, call
        self._ours: list[Pod] | None = None
        self._listed: list[pb.PodSandbox] | None = None
        self._theirs: list[Pod] | None = None
        self._silent = False

    def ours(self) -> Sequence[Pod]:
        """ForgeOne's ready pods."""
        if self._ours is None:
            self._ours = [
                Pod(PodKey(of.namespace, of.name, of.uid, of.attempt), of.annotations)
                for of in (view.spec for view in self._runtime.sandboxes() if view.ready)
            ]
        return self._ours

    def upstream(self) -> Sequence[Pod]:
        """The other runtime's; none while it does not answer."""
        if self._theirs is None:
            self._theirs = [
                Pod(PodKey(of.namespace, of.name, of.uid, of.attempt), dict(item.annotations))
                for item, of in ((item, item.metadata) for item in self._pods())
            ]
        return self._theirs

    def active(self, since: int) -> frozenset[Side] | None:
        """Who has had pods or containers made since then; ``None`` while the other runtime does not answer."""
        pods = self._pods()
        containers = () if self._silent else self._asked("ListContainers", pb.ListContainersRequest())
        if self._silent:
            return None
        found = set()
        here = [view for view in self._runtime.sandboxes() if view.ready]
        if _since(since, here, self._runtime.containers(), lambda view: view.sandbox_id):
            found.add(Side.OURS)
        if _since(since, pods, containers, lambda item: item.pod_sandbox_id):
            found.add(Side.UPSTREAM)
        return frozenset(found)

    def _pods(self) -> Sequence[pb.PodSandbox]:
        if self._listed is None:
            self._listed = list(self._asked("ListPodSandbox", pb.ListPodSandboxRequest(filter=_READY)))
        return self._listed

    def _asked(self, name: str, request: Message) -> Iterable[Any]:
        try:
            answer = self._link.begin(name, request, self._call, PATIENCE)()
        except Relayed:
            self._silent = True
            return ()
        if name == "ListPodSandbox":
            return pb.ListPodSandboxResponse.FromString(answer).items
        return pb.ListContainersResponse.FromString(answer).containers


def _since(since: int, pods: Iterable[Any], containers: Iterable[Any], pod_of: Callable[[Any], str]) -> bool:
    """Whether one of the pods, or a container in one, was made since then."""
    ids = {pod.id for pod in pods}
    return any(pod.created_at >= since for pod in pods) or any(
        one.created_at >= since and pod_of(one) in ids for one in containers
    )


def _asked(image: pb.ImageSpec) -> Asked:
    return Asked(image.image, image.runtime_handler, dict(image.annotations))


def _device(path: str) -> int | None:
    try:
        return Path(path).stat().st_dev
    except OSError:
        return None
