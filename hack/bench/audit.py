"""What the audit log costs: one entry until it is durable, alone and among others, and what a start and a verify take.

``python -m hack.bench.audit [DIRECTORY]``: on the file system of that directory (default: the working directory's).
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from forgeone_shim.audit import keys, snapshot, verify
from forgeone_shim.audit.entry import Entry
from forgeone_shim.audit.ledger import Ledger
from forgeone_shim.audit.log import AuditLog
from forgeone_shim.deadline import Deadline
from forgeone_shim.state.store import StateStore

# As large as the entry of a container's start.
_DATA = {
    "sandbox": "a" * 64,
    "pod": {"namespace": "default", "name": "web-7c5ddbdf54-abcde", "uid": "u" * 36, "attempt": 0},
    "container": {"id": "b" * 64, "name": "main", "attempt": 0},
    "image": {"id": "sha256:" + "c" * 64, "ref": "registry.example/team/app@sha256:" + "d" * 64},
    "from": "booted",
    "to": "running",
}
_TIMES, _THREADS, _MANY = 2000, 16, 20_000


def _entry() -> Entry:
    return Entry(type="container.started", subject="container/" + "b" * 64, data=_DATA)


def _line(name: str, seconds: Sequence[float]) -> None:
    ordered = sorted(seconds)
    p50, p95, worst = statistics.median(ordered), ordered[int(len(ordered) * 0.95)], ordered[-1]
    print(f"{name:44} p50 {p50 * 1e6:8.0f}  p95 {p95 * 1e6:8.0f}  max {worst * 1e6:8.0f} us")


def _timed(work: Callable[[], object], times: int = 1) -> list[float]:
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return found


def _measure(root: Path) -> None:
    never, ledger = Deadline(), Ledger(StateStore(root / "forgeone.db"))

    def start() -> AuditLog:
        return AuditLog.open(root / "audit", root / "keys", ledger, name="bench")

    log = start()
    log.barrier(never)
    _line("one entry until it is durable", _timed(lambda: log.append(_entry()).wait(never), _TIMES))
    _line("a settled verb without entries", _timed(lambda: log.barrier(never), _TIMES))
    tickets = []
    _line("an entry queued", _timed(lambda: tickets.append(log.append(_entry())), _MANY))
    tickets[-1].wait(never)
    together: list[float] = []

    def many() -> None:
        together.extend(_timed(lambda: log.append(_entry()).wait(never), _TIMES // _THREADS))

    threads = [threading.Thread(target=many) for _ in range(_THREADS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    _line(f"one entry of {_THREADS} threads until it is durable", together)
    log.close()
    reopened = _timed(lambda: start().close(), 5)
    _line("a start and an end", reopened)
    before = time.perf_counter()
    found = snapshot.read(root / "audit", lambda origin: keys.read_verifiers(root / "keys", origin))
    assert found is not None
    report = verify.verify(found)
    print(f"{'verify':44} {report.entries / (time.perf_counter() - before):8.0f} entries/s")
    size = sum(path.stat().st_size for path in (root / "audit" / "tile").rglob("*"))
    print(f"{'on disk':44} {size / report.entries:8.0f} bytes/entry")


def main() -> None:
    """Measure, and leave nothing."""
    with tempfile.TemporaryDirectory(prefix="forgeone-audit-", dir=sys.argv[1] if sys.argv[1:] else ".") as directory:
        _measure(Path(directory))


if __name__ == "__main__":
    main()
