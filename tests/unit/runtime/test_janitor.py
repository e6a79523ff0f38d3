"""What must get done is tried until it is; what has time waits without a thread."""

import threading
import time

from forgeone_shim.runtime.janitor import Janitor


def test_a_job_that_raises_runs_again() -> None:
    janitor, done, tries = Janitor(1), threading.Event(), []

    def job() -> None:
        tries.append(1)
        if len(tries) < 2:
            raise OSError("not yet")
        done.set()

    janitor.until_done("job", job)
    assert done.wait(5)
    janitor.close()


def test_jobs_of_a_later_time_hold_up_neither_others_nor_the_end() -> None:
    janitor, done, late = Janitor(1), threading.Event(), threading.Event()
    for _ in range(8):
        janitor.until_done("in an hour", lambda: None, after=3600)
    janitor.until_done("soon", late.set, after=0.05)
    janitor.until_done("now", done.set)
    assert done.wait(5)
    assert late.wait(5)
    began = time.monotonic()
    janitor.close()
    assert time.monotonic() - began < 1
