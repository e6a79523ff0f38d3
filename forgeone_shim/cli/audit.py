"""``forge audit``: read, verify and prove what a node's audit log says. Only ``key`` and ``accept`` need forgeoned."""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from forgeone_shim.audit import export, ledger, snapshot
from forgeone_shim.audit import keys as node_keys
from forgeone_shim.audit import verify as audit
from forgeone_shim.audit.entry import TYPE_PREFIX, Event, decode
from forgeone_shim.audit.files import WAL
from forgeone_shim.audit.ledger import Mark
from forgeone_shim.audit.note import Verifier
from forgeone_shim.audit.proof import Growth, Receipt
from forgeone_shim.audit.snapshot import Snapshot
from forgeone_shim.cli.output import printable
from forgeone_shim.config import loader
from forgeone_shim.errors import FailedPrecondition, InvalidInput, NotFound, syscall_error
from forgeone_shim.kernel.inotify import IN_MODIFY, DirectoryEvents
from forgeone_shim.runtime.paths import Paths

if TYPE_CHECKING:
    from forgeone_shim.cli.client import Client

_ENTRY: Final = "audit:"
_LARGEST: Final = 1024 * 1024
# What a line of a table leaves out, and what is cut in it.
_UNSAID: Final[tuple[object, ...]] = ("", None, {}, [])
_LONG: Final = ("sandbox", "note", "event")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def command(args: argparse.Namespace) -> int:
    """Run one of them."""
    commands: dict[str, Callable[[argparse.Namespace], None]] = {
        "tail": tail,
        "verify": verify,
        "receipt": receipt,
        "check": check,
        "proof": proof,
        "export": export_,
    }
    commands[args.action](args)
    return 0


class _Where:
    """The log of this node, or one that was exported; and whose it has to be."""

    def __init__(self, args: argparse.Namespace) -> None:
        config = loader.load(["--config", args.config] if args.config else [], os.environ)
        paths = Paths(Path(config.root), Path(config.state))
        self.own = not args.log
        self.directory = paths.audit if self.own else Path(args.log)
        self._keys, self._database = paths.keys, paths.database
        self.pinned = _key(args.key) if args.key else None
        if not self.own and self.pinned is None:
            raise InvalidInput("--key", "is missing: whose log is to be in that directory?")

    def read(self) -> Snapshot:
        """The log. :raises NotFound: there is none. :raises Damaged: it is not whole, or another's."""
        found = snapshot.read(self.directory, self._verifiers)
        if found is None:
            raise NotFound("audit log", str(self.directory))
        if self.pinned is not None and self.pinned not in found.signed.signers:
            # The log itself says whether the key that signed it came to the place of the one that is asked for.
            audit.check_key(audit.verify(found), self.pinned)
        return found

    def mark(self) -> Mark | None:
        """How far the node's database says that it came."""
        return ledger.read_mark(self._database) if self.own else None

    def trusted(self, origin: str) -> tuple[Verifier, ...]:
        """Whose checkpoints count."""
        return tuple(self._verifiers(origin))

    def _verifiers(self, origin: str) -> list[Verifier]:
        pinned = [] if self.pinned is None else [self.pinned]
        if self.own:
            return [*pinned, *node_keys.read_verifiers(self._keys, origin)]
        beside = self.directory / export.KEY
        return [*pinned, *map(Verifier.parse, _contents(str(beside)).decode("ascii", "replace").split())]


def tail(args: argparse.Namespace) -> None:
    """The last entries, and with --follow those to come."""
    where = _Where(args)
    if args.follow and not where.own:
        raise InvalidInput("--follow", "nothing comes to an exported log")
    with ExitStack() as stack:
        # Before the first look: nothing comes in between unseen.
        events = stack.enter_context(closing(_watch(where))) if args.follow else None
        log = where.read()
        shown = max(log.first, log.size - args.lines)
        while True:
            for data in log.entries(shown):
                sys.stdout.write(_line(decode(data), args.output))
            sys.stdout.flush()
            shown = log.size
            if events is None:
                return
            select.select([events], [], [])
            events.read()
            log = where.read()


def _watch(where: _Where) -> DirectoryEvents:
    try:
        return DirectoryEvents(where.directory / WAL, IN_MODIFY)
    except OSError as error:
        raise syscall_error("watch", where.directory / WAL, error) from None


def verify(args: argparse.Namespace) -> None:
    """Look at every byte; says what was found to be sound, and fails where something is not."""
    where = _Where(args)
    # First: the log only grows.
    mark = where.mark()
    log = where.read()
    snapshot.check_mark(log, mark)
    since, earlier = _since(args.since)
    report = audit.verify(log, since)
    trusted = [*where.trusted(log.origin), *(old for old, _ in report.rotations)]
    if earlier:
        before = audit.check_earlier(log, earlier, trusted).checkpoint.size
        sys.stdout.write(f"goes on from the {before} entries of {args.since}\n")
    sys.stdout.write(
        f"{log.origin}: {log.size} entries, {report.entries} of them read, all as they were signed\n"
        + (f"begins with entry {report.first}: those before were given up\n" if report.first else "")
        + "".join(f"signed by {one}\n" for one in log.signed.signers)
    )


