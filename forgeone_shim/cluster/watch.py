"""Following all ZTAPolicy objects: a complete list, then what changes, and another list where that has a gap.

As API servers describe it (kubernetes.io/docs/reference/using-api/api-concepts, "Efficient detection of changes"): a
watch begins at the version of the list before it, goes on from the last version it was told, and answers 410 where the
server does not remember that version any more. Nothing here knows HTTP: an :class:`Api` does, or its double.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

from forgeone_shim.cluster.wire import Begun, Came, Gone, Heard, Listed, Told, Trouble

GONE: Final = 410
FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 60.0
"""Seconds between attempts, and what they grow to."""

MAX_DEPTH: Final = 64
MAX_VALUES: Final = 65536
"""More than any policy can have: what is beyond is refused before it is read."""

_KEPT: Final = ("apiVersion", "kind", "spec")


class ApiError(Exception):
    """The API server refused, or did not answer (``status`` 0). ``after``: seconds that it asks to be left alone."""

    def __init__(self, status: int, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.status, self.after = status, after


class Source(Protocol):
    """Objects of one kind, as an API server has them. Each raises :class:`ApiError`."""

    def page(self, token: str) -> Mapping[str, Any]:
        """A part of a list of all, as new as can be; ``token`` is where the part before ended."""

    def watch(self, version: str) -> Iterator[Mapping[str, Any]]:
        """What happened since that version, until the server ends it."""


class Api(Source, Protocol):
    """What is asked of an API server about ZTAPolicy objects. Each raises :class:`ApiError`."""

    def mark(self, name: str, patch: Mapping[str, Any]) -> None:
        """Merge into an object's status (RFC 7396), if it is still of the version that the patch names."""

    def tell(self, event: Mapping[str, Any]) -> None:
        """Post an Event; one of that name may be there already."""


class _Expired(Exception):
    """What was seen is not where the server could go on from."""


class Watch:
    """One client of one API server.

    :param tell: is told everything, in order.
    :param seen: is shown every object as it came, and ``None`` for one that is gone.
    :param wait: waits so many seconds, or raises to end it all.
    """

    def __init__(
        self,
        api: Source,
        tell: Callable[[Told], None],
        seen: Callable[[str, Mapping[str, Any] | None], None],
        wait: Callable[[float], None],
        *,
        jitter: Callable[[], float] = random.random,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._tell, self._seen, self._wait, self._jitter = api, tell, seen, wait, jitter
        self._now = now
        self._version = ""
        self._names: set[str] = set()
        self._delay = FIRST_DELAY

    def run(self) -> None:
        """Never returns; ends by what ``wait`` or ``tell`` raises."""
        while True:
            self.step()

    def step(self) -> None:
        """A list where one is needed, and one watch after it; what goes wrong is told, and waited for."""
        try:
            if not self._version:
                self._list()
            self._follow()
        except _Expired:
            self._version = ""
            self._pause(0.0)
        except ApiError as error:
            # 410 for a list is a token that expired: all of it has to be asked for anew, as for a watch.
            if error.status == GONE:
                self._version = ""
            else:
                self._tell(Trouble(str(error)))
            self._pause(error.after)

    def _pause(self, at_least: float) -> None:
        # A crowd of nodes that lost their server at one moment must not come back at one.
        self._wait(max(at_least, self._delay * (0.5 + self._jitter())))
        self._delay = min(self._delay * 2, LONGEST_DELAY)

    def _list(self) -> None:
        self._tell(Begun())
        token, version = "", ""
        before = frozenset(self._names)
        names = set[str]()
        while True:
            found = self._api.page(token)
            metadata = found.get("metadata") or {}
            if "items" not in found or not str(found.get("kind")).endswith("List"):
                # Nothing is gone because somebody answers what is no list.
                raise ApiError(0, f"the answer is no list: {str(found.get('kind'))[:100]}")
            for item in found["items"] or ():
                # Items of a list have neither, where the server is not one for custom resources.
                given = {"apiVersion": found.get("apiVersion"), "kind": _kind(found), **item}
                names.add(self._came(given))
            version = version or str(metadata.get("resourceVersion") or "")
            token = str(metadata.get("continue") or "")
            if not token:
                break
        if not version:
            raise ApiError(0, "the list has no resourceVersion")
        for name in before - names:
            self._names.discard(name)
            self._seen(name, None)
        self._tell(Listed())
        self._version = version

    def _follow(self) -> None:
        began, quiet = self._now(), True
        for event in self._api.watch(self._version):
            quiet = False
            kind, given = event.get("type"), event.get("object")
            if not isinstance(given, dict):
                raise ApiError(0, f"an event of the watch has no object: {str(event)[:200]}")
            if kind == "ERROR":
                if given.get("code") == GONE:
                    raise _Expired
                raise ApiError(int(given.get("code") or 0), str(given.get("message") or "the watch failed"))
            version = _version(given)
            if kind in {"ADDED", "MODIFIED"}:
                self._came(given)
            elif kind == "DELETED":
                self._gone(given)
            elif kind == "BOOKMARK":
                self._tell(Heard())
            else:
                raise ApiError(0, f"the watch has an event of an unknown type {str(kind)[:40]!r}")
            self._version, self._delay = version, FIRST_DELAY
        if quiet and self._now() - began < FIRST_DELAY:
            raise ApiError(0, "the watch ended as soon as it had begun")
        self._tell(Heard())
        self._delay = FIRST_DELAY

    def _came(self, given: Mapping[str, Any]) -> str:
        """An object is so now; its name."""
        metadata = given.get("metadata") or {}
        name = str(metadata.get("name") or "")
        self._names.add(name)
        self._seen(name, given)
        kept = {key: given[key] for key in _KEPT if key in given} | {"metadata": {"name": name}}
        fault = unfit(kept.get("spec"))
        if fault:
            del kept["spec"]
        self._tell(Came(str(metadata.get("uid") or ""), int(metadata.get("generation") or 0), kept, fault))
        return name

    def _gone(self, given: Mapping[str, Any]) -> None:
        name = str((given.get("metadata") or {}).get("name") or "")
        self._names.discard(name)
        self._seen(name, None)
        self._tell(Gone(name))


def unfit(value: Any) -> str:
    """Why a value cannot be handed on: few readers of JSON take what an API server does. Empty: it can."""
    left, seen = [(value, 0)], 0
    while left:
        one, depth = left.pop()
        seen += 1
        if depth > MAX_DEPTH or seen > MAX_VALUES:
            return f"has more than {MAX_VALUES} values, or is nested deeper than {MAX_DEPTH}"
        if isinstance(one, dict):
            left += [(item, depth + 1) for item in one.values()]
        elif isinstance(one, list):
            left += [(item, depth + 1) for item in one]
    return ""


def _kind(found: Mapping[str, Any]) -> str:
    return str(found.get("kind") or "").removesuffix("List")


def _version(given: Mapping[str, Any]) -> str:
    found = (given.get("metadata") or {}).get("resourceVersion")
    if not isinstance(found, str) or not found:
        raise ApiError(0, "an object of the watch has no resourceVersion")
    return found
