"""Signals reach the main thread wherever the kernel brings them in."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import signal, sys, threading, time
from cri.signals import Signals

signals = Signals()

def elsewhere():
    time.sleep(0.2)  # by then the main thread waits
    for number in map(int, sys.argv[1:]):
        signal.pthread_kill(threading.get_ident(), number)

threading.Thread(target=elsewhere).start()
signals.until_stop(lambda: print("hung up"))
print("stopped")
"""


def told(*numbers: int) -> list[str]:
    argv = [sys.executable, "-c", _PROGRAM, *map(str, numbers)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[:-1]


def test_a_signal_that_another_thread_gets_is_heard() -> None:
    assert told(1, 15) == ["hung up", "stopped"]


def test_an_interrupt_stops_too() -> None:
    assert told(2) == ["stopped"]
