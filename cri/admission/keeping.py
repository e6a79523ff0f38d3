"""Certificates kept in a Secret, and webhook configurations told of their authorities, by whichever replica is first.

Each change names the version that it is of, so that of two replicas one is told to look again. API servers are told
before anything is shown that they could not know.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog

from cri.admission import api, certificates
from cri.admission.api import CONFLICT, NOT_FOUND, Cluster, Listing
from cri.admission.certificates import Pair, State, Terms
from cri.admission.options import Options
from forgeone_shim.cluster.watch import ApiError, Watch
from forgeone_shim.cluster.wire import Told
from forgeone_shim.errors import ForgeError, Unavailable

CONFIGURATIONS: Final = "/apis/admissionregistration.k8s.io/v1"
VALIDATING: Final = f"{CONFIGURATIONS}/validatingwebhookconfigurations"
MUTATING: Final = f"{CONFIGURATIONS}/mutatingwebhookconfigurations"
SETTLING: Final = 2.0
"""Seconds that API servers have to hear of an authority before it is shown to them."""

FAILED_DELAY: Final = 10.0
_ATTEMPTS: Final = 10
_GRACE: Final = 5.0
_DELAY: Final = (1.0, 60.0)
# threading takes no longer waits than this many seconds, and clocks may be set meanwhile.
_LONGEST: Final = 86400.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger("admission")


class Keeper:
    """One replica's part in it, in a thread of its own."""

    def __init__(
        self,
        cluster: Cluster,
        options: Options,
        use: Callable[[Pair], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """:param use: takes the serving certificate, whenever it is another."""
        self._cluster, self._options, self._use, self._now = cluster, options, use, now
        self._terms = Terms(
            names=certificates.server_names(options.service, options.namespace),
            certificate=timedelta(days=options.certificate_days),
            ca=timedelta(days=options.ca_days),
        )
        self._used: Pair | None = None
        self._wake, self._end = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=self._run, name="certificates", daemon=True)]
        places = [Listing(cluster, api.secrets(options.namespace), options.secret)]
        places += [Listing(cluster, VALIDATING, name) for name in options.validating]
        places += [Listing(cluster, MUTATING, name) for name in options.mutating]
        self._threads += [
            threading.Thread(target=self._follow, args=(place,), name=place.name, daemon=True) for place in places
        ]

    def start(self) -> None:
        """Begin."""
        for one in self._threads:
            one.start()

    def stop(self) -> None:
        """End it, after what is under way; threads that wait for the API server end with the process."""
        self._end.set()
        self._wake.set()
        if self._threads[0].ident is not None:
            self._threads[0].join(_GRACE)

    def keep(self) -> datetime:
        """Do what is to be done now, and say when there is something next.

        :raises ForgeError: the API server refused, or changed its mind too often.
        """
        try:
            state = self._kept()
            bundle = certificates.bundle(state, self._now())
            for path, names in ((VALIDATING, self._options.validating), (MUTATING, self._options.mutating)):
                for name in names:
                    self._told(f"{path}/{name}", bundle)
        except ApiError as error:
            raise Unavailable(f"certificates: {error}") from error
        self._show(state)
        return certificates.due(state)

    def _show(self, state: State) -> None:
        if state.tls is None or state.ca is None or state.tls == self._used:
            return
        if self._used is not None and not certificates.signed(self._used, state.ca):
            # An authority that nobody expected, as its key was lost: API servers take a moment to hear of it.
            self._end.wait(SETTLING)
        self._use(state.tls)
        self._used = state.tls

    def _run(self) -> None:
        delay = _DELAY[0]
        while not self._end.is_set():
            self._wake.clear()
            try:
                left = (self.keep() - self._now()).total_seconds()
                delay = _DELAY[0]
            except Exception as error:
                # Of what no one expects in a Secret neither may their renewal end: it would be noticed months later.
                why = str(error) if isinstance(error, ForgeError) else type(error).__name__
                _log.warning("certificates not kept", why=why)
                left, delay = delay, min(delay * 2, _DELAY[1])
                # What another replica does is no reason to ask a server more often that just refused.
                self._end.wait(left)
                continue
            self._wake.wait(max(0.0, min(left, _LONGEST)))

    def _kept(self) -> State:
        """What the Secret has, made whole and new where it is time."""
        place = api.secrets(self._options.namespace)
        for _ in range(_ATTEMPTS):
            try:
                found: Mapping[str, Any] | None = self._cluster.read(f"{place}/{self._options.secret}")
            except ApiError as error:
                if error.status != NOT_FOUND:
                    raise
                found = None
            data = found.get("data") if found is not None else None
            state = certificates.read(data if isinstance(data, dict) else {})
            made = certificates.renewed(state, self._terms, self._now())
            if made is state:
                return state
            try:
                self._write(place, found, made)
            except ApiError as error:
                if error.status == CONFLICT:
                    continue
                raise
            _log.info("certificates renewed", secret=self._options.secret, authority=made.ca != state.ca)
            return made
        raise Unavailable(f"secrets/{self._options.secret}: others change it all the time")

    def _write(self, place: str, found: Mapping[str, Any] | None, made: State) -> None:
        if found is None:
            metadata = {"name": self._options.secret, "namespace": self._options.namespace}
            secret = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata}
            self._cluster.create(place, {**secret, "data": certificates.written(made)})
        else:
            # With the resourceVersion that was read.
            body = {**found, "data": certificates.written(made)}
            self._cluster.replace(f"{place}/{self._options.secret}", body)

    def _told(self, path: str, bundle: bytes) -> None:
        """The webhooks of a configuration that call this service believe these authorities."""
        for _ in range(_ATTEMPTS):
            try:
                found = self._cluster.read(path)
            except ApiError as error:
                if error.status != NOT_FOUND:
                    raise
                # It comes with its first event.
                return
            changed = self._believing(found, base64.b64encode(bundle).decode())
            if changed == found:
                return
            try:
                self._cluster.replace(path, changed)
            except ApiError as error:
                if error.status == CONFLICT:
                    continue
                raise
            _log.info("authorities told", configuration=path.rpartition("/")[2])
            return
        raise Unavailable(f"{path}: others change it all the time")

    def _believing(self, found: Mapping[str, Any], bundle: str) -> Mapping[str, Any]:
        service = {"namespace": self._options.namespace, "name": self._options.service}
        webhooks = []
        for one in found.get("webhooks") or ():
            settings = one.get("clientConfig") or {}
            called = settings.get("service") or {}
            if {key: called.get(key) for key in service} == service:
                one = {**one, "clientConfig": {**settings, "caBundle": bundle}}  # noqa: PLW2901
            webhooks.append(one)
        return {**found, "webhooks": webhooks}

    def _follow(self, place: Listing) -> None:
        def tell(_: Told) -> None:
            if self._end.is_set():
                raise _Stopped

        def wait(seconds: float) -> None:
            if self._end.wait(seconds):
                raise _Stopped

        def seen(name: str, given: Mapping[str, Any] | None) -> None:
            del name, given
            self._wake.set()

        watch = Watch(place, tell, seen, wait)
        while not self._end.is_set():
            try:
                watch.run()
            except _Stopped:
                return
            except Exception as error:
                _log.error("following failed", what=place.name, error=type(error).__name__)
                self._end.wait(FAILED_DELAY)


class _Stopped(Exception):
    """Nothing is kept any more."""
