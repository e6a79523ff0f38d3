"""Looks at what a start does not: every old byte of the log, in the background, a bundle at a time."""

from __future__ import annotations

import threading
import time
from typing import Final

from forgeone_shim.audit import verify
from forgeone_shim.audit.snapshot import Damaged, Snapshot
from forgeone_shim.audit.tiles import WIDTH

PACE: Final = 9.0
"""Seconds of rest for each second of work: nobody is to notice that it runs."""

MOST: Final = 100
"""Bundles that are not sound, after which the rest is not looked at."""


def scrub(log: Snapshot, ended: threading.Event) -> tuple[str, ...]:
    """What is wrong with the whole bundles of a log; it is not all there is where ``ended`` was set meanwhile."""
    found: list[str] = []
    try:
        verify.check_tree(log)
    except Damaged as error:
        found.append(str(error))
    for number in range(log.first // WIDTH, log.settled.size // WIDTH):
        began = time.monotonic()
        try:
            verify.check_bundle(log, number)
        except Damaged as error:
            # Unless it was given up meanwhile, to keep the log small.
            if (number + 1) * WIDTH > log.oldest():
                found.append(str(error))
        if len(found) >= MOST or ended.wait(PACE * (time.monotonic() - began)):
            break
    return tuple(found)
