"""ForgeOne's own interface, as its guests import it: ``forgeone:introspect``, ``forgeone:log`` and ``forgeone:yield``.

:mod:`forgeone_shim.abi` has what it is; here is what answers, in the guest's own process. A guest that imports none of
it pays nothing for it.
"""

from __future__ import annotations

import datetime
import os
import re
import resource
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
from wasmtime import Caller, FuncType, Instance, Memory, ValType
from wasmtime import component as components

from engines.wasm import card as cards
from engines.wasm.card import Card, Identity, View
from engines.wasm.guest.commands import ComponentSetup, ModuleSetup
from engines.wasm.guest.loading import Loaded, LoadedModule
from forgeone_shim import abi
from forgeone_shim.errors import InvalidInput

_MODULES: Final = frozenset({abi.INTROSPECT, abi.LOG, abi.YIELD})
_INTERFACES: Final = tuple(
    one.partition("@")[0] for one in (abi.INTROSPECT_INTERFACE, abi.LOG_INTERFACE, abi.YIELD_INTERFACE)
)
_SEMVER: Final = re.compile(r"(\d{1,9})\.(\d{1,9})\.\d{1,9}")
_STDERR: Final = 2
_TEXT_MAX: Final = 64 * 1024
_KILO: Final = 1024
_NANO: Final = 1_000_000_000


def wanted(loaded: Loaded) -> bool:
    """Whether the guest imports any of it."""
    if isinstance(loaded, LoadedModule):
        # What could be linked while it was loaded imports nothing but WASI.
        return loaded.linked is None and any(provided(one.module) for one in loaded.module.imports)
    return any(map(provided, loaded.imports))


def provided(name: str) -> bool:
    """Whether an import of that name is of this interface, in a version that is here.

    Of components, older minor versions of an interface are.
    """
    if name in _MODULES:
        return True
    interface, _, version = name.partition("@")
    found = _SEMVER.fullmatch(version)
    return (
        interface in _INTERFACES
        and found is not None
        and (int(found[1]), int(found[2])) <= abi.VERSION
        and (int(found[1]) == abi.VERSION[0])
    )


class Interface:
    """An :class:`~engines.wasm.guest.commands.Extension`: the functions of one guest's process."""

    def __init__(self, identity: Identity, view: View) -> None:
        self._identity, self._view = identity, view

    def provides(self, name: str) -> bool:
        """Whether it is of this interface."""
        return provided(name)

    def link_module(self, setup: ModuleSetup) -> None:
        """:raises InvalidInput: the guest imports a function that this version does not have."""
        functions = self._functions()
        for one in setup.loaded.module.imports:
            if one.module not in _MODULES:
                continue
            found = functions.get((one.module, one.name or ""))
            if found is None:
                raise _unknown(f"{one.module} {one.name}")
            kind, function = found
            setup.linker.define_func(one.module, one.name or "", kind, function, access_caller=True)

    def link_component(self, setup: ComponentSetup) -> None:
        """Each interface under the very name that is imported."""
        offered = self._interfaces()
        with setup.linker.root() as root:
            for name in sorted(filter(provided, setup.loaded.imports)):
                with root.add_instance(name) as instance:
                    for function, answer in offered[name.partition("@")[0]].items():
                        instance.add_func(function, _to_component(answer))

    def server_functions(self) -> dict[str, Callable[..., Any]]:
        """The same for a server, whose host has another form for records."""
        return {
            f"{interface}#{name}": _to_server(answer)
            for interface, functions in self._interfaces().items()
            for name, answer in functions.items()
        }

    def started(self, setup: ModuleSetup, instance: Instance) -> None:
        """There is nothing to do."""

    # -- for core modules

    def _functions(self) -> dict[tuple[str, str], tuple[FuncType, Callable[..., int]]]:
        i32 = ValType.i32
        none, buffer = FuncType([], [i32()]), FuncType([i32(), i32()], [i32()])
        text = FuncType([i32(), i32(), i32()], [i32()])
        line = FuncType([i32(), i32(), i32(), i32(), i32()], [i32()])
        return {
            (abi.INTROSPECT, "identity"): (text, self._give_identity),
            (abi.INTROSPECT, "state"): (none, lambda _: abi.STATES.index(self._card().state)),
            (abi.INTROSPECT, "limits"): (
                buffer,
                lambda caller, at, size: _give(caller, at, size, cards.packed(self._card().limits)),
            ),
            (abi.INTROSPECT, "usage"): (
                buffer,
                lambda caller, at, size: _give(caller, at, size, abi.USAGE.pack(*_usage())),
            ),
            (abi.INTROSPECT, "history"): (
                buffer,
                lambda caller, at, size: _give(caller, at, size, cards.packed_steps(self._card().steps)),
            ),
            (abi.INTROSPECT, "trust"): (
                buffer,
                lambda caller, at, size: _give(caller, at, size, cards.packed_trust(self._card().trust)),
            ),
            (abi.LOG, "write"): (line, _write_line),
            (abi.YIELD, "give_up"): (none, _give_up),
        }

    def _give_identity(self, caller: Caller, what: int, at: int, size: int) -> int:
        texts = (self._identity.id, self._identity.name, self._identity.pod_id)
        if not 0 <= what < len(texts):
            return -abi.EINVAL
        return _give(caller, at, size, texts[what].encode())

    # -- for components

    def _interfaces(self) -> dict[str, dict[str, Callable[..., Any]]]:
        """Functions of the interface's own parameters; a record is a dictionary."""
        introspect, log, give_up = _INTERFACES
        return {
            introspect: {
                "identify": lambda: {
                    "id": self._identity.id,
                    "name": self._identity.name,
                    "pod-id": self._identity.pod_id,
                },
                "get-state": lambda: self._card().state,
                "get-limits": lambda: _limits(self._card()),
                "get-usage": lambda: dict(zip(("cpu-user", "cpu-system", "resident-peak"), _usage(), strict=True)),
                "history": lambda: [
                    {"at": one.at, "before": one.before, "event": one.event, "after": one.after}
                    for one in self._card().steps
                ],
                "get-trust": lambda: _trust(self._card()),
            },
            log: {"log": _log},
            give_up: {"give-up": os.sched_yield},
        }

    def _card(self) -> Card:
        return self._view.read()


