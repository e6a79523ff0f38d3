"""Has engines get ready for the images of this node: what they need is then there before a container is."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import structlog

from engines.base import ContainerSpec, Engine, ImagePlan
from forgeone_shim.config.handlers import WASM_ENGINE
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ForgeError, InvalidInput
from forgeone_shim.fs.layers import LayerStore
from forgeone_shim.fs.rootfs import RootfsStore
from forgeone_shim.registry.model import Image
from forgeone_shim.runtime import choose
from forgeone_shim.runtime.process import argv


class Readiness:
    """Thread-safe. Implements :class:`forgeone_shim.registry.service.Audience`."""

    def __init__(self, engines: Mapping[str, Engine], layers: LayerStore, rootfs: RootfsStore) -> None:
        """``engines`` are the installed ones."""
        self._engines, self._layers, self._rootfs = engines, layers, rootfs
        self._log = structlog.get_logger("images")

    def arrived(self, image: Image, deadline: Deadline) -> None:
        """Prepare the engine that runs it; one that cannot raises its reason."""
        wanted = _plain_argv(image)
        engine = self._engines.get(WASM_ENGINE)
        if engine is None or not choose.is_module(image, wanted):
            return
        engine.prepare_image(self._plan(image, wanted), deadline)

    def wanted(self, image: Image, engine: str, deadline: Deadline) -> None:
        """A pod of that engine will have containers of it: one whose pods have kernels of their own makes a disk.

        What goes wrong is told in the log: it will be so, or be mended, when a container is made.
        """
        found = self._engines.get(engine)
        if found is None or not found.features().own_kernel:
            return
        try:
            with self._rootfs.merged(image.layers) as rootfs:
                found.prepare_image(replace(self._plan(image, _plain_argv(image)), rootfs=str(rootfs)), deadline)
        except ForgeError as error:
            self._log.warning("nothing is ready for an image", image=image.id, engine=engine, error=str(error))

    def _plan(self, image: Image, args: tuple[str, ...]) -> ImagePlan:
        layers = tuple(str(self._layers.path(diff_id)) for diff_id in image.layers)
        return ImagePlan(image_id=image.id, layers=layers, args=args, module=image.module)

    def remaining(self, ids: Collection[str]) -> None:
        """What was made ready for other images is of no use any more."""
        for engine in self._engines.values():
            engine.retain_images(ids)

    def all(self, images: Iterable[Image], deadline: Deadline) -> None:
        """One after the other, until ``deadline``: an engine may have been replaced since they were pulled."""
        for image in images:
            if deadline.passed:
                return
            try:
                self.arrived(image, deadline)
            except Exception as error:
                self._log.warning("nothing is ready for an image", image=image.id, error=str(error))


def _plain_argv(image: Image) -> tuple[str, ...]:
    """What a container runs that asks for nothing else."""
    try:
        return argv(ContainerSpec(name=""), image.config, image.module)
    except InvalidInput:
        return ()
