"""The file that a traced guest's calls are recorded in: a header and a ring of records, all little-endian.

The guest's process has it mapped, shared, as a linear memory of the recorder (:mod:`engines.wasm.tracing.shim`): what
has been recorded is in the file whatever becomes of the process. Its writer raises :data:`HEAD` before it touches a
record, and writes :data:`NUMBER` when the record's arguments are whole: a reader that looks at ``HEAD`` afterwards
knows which of the records it has copied may have been written to meanwhile.

What is in the file was written by the guest's process, which may be anybody's: a reader believes nothing.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import Final

import msgspec

from engines.base import HostCall, HostCalls, HostCount
from engines.wasm.tracing.calls import CALLS, ERRNO, P1, TEXTS_MAX, Call, Form
from forgeone_shim.errors import FailedPrecondition, InternalError

NAME: Final = "trace"

# A page of a linear memory.
PAGE: Final = 64 * 1024
PAGES: Final = 18
SIZE: Final = PAGES * PAGE
RECORD_SHIFT: Final = 8
RECORD_SIZE: Final = 1 << RECORD_SHIFT
# The first page is the header's, the last one counts.
SLOTS: Final = (SIZE - 2 * PAGE) // RECORD_SIZE
# Records that are read at once; a part of all.
_PIECE: Final = 128

# The header.
MAGIC: Final = b"F1TRACE\x02"
HEAD: Final = 8  # u64: calls begun so far
EPOCH: Final = 16  # i64: what makes nanoseconds since the epoch of the recorder's clock
NOW: Final = 24  # u64: where the clock is asked to write while EPOCH is found
_NAMES_LENGTH: Final = 32  # u32
_NAMES: Final = 64
NAMES_MAX: Final = PAGE - _NAMES
_HEADER: Final = struct.Struct("<8sQqQI")

# Of each function, by its index: how often it was called (u64), and the number of the first of those calls (u64).
COUNTERS: Final = SIZE - PAGE
COUNTER_SHIFT: Final = 4
FUNCTIONS_MAX: Final = PAGE >> COUNTER_SHIFT
_COUNTER: Final = struct.Struct("<QQ")

# A record.
NUMBER: Final = 0  # u64: of the call, from 1
STARTED: Final = 8  # u64: the recorder's clock
ENDED: Final = 16  # u64: the same; 0: it has not returned; UNTIMED
FUNCTION: Final = 24  # u32: index into the names
TEXT_LENGTHS: Final = 28  # 2 * u16: bytes of the texts that were copied
RESULT: Final = 32  # u64
ARGUMENTS: Final = 40  # 9 * u64
ARGUMENTS_MAX: Final = 9
OUT: Final = 112  # u64: the first result that was written to memory
TEXTS: Final = 120
TEXTS_ROOM: Final = RECORD_SIZE - TEXTS
_RECORD: Final = struct.Struct("<QQQIHHQ9QQ")

# It returned; when, nobody looked.
UNTIMED: Final = 1
_MAX: Final = 2**63 - 1
# Of a function or its module, as it is told with each call.
_NAME_MAX: Final = 100


def text_room(texts: int) -> int:
    """Bytes that each text of a call with so many of them has in its record."""
    return TEXTS_ROOM // max(1, texts)


class Function(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A host function as its guest imports it; types in WebAssembly's own words (``i32``, ``i64``, ...)."""

    module: str
    name: str
    params: tuple[str, ...]
    results: tuple[str, ...]

    @property
    def known(self) -> Call | None:
        """What there is to tell of it; a function that only has the name of a known one is not it."""
        call = CALLS.get((self.module, self.name))
        return call if call is not None and call.width == len(self.params) else None


