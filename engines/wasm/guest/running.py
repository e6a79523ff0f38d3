"""A loaded module or component made ready, and run, in the process that is its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from wasmtime import InstancePre, Linker, Module, Store, WasiConfig, WasmtimeError

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
from engines.wasm.guest.plan import GuestPlan, Outcome
from forgeone_shim.errors import FailedPrecondition, InvalidInput

# Far above what compilers make, and far below what the address space holds at 4 GiB for each memory.
_INSTANCES_MAX: Final = 1000
_MEMORIES_MAX: Final = 100
_TABLES_MAX: Final = 1000
_TABLE_ELEMENTS_MAX: Final = 10_000_000
# Whose interfaces are given to components; all are of 0.2, as the names' versions say.
_WASI: Final = tuple(f"wasi:{name}/" for name in ("cli", "clocks", "filesystem", "io", "random", "sockets"))
_WASI_HTTP: Final = ("wasi:http/types@", "wasi:http/outgoing-handler@")


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
        return _prepare_server(plan, loaded)
    store = Store(loaded.engine)
    store.set_limits(plan.memory_max or -1, _TABLE_ELEMENTS_MAX, _INSTANCES_MAX, _TABLES_MAX, _MEMORIES_MAX)
    store.set_wasi(_wasi(plan, component=isinstance(loaded, LoadedComponent)))
    if isinstance(loaded, LoadedModule):
        return _prepare_module(ModuleSetup(plan, loaded, store, loaded.linker), extensions)
    return _prepare_component(ComponentSetup(plan, loaded, store, loaded.linker), extensions)


def run(ready: Ready) -> Outcome:
    """Run it to its end, once. The process is to end then; it has threads that a fork would lose."""
    return ready.run()


def _prepare_server(plan: GuestPlan, loaded: LoadedComponent) -> Ready:
    """Its instances are made for each request, on a host of its own."""
    from engines.wasm.guest.http.interfaces import SERVER
    from engines.wasm.guest.http.linking import link
    from engines.wasm.guest.http.serving import ReadyServer

    return ReadyServer(plan, loaded.server or link(loaded.engine, loaded.component, SERVER), loaded.variant)


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
        if not name.startswith((*_WASI, *_WASI_HTTP)) and not any(one.provides(name) for one in extensions):
            raise InvalidInput("module", f"imports {name}, which nothing here provides", fix="WASI 0.2 is provided")
    for extension in extensions:
        if any(extension.provides(name) for name in imports):
            extension.link_component(setup)
    if any(name.startswith(_WASI_HTTP) for name in imports):
        setup.store.set_wasi_http()
    return ReadyComponent(setup)


def _wasi(plan: GuestPlan, *, component: bool) -> WasiConfig:
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
    if component and plan.network:
        sockets.allow(config)
    return config
