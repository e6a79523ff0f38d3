"""What the groups of RuntimeService's verbs share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cri.runtime.ports import RuntimePort
from forgeone_shim.metrics.usage import Usage

ReadUsage = Callable[[int, str], Usage]
"""What the container with that first process and id uses."""


class Verbs:
    """A group of verbs over one runtime; holds nothing else that changes."""

    def __init__(self, runtime: RuntimePort, *, info: Mapping[str, str], message_limit: int, usage: ReadUsage) -> None:
        """``info`` is shown by a verbose Status; no answer may exceed ``message_limit`` bytes."""
        self._runtime, self._info, self._message_limit, self._usage = runtime, info, message_limit, usage


def selected(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether all of ``selector`` is among ``labels``."""
    return all(labels.get(key) == value for key, value in selector.items())
