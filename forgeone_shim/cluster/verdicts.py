"""What a node says in the cluster about policies: one condition for all nodes, and an Event where it says no.

Every node comes to a verdict, and most to the same: the first one to write it wins, and the others see that it is
there. A policy that one node cannot use is not accepted; that node, or a change of the policy, takes it back.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

from forgeone_shim.cluster.names import ACCEPTED, API_VERSION, KIND
from forgeone_shim.cluster.watch import FIRST_DELAY, LONGEST_DELAY, Api, ApiError
from forgeone_shim.cluster.wire import Verdict

SPREAD: Final = 1.0
"""Seconds over which nodes say what they all found out at one moment."""

_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_USABLE, _NOT_USABLE = "Usable", "NotUsable"
# As Events have it (k8s.io/api/core/v1), with the node's name before it.
_MESSAGE_MAX: Final = 900

Object = Mapping[str, Any]


def plan(given: Object, verdict: Verdict, node: str, now: str) -> dict[str, Any] | None:
    """The patch of the status that says what the node thinks; ``None`` where nothing need be said.

    :param given: the object as it was last seen; ``now``: the time, as RFC 3339 has it.
    """
    metadata = given.get("metadata") or {}
    if (metadata.get("uid"), metadata.get("generation")) != (verdict.uid, verdict.generation):
        return None
    conditions = [one for one in (given.get("status") or {}).get("conditions") or () if isinstance(one, dict)]
    before = next((one for one in conditions if one.get("type") == ACCEPTED), None)
    wanted = {
        "type": ACCEPTED,
        "status": "False" if verdict.why else "True",
        "reason": _NOT_USABLE if verdict.why else _USABLE,
        "message": message(verdict, node) if verdict.why else "",
        "observedGeneration": verdict.generation,
        "lastTransitionTime": now,
    }
    if before is not None and before.get("observedGeneration") == verdict.generation:
        if before.get("status") == wanted["status"]:
            return None
        if before.get("status") == "False" and not str(before.get("message")).startswith(f"{node}: "):
            return None
    if before is not None and before.get("status") == wanted["status"] and before.get("lastTransitionTime"):
        wanted["lastTransitionTime"] = before["lastTransitionTime"]
    others = [one for one in conditions if one.get("type") != ACCEPTED]
    return {
        "metadata": {"resourceVersion": metadata.get("resourceVersion")},
        "status": {"conditions": [*others, wanted]},
    }


def message(verdict: Verdict, node: str) -> str:
    """What a condition says, and whose word it is."""
    why = verdict.why if len(verdict.why) <= _MESSAGE_MAX else f"{verdict.why[:_MESSAGE_MAX]}…"
    return f"{node}: {why}"


def event(verdict: Verdict, node: str, now: str) -> dict[str, Any]:
    """An Event about a policy that cannot be used; the same one for the same verdict."""
    which = sha256(f"{verdict.uid} {verdict.generation} {node}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        # Events about what has no namespace are in this one (k8s.io/client-go/tools/record).
        "metadata": {"name": f"{verdict.name}.{which}", "namespace": "default"},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": verdict.name,
            "uid": verdict.uid,
        },
        "reason": _NOT_USABLE,
        "message": message(verdict, node),
        "type": "Warning",
        "source": {"component": "forgeoned", "host": node},
        "reportingComponent": "forgeone.dev/forgeoned",
        "reportingInstance": node,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


class Speaker:
    """Says verdicts in the cluster, in a thread of its own. Thread-safe.

    :param complain: is told where the cluster does not take them.
    """

    def __init__(self, api: Api, node: str, complain: Callable[[str], None]) -> None:
        self._api, self._node, self._complain = api, node, complain
        self._condition = threading.Condition()
        self._seen: dict[str, Object] = {}
        self._left: dict[str, Verdict] = {}
        self._complaint = ""

    def seen(self, name: str, given: Object | None) -> None:
        """An object as it is now; ``None``: it is gone."""
        with self._condition:
            if given is None:
                self._seen.pop(name, None)
                self._left.pop(name, None)
            else:
                # What policies say is not said again, and can be much.
                self._seen[name] = {"metadata": _which(given.get("metadata") or {}), "status": given.get("status")}

    def say(self, verdict: Verdict) -> None:
        """What the node thinks now; an earlier verdict on that policy that was not said yet never will be."""
        with self._condition:
            self._left[verdict.name] = verdict
            self._condition.notify_all()

    def run(self) -> None:
        """Never returns."""
        delay = FIRST_DELAY
        while True:
            with self._condition:
                while not self._left:
                    self._condition.wait()
                # Others that come meanwhile do not shorten it.
                self._condition.wait_for(lambda: False, random.uniform(0, SPREAD))  # noqa: S311
                due = list(self._left.values())
            said = [self._said(verdict) for verdict in due]
            if all(said):
                delay = FIRST_DELAY
                continue
            with self._condition:
                self._condition.wait_for(lambda: False, delay)
            delay = min(delay * 2, LONGEST_DELAY)

    def _said(self, verdict: Verdict) -> bool:
        """Whether nothing is left to be said of it."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self._condition:
            given = self._seen.get(verdict.name)
        patch = None if given is None else plan(given, verdict, self._node, now)
        done = patch is None or self._write(verdict, patch, now)
        with self._condition:
            if done and self._left.get(verdict.name) is verdict:
                del self._left[verdict.name]
        return done

    def _write(self, verdict: Verdict, patch: Mapping[str, Any], now: str) -> bool:
        try:
            try:
                self._api.mark(verdict.name, patch)
            except ApiError as error:
                if error.status != _FORBIDDEN:
                    raise
                self._complained(str(error))
            else:
                self._complaint = ""
            if verdict.why:
                self._api.tell(event(verdict, self._node, now))
            return True
        except ApiError as error:
            # Somebody else was faster, and the watch brings what he has said; or it is gone.
            if error.status not in {_CONFLICT, _NOT_FOUND}:
                self._complained(str(error))
            return error.status in {_NOT_FOUND, _FORBIDDEN}

    def _complained(self, why: str) -> None:
        if why != self._complaint:
            self._complaint = why
            self._complain(why)


def _which(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: metadata.get(key) for key in ("uid", "generation", "resourceVersion")}
