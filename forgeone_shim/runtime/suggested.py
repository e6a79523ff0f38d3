"""Limits that others than a container's author give it: its package suggests some, its contract demands one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from engines.base import Resources
from forgeone_shim.contract.model import Contract
from forgeone_shim.package import image as packages

# In microseconds: what the kernel has by itself, and every runtime asks for.
_PERIOD: Final = 100_000


def limits(pod: Resources, notes: Mapping[str, str]) -> Resources | None:
    """What is suggested for a container of a pod with these limits, and nothing else; ``None``: nothing is.

    ``notes`` are its image's annotations. A pod with limits of its own has said what may be taken in it.
    """
    memory, cpu = (_number(notes.get(key, "")) for key in (packages.MEMORY, packages.CPU))
    found = Resources()
    if memory and not pod.memory_limit:
        found = replace(found, memory_limit=memory)
    if cpu and not pod.cpu_quota:
        found = replace(found, cpu_period=_PERIOD, cpu_quota=cpu * _PERIOD // 1000)
    return None if found == Resources() else found


def capped(suggested: Resources | None, contract: Contract) -> Resources | None:
    """The same with a limit of processes where the contract has a ceiling, which no caller of CRI could ask for."""
    pids = contract.profile.resources.pids
    return replace(suggested or Resources(), pids_limit=pids) if pids else suggested


def filled(asked: Resources, suggested: Resources | None) -> Resources:
    """What an engine is given of what was asked for.

    Nobody else is told: a kubelet that finds limits it has not set takes that for a resize that is not done yet, and
    does not rest.
    """
    if suggested is None:
        return asked
    found = asked
    if suggested.memory_limit and not (asked.memory_limit or "memory.max" in asked.unified):
        found = replace(found, memory_limit=suggested.memory_limit)
    if suggested.cpu_quota and not (asked.cpu_quota or "cpu.max" in asked.unified):
        period = asked.cpu_period or suggested.cpu_period
        found = replace(found, cpu_period=period, cpu_quota=suggested.cpu_quota * period // suggested.cpu_period)
    if suggested.pids_limit and "pids.max" not in asked.unified:
        found = replace(found, pids_limit=suggested.pids_limit)
    return found


def _number(text: str) -> int:
    """Of any image: those of packages are numbers, which forgeoned wrote."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0
