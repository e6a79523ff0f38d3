"""What is answered on which path: no sockets, no API server."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from cri.admission import metrics, review
from cri.admission.known import Known
from cri.admission.metrics import Metrics
from cri.admission.review import Answer
from forgeone_shim.errors import InvalidInput

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"
VALIDATE: Final = "/validate"
MUTATE: Final = "/mutate"
_REVIEWS: Final[Mapping[str, Callable[[bytes, Known], Answer]]] = {VALIDATE: review.validate, MUTATE: review.mutate}
_LOOKS: Final = frozenset({"/healthz", "/readyz", "/metrics"})

_log: structlog.stdlib.BoundLogger = structlog.get_logger("admission")


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response."""

    code: int
    body: bytes
    content_type: str = TEXT


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the common name of the certificate that was shown and verified; empty: none was."""

    name: str = ""
    verified: bool = False


class Service:
    """Thread-safe: what is known is replaced as a whole."""

    def __init__(self, meters: Metrics, *, callers: frozenset[str] | None = None) -> None:
        """:param callers: who may ask for reviews, by common name; empty: any with a certificate; ``None``: anybody."""
        self._meters, self._callers = meters, callers
        self._known: Known | None = None
        self._look_for: Callable[[str], Known | None] = lambda _: None
        self._lacking: frozenset[str] = frozenset({"the cluster"})

    def asking(self, look_for: Callable[[str], Known | None]) -> None:
        """Whom to ask for a policy that is not known: what is known with it, or ``None`` where there is none."""
        self._look_for = look_for

    def follow(self, known: Known) -> None:
        """From now on this is known."""
        self._known = known

    def lacks(self, what: frozenset[str]) -> None:
        """What is waited for before anything can be answered."""
        self._lacking = what

    def respond(self, method: str, path: str, body: bytes, caller: Caller) -> Response:
        """The response to one request. A query counts for nothing: the API server adds its timeout."""
        path = path.partition("?")[0]
        if path in _LOOKS:
            return self._look(path) if method == "GET" else Response(405, b"GET only\n")
        if path not in _REVIEWS:
            return Response(404, b"not found\n")
        if method != "POST":
            return Response(405, b"POST only\n")
        response = self._review(path, body, caller)
        if response.code != 200:
            self._meters.fault(path, response.code)
        return response

    def refused(self, path: str, code: int) -> None:
        """A request was answered so before it was one."""
        path = path.partition("?")[0]
        if path in _REVIEWS:
            self._meters.fault(path, code)

    def _look(self, path: str) -> Response:
        if path == "/metrics":
            return Response(200, self._meters.text(), metrics.CONTENT_TYPE)
        if path == "/readyz" and self._lacking:
            return Response(503, f"waiting for {', '.join(sorted(self._lacking))}\n".encode())
        return Response(200, b"ok\n")

    def _review(self, path: str, body: bytes, caller: Caller) -> Response:
        if self._callers is not None and not (caller.verified and (not self._callers or caller.name in self._callers)):
            _log.warning("caller refused", path=path, verified=caller.verified)
            return Response(403, b"a client certificate is needed\n")
        known = self._known
        if known is None:
            # Not an answer: the failure policy decides.
            return Response(503, f"waiting for {', '.join(sorted(self._lacking))}\n".encode())
        began = time.perf_counter()
        try:
            answer = _REVIEWS[path](body, known)
            # Applied together with its pods, a policy may not have been heard of yet.
            if answer.absent and (newer := self._look_for(answer.absent)) is not None:
                answer = _REVIEWS[path](body, newer)
        except InvalidInput as error:
            _log.warning("no review", path=path, bytes=len(body))
            return Response(400, f"{error}\n".encode())
        except Exception as error:
            # What an exception says may be of the object.
            _log.error("review failed", path=path, error=type(error).__name__)
            return Response(500, b"the review failed\n")
        spent = time.perf_counter() - began
        self._meters.reviewed(path, answer.kind, allowed=answer.allowed, cause=answer.cause, seconds=spent)
        if not answer.allowed:
            _log.info("refused", uid=answer.uid, kind=answer.kind, cause=answer.cause, ms=round(spent * 1000, 2))
        return Response(200, answer.body, JSON)
