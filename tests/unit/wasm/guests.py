"""Guests run as a container's are: compiled by the helper, loaded once, each in a process forked for it."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from wasmtime import Engine, Module
from wasmtime.component import Component

from engines.wasm.aot.cache import Cache
from engines.wasm.aot.target import Kind, Variant
from engines.wasm.guest.commands import Extension
from engines.wasm.guest.loading import EngineSet, Loaded, configure, load
from engines.wasm.guest.plan import GuestPlan, Outcome
from engines.wasm.guest.running import prepare, run
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ForgeError

SECONDS = 60


@dataclass(frozen=True, slots=True)
class Ran:
    """How a guest ended, and what it wrote. ``refused`` says why it was not made ready."""

    outcome: Outcome
    stdout: bytes
    stderr: bytes
    refused: str = ""

    @property
    def code(self) -> int:
        return self.outcome.code


class Guests:
    """One for all tests of a module: engines are made once, as in the process that guests are forked from."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._engines = EngineSet()
        self._loaded: dict[tuple[str, Variant], Loaded] = {}

    def load(self, module: bytes | str | Path, variant: Variant = Variant.PLAIN) -> Loaded:
        """A file goes the way of a container's module; a text or binary is compiled here, in the time of a helper's
        start, but as a zygote may: with no thread."""
        name = str(module), variant
        if name not in self._loaded:
            if isinstance(module, Path):
                self._loaded[name] = self._load_file(module, variant)
            else:
                kind = Kind.COMPONENT if "(component" in str(module)[:20] else Kind.MODULE
                with self.compiled(module, variant) as code:
                    self._loaded[name] = load(self._engines, code, kind, variant)
        return self._loaded[name]

    def _load_file(self, module: Path, variant: Variant) -> Loaded:
        with module.open("rb") as file:
            entry = self.cache.entry(file.fileno(), Deadline.after(SECONDS * 5), variant=variant)
        code = self.cache.open_verified(entry)
        try:
            return load(self._engines, code, entry.kind, variant)
        finally:
            os.close(code)

    @contextlib.contextmanager
    def compiled(self, module: bytes | str, variant: Variant) -> Iterator[int]:
        """A descriptor of the code of a module, or of a component's text."""
        engine = Engine(configure(variant))
        make = Component if "(component" in str(module)[:20] else Module
        code = os.memfd_create("code")
        try:
            os.write(code, make(engine, module).serialize())
            yield code
        finally:
            os.close(code)

    def run(
        self, module: bytes | str | Path, plan: GuestPlan, stdin: bytes = b"", extensions: Sequence[Extension] = ()
    ) -> Ran:
        """In a process of its own, with files as its streams."""
        loaded = self.load(module, Variant.METERED if plan.cpu_budget or plan.cpu_slice else Variant.PLAIN)
        streams = [tempfile.TemporaryFile() for _ in range(4)]  # noqa: SIM115
        streams[0].write(stdin)
        streams[0].seek(0)
        pid = os.fork()
        if pid == 0:
            _guest([one.fileno() for one in streams], plan, loaded, extensions)
        _, status = os.waitpid(pid, 0)
        signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        read = []
        for one in streams[1:]:
            one.seek(0)
            read.append(one.read())
            one.close()
        streams[0].close()
        if signalled:
            return Ran(Outcome(128 + signalled), read[0], read[1], f"killed by {signal.Signals(signalled).name}")
        try:
            outcome = msgspec.json.decode(read[2], type=Outcome)
        except msgspec.DecodeError:
            return Ran(Outcome(-1), read[0], read[1], read[2].decode())
        return Ran(outcome, read[0], read[1])


def _guest(streams: list[int], plan: GuestPlan, loaded: Loaded, extensions: Sequence[Extension]) -> None:
    try:
        signal.alarm(SECONDS)
        for fd in range(3):
            os.dup2(streams[fd], fd)
        try:
            answer = msgspec.json.encode(run(prepare(plan, loaded, extensions)))
        except ForgeError as error:
            answer = str(error).encode()
        os.write(streams[3], answer)
    finally:
        os._exit(0)