def create(path: str) -> None:
    """Make the file, all of its space taken: a page that could not be written would end the guest by SIGBUS."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, SIZE)
    except BaseException:
        os.unlink(path)  # noqa: PTH108
        raise
    finally:
        os.close(fd)


def header(functions: Sequence[Function], epoch: int) -> bytes:
    """The file's beginning once the guest's imports are known.

    :raises FailedPrecondition: there are more than fit.
    """
    names = msgspec.json.encode(functions)
    if len(functions) > FUNCTIONS_MAX:
        raise FailedPrecondition(f"{len(functions)} imports are more than {FUNCTIONS_MAX}")
    if len(names) > NAMES_MAX:
        raise FailedPrecondition(f"the names of {len(functions)} imports take more than {NAMES_MAX} bytes")
    return _HEADER.pack(MAGIC, 0, epoch, 0, len(names)).ljust(_NAMES, b"\0") + names


def read(fd: int, after: int = 0, *, ended: bool = False) -> HostCalls:
    """Calls after number ``after``, up to the first that has not returned; that one too where the guest has ``ended``.

    :raises InternalError: it is not such a file, or somebody has spoilt it.
    """
    functions, epoch, begun = _parse_header(os.pread(fd, PAGE, 0), os.fstat(fd).st_size)
    calls: list[HostCall] = []
    number, lost = after, 0
    for at, content in _copied(fd, after, begun):
        values = _RECORD.unpack(content[:TEXTS])
        whole = values[0] == at + 1
        # A guest is in one call at a time: of those before the last nothing more will be heard.
        if at + 1 == begun and not ended and not (whole and values[2]):
            return HostCalls(tuple(calls), lost + at - number, at)
        lost += at - number
        number = at + 1
        if whole:
            calls.append(_tell(values, content[TEXTS:], functions, epoch))
        else:
            lost += 1
    end = max(number, begun)
    return HostCalls(tuple(calls), lost + end - number, end)


def read_counts(fd: int) -> tuple[HostCount, ...]:
    """How often each function was called until now, in the order of their first calls.

    :raises InternalError: it is not such a file, or somebody has spoilt it.
    """
    functions, _, _ = _parse_header(os.pread(fd, PAGE, 0), os.fstat(fd).st_size)
    if len(functions) > FUNCTIONS_MAX:
        raise InternalError(f"a trace of {len(functions)} functions")
    content = os.pread(fd, len(functions) << COUNTER_SHIFT, COUNTERS)
    if len(content) != len(functions) << COUNTER_SHIFT:
        raise InternalError("a trace has become shorter")
    counts: dict[str, int] = {}
    for (count, _), function in sorted(
        (pair for pair in zip(_COUNTER.iter_unpack(content), functions, strict=True) if pair[0][0]),
        key=lambda pair: pair[0][1],
    ):
        name = f"{_plain(function.module)} {_plain(function.name)}"
        counts[name] = min(counts.get(name, 0) + count, _MAX)
    return tuple(HostCount(name, count) for name, count in counts.items())


def _copied(fd: int, after: int, begun: int) -> list[tuple[int, bytes]]:
    """The records from number ``after`` to ``begun`` that nothing was written over meanwhile, with their numbers.

    Few are copied at once, and none is looked at before all are: a guest may write faster than that.
    """
    pieces: list[tuple[int, int, bytes]] = []
    number = max(after, begun - SLOTS)
    while number < begun:
        count = min(begun - number, _PIECE - number % _PIECE)
        content = os.pread(fd, count * RECORD_SIZE, PAGE + (number % SLOTS) * RECORD_SIZE)
        if len(content) != count * RECORD_SIZE:
            raise InternalError("a trace has become shorter")
        # Looked at afterwards: what was begun by now may have been written over what was copied.
        oldest = int.from_bytes(os.pread(fd, 8, HEAD), "little") - SLOTS
        pieces.append((number, oldest, content))
        number = max(number + count, oldest)
    return [
        (number + at // RECORD_SIZE, content[at : at + RECORD_SIZE])
        for number, oldest, content in pieces
        for at in range(0, len(content), RECORD_SIZE)
        if number + at // RECORD_SIZE >= oldest
    ]


def _parse_header(content: bytes, size: int) -> tuple[list[Function], int, int]:
    if size != SIZE:
        raise InternalError(f"a trace of {size} bytes, not {SIZE}")
    magic, begun, epoch, _, length = _HEADER.unpack_from(content)
    if magic == bytes(8):
        # Its guest has not got so far.
        return [], 0, 0
    if magic != MAGIC or length > NAMES_MAX or begun > _MAX:
        raise InternalError("it is no trace, or one of another version")
    try:
        return msgspec.json.decode(content[_NAMES : _NAMES + length], type=list[Function]), epoch, begun
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InternalError(f"the names in a trace: {error}") from error


def _tell(values: tuple[int, ...], room: bytes, functions: Sequence[Function], epoch: int) -> HostCall:
    number, started, ended, index, first, second, result, *rest = values
    if index >= len(functions):
        raise InternalError(f"call {number} in a trace is of a function that is not there")
    function, out = functions[index], rest[ARGUMENTS_MAX]
    known = function.known
    each = text_room(len(known.texts) if known is not None else 0)
    texts = [
        room[place * each : place * each + min(length, each)]
        for place, length in zip(range(TEXTS_MAX), (first, second), strict=True)
    ]
    return HostCall(
        number=number,
        at=min(max(0, started + epoch), _MAX),
        duration=min(max(0, ended - started), _MAX) if ended > UNTIMED else None,
        interface=_plain(function.module),
        function=_plain(function.name),
        arguments=_arguments(function, rest[:ARGUMENTS_MAX], texts),
        result=_result(function, result, out) if ended else None,
    )


def _arguments(function: Function, values: Sequence[int], texts: Sequence[bytes]) -> tuple[str, ...]:
    known = function.known
    if known is None:
        shown = [_number(value, kind) for value, kind in zip(values, function.params, strict=False)]
        return (*shown, "...") if len(function.params) > ARGUMENTS_MAX else tuple(shown)
    told, left, at = [], list(texts), 0
    for argument in known.arguments:
        value, kind = values[at], function.params[at]
        match argument.form:
            case Form.OUT_32 | Form.OUT_64:
                pass
            case Form.TEXT:
                text = left.pop(0) if left else b""
                more = "..." if values[at + 1] & 0xFFFFFFFF > len(text) else ""
                told.append(f"{argument.name}={quoted(text)}{more}")
            case Form.VECTORS | Form.BUFFER:
                unit = "buffers" if argument.form is Form.VECTORS else "bytes"
                told.append(f"{argument.name}=[{values[at + 1]} {unit}]")
            case Form.FLAGS | Form.ADDRESS:
                told.append(f"{argument.name}={value:#x}")
            case Form.SIGNED:
                told.append(f"{argument.name}={_number(value, kind)}")
            case _:
                told.append(f"{argument.name}={value}")
        at += argument.form.width
    return tuple(told)


def _result(function: Function, value: int, out: int) -> str:
    if not function.results:
        return ""
    number = _number(value, function.results[0])
    known = function.known
    if known is None or function.module not in P1:
        return number
    name = ERRNO[value] if value < len(ERRNO) else number
    written = next((one.name for one in known.arguments if one.form in (Form.OUT_32, Form.OUT_64)), "")
    return f"{name} {written}={out}" if written and value == 0 else name


def _number(value: int, kind: str) -> str:
    match kind:
        case "i32":
            return str(int.from_bytes((value & 0xFFFFFFFF).to_bytes(4, "little"), "little", signed=True))
        case "i64":
            return str(int.from_bytes(value.to_bytes(8, "little"), "little", signed=True))
        case "f32":
            return repr(struct.unpack("<f", (value & 0xFFFFFFFF).to_bytes(4, "little"))[0])
        case "f64":
            return repr(struct.unpack("<d", value.to_bytes(8, "little"))[0])
    return "?"


def _plain(name: str) -> str:
    name = name[:_NAME_MAX]
    return name if name.isascii() and name.isprintable() else quoted(name.encode("utf-8", "replace"))


def quoted(text: bytes) -> str:
    """A guest's text for a terminal: nothing in it can be taken for anything else."""
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in (34, 92) else f"\\x{b:02x}" for b in text) + '"'
