"""Images as volumes of a container (KEP-4639): found when it is created, mounted for nobody to write to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from engines.base import ContainerSpec, Mount
from forgeone_shim.errors import InvalidInput
from forgeone_shim.fs.owners import Owners
from forgeone_shim.fs.rootfs import RootfsStore
from forgeone_shim.registry.model import Image
from forgeone_shim.registry.service import ImageService
from forgeone_shim.runtime.records import ContainerRecord
from forgeone_shim.runtime.suggested import filled


def find(spec: ContainerSpec, images: ImageService, *, wasm: bool = False) -> tuple[tuple[str, Image], ...]:
    """The images that the spec's mounts name, in their order, each after its author's name for it.

    NotFound: one was not pulled.

    Of a name that stands for two, ``wasm`` says which was pulled for this pod.
    """
    named = [mount for mount in spec.mounts if mount.image]
    return tuple((mount.image_name or mount.image, images.resolve(mount.image, wasm=wasm)) for mount in named)


def mounted(
    record: ContainerRecord, rootfs: RootfsStore, context: str = "", owners: Owners | None = None
) -> ContainerSpec:
    """The spec as an engine takes it: with the limits it has, and each image mounted, at its place on the host.

    ``context`` is the SELinux label of their files, where there is one. In a pod with a user namespace they belong to
    the pod's ``owners``, whose ids are the only ones a mount can ask for.

    :raises InvalidInput: an image has no such sub path.
    """
    spec = replace(record.spec, resources=filled(record.resources or record.spec.resources, record.suggested))
    if not record.image_volumes:
        return spec
    return replace(spec, mounts=tuple(_mounts(record, rootfs, context, owners)))


def _mounts(record: ContainerRecord, rootfs: RootfsStore, context: str, owners: Owners | None) -> Iterator[Mount]:
    volumes = enumerate(record.image_volumes)
    for mount in record.spec.mounts:
        if mount.image:
            number, volume = next(volumes)
            _check_mappings(mount, owners)
            path = mount.image_sub_path
            source = rootfs.mount_image(record.id, str(number), volume.layers, path, context, owners=owners)
            plain = replace(mount, uid_mappings=(), gid_mappings=(), image="", image_sub_path="", image_name="")
            yield replace(plain, source=str(source), readonly=True)
        else:
            yield mount


def _check_mappings(mount: Mount, owners: Owners | None) -> None:
    asked = (mount.uid_mappings, mount.gid_mappings)
    if asked != ((), ()) and (owners is None or asked != (owners.uids, owners.gids)):
        raise InvalidInput(
            "mounts", f"{mount.destination}: an image can have the ids of the pod's user namespace, and no others"
        )
