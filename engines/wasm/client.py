"""The daemon's side of the zygote."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from engines.wasm import messages
from engines.wasm.aot.target import wasmtime_version
from engines.wasm.jail.plan import JailPlan
from engines.wasm.messages import (
    Answer,
    Code,
    Container,
    Create,
    Done,
    Execute,
    Executing,
    Execution,
    Forget,
    Init,
    Preload,
    Request,
)
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import InternalError
from forgeone_shim.kernel.procs import Pidfd
from forgeone_shim.shim import contract, wire
from forgeone_shim.shim.client import ForkServer
from forgeone_shim.shim.programs import Program
from forgeone_shim.shim.supervision import Failed, Launched
from forgeone_shim.shim.wire import ProtocolError
from forgeone_shim.version import VERSION

_MODULE: Final = "engines.wasm.zygote"
_PACKAGES: Final = ("forgeone_shim", "engines", "msgspec", "wasmtime")
_FORGET_SECONDS: Final = 5.0
_Expected = TypeVar("_Expected", bound=msgspec.Struct)


class Zygote:
    """One per daemon; thread-safe. Its process is started by the first request, or found where one is."""

    def __init__(self, directory: Path) -> None:
        version = f"{VERSION}-{messages.VERSION}-{wasmtime_version()}"
        self._server = ForkServer(directory, Program(_MODULE, _PACKAGES, version))
        self._asked = False

    def create(self, code: tuple[Code, int], container: Container, deadline: Deadline) -> int:
        """A container held before its guest's first instruction; its first process's pid on the host.

        ``code`` comes with a descriptor of its file, here and below. A module that cannot be run is InvalidInput of the
        field ``command``. On any error nothing is left of it.
        """
        plan = msgspec.Raw(messages.encode(container))
        answer = self._ask(Create(code=code[0], plan=plan), (code[1],), deadline)
        return _expect(answer, Launched, container.supervision.container_id).pid

    def execute(
        self, code: tuple[Code, int], execution: Execution, target: Pidfd, streams: Sequence[int], deadline: Deadline
    ) -> socket.socket:
        """Start one more guest in the container of the process ``target``; the connection over which its end is told.

        Closing it kills the guest.
        """
        request = Execute(code=code[0], plan=msgspec.Raw(messages.encode(execution)))
        self._asked = True
        data, fds, connection = self._server.connect(
            messages.encode(request), (code[1], target.fileno(), *streams), deadline
        )
        with contextlib.ExitStack() as undo:
            undo.callback(connection.close)
            wire.close_all(fds)
            _expect(_answer(data), Executing, execution.container_id, doing="exec in container")
            undo.pop_all()
        return connection

    def init(self, sandbox_id: str, cell: JailPlan, deadline: Deadline) -> int:
        """The first process of a new PID namespace, in a jail of its own; its pid on the host."""
        request = Init(sandbox_id=sandbox_id, plan=msgspec.Raw(messages.encode(cell)))
        return _expect(self._ask(request, (), deadline), Launched, sandbox_id).pid

    def preload(self, code: tuple[Code, int], deadline: Deadline) -> None:
        """Have code ready for containers to come."""
        _expect(self._ask(Preload(code=code[0]), (code[1],), deadline, again=True), Done, "")

    def retain(self, keys: Collection[str]) -> None:
        """Let go of all other code; of a zygote that was never asked for any there is none."""
        if self._asked:
            deadline = Deadline.after(_FORGET_SECONDS)
            _expect(self._ask(Forget(keep=frozenset(keys)), (), deadline, again=True), Done, "")

    def close(self) -> None:
        """No more will be asked; its process ends soon, what it has forked goes on."""
        self._server.close()

    def _ask(self, request: Request, fds: Sequence[int], deadline: Deadline, *, again: bool = False) -> Answer:
        self._asked = True
        data, back = self._server.ask(messages.encode(request), fds, deadline, again=again)
        wire.close_all(back)
        return _answer(data)


def _answer(data: bytes) -> Answer:
    try:
        return messages.decode_answer(data)
    except ProtocolError as error:
        raise InternalError(f"the zygote's answer cannot be read: {error}") from error


def _expect(answer: Answer, kind: type[_Expected], id_: str, *, doing: str = "create container") -> _Expected:
    if isinstance(answer, kind):
        return answer
    if not isinstance(answer, Failed):
        raise InternalError(f"the zygote answers {answer}")
    raise contract.create_error(id_, answer, doing=doing)
