"""What an exec into a WebAssembly container names. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from engines.wasm import modules
from engines.wasm.annotations import EXEC
from engines.wasm.guest.plan import GuestPlan
from engines.wasm.modules import Wanted
from engines.wasm.notes import Note
from forgeone_shim.errors import InvalidInput, Unimplemented

FIELD: Final = "cmd"
_SUFFIXES: Final = (".wasm", ".wat")


@dataclass(frozen=True, slots=True)
class Command:
    """The module to run, looked up in the container, and its guest. ``certain``: it can be nothing but a module."""

    module: Wanted
    guest: GuestPlan
    certain: bool


def choose(argv: tuple[str, ...], note: Note) -> Command:
    """An export that the annotation names, run in a fresh instance of the container's module; or a module's path.

    :raises InvalidInput: there is no command.
    :raises Unimplemented: it can be neither.
    """
    if not argv or not argv[0]:
        raise InvalidInput(FIELD, "is empty")
    if any("\0" in word for word in argv):
        raise InvalidInput(FIELD, "holds a NUL")
    if argv[0] in note.exports:
        guest = replace(note.guest, argv=argv, function=argv[0])
        return Command(Wanted((note.module,), argv[0]), guest, certain=True)
    path, _, rest = argv[0].partition("#")
    certain = path.endswith(_SUFFIXES)
    if not certain and "/" not in path:
        raise refused(argv[0])
    choice = modules.wanted(argv, note.guest.env, note.jail.cwd)
    guest = replace(note.guest, argv=(path, *argv[1:]), function=rest)
    return Command(choice, guest, certain=certain)


def refused(command: str) -> Unimplemented:
    """No programs run in a WebAssembly container."""
    return Unimplemented(
        f"exec: {command!r} is no WebAssembly module in the container, and no exported function that the pod's "
        f"annotation {EXEC} names; other programs cannot run there"
    )