def _usage() -> tuple[int, int, int]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return int(used.ru_utime * _NANO), int(used.ru_stime * _NANO), used.ru_maxrss * _KILO


def _limits(card: Card) -> dict[str, int | None]:
    limits = card.limits
    found = {
        "memory": limits.memory,
        "linear-memory": limits.linear_memory,
        "cpu-quota": limits.cpu_quota,
        "cpu-period": limits.cpu_period,
        "cpu-shares": limits.cpu_shares,
        "cpu-budget": limits.cpu_budget,
    }
    return {name: value or None for name, value in found.items()}


def _trust(card: Card) -> dict[str, str | int | None]:
    trust = card.trust
    return {
        "fingerprint": trust.fingerprint or None,
        "contract": trust.contract or None,
        "entropy": trust.entropy,
        "score": trust.score,
    }


def _to_component(answer: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _store, *given: _shaped(answer(*given), _record)


def _to_server(answer: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _session, *given: _shaped(answer(*given), lambda fields: tuple(fields.values()))


def _shaped(value: Any, record: Callable[[dict[str, Any]], Any]) -> Any:
    if isinstance(value, dict):
        return record(value)
    return [_shaped(one, record) for one in value] if isinstance(value, list) else value


def _record(fields: dict[str, object]) -> components.Record:
    # Their names are WIT's, which are no Python identifiers.
    made = components.Record()
    vars(made).update(fields)
    return made


def _write_line(caller: Caller, level: int, *given: int) -> int:
    """``given`` are address and size of the context, then of the message."""
    if not 0 <= level < len(abi.LEVELS):
        return -abi.EINVAL
    context, message = _take(caller, *given[:2]), _take(caller, *given[2:])
    if context is None or message is None:
        return -abi.EFAULT
    _log(abi.LEVELS[level], context.decode("utf-8", "replace"), message.decode("utf-8", "replace"))
    return 0


def _log(level: str, context: str, message: str) -> None:
    at = datetime.datetime.fromtimestamp(time.time(), datetime.UTC)
    line = msgspec.json.encode(
        {"time": at, "level": level, "context": context[:_TEXT_MAX], "message": message[:_TEXT_MAX]}
    )
    data = line + b"\n"
    try:
        while data:
            data = data[os.write(_STDERR, data) :]
    except OSError:
        # Its supervisor has gone, and with it whoever would read this.
        return


def _give_up(_: Caller) -> int:
    os.sched_yield()
    return 0


def _memory(caller: Caller) -> Memory | None:
    found = caller.get("memory")
    return found if isinstance(found, Memory) else None


def _give(caller: Caller, at: int, size: int, content: bytes) -> int:
    """As much of ``content`` as ``size`` takes; returns how much there is."""
    at, size = at & 0xFFFFFFFF, size & 0xFFFFFFFF
    memory = _memory(caller)
    if memory is None or at + size > memory.data_len(caller):
        return -abi.EFAULT
    memory.write(caller, content[:size], at)
    return len(content)


def _take(caller: Caller, at: int, size: int) -> bytes | None:
    at, size = at & 0xFFFFFFFF, size & 0xFFFFFFFF
    memory = _memory(caller)
    if memory is None or at + size > memory.data_len(caller):
        return None
    return bytes(memory.read(caller, at, at + min(size, _TEXT_MAX)))


def _unknown(name: str) -> InvalidInput:
    major, minor = abi.VERSION
    return InvalidInput(
        "module", f"imports {name}, which version {major}.{minor} of ForgeOne's interface does not have"
    )
