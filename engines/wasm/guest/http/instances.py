"""Instances of a linked component: one for each request, and one ahead."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

from wasmtime import WasmtimeError
from wasmtime import _bindings as bindings
from wasmtime._ffi import dll

from engines.wasm.guest.http import cells
from engines.wasm.guest.http.linking import Linked
from engines.wasm.guest.http.session import Session, Surroundings

_INSTANCES_MAX: Final = 1000
_MEMORIES_MAX: Final = 100
_TABLES_MAX: Final = 1000
_TABLE_ELEMENTS_MAX: Final = 10_000_000
_NEVER: Final = 1 << 62

_address, _size, _count = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
# As cells: these only allocate or look something up.
_library = ctypes.PyDLL(None, handle=dll._handle)


def _function(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    function = library[name]
    function.restype, function.argtypes = result, arguments
    return function


_Error = ctypes.POINTER(bindings.wasmtime_error_t)
_new_store = _function(_library, "wasmtime_store_new", _address, _address, _address, _address)
_context = _function(_library, "wasmtime_store_context", _address, _address)
_limit = _function(_library, "wasmtime_store_limiter", None, _address, *[_count] * 5)
_deadline = _function(_library, "wasmtime_context_set_epoch_deadline", None, _address, ctypes.c_uint64)
_get_func = _function(
    _library, "wasmtime_component_instance_get_func", ctypes.c_bool, _address, _address, _address, _address
)
# These run guest code or give memory back, so the interpreter's lock is given up meanwhile.
_instantiate = _function(dll, "wasmtime_component_linker_instantiate", _address, _address, _address, _address, _address)
_call = _function(dll, "wasmtime_component_func_call", _address, _address, _address, _address, _size, _address, _size)
_delete_store = _function(dll, "wasmtime_store_delete", None, _address)

# Memory for each instance: two arguments, scratch, the instance's own number and its handler's.
_SCRATCH: Final = 2 * cells.CELL
_INSTANCE: Final = _SCRATCH + cells.SCRATCH
_FUNC: Final = _INSTANCE + ctypes.sizeof(bindings.wasmtime_component_instance_t)
_Memory = ctypes.c_char * (_FUNC + ctypes.sizeof(bindings.wasmtime_component_func_t))


class Maker:
    """Makes instances of one component, with all that does not change between them looked up once."""

    __slots__ = ("component", "engine", "handle", "linked", "linker", "memory_max", "metered", "surroundings")

    def __init__(self, linked: Linked, surroundings: Surroundings, memory_max: int, *, metered: bool = False) -> None:
        self.linked = linked
        self.engine = _at(linked.engine)
        self.linker = _at(linked.linker)
        self.component = _at(linked.component)
        self.handle = _at(linked.handle)
        self.surroundings = surroundings
        self.memory_max = memory_max or -1
        self.metered = metered

    def make(self) -> Instance:
        """A fresh instance.

        :raises WasmtimeError: it cannot be made (its memory is over the limit, or its start traps).
        """
        return Instance(self)


def _at(managed: Any) -> int:
    """Where a wrapper's own object is; the wrapper has to stay."""
    return ctypes.cast(managed.ptr(), _address).value or 0


def _failure(error: int) -> WasmtimeError:
    """What wasmtime's error at that address says; it is freed with it."""
    return WasmtimeError._from_ptr(ctypes.cast(error, _Error))


class Instance:
    """An instance, used once.

    :raises WasmtimeError: it cannot be made.
    """

    __slots__ = ("_arguments", "_context", "_func", "_memory", "_sessions", "_store", "session")

    def __init__(self, maker: Maker) -> None:
        self._store = store = _new_store(maker.engine, None, None)
        self._context = context = _context(store)
        _limit(store, maker.memory_max, _TABLE_ELEMENTS_MAX, _INSTANCES_MAX, _TABLES_MAX, _MEMORIES_MAX)
        if maker.metered:
            # Code that looks at an epoch ends without a deadline for it; what bounds a server's time is its clock.
            _deadline(context, _NEVER)
        self._memory = _Memory()
        self._arguments = at = ctypes.addressof(self._memory)
        self._func = at + _FUNC
        self._sessions = maker.linked.sessions
        self.session = self._sessions[context] = Session(context, at + _SCRATCH, maker.surroundings)
        try:
            error = _instantiate(maker.linker, context, maker.component, at + _INSTANCE)
            if error:
                raise _failure(error)
            if not _get_func(at + _INSTANCE, context, maker.handle, self._func):
                raise WasmtimeError("the component's handler is no function")
        except BaseException:
            self.close()
            raise

    def handle(self, request: Any, outparam: Any) -> None:
        """Call the guest's handler and return when it does.

        :raises WasmtimeError: it trapped; ``session.failure`` is the host's reason, where it was the host's.
        """
        at = self._arguments
        cells.write_own(self.session, at, request)
        cells.write_own(self.session, at + cells.CELL, outparam)
        try:
            error = _call(self._func, self._context, at, 2, None, 0)
        finally:
            cells.delete(at)
            cells.delete(at + cells.CELL)
        if error:
            raise _failure(error)

    def close(self) -> None:
        """Free the instance with all its memory. Again is no error."""
        if self._sessions.pop(self._context, None) is not None:
            try:
                self.session.close()
            finally:
                _delete_store(self._store)
