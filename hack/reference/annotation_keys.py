"""Annotations besides those of contracts, each with whose it is, who writes it, and what it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Final

from engines.native import defaults
from engines.wasm import annotations as wasm
from forgeone_shim.cli import containers
from forgeone_shim.devices import names
from forgeone_shim.network import bandwidth
from forgeone_shim.package import image
from forgeone_shim.registry import modules
from forgeone_shim.runtime import choose, classes
from hack.reference.texts import Undocumented, constants


@dataclass(frozen=True, slots=True)
class Told:
    """A row: the constant below which its text is, and its keys where they are not just that constant."""

    module: ModuleType
    constant: str
    keys: tuple[str, ...] = ()


_CLASSES: Final = tuple(classes.OF_CONTAINER.format(kind) for kind in (classes.RDT, classes.BLOCKIO))
ROWS: Final = (
    Told(containers, "LOG_ANNOTATION"),
    Told(names, "ANNOTATION_PREFIX", (f"{names.ANNOTATION_PREFIX}*",)),
    Told(names, "HOST_ANNOTATION"),
    Told(defaults, "CGROUP_ANNOTATION"),
    *(
        Told(classes, constant, tuple(f"{kind}.resources.beta.kubernetes.io/{of}" for of in ("pod", "container.NAME")))
        for constant, kind in (("RDT", classes.RDT), ("BLOCKIO", classes.BLOCKIO))
    ),
    Told(classes, "OF_CONTAINER", _CLASSES),
    Told(choose, "ANNOTATION"),
    Told(modules, "VARIANT"),
    Told(bandwidth, "INGRESS", (bandwidth.INGRESS, bandwidth.EGRESS)),
    Told(image, "NAME", (image.NAME, image.SIGNERS)),
    Told(image, "MEMORY", (image.MEMORY, image.CPU)),
    Told(image, "CONTRACT"),
    *(Told(wasm, name) for name in ("EXEC", "MEMORY_MAX", "CPU_BUDGET", "CPU_SLICE", "TRACE")),
)
"""In the order of the page."""


def rows(told: Sequence[Told] = ROWS) -> str:
    """The table."""
    return "\n".join(("| annotation | on | written by | meaning |", "|---|---|---|---|", *(_row(one) for one in told)))


def _row(one: Told) -> str:
    name = f"{one.module.__name__}.{one.constant}"
    whose, line, meaning = constants(one.module).get(one.constant, "").partition("\n")
    on, parted, by = whose.partition("; ")
    if not (line and parted):
        raise Undocumented(
            f"{name} has no text: a string below it is to say `ON; WRITTEN BY`, and what it means in a "
            "paragraph of its own; then run `make reference`"
        )
    keys = one.keys or (getattr(one.module, one.constant),)
    return f"| {', '.join(f'`{key}`' for key in keys)} | {on} | {by} | {meaning} |"
