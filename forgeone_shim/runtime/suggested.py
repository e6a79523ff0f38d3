"""Limits that a package suggests for itself, where neither the container nor its pod says any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from engines.base import Resources
from forgeone_shim.package import image as packages

# In microseconds: what the kernel has by itself, and every runtime asks for.
_PERIOD: Final = 100_000


def limits(asked: Resources, pod: Resources, notes: Mapping[str, str]) -> Resources | None:
    """What a container gets instead of what was asked for; ``None``: that.

    ``notes`` are its image's annotations. A pod with limits of its own has said what may be taken in it.
    """
    memory, cpu = (_number(notes.get(key, "")) for key in (packages.MEMORY, packages.CPU))
    found = asked
    if memory and not (asked.memory_limit or pod.memory_limit or "memory.max" in asked.unified):
        found = replace(found, memory_limit=memory)
    if cpu and not (asked.cpu_quota or pod.cpu_quota or "cpu.max" in asked.unified):
        period = asked.cpu_period or _PERIOD
        found = replace(found, cpu_period=period, cpu_quota=cpu * period // 1000)
    return None if found == asked else found


def _number(text: str) -> int:
    """Of any image: those of packages are numbers, which forgeoned wrote."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0
