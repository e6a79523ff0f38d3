"""A CRI client as a kubelet is one: a call that was cut off is made again until it is answered."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc

from cri.api import runtime_pb2_grpc as rpc

_PATIENCE = 90.0
_CUT_OFF = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_CHANNEL = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)


class Refused(Exception):
    """The runtime answered with an error; ``repeated``: an earlier try of the same call was cut off."""

    def __init__(self, verb: str, code: grpc.StatusCode, details: str, *, repeated: bool) -> None:
        super().__init__(f"{verb}: {code.name}: {details}")
        self.code, self.details, self.repeated = code, details, repeated


class Client:
    """Every verb of RuntimeService by its name: ``client.RunPodSandbox(pb.RunPodSandboxRequest(...))``."""

    def __init__(self, socket: str) -> None:
        channel = grpc.insecure_channel(f"unix://{socket}", options=_CHANNEL)
        self._stub = rpc.RuntimeServiceStub(channel)
        self.calls: Counter[str] = Counter()
        self.cut_off = 0

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        if not verb[0].isupper():
            raise AttributeError(verb)
        return lambda request, timeout=60.0: self._call(verb, request, timeout)

    def _call(self, verb: str, request: Any, timeout: float) -> Any:
        self.calls[verb] += 1
        until, repeated = time.monotonic() + _PATIENCE, False
        while True:
            try:
                return getattr(self._stub, verb)(request, timeout=timeout)
            except grpc.RpcError as error:
                code, details = error.code(), error.details() or ""
                if code not in _CUT_OFF or time.monotonic() > until:
                    raise Refused(verb, code, details, repeated=repeated) from None
                self.cut_off, repeated = self.cut_off + 1, True
                time.sleep(0.05)
