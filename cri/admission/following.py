"""What of the cluster reviews are decided by, followed as it changes: policies, issuers, RuntimeClasses.

What cannot be used leaves what was there before in force, as on nodes. What is lost sight of stays as it was last seen.
"""

from __future__ import annotations

import base64
import binascii
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import structlog

from cri.admission import api, known
from cri.admission.api import Cluster, Listing
from cri.admission.known import Known
from cri.admission.metrics import Metrics
from cri.admission.options import Options
from forgeone_shim.attestation import keys
from forgeone_shim.attestation.keys import MAX_KEYS, SUFFIXES, PublicKey
from forgeone_shim.cluster import objects
from forgeone_shim.cluster.watch import ApiError, Watch
from forgeone_shim.cluster.wire import Came, Gone, Listed, Told, Trouble
from forgeone_shim.contract.policy import Policy
from forgeone_shim.errors import ForgeError, InvalidInput

CLASSES: Final = "/apis/node.k8s.io/v1/runtimeclasses"
POLICIES: Final = f"/apis/{objects.GROUP}/{objects.VERSION}/{objects.PLURAL}"

FAILED_DELAY: Final = 10.0
ASKED_FOR: Final = 1.0
"""Seconds that an API server has to say whether it has a policy, while a pod waits."""
ASKED_AGAIN: Final = 1.0
_ASKED_MAX: Final = 16

_log: structlog.stdlib.BoundLogger = structlog.get_logger("admission")


class Stopped(Exception):
    """Nothing is followed any more."""


class Store(Protocol):
    """Objects of one kind."""

    what: str

    def put(self, name: str, given: Mapping[str, Any] | None) -> None:
        """It is so now; ``None``: it is gone. :raises ForgeError: it cannot be used, and nothing has changed."""

    def __len__(self) -> int:
        """How many there are."""


class PolicyStore:
    """ZTAPolicy objects, read as nodes read them."""

    what = "policies"

    def __init__(self) -> None:
        self.all: dict[str, Policy] = {}

    def put(self, name: str, given: Mapping[str, Any] | None) -> None:
        """:raises InvalidInput: no node could use it."""
        if given is None:
            self.all.pop(name, None)
        else:
            self.all[name] = objects.policy_of(given)

    def __len__(self) -> int:
        return len(self.all)


class ClassStore:
    """RuntimeClasses: the handler of each."""

    what = "runtimeclasses"

    def __init__(self) -> None:
        self.all: dict[str, str] = {}

    def put(self, name: str, given: Mapping[str, Any] | None) -> None:
        """A RuntimeClass has a handler, or it is none."""
        handler = given.get("handler") if given is not None else None
        if isinstance(handler, str):
            self.all[name] = handler
        else:
            self.all.pop(name, None)

    def __len__(self) -> int:
        return len(self.all)


class IssuerStore:
    """A ConfigMap with public keys, one in each of its keys that ends as files of keys do."""

    what = "issuers"

    def __init__(self) -> None:
        self.all: tuple[PublicKey, ...] = ()

    def put(self, name: str, given: Mapping[str, Any] | None) -> None:
        """:raises ForgeError: one of them is none: whoever put it there meant something by it."""
        texts = {key: str(value).encode() for key, value in _part(given, "data")}
        for key, value in _part(given, "binaryData"):
            try:
                texts[key] = base64.b64decode(str(value), validate=True)
            except (binascii.Error, ValueError):
                raise InvalidInput(f"configmaps/{name}: {key}", "is no base64") from None
        found = {key: text for key, text in texts.items() if key.endswith(SUFFIXES)}
        if len(found) > MAX_KEYS:
            raise InvalidInput(f"configmaps/{name}", f"has {len(found)} keys, more than {MAX_KEYS}")
        self.all = tuple(keys.public_key(found[key], f"configmaps/{name}: {key}", key) for key in sorted(found))

    def __len__(self) -> int:
        return len(self.all)