def receipt(args: argparse.Namespace) -> None:
    """The proof of an entry, or of all that the log says of a container, a pod or an image."""
    log = _Where(args).read()
    for index in _indices(log, args.entry):
        _give(Receipt.of(log, index).encode(), args.file.replace("%", str(index)))


def check(args: argparse.Namespace) -> None:
    """Verify a receipt, without a log: prints the entry."""
    found = Receipt.parse(_contents(args.receipt))
    signed = found.verify(found.extra, [_key(args.key)])
    event = decode(found.extra)
    sys.stdout.write(_line(event, args.output))
    sys.stderr.write(f"entry {found.index} of {signed.checkpoint.origin}, which had {signed.checkpoint.size} then\n")


def proof(args: argparse.Namespace) -> None:
    """That the log only grew since it had so many entries, for whoever kept the checkpoint of then."""
    log = _Where(args).read()
    _give(Growth.of(log, _number("--from", args.old)).encode(), args.file)


def export_(args: argparse.Namespace) -> None:
    """The log as files that any web server can serve; prints the key that it is verified with."""
    log = _Where(args).read()
    export.write(log, Path(args.directory))
    sys.stdout.write("".join(f"{one}\n" for one in log.signed.signers))


def operate(client: Client, args: argparse.Namespace) -> int:
    """What only forgeoned can do: sign with a new key, which is printed, or let things start again after damage."""
    from forgeone_shim.rpc import node_pb2

    if args.action == "key":
        sys.stdout.write(client.call(client.node.RotateAuditKey, node_pb2.RotateAuditKeyRequest()).key + "\n")
    else:
        client.call(client.node.AcceptAuditDamage, node_pb2.AcceptAuditDamageRequest())
    return 0


def _line(event: Event, output: str) -> str:
    if output == "json":
        return msgspec.json.encode(event).decode() + "\n"
    name = event.type.removeprefix(TYPE_PREFIX)
    subject = event.subject if len(event.subject) < 40 else event.subject[: event.subject.find("/") + 14]
    told = ((key, value) for key, value in event.data.items() if key not in _LONG and value not in _UNSAID)
    said = " ".join(f"{key}={_said(value)}" for key, value in told)
    return printable(f"{event.id:>6}  {event.time}  {name:24} {subject}  {said}") + "\n"


def _said(value: object) -> str:
    """In a few words: ``-o json`` has all of it."""
    if isinstance(value, dict) and "name" in value:
        return "/".join(str(value[key]) for key in ("namespace", "name") if key in value)
    if isinstance(value, dict):
        value = value.get("ref") or value.get("digest") or value
    if isinstance(value, str):
        return _DIGEST.sub(lambda found: found[0][:12], value)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _indices(log: Snapshot, text: str) -> Iterator[int]:
    number = text.removeprefix(_ENTRY)
    # An id of a container may have nothing but digits too, but not so few.
    if number.isdecimal() and len(number) < 12:
        yield int(number)
        return
    found = False
    for data in log.entries(log.first):
        event = decode(data)
        if event.subject.partition("/")[2].startswith(text) and len(text) >= 4:
            found = True
            yield int(event.id)
    if not found:
        raise NotFound("audit entry", text, fix="give audit:NUMBER, or an id of four characters or more")


def _since(text: str) -> tuple[int, bytes]:
    if not text:
        return 0, b""
    number = text.removeprefix(_ENTRY)
    return (int(number), b"") if number.isdecimal() and len(number) < 19 else (0, _contents(text))


def _number(field: str, text: str) -> int:
    if not text.removeprefix(_ENTRY).isdecimal() or len(text) > 24:
        raise InvalidInput(field, f"{text!r} is no number of entries")
    return int(text.removeprefix(_ENTRY))


def _key(text: str) -> Verifier:
    """A key as it is written, or the file that it is in."""
    return Verifier.parse(text if text.count("+") >= 2 else _contents(text).decode("ascii", "replace").strip())


def _contents(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise syscall_error("read", path, error) from None
    if len(data) > _LARGEST:
        raise FailedPrecondition(f"{path} is larger than {_LARGEST} bytes")
    return data


def _give(data: bytes, path: str) -> None:
    if path == "-":
        sys.stdout.write(data.decode())
        return
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise syscall_error("write", path, error) from None
    sys.stdout.write(f"{path}\n")
