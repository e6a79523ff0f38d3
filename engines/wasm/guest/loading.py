"""Compiled code mapped into the process that guests are forked from.

What is made here is shared by all of them: engines, linkers with WASI in them, and the code itself. Two rules hold in
this process (both tried): nothing is compiled, and no WASI runs, for the threads that either starts would not be there
in a child, which would wait for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from wasmtime import Config, Engine, FuncType, InstancePre, Linker, Module, ValType, WasmtimeError
from wasmtime import component as components

from engines.wasm.aot.target import OPTIONS, Kind, Variant
from forgeone_shim.errors import FailedPrecondition

if TYPE_CHECKING:
    from engines.wasm.guest.http.linking import Linked

P1: Final = "wasi_snapshot_preview1"
# The name that it had before, with the same signature of what is replaced here.
P1_NAMES: Final = (P1, "wasi_unstable")
HTTP_SERVER: Final = "wasi:http/incoming-handler@"
CLI_RUN: Final = "wasi:cli/run@"
_CLI_EXIT: Final = "wasi:cli/exit@"


class Exit(Exception):
    """The guest asked to end with ``code``."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def configure(variant: Variant, *, parallel: bool = False) -> Config:
    """wasmtime's options for code of that variant; ``parallel`` only where nothing is forked afterwards."""
    config = Config()
    for name, value in OPTIONS[variant].items():
        setattr(config, name, value)
    config.parallel_compilation = parallel
    return config


class EngineSet:
    """An engine for each variant, and its linkers, made when they are first needed and kept."""

    def __init__(self) -> None:
        self._engines: dict[Variant, Engine] = {}
        self._linkers: dict[Variant, Linker] = {}
        self._component_linkers: dict[Variant, components.Linker] = {}
        self._exits: set[tuple[Variant, str]] = set()

    def engine(self, variant: Variant) -> Engine:
        """Takes over SIGSEGV, SIGILL and SIGFPE of this process, and starts no thread."""
        if variant not in self._engines:
            self._engines[variant] = Engine(configure(variant))
        return self._engines[variant]

    def linker(self, variant: Variant) -> Linker:
        """With WASI preview 1, whose proc_exit takes every code here (wasmtime's refuses those from 126 on)."""
        if variant not in self._linkers:
            linker = Linker(self.engine(variant))
            linker.define_wasi()
            linker.allow_shadowing = True
            for name in P1_NAMES:
                linker.define_func(name, "proc_exit", FuncType([ValType.i32()], []), _proc_exit)
            self._linkers[variant] = linker
        return self._linkers[variant]

    def component_linker(self, variant: Variant, imports: Collection[str] = ()) -> components.Linker:
        """With WASI 0.2 and outgoing ``wasi:http``, for a component that imports these."""
        if variant not in self._component_linkers:
            linker = components.Linker(self.engine(variant))
            linker.add_wasip2()
            linker.add_wasi_http()
            linker.allow_shadowing = True
            self._component_linkers[variant] = linker
        linker = self._component_linkers[variant]
        for name in imports:
            if name.startswith(_CLI_EXIT) and (variant, name) not in self._exits:
                _define_exit(linker, name)
                self._exits.add((variant, name))
        return linker


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """A core module, and the names of the functions that it exports.

    ``linked`` has its imports resolved; ``None`` where it has some that WASI does not provide.
    """

    variant: Variant
    engine: Engine
    linker: Linker
    module: Module
    functions: frozenset[str]
    linked: InstancePre | None


@dataclass(frozen=True, slots=True)
class LoadedComponent:
    """A component, with the names that it imports and exports.

    ``functions`` are its exported functions by ``NAME``, or ``INTERFACE#NAME`` for those of an interface. ``server`` is
    it as a server of ``wasi:http``, where it is one whose imports can be bound.
    """

    variant: Variant
    engine: Engine
    linker: components.Linker
    component: components.Component
    imports: frozenset[str]
    exports: frozenset[str]
    functions: dict[str, components.ExportIndex] = field(repr=False)
    server: Linked | None = field(default=None, repr=False)

    @property
    def serves_http(self) -> bool:
        """Whether it is a server of ``wasi:http``."""
        return any(name.startswith(HTTP_SERVER) for name in self.exports)


Loaded = LoadedModule | LoadedComponent


def load(engines: EngineSet, fd: int, kind: Kind, variant: Variant = Variant.PLAIN) -> Loaded:
    """Map compiled code. ``fd`` stays the caller's, and may be closed; nobody may ever write to the file.

    :raises FailedPrecondition: it was compiled for something else than this process.
    """
    if variant is Variant.METERED:
        # Behind the walls of a jail there are no files of the host's to import it from.
        from engines.wasm.guest import budget

        del budget
    path = f"/proc/self/fd/{fd}"
    with _refusals():
        if kind is Kind.MODULE:
            return _load_module(engines, path, variant)
        return _load_component(engines, path, variant)


def _load_module(engines: EngineSet, path: str, variant: Variant) -> LoadedModule:
    engine, linker = engines.engine(variant), engines.linker(variant)
    module = Module.deserialize_file(engine, path)
    linked: InstancePre | None = None
    with contextlib.suppress(WasmtimeError):
        linked = linker.instantiate_pre(module)
    functions = frozenset(one.name for one in module.exports if isinstance(one.type, FuncType))
    return LoadedModule(variant, engine, linker, module, functions, linked)


def _load_component(engines: EngineSet, path: str, variant: Variant) -> LoadedComponent:
    engine = engines.engine(variant)
    component = components.Component.deserialize_file(engine, path)
    kind = component.type
    imports, exports = frozenset(kind.imports(engine)), kind.exports(engine)
    functions: dict[str, components.ExportIndex] = {}
    for name, item in exports.items():
        index, of = component.get_export_index(name), item.ty
        if isinstance(of, components.FuncType) and index is not None:
            functions[name] = index
        elif isinstance(of, components.ComponentInstanceType):
            for inner, one in of.exports(engine).items():
                found = component.get_export_index(inner, index)
                if isinstance(one.ty, components.FuncType) and found is not None:
                    functions[f"{name}#{inner}"] = found
    linker = engines.component_linker(variant, imports)
    server = _as_server(engine, component) if any(name.startswith(HTTP_SERVER) for name in exports) else None
    return LoadedComponent(variant, engine, linker, component, imports, frozenset(exports), functions, server)


def _as_server(engine: Engine, component: components.Component) -> Linked | None:
    """Imported with the first server: others do without what it needs (TLS among it)."""
    # Each module that a server runs: behind the walls of a jail there are no files of the host's to import from.
    from engines.wasm.guest.http import serving
    from engines.wasm.guest.http.interfaces import SERVER
    from engines.wasm.guest.http.linking import link

    del serving

    with contextlib.suppress(FailedPrecondition):
        return link(engine, component, SERVER)
    return None


def _define_exit(linker: components.Linker, name: str) -> None:
    """Under the very name that is imported, so that it comes before wasmtime's, which knows no codes."""
    with linker.root() as root, root.add_instance(name) as instance:
        instance.add_func("exit", _exit)
        instance.add_func("exit-with-code", _exit_with_code)


def _proc_exit(code: int) -> None:
    raise Exit(code & 0xFF)


def _exit(_store: object, status: components.Variant) -> None:
    raise Exit(0 if status.tag == "ok" else 1)


def _exit_with_code(_store: object, code: int) -> None:
    raise Exit(code & 0xFF)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    # A TypeError is the library's for a kind of item that is new to it.
    except (WasmtimeError, TypeError) as error:
        raise FailedPrecondition(f"compiled code cannot be loaded: {error}") from error
