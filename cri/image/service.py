"""ImageService: the verbs of images."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from cri.api import runtime_pb2 as pb
from cri.call import Call
from cri.runtime.chunks import chunks
from cri.runtime.ports import RuntimePort
from cri.translate import image
from forgeone_shim.errors import NotFound
from forgeone_shim.registry.model import Image
from forgeone_shim.runtime.records import pod_key


class ImageService:
    """Lists, looks at, pulls and removes images."""

    def __init__(self, runtime: RuntimePort) -> None:
        self._runtime, self._images = runtime, runtime.images

    def ListImages(self, request: pb.ListImagesRequest, _call: Call) -> pb.ListImagesResponse:
        """All images, or those that the filter names."""
        return pb.ListImagesResponse(images=self._list(request.filter))

    def StreamImages(self, request: pb.StreamImagesRequest, _call: Call) -> Iterator[pb.StreamImagesResponse]:
        """The same in pieces."""
        for piece in chunks(self._list(request.filter)):
            yield pb.StreamImagesResponse(images=piece)

    def ImageStatus(self, request: pb.ImageStatusRequest, _call: Call) -> pb.ImageStatusResponse:
        """One image; an answer without one where there is none."""
        found = self._find(image.reference(request.image), request.image.runtime_handler)
        if found is None:
            return pb.ImageStatusResponse()
        response = pb.ImageStatusResponse(image=image.message(found))
        if request.verbose:
            response.info["info"] = _info(found)
        return response

    def PullImage(self, request: pb.PullImageRequest, call: Call) -> pb.PullImageResponse:
        """The image's id, once it is here and whole.

        Which one that is of a name that stands for several, the handler says: a kubelet tells it (with its feature gate
        RuntimeClassInImageCriApi), or the pod that the image is for, which is here already.
        """
        reference, pod = image.reference(request.image), request.sandbox_config.metadata
        handler, key = request.image.runtime_handler, pod_key(pod.namespace, pod.name, pod.uid, pod.attempt)
        wasm = self._runtime.wasm_first(handler, key)
        credentials = image.credentials(request)
        pulled = self._images.pull(reference, credentials, call.deadline, namespace=pod.namespace, wasm=wasm)
        self._runtime.image_wanted(pulled, handler, key, call.deadline)
        return pb.PullImageResponse(image_ref=pulled.id)

    def RemoveImage(self, request: pb.RemoveImageRequest, _call: Call) -> pb.RemoveImageResponse:
        """There is no such image any more, under any of its names."""
        self._images.remove(image.reference(request.image))
        return pb.RemoveImageResponse()

    def ImageFsInfo(self, _request: pb.ImageFsInfoRequest, _call: Call) -> pb.ImageFsInfoResponse:
        """What images and containers take."""
        return pb.ImageFsInfoResponse(
            image_filesystems=[image.filesystem(self._runtime.image_filesystem())],
            container_filesystems=[image.filesystem(self._runtime.container_filesystem())],
        )

    def _list(self, wanted: pb.ImageFilter) -> list[pb.Image]:
        if not wanted.image.image:
            return [image.message(one) for one in self._images.list()]
        return [image.message(one) for one in self._images.named(wanted.image.image)]

    def _find(self, reference: str, handler: str) -> Image | None:
        try:
            return self._images.resolve(reference, wasm=self._runtime.wasm_first(handler))
        except NotFound:
            return None


def _info(found: Image) -> str:
    return msgspec.json.encode(
        {
            "config": found.config,
            "layers": found.layers,
            "created": found.created,
            "platform": found.platform,
            "manifest": found.manifest_digest,
            "artifact": found.artifact,
            "module": found.module,
        }
    ).decode()
