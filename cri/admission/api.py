"""The API server as the webhook asks it: single objects read and replaced, and lists that are followed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError

from forgeone_shim.cluster.watch import ApiError
from forgeone_shim.errors import FailedPrecondition

NOT_FOUND: Final = 404
CONFLICT: Final = 409
PAGE: Final = 200

_CONNECT: Final = 10.0
_ANSWER: Final = 30.0
# What one watch lasts, in seconds: servers are to lose their clients little by little.
_WATCH: Final = (240, 480)
_CHUNK: Final = 65536
_EVENT_MAX: Final = 8 << 20
# What is nested deeper than Python reads is one of them; it is told as such, and asked for again.
_FAILURES: Final = (HTTPError, OSError, ValueError, RecursionError)


def configmaps(namespace: str) -> str:
    """The path of a namespace's ConfigMaps."""
    return f"/api/v1/namespaces/{namespace}/configmaps"


def secrets(namespace: str) -> str:
    """The path of a namespace's Secrets."""
    return f"/api/v1/namespaces/{namespace}/secrets"


class Cluster:
    """One API server. Thread-safe, as the client's pool of connections is."""

    def __init__(self, kubeconfig: str = "") -> None:
        """:param kubeconfig: a file; empty: the service account of the pod that this is.

        :raises FailedPrecondition: there is neither.
        """
        settings = client.Configuration()
        from_file: Any = config.load_kube_config
        from_pod: Any = config.load_incluster_config
        try:
            if kubeconfig:
                from_file(kubeconfig, client_configuration=settings, persist_config=False)
            else:
                from_pod(client_configuration=settings)
        except (ConfigException, OSError, ValueError, TypeError) as error:
            raise FailedPrecondition(
                f"the API server is not known: {error}", fix="run it in a pod, or name a --kubeconfig"
            ) from None
        # It is for whoever asks to try again, and a redirect would take the token elsewhere.
        settings.retries = False
        # Of a server that is gone without a word a watch would hear nothing until its time is over.
        settings.keep_alive = True
        self._client = client.ApiClient(settings)

    def read(self, path: str, seconds: float = _ANSWER) -> Mapping[str, Any]:
        """An object, or a list. :raises ApiError: it cannot be had."""
        return self._document("GET", path, seconds=seconds)

    def create(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """A new object below ``path``. :raises ApiError: CONFLICT where there is one of that name."""
        return self._document("POST", path, body)

    def replace(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """An object in place of the one of that version. :raises ApiError: CONFLICT where it is another by now."""
        return self._document("PUT", path, body)

    def watch(self, path: str, query: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
        """Events until the server ends the watch. :raises ApiError: it breaks off, or cannot be had."""
        seconds = random.randint(*_WATCH)  # noqa: S311
        full = {**query, "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        answer = self._asked("GET", f"{path}?{urlencode(full)}", None, seconds + _ANSWER)
        try:
            yield from _events(answer)
        except _FAILURES as error:
            raise ApiError(0, f"the watch broke off: {type(error).__name__}") from error
        finally:
            answer.close()

    def _document(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, seconds: float = _ANSWER
    ) -> Mapping[str, Any]:
        answer = self._asked(method, path, body, seconds)
        try:
            found = json.loads(answer.data)
        except _FAILURES as error:
            raise ApiError(0, f"the answer cannot be read: {type(error).__name__}") from error
        finally:
            answer.release_conn()
        if not isinstance(found, dict):
            raise ApiError(0, "the answer is no object")
        return found

    def _asked(self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float) -> Any:
        try:
            headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body else {})
            request = self._client.param_serialize(
                method, path, query_params=[], header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            answer = self._client.call_api(*request, _request_timeout=(min(_CONNECT, seconds), seconds)).response
        except ApiException as error:
            raise ApiError(int(error.status or 0), str(error.reason)[:300]) from error
        except _FAILURES as error:
            raise ApiError(0, f"no answer: {str(getattr(error, 'reason', error))[:300]}") from error
        if answer.status < 300:
            return answer
        try:
            raise _refused(answer)
        finally:
            answer.release_conn()


@dataclass(frozen=True, slots=True)
class Listing:
    """Objects of one path, all or the one of a name: what :class:`forgeone_shim.cluster.watch.Watch` follows."""

    cluster: Cluster
    path: str
    name: str = ""

    def page(self, token: str) -> Mapping[str, Any]:
        """A part of the list; ``token`` is where the part before ended."""
        return self.cluster.read(f"{self.path}?{urlencode({**self._query, 'limit': PAGE, 'continue': token})}")

    def watch(self, version: str) -> Iterator[Mapping[str, Any]]:
        """What happened since that version."""
        return self.cluster.watch(self.path, {**self._query, "resourceVersion": version})

    @property
    def _query(self) -> dict[str, str]:
        # A name in this form is what resourceNames of RBAC allow to list and to watch.
        return {"fieldSelector": f"metadata.name={self.name}"} if self.name else {}


def _refused(answer: Any) -> ApiError:
    try:
        why = str(json.loads(answer.data)["message"])
    except (*_FAILURES, KeyError, TypeError):
        why = str(answer.reason)
    after = str(answer.headers.get("Retry-After", ""))
    return ApiError(int(answer.status), f"{answer.status}: {why[:300]}", float(after) if after.isdecimal() else 0.0)


def _events(answer: Any) -> Iterator[Mapping[str, Any]]:
    """A JSON document a line (kubernetes.io/docs/reference/using-api/api-concepts)."""
    left = b""
    for chunk in answer.stream(_CHUNK):
        *lines, left = (left + chunk).split(b"\n")
        if len(left) > _EVENT_MAX:
            raise ApiError(0, f"an event is larger than {_EVENT_MAX} bytes")
        for line in filter(bytes.strip, lines):
            found = json.loads(line)
            if not isinstance(found, dict):
                raise ApiError(0, "an event is no object")
            yield found
