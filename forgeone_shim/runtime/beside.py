"""What another runtime beside this one asks of it: whose things are; and what the log is told of pods that go there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import Denied, InvalidInput, NotFound
from forgeone_shim.registry.service import ImageService
from forgeone_shim.runtime.chronicle import Chronicle
from forgeone_shim.runtime.handlers import Handlers
from forgeone_shim.runtime.inforce import InForce
from forgeone_shim.runtime.records import ContainerRecord, SandboxRecord
from forgeone_shim.runtime.table import Table


class Beside:
    """Thread-safe."""

    def __init__(
        self,
        sandboxes: Table[SandboxRecord],
        containers: Table[ContainerRecord],
        handlers: Handlers,
        images: ImageService,
        *,
        policies: InForce,
        chronicle: Chronicle,
    ) -> None:
        self._tables = (sandboxes, containers)
        self._handlers, self._images, self._policies, self._chronicle = handlers, images, policies, chronicle

    def handles(self, handler: str) -> bool:
        """Whether pods of that handler run here."""
        try:
            self._handlers.find(handler)
        except InvalidInput:
            return False
        return True

    def owns(self, id_: str) -> bool:
        """Whether a pod or container of exactly that id is here."""
        return any(table.has(id_) for table in self._tables)

    def has_image(self, name: str) -> bool:
        """Whether an image of that name or id is here."""
        try:
            self._images.resolve(name)
        except NotFound:
            return False
        return True

    def forwarded(self, sandbox_id: str, pod: Mapping[str, Any], handler: str, upstream: str) -> None:
        """A pod was started by the runtime at that socket.

        That one answers for it: where the log cannot be written the entry comes later, and the pod stays.
        """
        self._chronicle.note(
            "sandbox.forwarded",
            f"sandbox/{sandbox_id}",
            sandbox=sandbox_id,
            pod=dict(pod),
            handler=handler,
            upstream=upstream,
        )
        self._chronicle.settle(Deadline(), must=False)

    def refuse(self, pod: Mapping[str, Any], annotation: str, handler: str, deadline: Deadline) -> NoReturn:
        """A pod with that annotation was to be started by another runtime, which knows nothing of contracts.

        :raises Denied: always.
        """
        why = f"which does not keep what annotation {annotation} asks for"
        raise self._denied("upstream/contract", why, pod, handler, deadline)

    def demand(self, pod: Mapping[str, Any], annotations: Mapping[str, str], handler: str, deadline: Deadline) -> None:
        """A pod without a contract is to be started by another runtime.

        :raises Denied: a policy of this node applies to it, which nobody would keep there.
        """
        if why := self._policies.demanding(str(pod.get("namespace", "")), annotations):
            raise self._denied("upstream/policies", f"which keeps no policies: {why}", pod, handler, deadline)

    def _denied(self, rule: str, why: str, pod: Mapping[str, Any], handler: str, deadline: Deadline) -> Denied:
        asks = f"runtime handler {handler!r}" if handler else "a pod that names no runtime handler"
        reason = f"{asks} is the upstream runtime's, {why}"
        subject = f"pod/{pod.get('namespace', '')}/{pod.get('name', '')}"
        entry = self._chronicle.denied(
            "sandbox", subject, deadline, rule=rule, reason=reason, pod=dict(pod), handler=handler
        )
        return Denied(rule, reason, entry, starts=True, fix="name a forgeone-* runtime class")
