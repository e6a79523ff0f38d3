"""A configuration read again while forgeoned runs: refused whole, or taken as far as it can be without a restart."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import structlog

from forgeone_shim.config.loader import build, values
from forgeone_shim.config.model import Config
from forgeone_shim.errors import ForgeError

LIVE: Final = (
    "pinned_images",
    "handlers_dir",
    "log.",
    "registry.",
    "packages.",
    "signatures.",
    "network.mode",
    "cni.",
    "native.seccomp_",
    "native.log_",
    "native.hooks_dirs",
    "native.default_",
    "native.additional_devices",
    "native.allowed_devices",
    "native.device_ownership_from_security_context",
    "native.cgroup_writable",
    "wasm.log_",
    "microvm.log_",
    "scheduler.",
    "contract.",
    "cluster.",
    "streaming.idle_timeout",
    "streaming.max_sessions",
    "upstream.",
)
"""Keys, and beginnings of keys, that a reload changes; all others wait for a restart."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """``config`` is what applies now; ``changed`` does since just now, ``restart`` are the keys that wait."""

    config: Config
    changed: tuple[str, ...]
    restart: tuple[str, ...]


def plan(running: Config, asked: Config) -> Outcome:
    """What becomes of ``running`` when ``asked`` is what the sources say now."""
    before, after = values(running), values(asked)
    different = [path for path in before if before[path] != after[path]]
    return Outcome(
        config=build({path: after[path] if path.startswith(LIVE) else before[path] for path in before}),
        changed=tuple(path for path in different if path.startswith(LIVE)),
        restart=tuple(path for path in different if not path.startswith(LIVE)),
    )


class Reloader:
    """Reads and applies, one reload at a time.

    :param read: the configuration from all its sources; raises ForgeError where it cannot be used.
    :param apply: makes the live keys count, and returns what else has changed; raises before it has changed anything,
        or not at all.
    """

    def __init__(self, running: Config, read: Callable[[], Config], apply: Callable[[Config], tuple[str, ...]]) -> None:
        self._running, self._read, self._apply = running, read, apply
        self._lock = threading.Lock()
        self._log = structlog.get_logger("config")

    def reload(self) -> Outcome:
        """Read all sources again.

        :raises ForgeError: the new configuration cannot be used; the old one applies as before.
        """
        with self._lock:
            try:
                outcome = plan(self._running, self._read())
                more = self._apply(outcome.config)
            except ForgeError as error:
                self._log.error("configuration refused, the old one stays", error=str(error))
                raise
            outcome = replace(outcome, changed=outcome.changed + more)
            self._running = outcome.config
        self._log.info("configuration reloaded", changed=outcome.changed, needs_restart=outcome.restart)
        return outcome
