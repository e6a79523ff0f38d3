"""What the groups of RuntimeService's verbs share."""

from __future__ import annotations

from collections.abc import Mapping

from cri.runtime.ports import RuntimePort, StreamingPort


class Verbs:
    """A group of verbs over one runtime; holds nothing else that changes."""

    def __init__(
        self,
        runtime: RuntimePort,
        *,
        info: Mapping[str, str],
        message_limit: int,
        streaming: StreamingPort,
    ) -> None:
        """``info`` is shown by a verbose Status; no answer may exceed ``message_limit`` bytes."""
        self._runtime, self._info, self._message_limit = runtime, info, message_limit
        self._streaming = streaming


def selected(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether all of ``selector`` is among ``labels``."""
    return all(labels.get(key) == value for key, value in selector.items())
