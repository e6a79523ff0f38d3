"""A component's imports bound to this host's functions, once for all its instances."""

from __future__ import annotations

import ctypes
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from wasmtime import Engine, WasmtimeError
from wasmtime import _bindings as bindings
from wasmtime import component as wit
from wasmtime._ffi import dll

from engines.wasm.guest.http import cells
from engines.wasm.guest.http.session import Err, Refused, Session
from forgeone_shim.errors import FailedPrecondition

_HANDLER: Final = "wasi:http/incoming-handler@0.2."
_OUTGOING: Final = "wasi:http/outgoing-handler"
# Resource types that no function here makes are numbered from this on.
_FOREIGN: Final = 1000
# Of all functions' parameters and results; a guest with all of WASI has a thousand. This is the zygote's time.
_TYPES_MAX: Final = 10_000
# Each resource type is compared with those before.
_RESOURCE_COSTS: Final = 20

Function = Callable[..., Any]

_address, _size = ctypes.c_void_p, ctypes.c_size_t
# As wasmtime_component_func_callback_t, but with plain addresses: ctypes makes no object for each argument.
_Callback = ctypes.CFUNCTYPE(_size, _address, _address, _address, _address, _size, _address, _size)
_Destructor = ctypes.CFUNCTYPE(_size, _address, _address, ctypes.c_uint32)
_Finalizer = ctypes.CFUNCTYPE(None, _address)


@dataclass(frozen=True, slots=True)
class Interfaces:
    """What this host offers: functions by ``namespace:package/interface#name``, and the numbers of resource types.

    A type's name is enough, for WASI 0.2 has no two of one name.
    """

    functions: Mapping[str, Function]
    resources: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Linked:
    """A component ready to be instantiated. ``sessions`` finds an instance's session by its store's context.

    ``missing`` are functions that it imports and this host has not; ``trust`` is TLS for requests that it makes
    itself, with the authorities that the host trusts.
    """

    engine: Engine
    component: wit.Component
    linker: wit.Linker
    handle: wit.ExportIndex
    sessions: dict[int, Session]
    missing: tuple[str, ...]
    trust: ssl.SSLContext | None
    callbacks: list[Any] = field(repr=False)


def link(
    engine: Engine, component: wit.Component, interfaces: Interfaces, trust: ssl.SSLContext | None = None
) -> Linked:
    """Bind ``component``'s imports. Nothing of the guest runs, and no thread starts. ``trust`` is made if not given.

    :raises FailedPrecondition: it is no server of ``wasi:http`` 0.2, or imports what no function can stand for.
    """
    handle = _handle(engine, component)
    sessions: dict[int, Session] = {}
    binder = _Binder(interfaces, sessions)
    linker = wit.Linker(engine)
    try:
        with linker.root() as root:
            for name, item in component.type.imports(engine).items():
                kind = item.ty
                if not isinstance(kind, wit.ComponentInstanceType):
                    raise FailedPrecondition(f"the component imports {name}, which is no interface")
                with root.add_instance(name) as instance:
                    binder.bind(instance, name.split("@", 1)[0], kind.exports(engine))
    except (TypeError, WasmtimeError) as error:
        raise FailedPrecondition(f"the component's imports cannot be bound: {error}") from error
    # The host's authorities, while the host's files are still here.
    if trust is None and binder.outgoing:
        trust = ssl.create_default_context()
    return Linked(engine, component, linker, handle, sessions, tuple(binder.missing), trust, binder.callbacks)


def _handle(engine: Engine, component: wit.Component) -> wit.ExportIndex:
    exports = list(component.type.exports(engine))
    for name in exports:
        if name.startswith(_HANDLER):
            index = component.get_export_index("handle", component.get_export_index(name))
            if index is not None:
                return index
    raise FailedPrecondition(f"the component exports no {_HANDLER}x: it has {', '.join(sorted(exports)) or 'nothing'}")


