"""The kernel's random number generator, which all fresh seed comes from, and what can be told of its health."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forgeone_shim.dna import health
from forgeone_shim.dna.entropy import FULL, Cause, Seeding, seeded

NAME: Final = "getrandom"

RAW_ENTROPY: Final = 1.0
"""Bits that a byte of the host's raw source is taken to have: an eighth, as nobody has assessed it."""

_AGAIN_SECONDS: Final = 3600.0
_RAW_SECONDS: Final = 0.25
_REFILL_SECONDS: Final = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """``ready``: the kernel's generator has been seeded. ``hardware`` names the host's raw source, empty: none.

    ``generation`` says that a hypervisor tells the kernel when this machine was restored (VMGENID). Of the raw source
    ``samples`` bytes were tested; with none the rest says nothing. ``estimate`` is in bits a byte.
    """

    ready: bool
    hardware: str = ""
    generation: bool = False
    samples: int = 0
    repeats: bool = False
    dominated: bool = False
    estimate: float = 0.0

    @property
    def healthy(self) -> bool:
        """Whether what is drawn counts: a raw source that is stuck is not believed to be the only thing broken."""
        return self.ready and not (self.repeats or self.dominated)


class Source:
    """Thread-safe. ``root`` is where the host's ``dev`` and ``sys`` are."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._tested = Health(ready=False)
        self._again = 0.0

    def seeded(self, cause: Cause) -> Seeding:
        """What a process that this happens to now can draw; a few microseconds, with the tests made last."""
        known = self._tested
        healthy = _ready() and not (known.repeats or known.dominated)
        return seeded(cause, source=NAME, healthy=healthy, drawn=FULL)

    def health(self) -> Health:
        """As it is; the raw source is tested again after an hour."""
        with self._lock:
            if time.monotonic() >= self._again:
                self._tested = self._look()
                self._again = time.monotonic() + _AGAIN_SECONDS
            return self._tested

    def _look(self) -> Health:
        samples = self._raw()
        enough = len(samples) == health.STARTUP
        return Health(
            ready=_ready(),
            hardware=self._hardware(),
            generation=self._generation(),
            samples=len(samples) if enough else 0,
            repeats=enough and health.repeats(samples, RAW_ENTROPY),
            dominated=enough and health.dominated(samples, RAW_ENTROPY),
            estimate=round(health.most_common_value(samples), 2) if enough else 0.0,
        )

    def _hardware(self) -> str:
        try:
            name = (self._root / "sys/class/misc/hw_random/rng_current").read_text().strip()
        except OSError:
            return ""
        return "" if name == "none" else name

    def _generation(self) -> bool:
        try:
            return any(path.is_symlink() for path in (self._root / "sys/bus/platform/drivers/vmgenid").iterdir())
        except OSError:
            return False

    def _raw(self) -> bytes:
        """What the device gives in a quarter of a second, at most as much as is tested."""
        try:
            fd = os.open(self._root / "dev/hwrng", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return b""
        found, until = b"", time.monotonic() + _RAW_SECONDS
        try:
            while len(found) < health.STARTUP and time.monotonic() < until:
                try:
                    piece = os.read(fd, health.STARTUP - len(found))
                except BlockingIOError:
                    # The device refills itself, and says to nobody when it has.
                    time.sleep(_REFILL_SECONDS)
                    continue
                if not piece:
                    break
                found += piece
        except OSError:
            return b""
        finally:
            os.close(fd)
        return found


def _ready() -> bool:
    """getrandom(2): EAGAIN until the generator has been seeded for the first time."""
    try:
        os.getrandom(1, os.GRND_NONBLOCK)
    except BlockingIOError:
        return False
    return True
