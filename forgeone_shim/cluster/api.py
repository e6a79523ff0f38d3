"""An API server, asked with the Kubernetes client. Imported by the watch's own process alone: the client is large."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError, ReadTimeoutError

from forgeone_shim.cluster.names import GROUP, KIND, PLURAL, VERSION
from forgeone_shim.cluster.watch import ApiError
from forgeone_shim.dropins.files import replaceable, untrusted

PAGE: Final = 100
"""Objects of a list that are asked for at once."""

_UNAUTHORIZED: Final = 401
_NOT_FOUND: Final = 404
_EXISTS: Final = 409
_CONNECT: Final = 10.0
_ANSWER: Final = 30.0
# What one watch lasts, in seconds, at least and at most: servers are to lose their clients little by little.
_WATCH: Final = (240, 480)
# How long a watch may be silent, in seconds: servers send a bookmark each minute.
_SILENCE: Final = 150.0
_CHUNK: Final = 65536
_AFTER_MAX: Final = 600.0
_EVENT_MAX: Final = 8 << 20
# Keys of a kubeconfig that name files whose contents are used as they are when a client is made.
_FILES: Final = ("certificate-authority", "client-certificate", "client-key", "tokenFile")
_FAILURES: Final = (
    ConfigException,
    HTTPError,
    yaml.YAMLError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    # A proxy of a kind for which there is no library here.
    ImportError,
)


class Server:
    """Where a kubeconfig file leads to. The file, and those it names, are read anew when they have changed.

    :param scratch: a directory of root's alone for what of the file has to be files of its own.
    """

    def __init__(self, kubeconfig: Path, scratch: Path) -> None:
        self._file, self._scratch = kubeconfig, scratch
        self._client: client.ApiClient | None = None
        self._mark: tuple[object, ...] = ()

    def page(self, token: str) -> Mapping[str, Any]:
        """A part of a list of all, as new as can be; ``token`` is where the part before ended."""

        def ask(api: client.ApiClient) -> Any:
            return client.CustomObjectsApi(api).list_cluster_custom_object(
                GROUP,
                VERSION,
                PLURAL,
                limit=PAGE,
                _continue=token or None,
                _preload_content=False,
                _request_timeout=(_CONNECT, _ANSWER),
            )

        with _defined():
            return self._document(ask)

    def watch(self, version: str) -> Iterator[Mapping[str, Any]]:
        """What happened since that version, until the server ends it."""
        seconds = random.randint(*_WATCH)  # noqa: S311

        def ask(api: client.ApiClient) -> Any:
            return client.CustomObjectsApi(api).list_cluster_custom_object(
                GROUP,
                VERSION,
                PLURAL,
                watch=True,
                resource_version=version,
                allow_watch_bookmarks=True,
                timeout_seconds=seconds,
                _preload_content=False,
                _request_timeout=(_CONNECT, _SILENCE),
            )

        with _defined():
            answer = self._asked(ask)
        try:
            yield from _events(answer)
        except ReadTimeoutError:
            # Whether the server is still there, though its host is, the next request tells.
            return
        except HTTPError as error:
            raise ApiError(0, f"the watch broke off: {_short(error)}") from error
        finally:
            answer.close()

    def mark(self, name: str, patch: Mapping[str, Any]) -> None:
        """Merge into an object's status (RFC 7396), if it is still of the version that the patch names."""

        def ask(api: client.ApiClient) -> Any:
            return client.CustomObjectsApi(api).patch_cluster_custom_object_status(
                GROUP,
                VERSION,
                PLURAL,
                name,
                dict(patch),
                _content_type="application/merge-patch+json",
                _preload_content=False,
                _request_timeout=(_CONNECT, _ANSWER),
            )

        self._document(ask)

    def tell(self, event: Mapping[str, Any]) -> None:
        """Post an Event; one of that name may be there already."""

        body: Any = event

        def ask(api: client.ApiClient) -> Any:
            return client.CoreV1Api(api).create_namespaced_event(
                event["metadata"]["namespace"],
                body,
                _preload_content=False,
                _request_timeout=(_CONNECT, _ANSWER),
            )

        try:
            self._document(ask)
        except ApiError as error:
            if error.status != _EXISTS:
                raise

    def _document(self, ask: Callable[[client.ApiClient], Any]) -> Mapping[str, Any]:
        answer = self._asked(ask)
        try:
            found = json.loads(answer.read())
        except (HTTPError, ValueError, RecursionError) as error:
            raise ApiError(0, f"the answer cannot be read: {_short(error)}") from error
        finally:
            answer.release_conn()
        if not isinstance(found, dict):
            raise ApiError(0, "the answer is no object")
        return found

    def _asked(self, ask: Callable[[client.ApiClient], Any]) -> Any:
        """The answer to a request, its body unread."""
        try:
            answer = ask(self._connected())
        except ApiError:
            raise
        except ApiException as error:
            if error.status == _UNAUTHORIZED or not error.status:
                self._client = None
            raise _refused(error) from error
        except _FAILURES as error:
            self._client = None
            raise ApiError(0, _short(error)) from error
        return getattr(answer, "response", answer)

    def _connected(self) -> client.ApiClient:
        """A client that has what the files say now."""
        _trusted(self._file)
        named = [self._file, *_named(self._file)]
        for one in named[1:]:
            # Whoever chooses the authority is the API server.
            _trusted(one)
        mark = tuple((str(path), (status := path.stat()).st_ino, status.st_mtime_ns) for path in named)
        if self._client is None or mark != self._mark:
            settings = client.Configuration()
            load: Any = config.load_kube_config
            load(
                str(self._file),
                client_configuration=settings,
                persist_config=False,
                temp_file_path=str(self._scratch),
            )
            # A redirect would take the credentials elsewhere, and it is for the watch to try again.
            settings.retries = False
            settings.keep_alive = True
            self._client, self._mark = client.ApiClient(settings), mark
        return self._client


