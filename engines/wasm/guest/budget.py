"""The end of a guest that has used its processor time."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Final

from wasmtime import Engine, Store

_NEVER: Final = 1 << 62


class Budget:
    """Ends ``METERED`` code in its next loop or call once this process has used ``seconds`` more, from entering on.

    The kernel counts, and tells by SIGPROF (setitimer(2), ITIMER_PROF), which a thread waits for; the guest's own
    thread has it blocked, as have those that it starts. 0 seconds never pass.
    """

    def __init__(self, engine: Engine, store: Store, seconds: float) -> None:
        self._engine, self._seconds = engine, seconds
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.exceeded = False
        # A deadline that has passed ends the guest, and so does code that has none.
        store.set_epoch_deadline(1 if seconds > 0 else _NEVER)

    def __enter__(self) -> Budget:
        if self._seconds > 0:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
            self._thread = threading.Thread(target=self._wait, daemon=True)
            self._thread.start()
            signal.setitimer(signal.ITIMER_PROF, self._seconds)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._thread is not None and self._thread.ident is not None:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self._over.set()
            signal.pthread_kill(self._thread.ident, signal.SIGPROF)
            self._thread.join()

    def _wait(self) -> None:
        signal.sigwait({signal.SIGPROF})
        if not self._over.is_set():
            self.exceeded = True
            self._engine.increment_epoch()
