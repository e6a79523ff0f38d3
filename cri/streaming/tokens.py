"""What stands between the CRI socket, which is root's, and the streaming port: tokens that are good for one use."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from forgeone_shim.errors import ResourceExhausted

T = TypeVar("T")

LIFETIME: Final = 60.0
"""Seconds in which a token has to be used."""
LIMIT: Final = 1000
_BYTES: Final = 24


class Tokens(Generic[T]):
    """Remembers a value under a token until the token is used or too old."""

    def __init__(
        self, lifetime: float = LIFETIME, limit: int = LIMIT, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lifetime, self._limit, self._clock = lifetime, limit, clock
        self._lock = threading.Lock()
        # In order of age.
        self._known: dict[str, tuple[float, T]] = {}

    def issue(self, value: T) -> str:
        """A new token for ``value``.

        :raises ResourceExhausted: as many as may be are waiting to be used.
        """
        token = secrets.token_urlsafe(_BYTES)
        with self._lock:
            self._expire()
            if len(self._known) >= self._limit:
                raise ResourceExhausted(
                    f"{self._limit} streaming requests wait for their clients", fix="connect, or try again in a minute"
                )
            self._known[token] = (self._clock() + self._lifetime, value)
        return token

    def redeem(self, token: str) -> T | None:
        """The token's value, once; ``None`` for a token that is not known, was used or is too old."""
        with self._lock:
            self._expire()
            found = self._known.pop(token, None)
        return None if found is None else found[1]

    def _expire(self) -> None:
        now = self._clock()
        while self._known:
            token, (until, _) = next(iter(self._known.items()))
            if until > now:
                return
            del self._known[token]
