"""Run by the guest's systemd: pytest once for each cgroup driver, its words to one port, its exit codes to another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_PORTS = Path("/dev/virtio-ports")


def main(orders_file: str) -> int:
    """Carry out the orders and say how it went; returns 0, for the exit codes are the host's to judge."""
    orders = json.loads(Path(orders_file).read_text())
    codes: dict[str, int] = {}
    report = os.open(_PORTS / "report", os.O_WRONLY | os.O_CLOEXEC)
    try:
        for driver in orders["drivers"]:
            os.write(report, f"=== cgroup driver {driver} ===\n".encode())
            argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *orders["pytest"]]
            environ = {**os.environ, **orders["environment"], "LAB_CGROUP_DRIVER": driver}
            done = subprocess.run(argv, check=False, env=environ, stdout=report, stderr=report)
            codes[driver] = done.returncode
    finally:
        (_PORTS / "result").write_text(json.dumps(codes))
        os.close(report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