@contextmanager
def _defined() -> Iterator[None]:
    """Of all objects nothing is found where their kind is not known."""
    try:
        yield
    except ApiError as error:
        if error.status != _NOT_FOUND:
            raise
        why = f"{error}: the cluster knows no {KIND}; forge policy crd says what it is to know"
        raise ApiError(_NOT_FOUND, why) from None


def _refused(error: ApiException) -> ApiError:
    status = int(error.status or 0)
    try:
        why = str(json.loads(error.body or "")["message"])
    except (ValueError, KeyError, TypeError):
        why = _short(error)
    # Seconds, or a date (RFC 9110 section 10.2.3), which API servers do not send.
    after = str((error.headers or {}).get("Retry-After", ""))
    seconds = min(float(after), _AFTER_MAX) if after.isdecimal() else 0.0
    return ApiError(status, f"{status}: {why[:500]}" if status else why[:500], seconds)


def _trusted(path: Path) -> None:
    """A kubeconfig, or a file that it names, says whose word the node takes, and can name programs."""
    fault = untrusted(path.stat()) or replaceable(str(path))
    if fault:
        raise ApiError(0, f"{path} is not trusted: {fault}")


def _named(path: Path) -> list[Path]:
    """The files that a kubeconfig names."""
    found = yaml.safe_load(path.read_bytes())
    if not isinstance(found, dict):
        raise ApiError(0, f"{path} is no kubeconfig")
    entries = [*(found.get("clusters") or ()), *(found.get("users") or ())]
    parts = [part for entry in entries if isinstance(entry, dict) for part in entry.values() if isinstance(part, dict)]
    names = [part[key] for part in parts for key in _FILES if isinstance(part.get(key), str)]
    return [one for one in (path.parent / name for name in names) if one.exists()]


def _events(answer: Any) -> Iterator[Mapping[str, Any]]:
    """A JSON document a line (kubernetes.io/docs/reference/using-api/api-concepts)."""
    left = b""
    for chunk in answer.stream(_CHUNK):
        *lines, left = (left + chunk).split(b"\n")
        if len(left) > _EVENT_MAX:
            raise ApiError(0, f"an event is larger than {_EVENT_MAX} bytes")
        for line in lines:
            if line.strip():
                yield _event(line)


def _event(line: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ApiError(0, f"an event cannot be read: {_short(error)}") from error
    if not isinstance(found, dict):
        raise ApiError(0, "an event is no object")
    return found


def _short(error: BaseException) -> str:
    """What libraries say, without the names of their objects."""
    reason = getattr(error, "reason", None)
    text = " ".join(str(reason if isinstance(reason, (str, BaseException)) else error).split())
    return f"{text or type(error).__name__}"[:500]
