"""The installer's agent: has its node run the agent's own ForgeOne, tells the cluster so, and looks again on change.

The work itself is systemd's, on the host (``forgeone-install.service``): it outlives the agent, whose pod may well be
one of those that the kubelet ends meanwhile.
"""

from __future__ import annotations

import queue
import select
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, Protocol

import structlog

from forgeone_shim.errors import FailedPrecondition, ForgeError
from forgeone_shim.kernel.inotify import (
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_DELETE,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    DirectoryEvents,
)
from forgeone_shim.node import labels
from forgeone_shim.node.cluster import Cluster, Conflict, Node, Report
from forgeone_shim.node.labels import How, Task
from forgeone_shim.node.rollout import Turns

LOOK: Final = 60.0
"""Seconds after which the node is looked at where nothing is heard: CRI tells of no readiness that is lost."""

_RETRY: Final = 30.0
_RETRY_MAX: Final = 900.0
_WATCH: Final = 300
_RETRIES: Final = 5
_EVENTS: Final = IN_CLOSE_WRITE | IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO

_log: structlog.stdlib.BoundLogger = structlog.get_logger("forgeone.agent")


@dataclass(frozen=True, slots=True)
class Condition:
    """The node as the agent has found it. ``pending``: what would have to be done; ``version``: what is installed."""

    version: str
    ready: bool
    reason: str
    engines: tuple[str, ...]
    pending: tuple[str, ...]


class Hands(Protocol):
    """What is done on the host."""

    def look(self) -> Condition:
        """How the node is. ForgeError: it cannot run this ForgeOne, and why."""

    def install(self) -> None:
        """Have it run this ForgeOne. ForgeError: it does not, and is as it was."""

    def uninstall(self, how: How) -> None:
        """Give it back. ForgeError: it is not, and why."""

    def places(self) -> Sequence[Path]:
        """Directories whose changes are a reason to look again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How the agent goes about it; ``pod`` is the UID of its own, ``patient`` waits for others' cordons to end."""

    pod: str
    cordon: bool
    taint: bool
    patient: bool


