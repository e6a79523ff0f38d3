"""Instances of a linked component: one for each request, and one ahead."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

from wasmtime import Store, WasmtimeError
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

_address, _size = ctypes.c_void_p, ctypes.c_size_t


def _function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    function = dll[name]
    function.restype, function.argtypes = result, arguments
    return function


_error = ctypes.POINTER(bindings.wasmtime_error_t)
# These run guest code, so the interpreter's lock is given up meanwhile.
_instantiate = _function("wasmtime_component_linker_instantiate", _error, _address, _address, _address, _address)
_call = _function("wasmtime_component_func_call", _error, _address, _address, _address, _size, _address, _size)
_get_func = _function("wasmtime_component_instance_get_func", ctypes.c_bool, _address, _address, _address, _address)


class Instance:
    """A fresh instance, used once.

    :raises WasmtimeError: it cannot be made (its memory is over the limit, or its start traps).
    """

    __slots__ = ("_arguments", "_context", "_func", "_linked", "_memory", "_store", "session")

    def __init__(self, linked: Linked, surroundings: Surroundings, memory_max: int, *, metered: bool = False) -> None:
        self._linked = linked
        self._store = Store(linked.engine)
        self._context = ctypes.cast(self._store._context(), _address).value or 0
        self._store.set_limits(memory_max or -1, _TABLE_ELEMENTS_MAX, _INSTANCES_MAX, _TABLES_MAX, _MEMORIES_MAX)
        if metered:
            # Code that looks at an epoch ends without a deadline for it; what bounds a server's time is its clock.
            self._store.set_epoch_deadline(_NEVER)
        self._memory = ctypes.create_string_buffer(2 * cells.CELL + cells.SCRATCH)
        self._arguments = ctypes.addressof(self._memory)
        self.session = Session(self._context, self._arguments + 2 * cells.CELL, surroundings)
        self._func = bindings.wasmtime_component_func_t()
        linked.sessions[self._context] = self.session
        try:
            instance = bindings.wasmtime_component_instance_t()
            error = _instantiate(linked.linker.ptr(), self._context, linked.component.ptr(), ctypes.addressof(instance))
            if error:
                raise WasmtimeError._from_ptr(error)
            if not _get_func(
                ctypes.addressof(instance), self._context, linked.handle.ptr(), ctypes.addressof(self._func)
            ):
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
            error = _call(ctypes.addressof(self._func), self._context, at, 2, None, 0)
        finally:
            cells.delete(at)
            cells.delete(at + cells.CELL)
        if error:
            raise WasmtimeError._from_ptr(error)

    def close(self) -> None:
        """Free the instance with all its memory. Again is no error."""
        if self._linked.sessions.pop(self._context, None) is not None:
            try:
                self.session.close()
            finally:
                self._store.close()
