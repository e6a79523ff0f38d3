"""A node with an audit log: its files, its database, and a hand that can damage them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec

from forgeone_shim.attestation.keys import read_public_key
from forgeone_shim.audit import keys, snapshot
from forgeone_shim.audit.entry import Entry, Event, decode
from forgeone_shim.audit.ledger import Ledger
from forgeone_shim.audit.log import AuditLog, Options
from forgeone_shim.audit.note import Verifier
from forgeone_shim.audit.snapshot import Snapshot
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import Unavailable
from forgeone_shim.state.store import StateStore

SOON = 10.0


def soon() -> Deadline:
    return Deadline.after(SOON)


def entry(number: int, size: int = 10) -> Entry:
    return Entry(type="container.started", subject=f"container/{number}", data={"text": "x" * size})


class Node:
    """``log`` is open after :meth:`start`, until :meth:`close` or :meth:`kill`."""

    def __init__(self, root: Path) -> None:
        self.root, self.directory, self.keys = root, root / "audit", root / "keys"
        self.store = StateStore(root / "forgeone.db")
        self.ledger = Ledger(self.store)
        self.log: AuditLog | None = None

    def start(self, **options: int | bool) -> AuditLog:
        self.log = AuditLog.open(
            self.directory,
            self.keys,
            self.ledger,
            name="node",
            options=Options(**options),  # type: ignore[arg-type]
        )
        # What a start tells is a group of its own.
        with contextlib.suppress(Unavailable):
            self.log.barrier(soon())
        return self.log

    def write(self, count: int, *, together: bool = False, size: int = 10) -> None:
        """Entries, each a group of its own or all together; durable when this returns."""
        assert self.log is not None
        first = self.log.append(entry(0, size))
        for number in range(1, count):
            if not together:
                first.wait(soon())
            first = self.log.append(entry(number, size))
        first.wait(soon())

    def close(self) -> None:
        if self.log is not None:
            self.log.close()
            self.log = None

    def killed(self) -> Node:
        """Another node with this one's files as a kill would leave them at this moment."""
        other = self.root / f"killed{len(list(self.root.iterdir()))}"
        other.mkdir()
        for name in ("audit", "keys"):
            shutil.copytree(self.root / name, other / name)
        with (other / "forgeone.db").open("wb"):
            pass
        made = Node(other)
        for name in ("mark", "damage"):
            found = self.store.get("audit", name, msgspec.Raw)
            if found is not None:
                made.store.put("audit", name, msgspec.Raw(found))
        return made

    def verifiers(self, origin: str) -> tuple[Verifier, ...]:
        return (keys.verifier(origin, read_public_key(self.keys / keys.PUBLIC)),)

    def read(self) -> Snapshot:
        found = snapshot.read(self.directory, self.verifiers)
        assert found is not None
        return found

    def events(self) -> list[Event]:
        found = self.read()
        return [decode(data) for data in found.entries(found.first)]

    def types(self) -> list[str]:
        return [one.type.removeprefix("dev.forgeone.") for one in self.events()]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def files(directory: Path) -> Iterable[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())
