"""CRI's container log format, bytes in, records out; no I/O.

One record a line: ``2016-10-06T00:17:09.669794202Z stdout F text``. The third field is a list of tags joined by colons,
the first of which is ``P`` (the line goes on in the next record of that stream) or ``F``.
https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# A writer that never ends a record must not take this reader's memory.
MAX_RECORD = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Record:
    """A line of a container's output, or a piece of one (``partial``)."""

    timestamp: bytes
    stream: str
    partial: bool
    text: bytes

    @property
    def output(self) -> bytes:
        """What the container wrote."""
        return self.text if self.partial else self.text + b"\n"


class Parser:
    """Takes a log file in pieces of any size. A line that is not a record is passed on whole, as standard output."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Record]:
        """The records that ``data`` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_RECORD:
            lines.append(self._rest)
            self._rest = b""
        return map(parse, lines)

    def end(self) -> Iterator[Record]:
        """A last line without its newline, when there will be no more data."""
        rest, self._rest = self._rest, b""
        return map(parse, [rest] if rest else [])


def parse(line: bytes) -> Record:
    """One line without its newline."""
    fields = line.split(b" ", 3)
    if len(fields) == 3:
        # An empty text whose separating blank some writers leave out.
        fields.append(b"")
    if len(fields) != 4 or fields[1] not in {b"stdout", b"stderr"} or b"T" not in fields[0]:
        return Record(b"", "stdout", partial=False, text=line)
    timestamp, stream, tags, text = fields
    return Record(timestamp, stream.decode(), partial=tags.split(b":")[0] == b"P", text=text)


def tail(records: Iterable[Record], count: int) -> list[Record]:
    """The records of the last ``count`` whole lines (and of one that has not ended)."""
    kept: deque[Record] = deque()
    lines = 0
    for record in records:
        kept.append(record)
        lines += not record.partial
        while lines > count:
            lines -= not kept.popleft().partial
    return list(kept)
