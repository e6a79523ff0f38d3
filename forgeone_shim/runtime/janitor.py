"""Work that must get done although nobody waits for it: retried, ever more slowly, until it succeeds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

_FIRST_DELAY, _LONGEST_DELAY = 0.2, 30.0


class Janitor:
    """A small pool. A job is idempotent; what it raises is logged and the job runs again later."""

    def __init__(self, workers: int = 4) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="janitor")
        self._log = structlog.get_logger("janitor")
        self._lock = threading.Lock()
        self._timers: set[threading.Timer] = set()
        self._closed = False

    def until_done(self, name: str, job: Callable[[], None], *, after: float = 0.0) -> None:
        """Run ``job`` in ``after`` seconds, and again after a growing delay while it raises."""
        if after > 0:
            self._later(name, job, after, _FIRST_DELAY)
        else:
            self._submit(name, job, _FIRST_DELAY)

    def _submit(self, name: str, job: Callable[[], None], delay: float) -> None:
        with self._lock:
            if not self._closed:
                self._pool.submit(self._run, name, job, delay)

    def _run(self, name: str, job: Callable[[], None], delay: float) -> None:
        try:
            job()
        except Exception as error:
            self._log.warning("will be retried", job=name, error=str(error), retry_in_s=delay)
            self._later(name, job, delay, min(delay * 2, _LONGEST_DELAY))

    def _later(self, name: str, job: Callable[[], None], wait: float, delay: float) -> None:
        def fire() -> None:
            with self._lock:
                self._timers.discard(timer)
            self._submit(name, job, delay)

        timer = threading.Timer(min(wait, threading.TIMEOUT_MAX), fire)
        timer.daemon = True
        with self._lock:
            if self._closed:
                return
            self._timers.add(timer)
        timer.start()

    def close(self) -> None:
        """Finish what is queued; what waits for a retry is left to the next start's recovery."""
        with self._lock:
            self._closed = True
            timers = list(self._timers)
        for timer in timers:
            timer.cancel()
        self._pool.shutdown(wait=True)
