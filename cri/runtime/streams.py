"""Exec, Attach and PortForward: checked here, done at the URL they answer with (see cri.streaming)."""

from __future__ import annotations

from cri.api import runtime_pb2 as pb
from cri.call import Call
from cri.runtime.verbs import Verbs
from cri.streaming.server import AttachGrant, ExecGrant, ForwardGrant, check_ports
from cri.translate.fields import each, given, no_nul
from engines.base import Stdio
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.lifecycle.machine import LIVE, State
from forgeone_shim.runtime.views import ContainerView


class StreamVerbs(Verbs):
    """The verbs whose answer is a URL."""

    def Exec(self, request: pb.ExecRequest, _call: Call) -> pb.ExecResponse:
        """Where a command may be run, once."""
        view = self._live(request.container_id)
        if not request.cmd:
            raise InvalidInput("cmd", "is empty")
        grant = ExecGrant(view.id, each("cmd", request.cmd, no_nul), _stdio(request))
        self._runtime.may_exec(view.id, grant.argv, tty=grant.stdio.tty)
        return pb.ExecResponse(url=self._streaming.url(grant))

    def Attach(self, request: pb.AttachRequest, _call: Call) -> pb.AttachResponse:
        """Where the container's streams may be had, once; before it is started, so that nothing of them is missed."""
        view = self._live(request.container_id, State.BOOTED)
        stdio = _stdio(request)
        if stdio.stdin and not view.spec.stdin:
            raise FailedPrecondition(
                f"container {view.id[:13]} was created without an open stdin", fix="attach without stdin"
            )
        self._runtime.may_attach(view.id)
        return pb.AttachResponse(url=self._streaming.url(AttachGrant(view.id, stdio)))

    def PortForward(self, request: pb.PortForwardRequest, _call: Call) -> pb.PortForwardResponse:
        """Where ports of the pod may be reached over one connection; no port named: all of them."""
        view = self._runtime.sandbox(given("pod_sandbox_id", request.pod_sandbox_id))
        if not view.ready:
            raise FailedPrecondition(f"sandbox {view.id[:13]} is not ready ({view.state})")
        grant = ForwardGrant(view.id, check_ports(request.port))
        self._runtime.may_forward(view.id, grant.ports)
        return pb.PortForwardResponse(url=self._streaming.url(grant))

    def _live(self, container_id: str, *others: State) -> ContainerView:
        view = self._runtime.container(given("container_id", container_id))
        if view.state not in LIVE.union(others):
            raise FailedPrecondition(f"container {view.id[:13]} is not running ({view.state})")
        return view


def _stdio(request: pb.ExecRequest | pb.AttachRequest) -> Stdio:
    if request.tty and request.stderr:
        raise InvalidInput("stderr", "cannot be apart from stdout with tty")
    if not (request.stdin or request.stdout or request.stderr):
        raise InvalidInput("stdin, stdout, stderr", "at least one of them must be asked for")
    return Stdio(stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, tty=request.tty)
