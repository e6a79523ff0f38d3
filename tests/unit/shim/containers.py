"""Containers whose process is a plain function, with a supervisor of their own."""

from __future__ import annotations

import contextlib
import re
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from engines.base import Output, Stdio
from forgeone_shim.deadline import Deadline
from forgeone_shim.kernel.inotify import DirectoryEvents
from forgeone_shim.shim import contract, exits
from forgeone_shim.shim.attach import AttachConsole
from forgeone_shim.shim.client import ForkServer
from forgeone_shim.shim.programs import Program
from forgeone_shim.shim.supervision import Failed, Supervision, decode_answer
from tests.unit.shim.plain_program import Run

PROGRAM = Program("tests.unit.shim.plain_program", ("forgeone_shim", "msgspec", "tests"), "test")
LINE = re.compile(rb"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([FP]) (.*)$")
ID = "c" * 64


class Lab:
    """One container."""

    def __init__(self, server: ForkServer, home: Path) -> None:
        self.server, self.home = server, home
        self.bundle, self.exits, self.log = home / "bundle", home / "exits", home / "0.log"
        for directory in (self.bundle, self.exits):
            directory.mkdir()
        self.pid = 0

    def plan(self, **more: object) -> Supervision:
        plan = Supervision(
            container_id=ID,
            bundle=str(self.bundle),
            exits=str(self.exits),
            log_path=str(self.log),
            title="forgeone-test",
        )
        return msgspec.structs.replace(plan, **more)

    def create(
        self,
        function: str,
        *words: str,
        deadline: float = 20,
        namespace: bool = False,
        cgroup: str = "",
        **more: object,
    ) -> int:
        run = msgspec.json.encode(Run(self.plan(**more), function, words, namespace, cgroup))
        answer, fds = self.server.ask(run, (), Deadline.after(deadline))
        assert fds == []
        found = decode_answer(answer)
        if isinstance(found, Failed):
            raise contract.create_error(ID, found)
        self.pid = found.pid
        return self.pid

    def start(self) -> None:
        assert contract.start(str(self.bundle))

    def run(self, function: str, *words: str, **more: object) -> int:
        self.create(function, *words, **more)
        self.start()
        return self.ended()

    def ended(self, seconds: float = 30) -> int:
        """The exit code; its supervisor has gone too."""
        with watched(self.exits) as wait:
            wait((self.exits / ID).exists, seconds)
        found = exits.read_exit(self.exits, ID)
        assert found is not None
        assert not found.lost
        self.gone()
        return found.code

    def gone(self, seconds: float = 20) -> None:
        held = contract.supervisor(str(self.bundle), ID)
        if held is not None:
            with held:
                assert held.wait(seconds), "the supervisor goes on"

    def lines(self) -> list[tuple[str, str, bytes]]:
        content = self.log.read_bytes()
        assert not content or content.endswith(b"\n")
        found = [LINE.match(line) for line in content.split(b"\n")[:-1]]
        return [(one[1].decode(), one[2].decode(), one[3]) for one in found if one is not None or pytest.fail("a line")]

    def attach(self, *, stdin: bool = False, tty: bool = False) -> AttachConsole:
        return AttachConsole(ID, str(self.bundle), Stdio(stdin=stdin, stdout=True, stderr=not tty, tty=tty))

    def left(self) -> list[str]:
        return [path.name for path in self.bundle.iterdir()]

    def close(self) -> None:
        """Nothing of it goes on."""
        held = contract.process(str(self.bundle))
        if held is not None:
            with held:
                held.send(signal.SIGKILL)
        contract.stop(str(self.bundle), ID, 5)


@contextlib.contextmanager
def watched(directory: Path) -> Iterator[Callable[[Callable[[], bool], float], None]]:
    """A function that waits until something is so, looked at whenever a file appears whole in the directory."""
    events = DirectoryEvents(directory)
    poll = select.poll()
    poll.register(events.fileno(), select.POLLIN)

    def wait(done: Callable[[], bool], seconds: float) -> None:
        deadline = Deadline.after(seconds)
        while not done():
            assert poll.poll(int((deadline.remaining() or 0) * 1000)), "nothing happened"
            events.read()

    try:
        yield wait
    finally:
        events.close()


def read(console: AttachConsole, until: bytes = b"", seconds: float = 10) -> dict[Output, bytes]:
    """What comes until ``until`` is there, or, where that is empty, until the end."""
    got = {Output.STDOUT: b"", Output.STDERR: b""}
    deadline = Deadline.after(seconds)
    while console.readers and not (until and any(until in text for text in got.values())):
        poll = select.poll()
        poll.register(console.readers[0], select.POLLIN)
        assert poll.poll(int((deadline.remaining() or 0) * 1000)), got
        found = console.read(console.readers[0])
        if found is not None:
            got[found[0]] += found[1]
    return got
