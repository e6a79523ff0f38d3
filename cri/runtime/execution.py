"""Commands inside a running container."""

from __future__ import annotations

from typing import Final

from cri.api import runtime_pb2 as pb
from cri.call import Call
from cri.runtime.verbs import Verbs
from cri.translate.fields import at_least, each, given, no_nul
from engines.base import ExecResult
from forgeone_shim.errors import InvalidInput

# What the answer's fields cost beside their bytes: tags, lengths, the exit code.
_ENVELOPE: Final = 64


class ExecVerbs(Verbs):
    """ExecSync."""

    def ExecSync(self, request: pb.ExecSyncRequest, call: Call) -> pb.ExecSyncResponse:
        """Run a command and answer with what it printed; it is killed when its time, or the client's, is over."""
        container_id = given("container_id", request.container_id)
        if not request.cmd:
            raise InvalidInput("cmd", "is empty")
        argv = each("cmd", request.cmd, no_nul)
        timeout = call.deadline.remaining(at_least("timeout", request.timeout) or None)
        return _response(self._runtime.exec_sync(container_id, argv, timeout), self._message_limit - _ENVELOPE)


def _response(result: ExecResult, limit: int) -> pb.ExecSyncResponse:
    """Both streams, cut so that they fit one message; the fuller one gives way first."""
    stdout, stderr = result.stdout, result.stderr
    if len(stdout) + len(stderr) > limit:
        kept = min(len(stderr), max(limit // 2, limit - len(stdout)))
        stdout, stderr = stdout[: limit - kept], stderr[:kept]
    return pb.ExecSyncResponse(stdout=stdout, stderr=stderr, exit_code=result.exit_code)
