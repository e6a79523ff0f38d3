"""What this host lacks to boot machines, each with the command that mends it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from engines.base import Problem
from engines.microvm.boot import agent, bootset, sources
from engines.microvm.boot.settings import BootSettings
from forgeone_shim.attestation import keys
from forgeone_shim.errors import ForgeError
from forgeone_shim.kernel import spawn

_NO_PODS: Final = "pods of the handler forgeone-microvm cannot run"


def problems(settings: BootSettings) -> list[Problem]:
    """What is missing for :func:`~engines.microvm.boot.assembly.assemble`; nothing is made or booted here."""
    return list(_found(settings))


def _found(settings: BootSettings) -> Iterator[Problem]:
    if settings.vmm == "qemu" and spawn.find_program(settings.qemu) is None:
        yield _problem(f"{settings.qemu} is not installed", "apt-get install -y qemu-system-x86")
    try:
        keys.read_trusted(Path(settings.boot_keys))
    except ForgeError as error:
        yield _problem(f"the keys that boot sets are signed with: {error}", "")
    if settings.boot_set:
        try:
            bootset.load(Path(settings.boot_set), settings)
        except ForgeError as error:
            yield _problem(str(error), "")
        return
    try:
        sources.find(settings)
    except ForgeError as error:
        yield _problem(error.what, error.fix)
    try:
        program = agent.find(settings.agent)
        if isinstance(program, Path):
            agent.checked(program)
    except ForgeError as error:
        yield _problem(error.what, error.fix)


def _problem(what: str, fix: str) -> Problem:
    return Problem(what, _NO_PODS, fix, fatal=False, unusable=True)
