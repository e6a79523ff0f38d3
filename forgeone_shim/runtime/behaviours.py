"""The verbs of what containers do: learn what is usual for an image, pin it, see how a container differs."""

from __future__ import annotations

from typing import Any

from forgeone_shim.deadline import Deadline
from forgeone_shim.dna.behaviour import baseline, seccomp
from forgeone_shim.dna.behaviour.baseline import Baseline
from forgeone_shim.errors import NotFound
from forgeone_shim.registry.service import ImageService
from forgeone_shim.runtime.chronicle import Chronicle
from forgeone_shim.runtime.watching import Finding, Watching


class Behaviours:
    """Thread-safe. What changes something is in the audit log before it returns."""

    def __init__(self, watching: Watching, images: ImageService, chronicle: Chronicle) -> None:
        self._watching, self._images, self._chronicle = watching, images, chronicle

    def find(self, container_id: str) -> Finding:
        """What a watched container did until now, and how that differs from what is usual for its image.

        :raises FailedPrecondition: it is not watched.
        """
        return self._watching.find(container_id)

    def learn(self, container_id: str, deadline: Deadline, *, anew: bool) -> Baseline:
        """What a watched container did is usual for its image; with ``anew``, nothing else is.

        :raises FailedPrecondition: it is not watched, or there is nothing to learn from it.
        """
        with self._chronicle.settled(deadline):
            return self._watching.learn(container_id, anew=anew)

    def pin(self, image: str, deadline: Deadline) -> Baseline:
        """What was learned of an image is what its containers are compared with, those too that run.

        :raises NotFound: nothing was learned of it.
        """
        with self._chronicle.settled(deadline):
            return self._watching.pin(self._id(image))

    def adopt(self, document: bytes, deadline: Deadline) -> Baseline:
        """The same with a baseline that was learned elsewhere.

        :raises InvalidInput: it is none.
        """
        found = baseline.parse(document)
        with self._chronicle.settled(deadline):
            self._watching.adopt(found)
        return found

    def unpin(self, image: str, deadline: Deadline) -> None:
        """The containers of an image are compared with nothing, but where a contract names a baseline.

        :raises NotFound: none is pinned.
        """
        with self._chronicle.settled(deadline):
            self._watching.unpin(self._id(image))

    def known(self, image: str) -> Baseline:
        """What the containers of an image are compared with; where that is nothing, what was learned of it.

        :raises NotFound: nothing was.
        """
        id_ = self._id(image)
        found = self._watching.library.pinned(id_) or self._watching.library.draft(id_)
        if found is None:
            raise NotFound("what is usual for image", image, fix="forge dna learn CONTAINER, of one that is watched")
        return found

    def filter(self, image: str) -> dict[str, Any]:
        """A seccomp profile that lets through what is usual for an image.

        :raises NotFound: nothing is known of it. :raises FailedPrecondition: no filter can be made of it.
        """
        return seccomp.export(self.known(image))

    def _id(self, image: str) -> str:
        """An image may have gone whose baseline is still here: then its id is what is asked for."""
        try:
            return self._images.resolve(image).id
        except NotFound:
            return image
