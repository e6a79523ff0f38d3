"""What a guest is to be: made by the daemon, sent to its process. Nothing here imports wasmtime."""

from __future__ import annotations

from typing import Final

import msgspec

# What wasmtime's own command says of a trap, as if by SIGABRT.
TRAP_CODE: Final = 134
TRAP: Final = "WasmTrap"
CPU_BUDGET_EXCEEDED: Final = "CPUBudgetExceeded"
CANNOT_START_CODE: Final = 1
CANNOT_START: Final = "WasmCannotStart"


class Preopen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A directory given to the guest: ``path`` as its process sees it, ``name`` for the guest."""

    path: str
    name: str
    readonly: bool = False


class GuestPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a loaded module or component is run. Its streams are the descriptors 0, 1 and 2 of its process.

    ``argv`` begins with the program's name; ``env`` is ``KEY=value``. ``function`` names the export to call, a function
    or, of a component, ``INTERFACE#FUNCTION`` with or without the interface's version. Its parameters are taken from
    ``argv[1:]`` and its results are printed. Empty means the command itself (``_start``, ``wasi:cli/run``) or, of a
    component that exports ``wasi:http/incoming-handler``, the server.
    ``memory_max`` bounds each linear memory (bytes; 0: only by the cgroup), ``cpu_budget`` the processor time that it
    may take (microseconds; 0: none), and ``cpu_slice`` after how much of it the guest lets others have a turn (the
    same); both need ``METERED`` code. ``network`` says whether a component gets sockets.
    """

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    function: str = ""
    preopens: tuple[Preopen, ...] = ()
    memory_max: int = 0
    cpu_budget: int = 0
    cpu_slice: int = 0
    network: bool = True


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a guest ended: exit code (0 to 255) and, where that is not all, a ``reason`` and a line of ``message``."""

    code: int
    reason: str = ""
    message: str = ""
