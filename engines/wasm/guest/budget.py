"""Processor time of a guest: how much it may have in all, and after how much of it others have a turn."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from types import TracebackType
from typing import Any, Final

from wasmtime import Engine, Store
from wasmtime import _bindings as ffi

_NEVER: Final = 1 << 62
_CONTINUE: Final = 0
_EXCEEDED: Final = b"its CPU budget is used up"
# The type of the callback, which the package has no name for.
_CALLBACK: Final = ffi._wasmtime_store_epoch_deadline_callback.argtypes[1]
_FINALIZER: Final = ffi._wasmtime_store_epoch_deadline_callback.argtypes[3]


class Budget:
    """Meters ``METERED`` code from entering on, in its next loop or call.

    Once this process has used ``seconds`` more the guest is ended. Each time it has used ``slice_seconds`` more it
    gives up the processor, and goes on when others that wait for it have had a turn. 0 is never.

    The kernel counts, and tells by SIGPROF (setitimer(2), ITIMER_PROF), which a thread waits for; the guest's own
    thread has it blocked, as have those that it starts.
    """

    def __init__(self, engine: Engine, store: Store, seconds: float, slice_seconds: float = 0.0) -> None:
        self._engine, self._seconds, self._slice = engine, seconds, slice_seconds
        self._over = threading.Event()
        self._callback: Any = None
        self.exceeded = False
        self.turns = 0
        # A deadline that has passed ends the guest, and so does code that has none.
        store.set_epoch_deadline(1 if seconds > 0 or slice_seconds > 0 else _NEVER)
        if slice_seconds > 0:
            self._callback = _CALLBACK(self._turn)
            ffi.wasmtime_store_epoch_deadline_callback(store.ptr(), self._callback, None, _FINALIZER())

    def __enter__(self) -> Budget:
        if self._seconds > 0 or self._slice > 0:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
            threading.Thread(target=self._wait, args=(time.process_time(),), daemon=True).start()
            self._arm(0.0)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        # The thread is left waiting: it may be ending by itself now, and to signal one that has ended is undefined.
        self._over.set()
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _arm(self, used: float) -> None:
        waits = [self._slice] if self._slice > 0 else []
        if self._seconds > 0:
            waits.append(max(self._seconds - used, 1e-6))
        signal.setitimer(signal.ITIMER_PROF, min(waits))

    def _wait(self, began: float) -> None:
        while not self.exceeded:
            signal.sigwait({signal.SIGPROF})
            if self._over.is_set():
                return
            used = time.process_time() - began
            # Without slices the signal is the budget's end: the kernel's two clocks may differ by a tick.
            self.exceeded = self._slice <= 0 or 0 < self._seconds <= used
            if not self.exceeded:
                self._arm(used)
            self._engine.increment_epoch()

    def _turn(self, _context: object, _data: object, more: Any, kind: Any) -> int:
        """Called in the guest's own thread when the epoch has changed; an error that it returns ends the guest."""
        if self.exceeded:
            return ctypes.cast(ffi.wasmtime_error_new(_EXCEEDED), ctypes.c_void_p).value or 0
        self.turns += 1
        os.sched_yield()
        more[0], kind[0] = 1, _CONTINUE
        return 0
