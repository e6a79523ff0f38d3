"""The daemon's side of the compile helper: a process for each module, with nothing of the daemon's but two files."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec

from engines.wasm.aot import target
from engines.wasm.aot.target import Kind, Variant
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, FailedPrecondition, InternalError, InvalidInput, ResourceExhausted
from forgeone_shim.kernel.spawn import collect, spawn

_HELPER: Final = "engines.wasm.aot.helper"
_PACKAGES: Final = ("engines", "forgeone_shim", "wasmtime", "msgspec")
MODULE, CODE, ANSWER = 3, 4, 5
# Both lists of names, each character of them escaped.
_ANSWER_MAX: Final = 16 << 20
_SAID_MAX: Final = 1024
_EXHAUSTED: Final = ("memory", "too large", "no space")
_KILLED: Final = 128
FIELD: Final = "module"


class Compiled(msgspec.Struct, frozen=True, tag_field="say", tag="compiled", forbid_unknown_fields=True):
    """What the helper says of a module whose code it has written."""

    kind: Kind
    exports: tuple[str, ...]
    imports: tuple[str, ...]


class Invalid(msgspec.Struct, frozen=True, tag_field="say", tag="invalid", forbid_unknown_fields=True):
    """Why it is no module that can be compiled."""

    reason: str


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the helper is told by ``parent``, without which it ends.

    ``fingerprint`` is what the code will be filed under: another installation's is refused. ``empty`` is a directory
    that it makes its root; sizes in bytes, times in seconds.
    """

    variant: Variant
    fingerprint: str
    parent: int
    empty: str
    memory: int
    seconds: int
    code_max: int


Answer = Compiled | Invalid
_ANSWERS: Final[msgspec.json.Decoder[Answer]] = msgspec.json.Decoder(Answer)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one compilation: seconds, bytes of memory, bytes of code."""

    seconds: float
    memory: int
    code_max: int


def compile_module(module: int, code: int, variant: Variant, empty: Path, limits: Limits) -> Compiled:
    """Have the module in ``module`` compiled into the empty file ``code``; both stay the caller's.

    :raises InvalidInput: it is no module, or asks for what wasmtime lacks.
    :raises ResourceExhausted: it takes more than the limits.
    :raises DeadlineExceeded: it takes longer.
    :raises InternalError: the helper cannot be started, or ended without a word.
    """
    order = Order(
        variant=variant,
        fingerprint=target.fingerprint(variant),
        parent=os.getpid(),
        empty=str(empty),
        memory=limits.memory,
        seconds=max(1, round(limits.seconds)),
        code_max=limits.code_max,
    )
    argv = [sys.executable, "-I", "-S", "-c", _boot(), msgspec.json.encode(order).decode()]
    answer, answer_end = os.pipe2(os.O_CLOEXEC)
    said, said_end = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            child = spawn(
                argv[0],
                argv,
                files={MODULE: module, CODE: code, ANSWER: answer_end, 2: said_end},
                env={"PATH": os.environ.get("PATH", "")},
            )
        except OSError as error:
            raise InternalError(f"start the compile helper: {error.strerror}") from error
        finally:
            os.close(answer_end)
            os.close(said_end)
        with child:
            deadline = Deadline.after(limits.seconds)
            output = collect([answer, said], until=child.pidfd, deadline=deadline, limit=_ANSWER_MAX)
            if not output.finished:
                raise DeadlineExceeded(f"the module was not compiled in {limits.seconds:g} s")
            status = child.wait() or 0
    finally:
        os.close(answer)
        os.close(said)
    return _read(output.data[answer], output.data[said], status)


def _read(answer: bytes, said: bytes, status: int) -> Compiled:
    """What a helper said; its words may be the module's."""
    try:
        found = _ANSWERS.decode(answer)
    except (msgspec.DecodeError, UnicodeError) as error:
        # Behind a panic's reason its library gives advice to its programmers.
        lines = said.decode(errors="replace").splitlines()
        words = [line for line in lines if line.strip() and not line.startswith("note: ")]
        last = _printable(words[-1]) if words else f"exit code {status}"
        if status > _KILLED or any(one in last.lower() for one in _EXHAUSTED):
            raise ResourceExhausted(
                f"the module could not be compiled within its limits: {last}", fix="see wasm.compile_memory"
            ) from error
        raise InternalError(f"the compile helper ended without an answer: {last}") from error
    if isinstance(found, Invalid):
        raise InvalidInput(FIELD, _printable(found.reason))
    return found


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:_SAID_MAX]


def _boot() -> str:
    """The program text; ``-S`` leaves out site-packages, so the few folders are named."""
    folders: dict[str, None] = {}
    for package in _PACKAGES:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise FailedPrecondition(f"{package} is not installed", fix="install forgeone with its dependencies")
        folders[str(Path(spec.submodule_search_locations[0]).resolve().parent)] = None
    return f"import sys; sys.path[:0] = {json.dumps(list(folders))}; from {_HELPER} import main; main()"