class Follower:
    """Follows one listing into one store, in a thread of its own."""

    def __init__(
        self, listing: Listing, store: Store, changed: Callable[[], None], meters: Metrics, end: threading.Event
    ) -> None:
        """:param changed: is told, in that thread, when there is something new after a whole list."""
        self._store, self._changed, self._meters, self._end = store, changed, meters, end
        self._bad: set[str] = set()
        self.listed = False
        self._watch = Watch(listing, self._tell, self._seen, self._wait)
        self._thread = threading.Thread(target=self._run, name=store.what, daemon=True)

    @property
    def what(self) -> str:
        """The kind."""
        return self._store.what

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                self._watch.run()
            except Stopped:
                return
            except Exception as error:
                # Of what no one expects, an object that is not as it has to be; the next list may be without it.
                _log.error("following failed", what=self._store.what, error=type(error).__name__)
                if self._end.wait(FAILED_DELAY):
                    return

    def _seen(self, name: str, given: Mapping[str, Any] | None) -> None:
        try:
            self._store.put(name, given)
            self._bad.discard(name)
        except Exception as error:
            # Of what no one expects, too: no object keeps others from being known.
            if name not in self._bad:
                why = str(error) if isinstance(error, ForgeError) else type(error).__name__
                _log.warning("not used", what=self._store.what, name=name, why=why)
            self._bad.add(name)

    def _tell(self, told: Told) -> None:
        if self._end.is_set():
            raise Stopped
        if isinstance(told, Trouble):
            self._meters.interrupted(self._store.what)
            _log.warning("not followed", what=self._store.what, why=told.why)
            return
        self.listed = self.listed or isinstance(told, Listed)
        if self.listed and isinstance(told, (Came, Gone, Listed)):
            self._meters.known(self._store.what, len(self._store), len(self._bad))
            self._changed()

    def _wait(self, seconds: float) -> None:
        if self._end.wait(seconds):
            raise Stopped


class Following:
    """All that is followed, as one thing that is known."""

    def __init__(
        self,
        cluster: Cluster,
        options: Options,
        use: Callable[[Known], None],
        lacks: Callable[[frozenset[str]], None],
        meters: Metrics,
    ) -> None:
        """:param use: is given what is known, once all of it has been seen; ``lacks`` what has not been."""
        self._cluster, self._options, self._use, self._lacks = cluster, options, use, lacks
        self._asking, self._asked = threading.Lock(), dict[str, tuple[float, Policy | None]]()
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._policies, self._classes, self._issuers = PolicyStore(), ClassStore(), IssuerStore()
        listings: list[tuple[Listing, Store]] = [(Listing(cluster, CLASSES), self._classes)]
        if options.policies:
            listings.append((Listing(cluster, POLICIES), self._policies))
        if options.issuers:
            place = Listing(cluster, api.configmaps(options.namespace), options.issuers)
            listings.append((place, self._issuers))
        self._followers = [Follower(listing, store, self._changed, meters, self._end) for listing, store in listings]

    def start(self) -> None:
        """Begin to follow."""
        self._lacks(self._missing())
        for one in self._followers:
            one.start()

    def stop(self) -> None:
        """End it; threads that wait for the API server end with the process."""
        self._end.set()

    def look_for(self, policy: str) -> Known | None:
        """What is known with that policy, asked of the API server; ``None``: it has none of that name, or is not asked.

        What was just answered is not asked again. It is not kept: what is followed will have it, or has it no more.
        """
        # Reviews have a time of their own, and an API server that is slow may have many waiting.
        if not self._options.policies or not self._asking.acquire(timeout=ASKED_FOR):
            return None
        try:
            now = time.monotonic()
            self._asked = {name: one for name, one in self._asked.items() if now - one[0] < ASKED_AGAIN}
            if policy not in self._asked and len(self._asked) < _ASKED_MAX:
                self._asked[policy] = now, self._read(policy)
            _, found = self._asked.get(policy, (now, None))
        finally:
            self._asking.release()
        return self._together(found) if found is not None else None

    def _read(self, policy: str) -> Policy | None:
        try:
            return objects.policy_of(self._cluster.read(f"{POLICIES}/{policy}", ASKED_FOR))
        except (ApiError, InvalidInput):
            return None

    def _missing(self) -> frozenset[str]:
        return frozenset(one.what for one in self._followers if not one.listed)

    def _changed(self) -> None:
        with self._lock:
            missing = self._missing()
            if not missing:
                self._use(self._together())
            self._lacks(missing)

    def _together(self, *more: Policy) -> Known:
        issuers = self._issuers.all if self._options.issuers else None
        policies = [*self._policies.all.values(), *more]
        return known.of(self._options, policies, issuers, dict(self._classes.all))


def _part(given: Mapping[str, Any] | None, key: str) -> list[tuple[str, object]]:
    found = (given or {}).get(key)
    return list(found.items()) if isinstance(found, dict) else []
