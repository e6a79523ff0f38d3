"""Boot a Debian guest with systemd and cgroup v2 and run the end-to-end tests in it.

python -m hack.guest [--driver systemd|cgroupfs] [--minutes N] [--shell] [arguments of pytest]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hack.guest import image, machine

_DRIVERS = ("systemd", "cgroupfs")
_TESTS = ("tests/e2e",)
# What the longest tests are asked to do; tests/e2e/test_crash.py and test_failpoints.py.
_PASSED_ON = ("CRASH_ROUNDS", "CRASH_STRIDE")
# An emulated processor is about ten times slower, and a test that hangs is to be told from one that takes its time.
_PATIENCE = {"kvm": 1, "tcg,thread=multi": 8}
_TEST_SECONDS = 300
# Beside the longest test: booting, and what a test leaves to its fixtures.
_SILENT_SECONDS = 300.0


def main(argv: Sequence[str]) -> int:
    """Returns pytest's exit code: the first that is not 0 when there are two."""
    parser = argparse.ArgumentParser(prog="hack.guest", description=__doc__)
    parser.add_argument("--driver", choices=_DRIVERS, action="append", help="one of the two; both when not given")
    parser.add_argument("--minutes", type=float, default=360, help="when the guest is given up (360)")
    parser.add_argument("--shell", action="store_true", help="a root shell on the guest's console, and no tests")
    options, pytest = parser.parse_known_args(argv)
    if problem := _unfit():
        sys.stderr.write(f"guest: {problem}\n")
        return 2
    directory = image.cache()
    with image.locked(directory):
        debian = image.base(directory)
        environment = image.venv(directory, debian)
        accelerator = machine.accelerator(debian.kernel, directory)
    with tempfile.TemporaryDirectory(dir=directory, prefix="run-") as scratch:
        guest = machine.Machine(
            accelerator=accelerator,
            kernel=debian.kernel,
            initrd=debian.initrd,
            root=debian.disk,
            project=Path(scratch, "project"),
            console=Path(scratch, "console"),
            result=Path(scratch, "result"),
        )
        if options.shell:
            image.project_disk(guest.project, environment, "")
            return machine.interactive(machine.shell(guest))
        patience = _PATIENCE[accelerator]
        image.project_disk(guest.project, environment, _orders(options.driver, pytest, patience))
        silence = _TEST_SECONDS * patience + _SILENT_SECONDS
        return _tests(guest, silence=silence, limit=options.minutes * 60)


def _unfit() -> str:
    if os.geteuid() != 0:
        return "debootstrap and the files of a root disk need root"
    if platform.machine() != "x86_64":
        return f"the guest is an x86_64, and this host is {platform.machine()}"
    if lacking := machine.missing():
        return f"apt-get install {' '.join(lacking)}"
    return ""


def _orders(drivers: Sequence[str] | None, pytest: Sequence[str], patience: int) -> str:
    named = any(not word.startswith("-") and Path(word.partition("::")[0]).exists() for word in pytest)
    # A line for each test, as it ends: the project's own options have a -q.
    words = [*pytest, *(() if named else _TESTS), "-vv", f"--timeout={_TEST_SECONDS * patience}"]
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | {
        "LAB_PATIENCE": str(patience)
    }
    return json.dumps({"drivers": list(drivers or _DRIVERS), "pytest": words, "environment": environment})


def _tests(guest: machine.Machine, *, silence: float, limit: float) -> int:
    sys.stderr.write(f"guest: booting with {guest.accelerator}\n")
    try:
        machine.run(machine.tests(guest), silence=silence, limit=limit, show=_show)
        codes = json.loads(guest.result.read_text() or "{}")
    except (RuntimeError, TimeoutError) as error:
        sys.stderr.write(f"guest: {error}\n")
        codes = {}
    except KeyboardInterrupt:
        return 130
    if not codes:
        tail = guest.console.read_text(errors="replace")[-6000:] if guest.console.exists() else ""
        sys.stderr.write(f"guest: it has not told how the tests went; the end of its console:\n{tail}\n")
        return 1
    sys.stderr.write("".join(f"guest: driver {driver}: pytest ended with {code}\n" for driver, code in codes.items()))
    return next((int(code) for code in codes.values() if code), 0)


def _show(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
