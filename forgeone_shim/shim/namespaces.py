"""The daemon's side of the server that makes user namespaces."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import InternalError, InvalidInput
from forgeone_shim.shim import messages, wire
from forgeone_shim.shim.client import ForkServer
from forgeone_shim.shim.messages import Failed, MakeNamespaces
from forgeone_shim.shim.programs import Program
from forgeone_shim.shim.wire import ProtocolError

PROGRAM: Final = Program("forgeone_shim.shim.server", ("forgeone_shim", "msgspec"), str(messages.VERSION))


class StepFailed(Exception):
    """The server could not do a step of what it was asked; the kernel's reason is ``errno``."""

    def __init__(self, step: str, errno: int) -> None:
        super().__init__(f"{step}: {os.strerror(errno)}")
        self.step, self.errno = step, errno


class NamespaceServer(ForkServer):
    """A fork server whose children make namespaces."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, PROGRAM)

    def make_namespaces(self, request: MakeNamespaces, deadline: Deadline) -> dict[str, int]:
        """Descriptors of the new namespaces by kind, ``user`` among them; the caller closes them.

        :raises StepFailed: the kernel refused a step; nothing was made.
        :raises InvalidInput: the request is too long to be sent.
        :raises DeadlineExceeded: no answer in time.
        :raises InternalError: there is no server and none can be started.
        """
        try:
            data = messages.encode(request)
        except ProtocolError as error:
            raise InvalidInput("sysctls", f"too much with the id mappings: {error}") from error
        # Safe to repeat: what a server made that has gone went with its connection.
        said, descriptors = self.ask(data, (), deadline, again=True)
        try:
            answer = messages.decode_answer(said, descriptors)
        except ProtocolError as error:
            wire.close_all(descriptors)
            raise InternalError(f"the fork server's answer cannot be read: {error}") from error
        if isinstance(answer, Failed):
            raise StepFailed(answer.step, answer.errno)
        if answer.kinds != ("user", *request.kinds):
            wire.close_all(descriptors)
            raise InternalError(f"the fork server answers {answer} to {type(request).__name__}")
        return dict(zip(answer.kinds, descriptors, strict=True))
