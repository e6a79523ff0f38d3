"""The policies that come from the cluster: kept, watched while there is a kubeconfig, and what is said of that."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog

from forgeone_shim.cluster import session, wire
from forgeone_shim.cluster.session import Session
from forgeone_shim.cluster.store import NOTHING, Store
from forgeone_shim.cluster.sync import Sync, Take
from forgeone_shim.config.model import ClusterConfig
from forgeone_shim.contract.policy import Policy
from forgeone_shim.errors import ForgeError, InternalError
from forgeone_shim.metrics.figures import Figure, Kind, gauge

FIRST_DELAY: Final = 0.2
LONGEST_DELAY: Final = 60.0
"""Seconds until a watch that ended is started again, and what they grow to until one has lasted that long."""

PATIENCE: Final = 120.0
"""Seconds without the API server after which Status says so: a server that is upgraded takes less."""

SOURCE: Final = "kubernetes.io/config.source"
"""Where the kubelet has a pod from; it writes it on every pod, over whatever the pod says (pkg/kubelet/config)."""

_OF_THE_NODE: Final = frozenset({"file", "http"})
_SHOWN: Final = 5

Open = Callable[[str, str, Path], AbstractContextManager[Session]]


@dataclass(frozen=True, slots=True)
class Standing:
    """How things are. Times are seconds since the epoch, 0: never; ``trouble`` is why the server is not reached now.

    ``listed``: all policies have come once, by now or in an earlier life. ``restarts`` are of the watch's process.
    """

    listed: bool = False
    connected: bool = False
    heard: float = 0.0
    lost: float = 0.0
    trouble: str = ""
    broken: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    policies: int = 0
    restarts: int = 0


class ClusterPolicies:
    """Made once, with what is kept from before. Thread-safe.

    :param directory: where policies are kept, and nothing else is.
    :param scratch: a directory that the watch's process has for itself.
    """

    def __init__(self, directory: Path, scratch: Path, config: ClusterConfig, opened: Open = session.opened) -> None:
        """:raises InternalError: what is left of a cluster that does not count any more cannot be removed."""
        self._store, self._scratch, self._opened = Store(directory), scratch, opened
        self._config = config
        self._log = structlog.get_logger("cluster")
        if not config.kubeconfig:
            self._store.clear()
            # A watch that was killed together with forgeoned may have left credentials there.
            shutil.rmtree(scratch, ignore_errors=True)
        self._kept = self._store.load() if config.kubeconfig else NOTHING
        for name, why in self._kept.broken.items():
            self._log.error("what is kept of the cluster's policies cannot be used", policy=name, why=why)
        self._policies = dict(self._kept.policies)
        self._lock = threading.Lock()
        self._standing = self._first()
        self._take: Take = lambda _: frozenset()
        self._sync: Sync | None = None
        self._session: Session | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    @property
    def policies(self) -> tuple[Policy, ...]:
        """Those in force, by name."""
        return tuple(self._policies[name] for name in sorted(self._policies))

    @property
    def on(self) -> bool:
        """Whether policies come from a cluster."""
        return bool(self._config.kubeconfig)

    @property
    def standing(self) -> Standing:
        """How things are now."""
        return self._standing

    def start(self, take: Take) -> None:
        """Watch from now on, where there is a cluster to watch."""
        self._take = take
        self._begin()

    def follow(self, config: ClusterConfig) -> None:
        """From now on this counts. Without a kubeconfig nothing of the cluster does; :attr:`policies` is empty then."""
        if config == self._config:
            return
        same = (config.kubeconfig, config.node_name) == (self._config.kubeconfig, self._config.node_name)
        self._config = config
        if same:
            return
        self.close()
        if not config.kubeconfig:
            try:
                self._store.clear()
            except InternalError as error:
                # It counts for nothing while there is no kubeconfig, and the next start removes it.
                self._log.error("not removed", error=str(error))
            self._kept, self._policies = NOTHING, {}
            self._standing = Standing()
            return
        self._kept = self._store.load()
        self._policies = dict(self._kept.policies)
        self._standing = self._first()
        self._begin()

    def close(self) -> None:
        """Stop watching; what is in force stays."""
        self._stop.set()
        with self._lock:
            if self._session is not None:
                self._session.end()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._stop = threading.Event()

    def shadowed(self, names: frozenset[str]) -> None:
        """The names that files have as well now; the cluster is told of those that changed."""
        with self._lock:
            if self._sync is None or self._session is None:
                return
            try:
                self._session.say(self._sync.shadowed(names))
            except ForgeError:
                # The next watch says all of it anew.
                self._session.end()

    def waiting(self, annotations: Mapping[str, str]) -> str:
        """Why a pod with these annotations has to wait; empty: it has not.

        Static pods do not: they are files of the node's, and one of them may be the API server.
        """
        if not (self.on and self._config.required) or self._standing.listed:
            return ""
        if annotations.get(SOURCE) in _OF_THE_NODE:
            return ""
        return f"the policies of the cluster have not come yet: {self._standing.trouble or 'it was not asked yet'}"

    def problem(self) -> tuple[str, str]:
        """A reason in one word and a message, where something is amiss; else both are empty."""
        now = self._standing
        if not self.on:
            return "", ""
        if not now.listed:
            broken = f"; cannot be used: {', '.join(now.broken[:_SHOWN])}" if now.broken else ""
            return "NeverListed", f"{now.trouble or 'the API server was not reached yet'}{broken}"
        if not now.connected and time.time() - now.lost >= PATIENCE:
            return "Unreachable", f"{now.trouble}; the last known policies are in force"
        if now.refused:
            more = f" and {len(now.refused) - _SHOWN} more" if len(now.refused) > _SHOWN else ""
            return "PoliciesRefused", f"cannot be used: {', '.join(now.refused[:_SHOWN])}{more}"
        return "", ""

    def figures(self) -> Iterable[Figure]:
        """For Prometheus; nothing where no policies come from a cluster."""
        now = self._standing
        if not self.on:
            return
        yield gauge("forgeone_cluster_policies", "Policies of the cluster that are in force.", now.policies)
        yield gauge("forgeone_cluster_policies_refused", "Policies that cannot be used.", len(now.refused))
        yield gauge("forgeone_cluster_listed", "Whether all policies have come at least once.", now.listed)
        yield gauge("forgeone_cluster_connected", "Whether the API server answers.", now.connected)
        yield gauge("forgeone_cluster_heard_timestamp_seconds", "When it was heard of last; 0: never.", now.heard)
        name, help_ = "forgeone_cluster_watch_restarts_total", "Times that the watch's process had to be replaced."
        yield Figure(name, help_, Kind.COUNTER, (), (((), now.restarts),))

    # -- the watch

    def _first(self) -> Standing:
        kept = self._kept
        # A policy of which nothing is known is as bad as a list that never came.
        listed = kept.listed and not kept.broken
        return Standing(listed=listed, lost=time.time(), broken=tuple(kept.broken), policies=len(kept.policies))

    def _begin(self) -> None:
        if self.on:
            self._thread = threading.Thread(target=self._run, args=(self._stop,), name="cluster", daemon=True)
            self._thread.start()

    def _run(self, stop: threading.Event) -> None:
        sync = Sync(self._store, self._kept, self._taken)
        delay = FIRST_DELAY
        while not stop.is_set():
            sync.begin()
            began = time.monotonic()
            try:
                self._store.prepare()
                node = self._config.node_name or os.uname().nodename
                with self._opened(self._config.kubeconfig, node, self._scratch) as opened:
                    self._listen(sync, opened, stop)
            except ForgeError as error:
                why = str(error)
            except Exception as error:
                self._log.exception("watch failed")
                why = str(error)
            if stop.is_set():
                return
            # Not at its first list: what ends it, a full disk or an object, may come with every list.
            if time.monotonic() - began >= LONGEST_DELAY:
                delay = FIRST_DELAY
            self._troubled(why)
            self._standing = replace(self._standing, restarts=self._standing.restarts + 1)
            self._log.warning("watch of the cluster will be started again", why=why, after_s=round(delay, 1))
            stop.wait(delay * random.uniform(0.5, 1.5))  # noqa: S311
            delay = min(delay * 2, LONGEST_DELAY)

    def _listen(self, sync: Sync, opened: Session, stop: threading.Event) -> None:
        """Until the watch ends, which it tells by raising Unavailable, or is to stop."""
        with self._lock:
            self._sync, self._session = sync, opened
        try:
            while not stop.is_set():
                told = opened.batch()
                self._noted(told)
                with self._lock:
                    verdicts = sync.feed(told)
                self._standing = replace(
                    self._standing,
                    listed=self._standing.listed or sync.complete,
                    broken=() if sync.complete else self._standing.broken,
                    refused=tuple(sorted(sync.refused)),
                    policies=len(sync.policies),
                )
                if verdicts:
                    opened.say(verdicts)
        finally:
            with self._lock:
                self._sync = self._session = None

    def _taken(self, found: Mapping[str, Policy]) -> frozenset[str]:
        self._policies = dict(found)
        return self._take(found)

    def _noted(self, told: Iterable[wire.Told]) -> None:
        for one in told:
            if isinstance(one, wire.Trouble):
                self._troubled(one.why)
            elif isinstance(one, wire.Unsaid):
                self._log.warning("the cluster does not take what is said of its policies", why=one.why)
            elif not isinstance(one, wire.Begun):
                if not self._standing.connected:
                    self._log.info("the API server answers")
                self._standing = replace(self._standing, connected=True, heard=time.time(), trouble="")

    def _troubled(self, why: str) -> None:
        now = self._standing
        if now.connected or now.trouble != why:
            self._log.warning("the API server cannot be asked for policies", why=why)
        lost = time.time() if now.connected else now.lost
        self._standing = replace(now, connected=False, trouble=why, lost=lost)
