"""What containers use whose pods have a kernel of their own: one question a pod, to several at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Final

import structlog

from engines.base import Engine, Handle, Measured, Measurement
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ForgeError
from forgeone_shim.metrics.usage import Read, Usage, from_v2
from forgeone_shim.runtime.views import ContainerView

ANSWER_SECONDS: Final = 2.0
"""How long a pod's kernel has: whoever asks for all pods' usage waits for the slowest."""
ALL_SECONDS: Final = 4.0
"""How long all of them have together, however many are silent."""
REST_SECONDS: Final = 10.0
"""For which one that was silent is not asked again: whoever asks does not wait for it each time."""
# Less than this is no time to answer in; and for how long it counts that one has not.
_FAIR_SECONDS: Final = 1.0
_REMEMBERED_SECONDS: Final = 300.0
_AT_ONCE: Final = 8


class Guests:
    """Thread-safe. ``handle`` is how an engine finds a container."""

    def __init__(self, engines: Mapping[str, Engine], handle: Callable[[ContainerView], Handle]) -> None:
        self._engines, self._handle = engines, handle
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="guests")
        self._lock = threading.Lock()
        self._silent: dict[str, float] = {}
        self._log = structlog.get_logger("guests")

    @cached_property
    def _asked(self) -> frozenset[str]:
        """The engines whose pods are asked; installed ones stay the same."""
        return frozenset(name for name, engine in self._engines.items() if engine.features().own_kernel)

    def __call__(self, views: Iterable[ContainerView]) -> dict[str, Measurement]:
        """What these containers use that are in such a pod, by the pod's id; of a silent one nothing is told."""
        wanted: dict[str, list[ContainerView]] = {}
        for view in views:
            if view.engine in self._asked and view.live:
                wanted.setdefault(view.sandbox_id, []).append(view)
        if not wanted:
            return {}
        whole, silent = Deadline.after(ALL_SECONDS), self._known_silent()
        # Those that were silent are asked when all others have been.
        pods = sorted(wanted, key=lambda pod: silent.get(pod, 0.0))
        ask = partial(self._ask, whole, silent)
        views_of = [wanted[pod] for pod in pods]
        answers = self._pool.map(ask, views_of) if len(pods) > 1 else map(ask, views_of)
        return {pod: answer for pod, answer in zip(pods, answers, strict=True) if answer is not None}

    def _ask(self, whole: Deadline, silent: Mapping[str, float], views: list[ContainerView]) -> Measurement | None:
        pod, handles = views[0].sandbox_id, [self._handle(view) for view in views]
        rests = pod in silent and time.monotonic() - silent[pod] < REST_SECONDS
        has = 0.0 if rests else whole.remaining(ANSWER_SECONDS) or 0.0
        deadline = Deadline.after(has)
        try:
            answer = self._engines[views[0].engine].measured(handles, deadline)
        except ForgeError as error:
            self._log.warning("a pod does not tell what it uses", sandbox=pod, error=str(error))
            answer = Measurement(cgroup="", containers={})
        if has > _FAIR_SECONDS:
            self._note(pod, silent=deadline.passed)
        return answer

    def _known_silent(self) -> Mapping[str, float]:
        """When those were last asked that did not answer then. Who has not been asked since for long is forgotten."""
        since = time.monotonic() - _REMEMBERED_SECONDS
        with self._lock:
            self._silent = {pod: at for pod, at in self._silent.items() if at > since}
            return dict(self._silent)

    def _note(self, pod: str, *, silent: bool) -> None:
        with self._lock:
            if silent:
                self._silent[pod] = time.monotonic()
            else:
                self._silent.pop(pod, None)

    def close(self) -> None:
        """Ask no more."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def reader(measured: Measured) -> Read:
    """The files of a container's cgroup."""
    return lambda name: measured.files.get(name, "")


def usage(at: int, measured: Measured | None) -> Usage:
    """What a container uses that was told of at ``at``; nothing is known of one that was not."""
    return Usage(at=at) if measured is None else from_v2(at, reader(measured))
