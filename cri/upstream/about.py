"""What the node says of the other runtime to people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cri.api import runtime_pb2 as pb
from cri.call import Call, Relayed
from cri.upstream.side import Links
from forgeone_shim.deadline import Deadline
from forgeone_shim.rpc.node import Upstream

PATIENCE: Final = 5.0
"""Seconds that it has to answer."""


def about(links: Links) -> Callable[[Deadline], Upstream]:
    """Asks what there is to tell now."""

    def ask(deadline: Deadline) -> Upstream:
        link = links.now
        if link is None:
            return Upstream()
        call = Call("", deadline)
        version = link.begin("Version", pb.VersionRequest(), call, PATIENCE)
        images = link.begin("ListImages", pb.ListImagesRequest(), call, PATIENCE)
        try:
            told = pb.VersionResponse.FromString(version())
            here = pb.ListImagesResponse.FromString(images()).images
        except Relayed as error:
            return Upstream(socket=link.socket, problem=str(error))
        return Upstream(link.socket, told.runtime_name, told.runtime_version, image_ids=tuple(one.id for one in here))

    return ask
