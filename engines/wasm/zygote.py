"""The process that guests are forked from: wasmtime is imported in it, and code that was compiled is mapped.

It never compiles, and never runs WASI: see :mod:`engines.wasm.guest.loading`. Its heap is frozen once it is warm, so
that what its children share of it stays shared.
"""

from __future__ import annotations

import functools
import gc
import os
import socket
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from engines.wasm import execution, launch, messages
from engines.wasm.aot.target import Variant
from engines.wasm.guest import running
from engines.wasm.guest.loading import EngineSet, load
from engines.wasm.launch import Held
from engines.wasm.messages import Code, Create, Done, Forget, Init, Preload
from forgeone_shim.errors import ForgeError, Kind
from forgeone_shim.kernel import mappings
from forgeone_shim.kernel.descriptors import open_descriptors
from forgeone_shim.shim import forks, rehearsal
from forgeone_shim.shim.forks import Answer, Fork
from forgeone_shim.shim.supervision import Failed

# A module that is not among them is mapped in a fraction of a millisecond, a large component in three.
_LOADED_MAX: Final = 128


def main() -> None:
    """Serve on descriptor :data:`forks.LISTENER` until nobody needs it any more."""
    # wasmtime's WASI starts as many threads in each guest as the host has processors; all that they do is to wait.
    os.environ["TOKIO_WORKER_THREADS"] = "1"
    zygote = Zygote()
    zygote.rehearse(sys.argv[1])
    gc.collect()
    gc.freeze()
    # What is left to collect would be pages that are no longer shared; nothing here makes cycles.
    gc.disable()
    forks.serve(zygote)


class Zygote:
    """Handles the requests of :mod:`engines.wasm.messages`."""

    def __init__(self) -> None:
        self._engines = EngineSet()
        self._engines.linker(Variant.PLAIN)
        self._engines.component_linker(Variant.PLAIN)
        self._loaded: OrderedDict[str, Held] = OrderedDict()

    def rehearse(self, directory: str) -> None:
        """Have what children do first done here, too, so that what it leaves in memory is shared by them all."""
        rehearsal.rehearse(directory)
        running.rehearse(self._engines.engine(Variant.PLAIN))

    def __call__(self, data: bytearray, fds: list[int]) -> Answer | Fork:
        """What becomes of a request.

        :raises ProtocolError: it is none.
        """
        request = messages.decode_request(data)
        if isinstance(request, Forget):
            self._forget(request)
            return _said(Done())
        if isinstance(request, Init):
            return Fork(child=functools.partial(launch.init, request), failed=_no_child)
        try:
            held = self._load(request.code, fds[0])
        except ForgeError as error:
            return _said(Failed(step="load", error=error.kind, message=str(error)))
        if isinstance(request, Preload):
            return _said(Done())
        if isinstance(request, Create):
            supervisor = self._alone(held, functools.partial(launch.container, request.plan, held, fds[0]))
            return Fork(child=supervisor, failed=_no_child, lasts=True, keep=held.fds)
        beside = self._alone(held, functools.partial(execution.execute, request.plan, held, fds[1:]))
        return Fork(child=beside, failed=_no_child, keep=held.fds)

    def _alone(self, held: Held, child: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
        """The child has this code and nobody else's: whoever breaks out of its guest is not to find any."""

        def run(connection: socket.socket) -> None:
            for other in self._loaded.values():
                if other is not held:
                    # Not unmapped: to wasmtime it is there, and no other code may come to lie at these addresses.
                    for mapping in other.mappings:
                        mappings.withhold(mapping)
            child(connection)

        return run

    def _load(self, code: Code, fd: int) -> Held:
        found = self._loaded.get(code.key)
        if found is None:
            before = open_descriptors()
            loaded = load(self._engines, fd, code.kind, code.variant)
            fds = tuple(open_descriptors() - before)
            found = self._loaded[code.key] = Held(loaded, fds, mappings.of_file(fd))
            if len(self._loaded) > _LOADED_MAX:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(code.key)
        return found

    def _forget(self, request: Forget) -> None:
        for key in [key for key in self._loaded if key not in request.keep]:
            del self._loaded[key]


def _said(answer: Done | Failed) -> Answer:
    return Answer(messages.encode(answer))


def _no_child(error: OSError) -> bytes:
    return messages.encode(Failed(step="fork", error=Kind.EXHAUSTED, message=error.strerror or str(error)))
