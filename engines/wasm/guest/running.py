"""A loaded module or component made ready, and run, in the process that is its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from wasmtime import Engine, InstancePre, Linker, Module, Store, WasiConfig, WasmtimeError

from engines.wasm.aot.target import Variant
from engines.wasm.guest import sockets
from engines.wasm.guest.commands import (
    ComponentSetup,
    Extension,
    ModuleSetup,
    Ready,
    ReadyComponent,
    ReadyModule,
)
from engines.wasm.guest.loading import Loaded, LoadedComponent, LoadedModule
from engines.wasm.guest.plan import GuestPlan, Outcome, Preopen
from forgeone_shim.errors import FailedPrecondition, InvalidInput

# Far above what compilers make, and far below what the address space holds at 4 GiB for each memory.
_INSTANCES_MAX: Final = 1000
_MEMORIES_MAX: Final = 100
_TABLES_MAX: Final = 1000
_TABLE_ELEMENTS_MAX: Final = 10_000_000
# Eight calls until Python specializes code, and the next to do it.
_REHEARSALS: Final = 10
# What components are given of WASI.
_WASI: Final = re.compile(
    r"wasi:(?:(?:cli|clocks|filesystem|io|random|sockets)/[a-z-]+|http/(?:types|outgoing-handler))@0\.2\.[0-9]+"
)
_HTTP: Final = "wasi:http/"
_SOCKETS: Final = "wasi:sockets/"


def prepare(plan: GuestPlan, loaded: Loaded, extensions: Sequence[Extension] = ()) -> Ready:
    """Everything that can be done before the guest's first instruction; directories are opened here and not later.

    Only in the process that is the guest's own, with its root directory, and before it gives up its privileges.

    :raises InvalidInput: the guest imports what nobody provides, or has not got what it is to run.
    :raises FailedPrecondition: a directory cannot be opened, or code is not of the variant that the plan needs.
    """
    if (plan.cpu_budget > 0 or plan.cpu_slice > 0) and loaded.variant is not Variant.METERED:
        raise FailedPrecondition("a CPU budget or slice needs metered code")
    if isinstance(loaded, LoadedComponent) and loaded.serves_http and not plan.function:
        if plan.cpu_slice > 0:
            raise FailedPrecondition(
                "a server has no CPU slice: each of its requests has a thread, which the kernel gives turns"
            )
        return _prepare_server(plan, loaded, extensions)
    store = _store(plan, loaded.engine, sockets_wanted=_wants_sockets(loaded))
    if isinstance(loaded, LoadedModule):
        return _prepare_module(ModuleSetup(plan, loaded, store, loaded.linker), extensions)
    return _prepare_component(ComponentSetup(plan, loaded, store, loaded.linker), extensions)


def rehearse(engine: Engine) -> None:
    """Make what :func:`prepare` makes for every guest, and let go of it, in a process that guests are forked from.

    Nothing of it runs. What Python and the library make when they do it for the first times, 40 pages, is shared then.

    It is done by a thread that has ended when this returns. The library draws random numbers from a generator that each
    thread has for itself, seeded when it is first used: one of the thread that forks would go on alike in every guest.
    """
    # Not above: a process that is not forked from has no use for it.
    import ctypes

    # Not Python's: its module does things in each child, which has forty pages less in common then, and its join()
    # returns before the thread has ended.
    libc, thread = ctypes.CDLL(None), ctypes.c_ulong()
    body = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda _: _rehearse(engine))
    if libc.pthread_create(ctypes.byref(thread), None, body, None) == 0:
        libc.pthread_join(thread, None)


def _rehearse(engine: Engine) -> None:
    plan = GuestPlan(argv=("",), env=("A=",), preopens=(Preopen(path="/", name="/", readonly=True),))
    for _ in range(_REHEARSALS):
        _store(plan, engine, sockets_wanted=False)


def run(ready: Ready) -> Outcome:
    """Run it to its end, once. The process is to end then; it has threads that a fork would lose."""
    return ready.run()


def _prepare_server(plan: GuestPlan, loaded: LoadedComponent, extensions: Sequence[Extension]) -> Ready:
    """Its instances are made for each request, on a host of its own."""
    from engines.wasm.guest.http.interfaces import SERVER
    from engines.wasm.guest.http.linking import Interfaces, link
    from engines.wasm.guest.http.serving import ReadyServer

    for name in sorted(loaded.imports):
        # What WASI has and it has not its host refuses when it is called.
        if not name.startswith("wasi:") and not any(one.provides(name) for one in extensions):
            raise _unprovided(name)
    own: dict[str, Callable[..., Any]] = {}
    for one in extensions:
        if any(one.provides(name) for name in loaded.imports):
            own |= one.server_functions()
    if own:
        interfaces = Interfaces({**SERVER.functions, **own}, SERVER.resources)
        trust = None if loaded.server is None else loaded.server.trust
        linked = link(loaded.engine, loaded.component, interfaces, trust)
    else:
        linked = loaded.server or link(loaded.engine, loaded.component, SERVER)
    return ReadyServer(plan, linked, loaded.variant)


def _prepare_module(setup: ModuleSetup, extensions: Sequence[Extension]) -> ReadyModule:
    needed = [one for one in extensions if _imported(setup.loaded.module, one)]
    for extension in needed:
        extension.link_module(setup)
    linked = setup.loaded.linked
    if needed or linked is None:
        linked = _linked(setup.linker, setup.loaded.module)
    return ReadyModule(setup, linked, needed)


def _imported(module: Module, extension: Extension) -> bool:
    return any(extension.provides(one.module) for one in module.imports)


def _linked(linker: Linker, module: Module) -> InstancePre:
    try:
        return linker.instantiate_pre(module)
    except WasmtimeError as error:
        raise InvalidInput("module", str(error), fix="WASI preview 1 and 0.2 are provided") from error


def _prepare_component(setup: ComponentSetup, extensions: Sequence[Extension]) -> Ready:
    imports = setup.loaded.imports
    for name in sorted(imports):
        if _WASI.fullmatch(name) is None and not any(one.provides(name) for one in extensions):
            raise _unprovided(name)
    for extension in extensions:
        if any(extension.provides(name) for name in imports):
            extension.link_component(setup)
    if any(name.startswith(_HTTP) for name in imports):
        setup.store.set_wasi_http()
    return ReadyComponent(setup)


def _unprovided(name: str) -> InvalidInput:
    return InvalidInput("module", f"imports {name}, which nothing here provides", fix="WASI 0.2 is provided")


def _wants_sockets(loaded: Loaded) -> bool:
    """Preview 1 can make none."""
    return isinstance(loaded, LoadedComponent) and any(name.startswith(_SOCKETS) for name in loaded.imports)


def _store(plan: GuestPlan, engine: Engine, *, sockets_wanted: bool) -> Store:
    store = Store(engine)
    store.set_limits(plan.memory_max or -1, _TABLE_ELEMENTS_MAX, _INSTANCES_MAX, _TABLES_MAX, _MEMORIES_MAX)
    store.set_wasi(_wasi(plan, sockets_wanted=sockets_wanted))
    return store


def _wasi(plan: GuestPlan, *, sockets_wanted: bool) -> WasiConfig:
    config = WasiConfig()
    try:
        config.argv = list(plan.argv)
        config.env = [one.partition("=")[::2] for one in plan.env]
    except (UnicodeError, WasmtimeError) as error:
        raise InvalidInput("args or env", "WASI takes UTF-8 without NUL") from error
    config.inherit_stdin()
    config.inherit_stdout()
    config.inherit_stderr()
    for one in plan.preopens:
        try:
            config.preopen_dir(one.path, one.name, not one.readonly)
        except WasmtimeError as error:
            raise FailedPrecondition(f"directory {one.path!r} cannot be opened for the guest") from error
    if sockets_wanted and plan.network:
        sockets.allow(config)
    return config
