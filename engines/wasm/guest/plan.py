"""What a guest is to be: made by the daemon, sent to its process. Nothing here imports wasmtime."""

from __future__ import annotations

from typing import Final

import msgspec

# What wasmtime's own command says of a trap, as if by SIGABRT.
TRAP_CODE: Final = 134
TRAP: Final = "WasmTrap"
CPU_BUDGET_EXCEEDED: Final = "CPUBudgetExceeded"
CANNOT_START: Final = "WasmCannotStart"


class Preopen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A directory given to the guest: ``path`` as its process sees it, ``name`` for the guest."""

    path: str
    name: str
    readonly: bool = False


class GuestPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a loaded module or component is run. Its streams are the descriptors 0, 1 and 2 of its process.

    ``argv`` begins with the program's name. ``env`` is ``KEY=value``. ``function`` names the export to call: of a module
    a function, of a component a function, or ``INTERFACE#FUNCTION`` with or without the interface's version; empty means
    the command itself (``_start``, ``wasi:cli/run``) or, where there is ``wasi:http/incoming-handler``, its server. The
    parameters of a named function are taken from ``argv[1:]``, its results are printed.
    ``memory_max`` bounds each linear memory (bytes; 0: only by the cgroup), ``cpu_budget`` the processor time it may
    take (microseconds; 0: none; needs :attr:`Variant.METERED` code). ``network`` says whether its sockets may leave.
    """

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    function: str = ""
    preopens: tuple[Preopen, ...] = ()
    memory_max: int = 0
    cpu_budget: int = 0
    network: bool = True


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a guest ended: exit code (0 to 255) and, where that is not all, a ``reason`` and a ``message`` of one line."""

    code: int
    reason: str = ""
    message: str = ""
