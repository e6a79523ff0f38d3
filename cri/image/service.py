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


class ImageService:
    """Lists, looks at, pulls and removes images."""

    def __init__(self, runtime: RuntimePort) -> None:
        self._runtime, self._images = runtime, runtime.images

    def ListImages(self, request: pb.ListImagesRequest, _call: Call) -> pb.ListImagesResponse:
        """All images, or the one the filter names."""
        return pb.ListImagesResponse(images=self._list(request.filter))

    def StreamImages(self, request: pb.StreamImagesRequest, _call: Call) -> Iterator[pb.StreamImagesResponse]:
        """The same in pieces."""
        for piece in chunks(self._list(request.filter)):
            yield pb.StreamImagesResponse(images=piece)

    def ImageStatus(self, request: pb.ImageStatusRequest, _call: Call) -> pb.ImageStatusResponse:
        """One image; an answer without one where there is none."""
        found = self._find(image.reference(request.image))
        if found is None:
            return pb.ImageStatusResponse()
        response = pb.ImageStatusResponse(image=image.message(found))
        if request.verbose:
            response.info["info"] = _info(found)
        return response

    def PullImage(self, request: pb.PullImageRequest, call: Call) -> pb.PullImageResponse:
        """The image's id, once it is here and whole. Every handler runs the same images."""
        reference = image.reference(request.image)
        if request.image.runtime_handler:
            self._runtime.check_handler(request.image.runtime_handler)
        namespace = request.sandbox_config.metadata.namespace
        pulled = self._images.pull(reference, image.credentials(request), call.deadline, namespace=namespace)
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
        found = self._find(wanted.image.image)
        return [] if found is None else [image.message(found)]

    def _find(self, reference: str) -> Image | None:
        try:
            return self._images.resolve(reference)
        except NotFound:
            return None


def _info(found: Image) -> str:
    return msgspec.json.encode(
        {
            "config": found.config,
            "layers": found.layers,
            "created": found.created,
            "platform": "/".join(filter(None, (found.os, found.architecture, found.variant))),
            "manifest": found.manifest_digest,
            "artifact": found.artifact,
        }
    ).decode()
