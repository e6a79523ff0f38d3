"""A guest whose calls to its host are recorded, in its own process: see :mod:`engines.wasm.tracing`.

Two small modules are compiled here, a few milliseconds in which nothing of the guest runs: this process is its guest's
alone, and is not forked any more. It must be done before the process is locked, after which no code can be made.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from typing import Final, Never, cast

from wasmtime import (
    Func,
    FuncType,
    Instance,
    Limits,
    Memory,
    MemoryType,
    Module,
    Store,
    Table,
    Trap,
    WasmtimeError,
)

from engines.wasm.guest.commands import ComponentSetup, ModuleSetup
from engines.wasm.guest.loading import P1
from engines.wasm.tracing import ring, shim
from engines.wasm.tracing.ring import Function
from forgeone_shim.errors import FailedPrecondition, syscall_error

_MEMORY: Final = "memory"
_TYPES: Final = frozenset({"i32", "i64", "f32", "f64", "v128", "funcref", "externref"})
_MAP_FIXED: Final = 0x10
_ATTEMPTS: Final = 5
COMPONENT: Final = "it is a component: what those import has resources, which cannot be stood in front of"


class Tracer:
    """An :class:`~engines.wasm.guest.commands.Extension`, the last of them: it stands before what the others define."""

    def __init__(self, fd: int) -> None:
        """``fd`` is the file of :func:`engines.wasm.tracing.ring.create`; it is closed once it is mapped."""
        self._fd = fd
        self._recorder: Module | None = None
        self._imports: list[Func | Memory | Table] = []
        self._has_memory = False

    def provides(self, name: str) -> bool:  # noqa: ARG002
        """All that is imported goes through it."""
        return True

    def link_component(self, setup: ComponentSetup) -> None:  # noqa: ARG002
        """:raises FailedPrecondition: always."""
        raise untraceable(COMPONENT)

    def server_functions(self) -> Never:
        """:raises FailedPrecondition: always."""
        raise untraceable(COMPONENT)

    def link_module(self, setup: ModuleSetup) -> None:
        """Put the front in the place of every import.

        :raises FailedPrecondition: this module cannot be traced, and why.
        """
        module, store, linker = setup.loaded.module, setup.store, setup.linker
        functions = tuple(_function(one.module, one.name or "", one.type) for one in module.imports)
        self._has_memory = _has_memory(module)
        try:
            natives = [cast(Func, linker.get(store, one.module, one.name)) for one in functions]
            clock = cast(Func, linker.get(store, P1, "clock_time_get"))
        except WasmtimeError:
            # The guest imports what is not there: whoever links it next says so.
            return
        try:
            memory = Memory(store, MemoryType(Limits(ring.PAGES, ring.PAGES)))
            self._map(store, memory)
            os.close(self._fd)
            made = Module(setup.loaded.engine, shim.front(functions))
            front = Instance(store, made, [memory, clock]).exports(store)
            self._recorder = Module(setup.loaded.engine, shim.recorder(functions, memory=self._has_memory))
        except (WasmtimeError, Trap) as error:
            raise untraceable(str(error).partition("\n")[0]) from error
        now = cast(Func, front["now"])
        memory.write(store, ring.header(functions, _epoch(store, memory, now)), 0)
        self._imports = [memory, cast(Table, front["t"]), now, *natives]
        for index, one in enumerate(functions):
            linker.define(store, one.module, one.name, cast(Func, front[f"f{index}"]))

    def started(self, setup: ModuleSetup, instance: Instance) -> None:
        """Fill the front's table: the guest's memory is there only now."""
        if self._recorder is None:
            return
        own = [cast(Memory, instance.exports(setup.store)[_MEMORY])] if self._has_memory else []
        Instance(setup.store, self._recorder, [*own, *self._imports])

    def _map(self, store: Store, memory: Memory) -> None:
        """The file in the place of the memory's own pages, from its first to its last."""
        base = ctypes.addressof(memory.data_ptr(store).contents)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        how = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED
        if libc.mmap(base, ring.SIZE, *how, self._fd, 0) != base:
            error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            raise syscall_error("mmap", ring.NAME, error)


def _epoch(store: Store, memory: Memory, now: Func) -> int:
    """What makes nanoseconds since the epoch of the recorder's clock."""
    found: list[tuple[int, int]] = []
    # This process may have to wait for the processor between the two clocks; hardly each time.
    for _ in range(_ATTEMPTS):
        before = time.time_ns()
        now(store, ring.NOW)
        took = time.time_ns() - before
        read = int.from_bytes(memory.read(store, ring.NOW, ring.NOW + 8), "little")
        found.append((took, before + took // 2 - read))
    return min(found)[1]


def _function(module: str, name: str, kind: object) -> Function:
    if not isinstance(kind, FuncType):
        raise untraceable(f"it imports {module} {name}, which is no function")
    params, results = tuple(map(str, kind.params)), tuple(map(str, kind.results))
    if not _TYPES.issuperset((*params, *results)):
        raise untraceable(f"it imports {module} {name}, whose type is not one of WASI's")
    return Function(module, name, params, results)


def _has_memory(module: Module) -> bool:
    """Whether there is one for the host to look into."""
    kind = next((one.type for one in module.exports if one.name == _MEMORY), None)
    if not isinstance(kind, MemoryType):
        return False
    if kind.is_64 or kind.is_shared:
        raise untraceable("its memory is shared, or of 64 bits")
    return True


def untraceable(why: str) -> FailedPrecondition:
    """The answer to whoever asked for a trace."""
    return FailedPrecondition(
        f"the guest cannot be traced: {why}",
        fix="leave out wasm.forgeone.dev/trace, or have its behaviour not watched",
    )
