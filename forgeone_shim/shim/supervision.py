"""What a supervisor is told and what it answers, and what it keeps in a container's bundle: conmon's contract.

The same words for every engine whose containers are supervised by :mod:`forgeone_shim.shim.supervisor`; the engine's
side of it is :mod:`forgeone_shim.shim.contract`.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from forgeone_shim.shim.wire import ProtocolError

# Names in a bundle; those that conmon has too are conmon's.
PIDFILE: Final = "pidfile"
SUPERVISOR_PIDFILE: Final = "conmon.pid"
CONTROL: Final = "ctl"
ATTACH: Final = "attach"
OOM_MARKER: Final = "oom"
# A container that was created reads it, and runs once a byte comes.
START: Final = "start"
VERDICT: Final = "verdict"
# What becomes one of the others, whole.
DRAFT: Final = "draft"
FILES: Final = (PIDFILE, SUPERVISOR_PIDFILE, CONTROL, ATTACH, OOM_MARKER, START, VERDICT, DRAFT)

# Lines for the control fifo (conmon's): a number that says what for, and two arguments.
RESIZE: Final = 1
REOPEN: Final = 2
# The first of a process's words.
SUPERVISOR_TITLE: Final = "forgeone-supervisor"
# What a client of the attach socket sees: a byte that names the pipe, then what came through it.
ATTACH_STDOUT: Final = 2
ATTACH_STDERR: Final = 3
ATTACH_DATA_MAX: Final = 8192
# The kubelet's limit of a termination message.
MESSAGE_MAX: Final = 4096
REASON_MAX: Final = 256


class Supervision(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a supervisor needs to know of its container. All paths are absolute host paths.

    ``bundle`` is a directory of the container's own; the exit file is ``exits/<container_id>``. An empty ``log_path``
    is no log; ``log_size_max`` (bytes of the file) and ``log_rate`` (bytes a second) are 0 for no limit.
    ``oom_counter`` is the file of the container's cgroup that counts kills (``memory.events``, or
    ``memory.oom_control``), empty: none.
    ``title`` is what the container's process is called.
    """

    container_id: str
    bundle: str
    exits: str
    log_path: str = ""
    log_size_max: int = 0
    log_rate: int = 0
    tty: bool = False
    stdin: bool = False
    stdin_once: bool = False
    oom_counter: str = ""
    title: str = "forgeone-wasm"


class Launched(msgspec.Struct, tag_field="kind", tag="launched", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The container is there, held before its first instruction; ``pid`` is its first process on the host."""

    pid: int


class Failed(msgspec.Struct, tag_field="kind", tag="failed", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """There is no container, and nothing that was made for it: ``error`` is an :class:`forgeone_shim.errors.Kind`."""

    step: str
    error: str
    message: str


Answer = Launched | Failed


class Ready(msgspec.Struct, tag_field="kind", tag="ready", forbid_unknown_fields=True, frozen=True):
    """Said by a container's process: it waits to be started."""


class Started(msgspec.Struct, tag_field="kind", tag="started", forbid_unknown_fields=True, frozen=True):
    """It no longer does."""


class Broken(msgspec.Struct, tag_field="kind", tag="broken", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """It cannot be made ready."""

    error: str
    message: str


class Ending(msgspec.Struct, tag_field="kind", tag="ending", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Why it will have ended, in the words of a CRI status."""

    reason: str
    message: str


Word = Ready | Started | Broken | Ending
_T = TypeVar("_T")
_ANSWERS: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)
_WORDS: msgspec.json.Decoder[Word] = msgspec.json.Decoder(Word)
_ENDINGS: msgspec.json.Decoder[Ending] = msgspec.json.Decoder(Ending)
_ENCODER = msgspec.json.Encoder()


def encode(message: Answer | Word) -> bytes:
    """The message as it travels."""
    return _ENCODER.encode(message)


def decode_answer(data: bytes) -> Answer:
    """What a supervisor answers; strictly.

    :raises ProtocolError: it is no such answer.
    """
    return _decode(_ANSWERS, data)


def decode_word(data: bytes) -> Word:
    """What a container's process says, which may be anything.

    :raises ProtocolError: it is none of the words.
    """
    return _decode(_WORDS, data)


def decode_ending(data: bytes) -> Ending:
    """The content of :data:`VERDICT`; errors as :func:`decode_word`."""
    return _decode(_ENDINGS, data)


def _decode(decoder: msgspec.json.Decoder[_T], data: bytes) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ProtocolError(str(error)) from error


def shortened(text: str, limit: int = MESSAGE_MAX) -> str:
    """``text`` in at most ``limit`` bytes of UTF-8."""
    return text.encode(errors="replace")[:limit].decode(errors="ignore")
