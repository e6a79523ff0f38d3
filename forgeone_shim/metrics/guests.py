"""What containers use whose pods have a kernel of their own: one question a pod, to several at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Final

import structlog

from engines.base import Engine, Handle, Measured, Measurement
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ForgeError
from forgeone_shim.metrics.usage import Read, Usage, from_v2
from forgeone_shim.runtime.views import ContainerView

ANSWER_SECONDS: Final = 2.0
"""How long a pod's kernel has: whoever asks for all pods' usage waits for the slowest."""
_AT_ONCE: Final = 8


class Guests:
    """Thread-safe. ``handle`` is how an engine finds a container."""

    def __init__(self, engines: Mapping[str, Engine], handle: Callable[[ContainerView], Handle]) -> None:
        self._engines, self._handle = engines, handle
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="guests")
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
        if len(wanted) < 2:
            answers = [self._ask(one) for one in wanted.values()]
        else:
            answers = list(self._pool.map(self._ask, wanted.values()))
        return {pod: answer for pod, answer in zip(wanted, answers, strict=True) if answer is not None}

    def _ask(self, views: list[ContainerView]) -> Measurement | None:
        handles, deadline = [self._handle(view) for view in views], Deadline.after(ANSWER_SECONDS)
        try:
            return self._engines[views[0].engine].measured(handles, deadline)
        except ForgeError as error:
            self._log.warning("a pod does not tell what it uses", sandbox=views[0].sandbox_id, error=str(error))
            return Measurement(cgroup="", containers={})

    def close(self) -> None:
        """Ask no more."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def reader(measured: Measured) -> Read:
    """The files of a container's cgroup."""
    return lambda name: measured.files.get(name, "")


def usage(at: int, measured: Measured | None) -> Usage:
    """What a container uses that was told of at ``at``; nothing is known of one that was not."""
    return Usage(at=at) if measured is None else from_v2(at, reader(measured))
