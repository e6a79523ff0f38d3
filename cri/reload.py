"""Reloading forgeoned's configuration: on SIGHUP, and when asked over ``forgeone.v1.Node``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from queue import SimpleQueue

import msgspec
import structlog

from cri.streaming.server import StreamingServer
from cri.upstream.side import Links
from forgeone_shim.config import logging
from forgeone_shim.config.model import Config
from forgeone_shim.config.reload import Outcome, Reloader
from forgeone_shim.errors import ForgeError
from forgeone_shim.kernel import notify
from forgeone_shim.runtime.runtime import Runtime


def shown(config: Config) -> dict[str, str]:
    """What a verbose Status shows of the configuration."""
    return {"config": msgspec.json.encode(asdict(config)).decode()}


class Reload:
    """Applies a configuration to a runtime, to streaming, the other runtime's link, the log and what Status shows."""

    def __init__(
        self,
        config: Config,
        read: Callable[[], Config],
        runtime: Runtime,
        streaming: StreamingServer,
        upstream: Links,
    ) -> None:
        self.info = shown(config)
        self._runtime, self._streaming, self._upstream = runtime, streaming, upstream
        self._reloader = Reloader(config, read, self._apply)

    def __call__(self) -> Outcome:
        """Reload now.

        :raises ForgeError: the new configuration cannot be used; the old one applies as before.
        """
        # sd_notify(3): systemd orders what follows by the time of CLOCK_MONOTONIC.
        notify.notify(f"{notify.RELOADING}\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            outcome = self._reloader.reload()
            self._runtime.configuration_loaded(outcome.changed, outcome.restart)
            return outcome
        except ForgeError as error:
            self._runtime.configuration_refused(str(error))
            raise
        finally:
            notify.notify(notify.READY)

    def _apply(self, config: Config) -> tuple[str, ...]:
        self._upstream.check(config.upstream)
        changed = self._runtime.reconfigure(config)
        self._streaming.reconfigure(config.streaming)
        self._upstream.follow(config.upstream)
        logging.change(config.log)
        self.info.update(shown(config))
        return changed


class Hangups:
    """Reloads that nobody waits for, one after the other in a thread of their own."""

    def __init__(self, reload: Callable[[], object]) -> None:
        self._reload = reload
        self._came: SimpleQueue[None] = SimpleQueue()
        threading.Thread(target=self._run, name="reload", daemon=True).start()

    def __call__(self) -> None:
        """One more; a refusal will have been logged."""
        self._came.put(None)

    def _run(self) -> None:
        while True:
            self._came.get()
            try:
                self._reload()
            except ForgeError:
                continue
            except Exception:
                structlog.get_logger("config").exception("reload failed")
