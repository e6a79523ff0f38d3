"""Guests that are called once: ``_start`` of a module, ``wasi:cli/run`` of a component, or a function that is named."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from wasmtime import Func, FuncType, Instance, InstancePre, Linker, Store
from wasmtime import component as components

from engines.wasm.aot.target import Variant
from engines.wasm.guest import arguments, traps
from engines.wasm.guest.loading import CLI_RUN, Exit, Loaded, LoadedComponent, LoadedModule
from engines.wasm.guest.plan import GuestPlan, Outcome
from forgeone_shim.errors import InvalidInput

_START: Final = "_start"
_INITIALIZE: Final = "_initialize"
_FUNCTION: Final = "function"
_STDOUT, _STDERR = 1, 2
_MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class ModuleSetup:
    """A core module about to be instantiated. The linker is this process's own copy; names in it may be replaced."""

    plan: GuestPlan
    loaded: LoadedModule
    store: Store
    linker: Linker


@dataclass(frozen=True, slots=True)
class ComponentSetup:
    """A component about to be instantiated. The linker is this process's own copy; names in it may be replaced."""

    plan: GuestPlan
    loaded: LoadedComponent
    store: Store
    linker: components.Linker


class Extension(Protocol):
    """Imports that a guest gets besides WASI's; one object for one guest."""

    def provides(self, name: str) -> bool:
        """Whether an import (a core module's, or a component's interface) of that name is this extension's."""

    def link_module(self, setup: ModuleSetup) -> None:
        """Define imports on the linker, while the container is created: nothing of the guest runs yet."""

    def link_component(self, setup: ComponentSetup) -> None:
        """The same for a component."""

    def server_functions(self) -> Mapping[str, Callable[..., Any]]:
        """The same for a component that is a server: functions by ``NAMESPACE:PACKAGE/INTERFACE#NAME``.

        They are called, by several threads, with a session and the parameters; a record is the tuple of its fields.
        """

    def started(self, setup: ModuleSetup, instance: Instance) -> None:
        """A module has been instantiated, and nothing of it called but its start function."""


class Ready(Protocol):
    """A guest that is ready to run, once."""

    def run(self) -> Outcome:
        """Run it to its end. Nothing it does raises."""


class ReadyModule:
    """A core module. Its start function, if there is one, is guest code too, so it is instantiated only now."""

    def __init__(self, setup: ModuleSetup, linked: InstancePre, extensions: Sequence[Extension]) -> None:
        self._setup, self._linked, self._extensions = setup, linked, extensions
        plan = setup.plan
        self._name = plan.function or _START
        self._given: list[int | float] = []
        if plan.function and plan.function != _START:
            kind = next((one.type for one in setup.loaded.module.exports if one.name == plan.function), None)
            if not isinstance(kind, FuncType):
                raise InvalidInput(_FUNCTION, f"the module exports no function {plan.function!r}")
            self._given = arguments.of_module(kind, plan.argv[1:])
        elif _START not in setup.loaded.functions:
            raise InvalidInput(
                "module", "exports no _start, so it is no command", fix="name what to call as PATH#FUNCTION"
            )

    def run(self) -> Outcome:
        """Instantiate it and call its function."""
        return _ended(self._setup.plan, self._setup.loaded, self._setup.store, self._call)

    def _call(self, enter: Callable[[], None]) -> Outcome:
        store = self._setup.store
        instance = self._linked.instantiate(store)
        enter()
        for extension in self._extensions:
            extension.started(self._setup, instance)
        exports = instance.exports(store)
        if self._name == _START:
            cast(Func, exports[_START])(store)
            return Outcome(0)
        initialize = exports.get(_INITIALIZE)
        if isinstance(initialize, Func):
            initialize(store)
        _write(_STDOUT, arguments.shown(cast(Func, exports[self._name])(store, *self._given)))
        return Outcome(0)


class ReadyComponent:
    """A component."""

    def __init__(self, setup: ComponentSetup) -> None:
        self._setup = setup
        functions = setup.loaded.functions
        wanted = setup.plan.function
        if wanted:
            found = next((name for name in functions if _matches(name, wanted)), None)
            if found is None:
                raise InvalidInput(_FUNCTION, f"the component exports no function {wanted!r}")
        else:
            found = next((name for name in functions if name.startswith(CLI_RUN)), None)
            if found is None:
                raise InvalidInput(
                    "module", "exports no wasi:cli/run, so it is no command", fix="name what to call as PATH#FUNCTION"
                )
        self._index = functions[found]

    def run(self) -> Outcome:
        """Instantiate it and call its function."""
        return _ended(self._setup.plan, self._setup.loaded, self._setup.store, self._call)

    def _call(self, enter: Callable[[], None]) -> Outcome:
        setup = self._setup
        instance = setup.linker.instantiate(setup.store, setup.loaded.component)
        enter()
        function = cast(components.Func, instance.get_func(setup.store, self._index))
        kind = function.type(setup.store)
        given = arguments.of_component(kind, setup.plan.argv[1:]) if setup.plan.function else []
        failed, result = arguments.told(kind, function(setup.store, *given))
        if setup.plan.function:
            _write(_STDERR if failed else _STDOUT, arguments.shown(result))
        return Outcome(1 if failed else 0)


def _matches(name: str, wanted: str) -> bool:
    """``wasi:cli/run@0.2.6#run`` is also called ``wasi:cli/run#run``."""
    interface, _, function = name.rpartition("#")
    return wanted in (name, f"{interface.partition('@')[0]}#{function}")


def _ended(plan: GuestPlan, loaded: Loaded, store: Store, call: Callable[[Callable[[], None]], Outcome]) -> Outcome:
    """How the call ended; what the guest did not say itself is written to its stderr."""
    started = False

    def enter() -> None:
        nonlocal started
        started = True

    seconds, budget = plan.cpu_budget / _MICROSECONDS, None
    try:
        if loaded.variant is not Variant.METERED:
            return call(enter)
        # It brings threads, which cost every process that is forked after it: there since the metered code was loaded.
        from engines.wasm.guest.budget import Budget

        budget = Budget(loaded.engine, store, seconds, plan.cpu_slice / _MICROSECONDS)
        with budget:
            return call(enter)
    except Exit as end:
        return Outcome(end.code)
    except Exception as error:
        found = traps.outcome(error, started=started, budget=seconds if budget is not None and budget.exceeded else 0.0)
        _write(_STDERR, traps.report(error, found))
        return found


def _write(fd: int, text: str | bytes) -> None:
    """All of it, or as much as anybody takes."""
    data = text.encode() if isinstance(text, str) else text
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        return
