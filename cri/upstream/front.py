"""CRI's two services over ForgeOne and, while there is one, another runtime."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import SimpleNamespace

from google.protobuf.descriptor import ServiceDescriptor

from cri.upstream.choice import Choice
from cri.upstream.image import ImageFront
from cri.upstream.link import IMAGE, RUNTIME
from cri.upstream.runtime import RuntimeFront
from cri.upstream.side import Links, RuntimePort, Sides


def services(
    own: Mapping[ServiceDescriptor, object], runtime: RuntimePort, links: Links
) -> Mapping[ServiceDescriptor, object]:
    """``own`` with CRI's services replaced by those that ask both."""
    sides = Sides(links, runtime)
    choice = Choice(sides.of_handler, time.time_ns)
    return {
        **own,
        RUNTIME: SimpleNamespace(**RuntimeFront(own[RUNTIME], runtime, links, sides, choice).verbs),
        IMAGE: SimpleNamespace(**ImageFront(own[IMAGE], runtime, links, sides, choice).verbs),
    }
