"""``Mount`` to and from a spec."""

from __future__ import annotations

import re

from cri.api import runtime_pb2 as pb
from cri.translate import common, enums, fields
from engines.base import Mount, Propagation
from forgeone_shim.errors import InvalidInput

_OPTION = re.compile(r"[A-Za-z0-9_=.:/+-]+")


def mount(path: str, message: pb.Mount) -> Mount:
    """A host path or an image, never both."""
    propagation = fields.member(f"{path}.propagation", message.propagation, enums.PROPAGATIONS)
    if message.recursive_read_only and not (message.readonly and propagation is Propagation.PRIVATE):
        raise InvalidInput(f"{path}.recursive_read_only", "needs readonly and private propagation")
    image = message.image.image
    if message.HasField("image"):
        fields.given(f"{path}.image.image", image)
        if message.host_path:
            raise InvalidInput(f"{path}.host_path", "is given together with an image")
        if not message.readonly:
            raise InvalidInput(f"{path}.readonly", "an image can only be mounted read-only")
    elif message.image_sub_path:
        raise InvalidInput(f"{path}.image_sub_path", "is given without an image")
    return Mount(
        destination=_destination(f"{path}.container_path", message.container_path),
        source="" if image else fields.absolute(f"{path}.host_path", message.host_path),
        readonly=message.readonly,
        propagation=propagation,
        selinux_relabel=message.selinux_relabel,
        recursive_read_only=message.recursive_read_only,
        uid_mappings=common.id_mappings(f"{path}.uidMappings", message.uidMappings),
        gid_mappings=common.id_mappings(f"{path}.gidMappings", message.gidMappings),
        image=image,
        image_name=message.image.user_specified_image,
        image_sub_path=fields.inside(f"{path}.image_sub_path", message.image_sub_path)
        if message.image_sub_path
        else "",
        options=fields.each(f"{path}.mount_options", message.mount_options, _option),
    )


def _destination(path: str, text: str) -> str:
    destination = fields.absolute(path, text)
    if destination == "/":
        raise InvalidInput(path, "would hide the container's own root")
    return destination


def _option(path: str, text: str) -> str:
    # A comma would make one option two.
    return fields.matching(path, text, _OPTION, "a mount option")


def mount_message(one: Mount) -> pb.Mount:
    """The inverse of :func:`mount`."""
    message = pb.Mount(
        container_path=one.destination,
        host_path=one.source,
        readonly=one.readonly,
        selinux_relabel=one.selinux_relabel,
        propagation=enums.PROPAGATION_OF[one.propagation],
        recursive_read_only=one.recursive_read_only,
        image_sub_path=one.image_sub_path,
        mount_options=one.options,
    )
    if one.image:
        message.image.image = one.image
        message.image.image_ref = one.image_ref
    if one.uid_mappings or one.gid_mappings:
        message.uidMappings.extend(common.id_mapping_messages(one.uid_mappings))
        message.gidMappings.extend(common.id_mapping_messages(one.gid_mappings))
    return message
