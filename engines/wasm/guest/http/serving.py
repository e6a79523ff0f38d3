"""A component served as a container's guest."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from wasmtime import WasmtimeError

from engines.wasm.aot.target import Variant
from engines.wasm.guest import traps
from engines.wasm.guest.http.exchange import Limits
from engines.wasm.guest.http.instances import Maker
from engines.wasm.guest.http.linking import Linked
from engines.wasm.guest.http.server import Ending, Server, log_to_stderr
from engines.wasm.guest.http.session import Surroundings
from engines.wasm.guest.plan import CPU_BUDGET_EXCEEDED, TRAP_CODE, GuestPlan, Outcome
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.shim.channel import CAUGHT

_ADDRESS: Final = "WASMTIME_HTTP_PROXY_SOCKET_ADDR"
_BACKLOG: Final = "WASMTIME_HTTP_PROXY_BACKLOG"
_DEFAULT: Final = "0.0.0.0:8080"
_MICROSECONDS: Final = 1_000_000
_STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
# mallopt(3): threads that come and go would each leave an arena of their own behind.
_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2


class ReadyServer:
    """A linked component and its socket, bound: nothing is accepted before :meth:`run`.

    :raises InvalidInput: the address is none.
    :raises FailedPrecondition: the address cannot be had, or a directory cannot be opened.
    """

    def __init__(self, plan: GuestPlan, linked: Linked, variant: Variant, limits: Limits | None = None) -> None:
        self._plan = plan
        self._limits = limits or _limits()
        self._linked = linked
        self._metered = variant is Variant.METERED
        environment = [_pair(one) for one in plan.env]
        given = dict(environment)
        self._listener = _bound(given.get(_ADDRESS) or _DEFAULT)
        self._surroundings = Surroundings(
            argv=plan.argv,
            env=tuple(pair for pair in environment if pair[0] not in (_ADDRESS, _BACKLOG)),
            directories=tuple(_opened((one.path, one.name, one.readonly) for one in plan.preopens)),
            network=plan.network,
            trust=linked.trust,
        )

    def run(self) -> Outcome:
        """Serve until SIGTERM (or SIGINT, SIGQUIT, SIGHUP); requests under way are finished. Another one ends it."""
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
        stop, alarm = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
        asked: list[int] = []
        for number in CAUGHT:
            # By default they would end a program; only the main thread is told, and it never runs a guest.
            signal.signal(number, lambda number, _frame: os._exit(128 + number))
        for number in _STOPS:
            signal.signal(number, lambda number, _frame: _asked_again(asked, number))
        maker = Maker(self._linked, self._surroundings, self._plan.memory_max, metered=self._metered)
        server = Server(self._listener, maker.make, self._limits, log_to_stderr)
        try:
            server.warm()
            ending = server.run(stop, self._spent)
        except WasmtimeError as error:
            outcome = traps.outcome(error, started=False)
            log_to_stderr(traps.report(error, outcome).decode(errors="replace"))
            return outcome
        except OSError as error:
            ending = Ending("HTTPListenFailed", f"the server cannot listen: {error.strerror or error}")
            log_to_stderr(ending.message)
            return Outcome(1, ending.reason, ending.message)
        if ending is None:
            return Outcome(0)
        log_to_stderr(f"{ending.reason}: {ending.message}")
        return Outcome(TRAP_CODE, ending.reason, ending.message)

    def _spent(self) -> Ending | None:
        seconds = self._plan.cpu_budget / _MICROSECONDS
        if seconds <= 0:
            return None
        usage = resource.getrusage(resource.RUSAGE_SELF)
        if usage.ru_utime + usage.ru_stime < seconds:
            return None
        return Ending(CPU_BUDGET_EXCEEDED, f"used its CPU budget of {seconds:g} s")


def _asked_again(asked: list[int], number: int) -> None:
    """The first time the wake-up descriptor says it; a second time nothing is finished any more."""
    if asked:
        os._exit(128 + number)
    asked.append(number)


def _limits() -> Limits:
    """As many connections as there may be descriptors, less what else needs some."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    default = Limits()
    if files == resource.RLIM_INFINITY:
        return default
    return replace(default, connections=max(16, min(default.connections, files // 2)))


def _pair(one: str) -> tuple[str, str]:
    name, _, value = one.partition("=")
    return name, value


def _bound(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    try:
        socket.inet_pton(family, bare)
        number = int(port)
    except (OSError, ValueError):
        raise InvalidInput(_ADDRESS, f"{address!r} is no ADDRESS:PORT", fix="for example 0.0.0.0:8080") from None
    if not port.isascii() or not port.isdigit() or not 0 < number < 65536:
        raise InvalidInput(_ADDRESS, f"{address!r} has no port between 1 and 65535")
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((bare, number))
    except OSError as error:
        listener.close()
        raise FailedPrecondition(f"the server cannot have {address}: {error.strerror}") from error
    return listener


def _opened(directories: Iterable[tuple[str, str, bool]]) -> Iterable[tuple[int, str, bool]]:
    for path, name, readonly in directories:
        try:
            yield os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), name, not readonly
        except OSError as error:
            raise FailedPrecondition(f"directory {path!r} cannot be opened for the guest: {error.strerror}") from error
