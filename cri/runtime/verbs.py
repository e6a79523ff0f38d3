"""What the groups of RuntimeService's verbs share."""

from __future__ import annotations

from collections.abc import Mapping

from cri.runtime.items import Items
from cri.runtime.ports import RuntimePort, StreamingPort
from cri.translate import container, sandbox


class Verbs:
    """A group of verbs over one runtime; holds nothing else that changes but the last lists."""

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
        self._container_items, self._sandbox_items = Items(container.item), Items(sandbox.item)


def selected(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether all of ``selector`` is among ``labels``."""
    return all(labels.get(key) == value for key, value in selector.items())