class _Binder:
    def __init__(self, interfaces: Interfaces, sessions: dict[int, Session]) -> None:
        self._interfaces = interfaces
        self._sessions = sessions
        self._destructor = _Destructor(self._destroy)
        self._finalizer = _Finalizer()
        self._kinds = dict(interfaces.resources)
        self._seen: list[tuple[wit.ResourceType, int]] = []
        self.callbacks: list[Any] = [self._destructor]
        self.missing: list[str] = []
        self.outgoing = False
        self._types_left = _TYPES_MAX

    def bind(self, instance: wit.LinkerInstance, interface: str, items: Mapping[str, Any]) -> None:
        self.outgoing = self.outgoing or interface == _OUTGOING
        for name, item in items.items():
            kind, full = getattr(item, "ty", item), f"{interface}#{name}"
            if isinstance(kind, wit.ResourceType):
                self._bind_resource(instance, name, kind)
            elif isinstance(kind, wit.FuncType):
                self._bind_function(instance, full, name, kind)

    def _bind_resource(self, instance: wit.LinkerInstance, name: str, told: wit.ResourceType) -> None:
        self._charge(_RESOURCE_COSTS)
        number = self._number(name, told)
        encoded = name.encode()
        with wit.ResourceType.host(number) as kind:
            _check(
                _add_resource(
                    instance.ptr(), encoded, len(encoded), kind.ptr(), self._destructor, None, self._finalizer
                )
            )

    def _charge(self, types: int) -> None:
        self._types_left -= types
        if self._types_left < 0:
            raise TypeError(f"they have more than {_TYPES_MAX} types")

    def _number(self, name: str, told: wit.ResourceType) -> int:
        """Interfaces may call a type of another one as they like (``io-error``); its own interface came before."""
        number = next((each for kind, each in self._seen if kind == told), None)
        if number is None:
            number = self._kinds.setdefault(name, _FOREIGN + len(self._kinds))
            self._seen.append((told, number))
        return number

    def _bind_function(self, instance: wit.LinkerInstance, full: str, name: str, kind: wit.FuncType) -> None:
        function = self._interfaces.functions.get(full)
        self._charge(1)
        for each in (*(param for _, param in kind.params), *(() if kind.result is None else (kind.result,))):
            self._charge(cells.parts(each, self._types_left))
        if function is None:
            self.missing.append(full)
            function = _absent(full, kind.result)
        callback = _Callback(_trampoline(function, kind, self._sessions))
        self.callbacks.append(callback)
        encoded = name.encode()
        _check(_add_function(instance.ptr(), encoded, len(encoded), callback, None, self._finalizer))

    def _destroy(self, _data: int, context: int, rep: int) -> int:
        session = self._sessions.get(context)
        if session is None:
            return 0
        try:
            session.dropped(rep)
        except Exception as error:
            return _failed(session, error)
        return 0


def _trampoline(function: Function, kind: wit.FuncType, sessions: dict[int, Session]) -> Callable[..., int]:
    """What wasmtime calls: read the arguments, call, write the result. The first argument is always the session."""
    act = _reading(function, [cells.reader(each) for _, each in kind.params])
    result = kind.result
    if isinstance(result, wit.ResultType):
        return _fallible(act, *cells.result_writers(result), sessions)
    write = _nothing if result is None else cells.writer(result)

    def call(_data: int, context: int, _type: int, args: int, _n: int, results: int, _m: int) -> int:
        session = sessions[context]
        session.calls += 1
        try:
            write(session, results, act(session, args))
        except Exception as error:
            return _failed(session, error)
        return 0

    return call


def _fallible(
    act: Callable[[Session, int], Any], ok: cells.Writer, err: cells.Writer, sessions: dict[int, Session]
) -> Callable[..., int]:
    def call(_data: int, context: int, _type: int, args: int, _n: int, results: int, _m: int) -> int:
        session = sessions[context]
        session.calls += 1
        try:
            ok(session, results, act(session, args))
        except Err as error:
            try:
                err(session, results, error.value)
            except Exception as failure:
                return _failed(session, failure)
        except Exception as error:
            return _failed(session, error)
        return 0

    return call


def _nothing(_session: cells.Holder, _at: int, _value: object) -> None:
    """The function has no result."""


def _reading(function: Function, readers: list[cells.Reader]) -> Callable[[Session, int], Any]:
    """``function`` of the values that are read; most have one or two, and are called often."""
    if not readers:
        return lambda session, _args: function(session)
    if len(readers) == 1:
        (only,) = readers
        return lambda session, args: function(session, only(session, args))
    if len(readers) == 2:
        first, second = readers
        return lambda session, args: function(session, first(session, args), second(session, args + cells.CELL))
    placed = tuple((read, cells.CELL * i) for i, read in enumerate(readers))
    return lambda session, args: function(session, *[read(session, args + offset) for read, offset in placed])


def _failed(session: Session, error: BaseException) -> int:
    """The guest's call traps; why is found again in its session."""
    if session.failure is None:
        session.failure = error
    return int(cells.new_error(str(error).encode("utf-8", "replace").replace(b"\0", b"")))


def _absent(full: str, result: Any) -> Function:
    """A function that this host has not: its own words for that where it has some, else a trap."""
    word = ""
    if isinstance(result, wit.ResultType):
        names = getattr(result.err, "names", None) or [name for name, _ in getattr(result.err, "cases", ())]
        word = next((each for each in ("not-supported", "unsupported", "access-denied") if each in names), "")

    def refuse(*_arguments: object) -> None:
        if word:
            raise Err(word)
        raise Refused(f"{full} is not available to a server of wasi:http")

    return refuse


def _function(name: str, *arguments: Any) -> Callable[..., Any]:
    function = dll[name]
    function.restype = ctypes.POINTER(bindings.wasmtime_error_t)
    function.argtypes = arguments
    return function


_instance = ctypes.POINTER(bindings.wasmtime_component_linker_instance_t)
_add_function = _function(
    "wasmtime_component_linker_instance_add_func", _instance, ctypes.c_char_p, _size, _Callback, _address, _Finalizer
)
_add_resource = _function(
    "wasmtime_component_linker_instance_add_resource",
    _instance,
    ctypes.c_char_p,
    _size,
    ctypes.POINTER(bindings.wasmtime_component_resource_type_t),
    _Destructor,
    _address,
    _Finalizer,
)


def _check(error: Any) -> None:
    if error:
        raise WasmtimeError._from_ptr(error)