class Agent:
    """One node's."""

    def __init__(self, cluster: Cluster, turns: Turns, hands: Hands, name: str, habits: Habits) -> None:
        self._cluster, self._turns, self._hands = cluster, turns, hands
        self._name, self._habits = name, habits
        # A node as it has become; ``None``: files have changed.
        self._wakes: queue.Queue[Node | None] = queue.Queue()
        self._left: tuple[object, ...] = ()
        self._said = ""
        self._failures = 0

    def run(self) -> NoReturn:
        """Stay, until the process is told to end (SystemExit)."""
        with ExitStack() as stack:
            self._listen(stack)
            threading.Thread(target=self._follow, name="node", daemon=True).start()
            while True:
                self.rest(self.step())

    def rest(self, seconds: float) -> None:
        """Until there is a reason to look again, or so long. What the agent did itself is none.

        A try that failed has changed files and put them back, and services follow: they are no reason to try at once.
        """
        now = time.monotonic()
        until, calm = now + seconds, now + (min(seconds, _RETRY) if self._failures else 0.0)
        while (now := time.monotonic()) < until:
            try:
                node = self._wakes.get(timeout=until - now)
            except queue.Empty:
                return
            if _matters(node) != self._left if node is not None else time.monotonic() >= calm:
                return

    def step(self) -> float:
        """Do what there is to do now; returns the seconds after which to look again without a reason."""
        try:
            node = self._cluster.node(self._name)
            self._left = _matters(node)
            task = labels.task(node, self._habits.pod)
            if task is Task.FORGET:
                node = self._annotate({labels.UNINSTALL: None, labels.UNINSTALLED: None, labels.FAILED: None})
                task = Task.INSTALL
            if task is Task.UNINSTALL:
                self._uninstall(node)
            elif task is Task.INSTALL:
                self._install(node)
            self._failures = 0
        except ForgeError as error:
            self._failures += 1
            _log.warning("will try again", error=str(error))
            return float(min(_RETRY * 2 ** (self._failures - 1), _RETRY_MAX))
        return LOOK

    def _install(self, node: Node) -> None:
        found = self._looked(node)
        if found.pending:
            if self._waits(node):
                self._publish(found)
                return
            with self._turns.turn(lambda: _log.info("waits for its turn")):
                # That may have taken hours.
                node = self._cluster.node(self._name)
                if labels.task(node, self._habits.pod) is not Task.INSTALL or self._waits(node):
                    return
                self._patched(lambda now: labels.marked(now, cordon=self._habits.cordon, taint=self._habits.taint))
                # Who asks for all nodes back finds one that has not got it yet, too.
                self._label({labels.VERSION: found.version})
                _log.info("installs", steps=found.pending)
                try:
                    self._hands.install()
                except ForgeError as error:
                    self._failed(node, error)
                    self._publish(self._looked(node))
                    raise
                now = self._looked(node)
                self._publish(now)
                if now.pending:
                    # What was under way already was not this one's, or has failed.
                    left = FailedPrecondition(f"still to do: {', '.join(now.pending[:5])}")
                    self._failed(node, left)
                    raise left
                self._patched(labels.unmarked)
            text = f"ForgeOne {now.version} is installed; engines: {', '.join(now.engines) or 'none'}"
            self._report(node, Report("ForgeOneInstalled", text))
            return
        self._publish(found)
        # Of an agent that was killed meanwhile.
        self._patched(labels.unmarked)
        if not found.ready:
            self._report(node, Report("ForgeOneNotReady", found.reason, good=False))
        else:
            self._said = ""

    def _waits(self, node: Node) -> bool:
        if not (self._habits.patient and labels.others_cordon(node)):
            return False
        self._report(node, Report("ForgeOneWaits", "somebody has cordoned the node: it is left alone till then"))
        return True

    def _failed(self, node: Node, error: ForgeError) -> None:
        """The node is as it was, and so open for pods: who fails again and again must not keep it closed."""
        self._report(node, Report("ForgeOneFailed", str(error), good=False))
        self._patched(labels.unmarked)

    def _looked(self, node: Node) -> Condition:
        try:
            return self._hands.look()
        except ForgeError as error:
            self._label(labels.wanted("", (), ready=False) | {labels.VERSION: node.labels.get(labels.VERSION)})
            self._report(node, Report("ForgeOneRefused", str(error), good=False))
            raise

    def _uninstall(self, node: Node) -> None:
        with self._turns.turn(lambda: _log.info("waits for its turn")):
            self._label({labels.READY: None})
            try:
                self._hands.uninstall(labels.how(node))
            except ForgeError as error:
                self._report(node, Report("ForgeOneStays", str(error), good=False))
                self._annotate({labels.FAILED: str(error)[:1024]})
                return
            self._label(labels.wanted("", (), ready=False))
            self._patched(labels.unmarked)
            self._annotate({labels.UNINSTALLED: self._habits.pod, labels.FAILED: None})
            self._report(node, Report("ForgeOneUninstalled", "the node has the runtime that it had before"))

    def _publish(self, found: Condition) -> None:
        self._label(labels.wanted(found.version, found.engines, ready=found.ready))

    def _label(self, then: dict[str, str | None]) -> None:
        self._patched(lambda now: {"metadata": {"labels": part}} if (part := labels.changed(now.labels, then)) else {})

    def _annotate(self, then: dict[str, str | None]) -> Node:
        return self._patched(lambda _: {"metadata": {"annotations": then}})

    def _patched(self, patch: Callable[[Node], dict[str, object]]) -> Node:
        """The node after a patch of what it is now; made anew where somebody else was first."""
        for _ in range(_RETRIES):
            node = self._cluster.node(self._name)
            change = patch(node)
            with suppress(Conflict):
                node = self._cluster.patch_node(self._name, change) if change else node
                self._left = _matters(node)
                return node
        raise Conflict(f"node {self._name} changes all the time")

    def _report(self, node: Node, report: Report) -> None:
        """Once for each thing there is to say; that it cannot be said keeps nothing from being done."""
        if self._said == f"{report.reason} {report.message}":
            return
        self._said = f"{report.reason} {report.message}"
        (_log.info if report.good else _log.warning)(report.reason, message=report.message)
        try:
            self._cluster.report(node, report, self._habits.pod)
        except ForgeError as error:
            _log.warning("no event", error=str(error))

    def _follow(self) -> None:
        """Wake up when the node changes: its cordon, labels, and what the agent is asked for."""
        pause = threading.Event()
        while True:
            with suppress(ForgeError):
                before = self._cluster.node(self._name)
                self._wakes.put(before)
                for now in self._cluster.watch_nodes(before.version, _WATCH, name=self._name):
                    # A kubelet writes the node's status every now and then.
                    if now is not None and _matters(now) != _matters(before):
                        self._wakes.put(now)
                    before = now or before
                continue
            pause.wait(_RETRY)

    def _listen(self, stack: ExitStack) -> None:
        watches: dict[int, DirectoryEvents] = {}
        poll = select.poll()
        for directory in self._hands.places():
            # One that is not there yet comes with an installation, or is no kubelet's of this node.
            with suppress(OSError):
                events = DirectoryEvents(directory, _EVENTS)
                stack.callback(events.close)
                watches[events.fileno()] = events
                poll.register(events.fileno(), select.POLLIN)

        def wait() -> None:
            while True:
                for descriptor, _ in poll.poll():
                    if watches[descriptor].read().names:
                        self._wakes.put(None)

        threading.Thread(target=wait, name="files", daemon=True).start()


def _matters(node: Node) -> tuple[object, ...]:
    return node.labels, node.annotations, node.cordoned, node.taints
