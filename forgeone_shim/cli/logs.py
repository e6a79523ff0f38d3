"""``forge logs``: reads the log file the runtime names, follows it across rotation until the container has ended."""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from cri.api import runtime_pb2 as cri
from forgeone_shim.cli import crilog
from forgeone_shim.cli.client import Client, Noun, Target
from forgeone_shim.errors import FailedPrecondition, InternalError
from forgeone_shim.kernel.inotify import IN_CREATE, IN_MODIFY, IN_MOVED_FROM, IN_MOVED_TO, DirectoryEvents

_CHUNK = 1 << 16
_LOOK_MS = 200
_EVENTS = IN_MODIFY | IN_CREATE | IN_MOVED_FROM | IN_MOVED_TO
# How long the runtime may take to say how a process ended that has ended.
_ENDING_SECONDS = 30.0


def command(client: Client, args: argparse.Namespace) -> int:
    """Print what a container wrote, each stream to its own."""
    target = _container(client, args.container)
    status, _ = client.status(target.id)
    if not status.log_path:
        raise FailedPrecondition(f"container {target.name!r} was created without a log")
    printer = Printer(timestamps=args.timestamps)
    if args.follow:
        follow(client, target.id, Path(status.log_path), printer, tail=args.tail)
        return 0
    try:
        with Path(status.log_path).open("rb") as log:
            printer.write(_last(_records(log), args.tail))
    except FileNotFoundError:
        raise FailedPrecondition(f"{status.log_path} does not exist: has the container started?") from None
    return 0


class Printer:
    """Writes records to standard output and standard error as the container did."""

    def __init__(self, *, timestamps: bool = False) -> None:
        self._timestamps = timestamps
        self._inside: dict[str, bool] = {}

    def write(self, records: Iterable[crilog.Record]) -> None:
        """Write and flush."""
        for record in records:
            out = sys.stderr.buffer if record.stream == "stderr" else sys.stdout.buffer
            if self._timestamps and record.timestamp and not self._inside.get(record.stream):
                out.write(record.timestamp + b" ")
            self._inside[record.stream] = record.partial
            out.write(record.output)
        sys.stdout.buffer.flush()
        sys.stderr.buffer.flush()


def follow(client: Client, container_id: str, path: Path, printer: Printer, *, tail: int | None = None) -> Any:
    """Print the log as it grows until the container has ended; returns its last ContainerStatus.

    Woken by inotify on the log's directory and by the pidfd of the container's first process; when both are silent it
    looks at the container's state. The runtime renames a log away and opens a new one under the old name; the old one
    is read to its end first.
    """
    with ExitStack() as stack:
        log = _Tail(path, tail)
        stack.callback(log.close)
        events = DirectoryEvents(path.parent, _EVENTS)
        stack.callback(events.close)
        waiter = select.poll()
        waiter.register(events.fileno(), select.POLLIN)
        process = _open_process(client, container_id)
        if process is not None:
            stack.callback(os.close, process)
            waiter.register(process, select.POLLIN)
        while process is not None:
            printer.write(log.read())
            came = waiter.poll(_LOOK_MS)
            if any(fd == process for fd, _ in came):
                break
            if came:
                events.read()
            # The process of a container in a virtual machine is its pod's, and goes on.
            elif client.status(container_id)[0].state == cri.CONTAINER_EXITED:
                break
        status = ended(client, container_id)
        printer.write(log.read())
        printer.write(log.end())
        return status


def ended(client: Client, container_id: str) -> Any:
    """ContainerStatus once the runtime knows how the container ended, which is moments after its process is gone."""
    limit, pause = time.monotonic() + _ENDING_SECONDS, 0.002
    while True:
        status, _ = client.status(container_id)
        if status.state == cri.CONTAINER_EXITED:
            return status
        if time.monotonic() > limit:
            raise InternalError(f"container {container_id} has no process, yet is not reported as ended")
        # The one thing CRI has no event for that every server offers.
        time.sleep(pause)
        pause = min(pause * 2, 0.25)


class _Tail:
    """A log file under a name that rotation gives to a new file."""

    def __init__(self, path: Path, tail: int | None) -> None:
        self._path = path
        self._tail = tail
        self._file: BinaryIO | None = None
        self._parser = crilog.Parser()

    def read(self) -> list[crilog.Record]:
        """Everything written since the last call."""
        found = self._drain()
        while (fresh := self._renamed()) is not None:
            # Between the last read and the opening of the new file the old one may have grown.
            found += self._drain()
            self.close()
            self._file = fresh
            found += self._drain()
        if self._tail is not None:
            found, self._tail = crilog.tail(found, self._tail), None
        return found

    def end(self) -> Iterator[crilog.Record]:
        """What is left of a record cut short."""
        return self._parser.end()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _drain(self) -> list[crilog.Record]:
        return [] if self._file is None else list(_drain(self._file, self._parser))

    def _renamed(self) -> BinaryIO | None:
        """The file that has the name now, if it is another one."""
        try:
            fresh = self._path.open("rb")
        except FileNotFoundError:
            return None
        if self._file is None or not os.path.sameopenfile(fresh.fileno(), self._file.fileno()):
            return fresh
        fresh.close()
        return None


def _drain(log: BinaryIO, parser: crilog.Parser) -> Iterator[crilog.Record]:
    while data := log.read(_CHUNK):
        yield from parser.feed(data)


def _records(log: BinaryIO) -> Iterator[crilog.Record]:
    parser = crilog.Parser()
    yield from _drain(log, parser)
    yield from parser.end()


def _last(records: Iterable[crilog.Record], count: int | None) -> Iterable[crilog.Record]:
    return records if count is None else crilog.tail(records, count)


def _open_process(client: Client, container_id: str) -> int | None:
    """A pidfd of the container's first process, or ``None`` when it has ended."""
    status, info = client.status(container_id, verbose=True)
    pid = process_id(info)
    if status.state == cri.CONTAINER_EXITED or not pid:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    # The number may have been given to another process between the answer and the opening.
    with ExitStack() as undo:
        undo.callback(os.close, pidfd)
        status, info = client.status(container_id, verbose=True)
        if status.state == cri.CONTAINER_EXITED or process_id(info) != pid:
            return None
        undo.pop_all()
    return pidfd


def process_id(info: Any) -> int:
    """The pid in ContainerStatus' verbose additions: JSON under ``info``, as other runtimes write it too."""
    try:
        return int(json.loads(info["info"])["pid"])
    except (KeyError, ValueError, TypeError):
        return 0


def _container(client: Client, name: str) -> Target:
    """A container by name or id, or the newest of a pod."""
    found = client.find(name)
    if found.noun is Noun.CONTAINER:
        return found
    containers = client.containers(found.id)
    if not containers:
        raise FailedPrecondition(f"pod {name!r} has no containers")
    return Target(Noun.CONTAINER, containers[0].id, containers[0].metadata.name, containers[0])
