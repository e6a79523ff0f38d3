"""What a pod's annotations say about how its containers run: resource classes. Pure.

The classes' names are goresctrl's, which containerd and CRI-O read too. They choose among what the node's administrator
has prepared, and nothing else. How a container is confined no annotation says: that is in CRI's fields, at which
admission policies look, and a kubelet that heeds an older annotation has put it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from engines.base import ContainerSpec, SandboxSpec

RDT: Final = "rdt"
"""pod; anybody

The RDT class of all containers, or of one: a resctrl group that the administrator has made. `system/default` is none.
"""
BLOCKIO: Final = "blockio"
"""pod; anybody

The block I/O class of all containers, or of one, from `resources.blockio_config_file`.
"""
OF_CONTAINER: Final = "io.kubernetes.cri.{}-class"
"""container; a CRI client

The same for this container, before what the pod says.
"""


def name(kind: str, sandbox: SandboxSpec, spec: ContainerSpec) -> str:
    """The class of :data:`RDT` or :data:`BLOCKIO` for a container; the nearest word to it counts, empty is none."""
    prefix = f"{kind}.resources.beta.kubernetes.io"
    return _first(
        (spec.annotations, OF_CONTAINER.format(kind)),
        (sandbox.annotations, f"{prefix}/container.{spec.name}"),
        (sandbox.annotations, f"{prefix}/pod"),
    )


def _first(*places: tuple[Mapping[str, str], str]) -> str:
    return next((given[key] for given, key in places if key in given), "")
