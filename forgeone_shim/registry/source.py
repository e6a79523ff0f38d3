"""One repository on its endpoints: who is asked, in what order, with which credentials, and what an answer means.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import msgspec
import structlog

from forgeone_shim.errors import (
    FailedPrecondition,
    ForgeError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from forgeone_shim.registry.auth import MAX_TOKEN_RESPONSE, Authorizer, TokenRequest, parse_challenges
from forgeone_shim.registry.digest import digest_of, is_digest, matches
from forgeone_shim.registry.hosts import Endpoint, TlsSettings, split_url
from forgeone_shim.registry.manifest import (
    ACCEPT,
    MAX_CONFIG,
    MAX_MANIFEST,
    OCI_INDEX,
    Descriptor,
    Index,
    Malformed,
    Manifest,
    parse_manifest,
)
from forgeone_shim.registry.model import Credentials
from forgeone_shim.registry.reference import Reference
from forgeone_shim.registry.transport import Request, Response, Session, TransportError

MAX_REDIRECTS: Final = 5
MAX_PAGES: Final = 16
MAX_REFERRERS: Final = 4096
"""Of more than so many the last ones count: lists grow at their end."""

_ROUNDS: Final = 3
_MAX_RETRY_AFTER: Final = 30.0
_MAX_ERROR_BODY: Final = 16 * 1024
# What a registry that has never heard of the referrers API answers, in the field.
_NO_REFERRERS: Final = frozenset({400, 403, 404, 405, 406, 501})
_NEXT = re.compile(r'<([^<>]{1,4096})>\s*;\s*rel="?next"?', re.IGNORECASE)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(?:\d{1,18}|\*)")
_T = TypeVar("_T")


class _Error(msgspec.Struct, frozen=True):
    code: Annotated[str, msgspec.Meta(max_length=200)] = ""
    message: str = ""


class _Errors(msgspec.Struct, frozen=True):
    errors: list[_Error] = []


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or an index: as it was served, its digest, and what it says."""

    data: bytes
    digest: str
    content: Index | Manifest


class CorruptBlob(FailedPrecondition):
    """The bytes of a blob are not the ones its digest or its manifest promise."""


class Busy(Exception):
    """An endpoint's way of saying: later."""

    def __init__(self, what: str, after: float) -> None:
        super().__init__(what)
        self.what = what
        self.after = after


class Source:
    """Where one reference comes from. Thread-safe; lives as long as the pull's session."""

    def __init__(self, session: Session, reference: Reference, endpoints: Sequence[Endpoint]) -> None:
        self.session = session
        self.reference = reference
        self._endpoints = tuple(endpoints)
        self._unreachable: dict[Endpoint, ForgeError] = {}
        self._lock = threading.Lock()
        scope = f"repository:{reference.repository}:pull"
        self._ways = {e: Authorizer(e, scope, asker(session, e)) for e in self._endpoints}

    def manifest(self, reference: str) -> Document:
        """The manifest or index a tag or digest names. A tag is only asked of endpoints trusted to resolve.

        :raises NotFound: when the registry has none of that name.
        """
        return Document(*self.served(reference, parse_manifest))

    def served(
        self, reference: str, parse: Callable[[bytes, str, str], _T], *, optional: bool = False
    ) -> tuple[bytes, str, _T]:
        """What a tag or digest names: as it was served, its digest, and what ``parse`` makes of bytes, type and name.

        :param optional: that there is none is nothing to be logged.
        :raises NotFound: when the registry has none of that name.
        """
        by_digest = is_digest(reference)
        name = f"manifest {self.reference.name}{'@' if by_digest else ':'}{reference}"

        def ask(endpoint: Endpoint) -> tuple[bytes, str, _T]:
            answer = self._get(endpoint, f"manifests/{reference}", name, {"Accept": ACCEPT})
            try:
                data = answer.read(MAX_MANIFEST, name)
                claimed = answer.header("Docker-Content-Digest")
                content_type = answer.header("Content-Type")
            finally:
                answer.close()
            wanted = reference if by_digest else claimed if is_digest(claimed) else ""
            if wanted and not matches(wanted, data):
                raise Unavailable(f"{endpoint.origin}: {name} is not what its digest {wanted} says")
            return data, reference if by_digest else digest_of(data), parse(data, content_type, name)

        endpoints = [e for e in self._endpoints if (e.pull if by_digest else e.resolve)]
        return self._first(endpoints, name, ask, optional=optional)

    def referrers(self, digest: str, parse: Callable[[bytes, str, str], Sequence[_T]]) -> list[_T]:
        """What says that it is about the manifest of this digest, by the first endpoint that knows of something.

        Endpoints without the referrers API know of nothing. ``parse`` makes something of each page, type and name.

        https://github.com/opencontainers/distribution-spec/blob/main/spec.md#listing-referrers
        """
        endpoints = [e for e in self._endpoints if e.referrers]
        if not endpoints:
            return []
        name = f"referrers of {self.reference.name}@{digest}"

        def ask(endpoint: Endpoint) -> list[_T]:
            found: list[_T] = []
            url = self._url(endpoint, f"referrers/{digest}")
            for _ in range(MAX_PAGES):
                answer = self._get_url(endpoint, url, name, {"Accept": OCI_INDEX}, also=_NO_REFERRERS)
                try:
                    # Some answer every path with a page for people.
                    kind = answer.header("Content-Type").partition(";")[0].strip().lower()
                    if answer.status in _NO_REFERRERS or kind != OCI_INDEX:
                        drain(answer)
                        break
                    found = [*found, *parse(answer.read(MAX_MANIFEST, name), kind, name)][-MAX_REFERRERS:]
                    link = _NEXT.search(", ".join(answer.headers("Link")))
                finally:
                    answer.close()
                after = joined(url, link[1]) if link else ""
                if not after or foreign(url, after) or split_url(after) is None:
                    break
                url = after
            if not found:
                raise NotFound("referrers", f"{self.reference.name}@{digest}", where=endpoint.origin)
            return found

        try:
            return self._first(endpoints, name, ask, optional=True)
        except NotFound:
            return []

    def document(self, blob: Descriptor, limit: int = MAX_CONFIG, what: str = "config") -> bytes:
        """A small blob (an image's config), verified; ``what`` it is, for errors."""
        name = f"{what} {blob.digest}"
        if blob.size > limit:
            raise FailedPrecondition(f"{self.reference}: {name} claims {blob.size} bytes, more than {limit}")

        def ask(endpoint: Endpoint) -> bytes:
            answer = self._get(endpoint, f"blobs/{blob.digest}", name, {})
            try:
                data = answer.read(blob.size, name)
            finally:
                answer.close()
            if not matches(blob.digest, data):
                raise Unavailable(f"{endpoint.origin}: {name} is not what its digest says")
            return data

        return self._first(self.blob_endpoints(), name, ask)

    @property
    def credentials(self) -> Credentials | None:
        """What the registry itself, and no mirror of it, may be told."""
        return next((e.credentials for e in self._endpoints if e.credentials and not e.namespace), None)

    def blob_endpoints(self) -> list[Endpoint]:
        """Who may be asked for content by digest, best first."""
        return [e for e in self._endpoints if e.pull]

    def open_blob(self, blob: Descriptor, offset: int, endpoints: Sequence[Endpoint]) -> Response:
        """The body of a blob from ``offset`` on, from the first endpoint that gives it.

        :raises Unavailable: when none does now.
        """
        name = f"layer {blob.digest}"

        def ask(endpoint: Endpoint) -> Response:
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            answer = self._get(endpoint, f"blobs/{blob.digest}", name, headers)
            try:
                self._skip_to(answer, offset, name)
                if answer.length is not None and answer.length != blob.size - offset:
                    total = offset + answer.length
                    raise CorruptBlob(f"{endpoint.origin}: {name} has {total} bytes, its manifest says {blob.size}")
            except BaseException:
                answer.close()
                raise
            return answer

        return self._first(endpoints, name, ask, rounds=1)

    def _skip_to(self, answer: Response, offset: int, name: str) -> None:
        if answer.status == 206:
            match = _CONTENT_RANGE.fullmatch(answer.header("Content-Range"))
            if match is None or int(match[1]) != offset:
                raise TransportError(_origin(answer.url), f"it answered another range of {name} than asked for")
            return
        buffer = memoryview(bytearray(256 * 1024))
        left = offset
        while left:
            got = answer.readinto(buffer[: min(len(buffer), left)])
            self.session.check(f"while reading {name}")
            if not got:
                raise TransportError(_origin(answer.url), f"{name} ended early")
            left -= got

    def _first(
        self,
        endpoints: Sequence[Endpoint],
        name: str,
        ask: Callable[[Endpoint], _T],
        *,
        rounds: int = _ROUNDS,
        optional: bool = False,
    ) -> _T:
        """The first good answer; with none, the last endpoint's error (the registry itself), the others' beside it."""
        if not endpoints:
            raise FailedPrecondition(f"{self.reference}: no configured host may be asked for {name}")
        for last_round in (n == rounds - 1 for n in range(rounds)):
            failures: list[ForgeError] = []
            pause: float | None = None
            given_up = self._given_up(endpoints)
            for endpoint in endpoints:
                self.session.check(f"before {name}")
                if endpoint in given_up:
                    failures.append(given_up[endpoint])
                    continue
                try:
                    return ask(endpoint)
                except Busy as busy:
                    pause = max(pause or 0.0, busy.after)
                    failures.append(Unavailable(busy.what))
                except TimeoutError:
                    failures.append(Unavailable(f"{endpoint.origin}: no answer in time for {name}"))
                except TransportError as error:
                    pause = max(pause or 0.0, 0.2)
                    failures.append(Unavailable(str(error)))
                    if error.connecting:
                        with self._lock:
                            self._unreachable[endpoint] = failures[-1]
                except (NotFound, PermissionDenied, Unavailable, ResourceExhausted, CorruptBlob, Malformed) as error:
                    failures.append(error)
                if endpoint is not endpoints[-1] and not (optional and isinstance(failures[-1], NotFound)):
                    log = structlog.get_logger("registry")
                    log.warning("host failed, trying the next", what=name, why=failures[-1].what)
            if last_round or pause is None:
                break
            self.session.cancelled.wait(self.session.deadline.remaining(min(pause, _MAX_RETRY_AFTER)))
        raise _combined(failures)

    def _given_up(self, endpoints: Sequence[Endpoint]) -> dict[Endpoint, ForgeError]:
        """Hosts that could not be reached before, and why: passed over while another host is left."""
        with self._lock:
            found = {e: self._unreachable[e] for e in endpoints if e in self._unreachable}
        return found if len(found) < len(endpoints) else {}

    def _url(self, endpoint: Endpoint, what: str) -> str:
        url = f"{endpoint.origin}{quote(endpoint.path, safe='/%:@')}/{self.reference.repository}/{what}"
        return f"{url}?ns={quote(endpoint.namespace, safe=':')}" if endpoint.namespace else url

    def _get(self, endpoint: Endpoint, what: str, name: str, headers: dict[str, str]) -> Response:
        """One request, with authentication; the answer's status is 200 or 206."""
        return self._get_url(endpoint, self._url(endpoint, what), name, headers)

    def _get_url(
        self, endpoint: Endpoint, url: str, name: str, headers: dict[str, str], *, also: Collection[int] = ()
    ) -> Response:
        """The same of a URL of the endpoint's; the answer's status may be one of ``also``, too."""
        way = self._ways[endpoint]
        for _ in range(3):
            sent = way.header
            answer = self._follow(endpoint, url, {**dict(endpoint.headers), **headers}, sent)
            if answer.status in (200, 206) or answer.status in also:
                return answer
            try:
                if answer.status != 401 or foreign(url, answer.url):
                    raise refusal(answer, endpoint, name)
                challenges = parse_challenges(answer.headers("WWW-Authenticate"))
                drain(answer)
            finally:
                answer.close()
            way.answer(challenges, sent)
        raise PermissionDenied(f"{endpoint.origin}: unauthorized: it keeps refusing the tokens it asked for")

    def _follow(self, endpoint: Endpoint, url: str, headers: dict[str, str], authorization: str) -> Response:
        """GET through redirects. Another host gets no credentials, none of our headers and no client certificate."""
        own = {**headers, "Authorization": authorization} if authorization else headers
        public = {key: value for key, value in headers.items() if key in ("Accept", "Range")}
        at = url
        for _ in range(MAX_REDIRECTS + 1):
            away = foreign(url, at)
            tls = TlsSettings(ca=endpoint.tls.ca, skip_verify=endpoint.tls.skip_verify) if away else endpoint.tls
            answer = self.session.open(Request(at, public if away else own, tls, endpoint.dial_timeout))
            if answer.status not in (301, 302, 303, 307, 308):
                return answer
            target = answer.header("Location")
            drain(answer)
            answer.close()
            there = split_url(joined(at, target))
            if there is None:
                raise Unavailable(f"{endpoint.origin}: it redirects to something that is no URL")
            if there.scheme == "http" and at.startswith("https:"):
                raise Unavailable(f"{endpoint.origin}: it redirects to plain http at {there.netloc}")
            at = there._replace(fragment="").geturl()
        raise Unavailable(f"{endpoint.origin}: more than {MAX_REDIRECTS} redirects")


def asker(session: Session, endpoint: Endpoint) -> Callable[[TokenRequest], bytes]:
    """Asks token servers on behalf of an endpoint, with its settings for TLS."""

    def ask(request: TokenRequest) -> bytes:
        server = _origin(request.url)
        headers = {"Accept": "application/json"}
        if request.authorization:
            headers["Authorization"] = request.authorization
        if request.body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        wire = Request(request.url, headers, endpoint.tls, endpoint.dial_timeout, request.body)
        answer = session.open(wire)
        try:
            if answer.status == 200:
                return answer.read(MAX_TOKEN_RESPONSE, f"the token of {server}")
            if answer.status == 429 or answer.status >= 500:
                raise Busy(f"{server}: token server answered {answer.status}", _retry_after(answer))
            raise PermissionDenied(
                f"{endpoint.origin}: unauthorized: its token server {server} answered {answer.status}",
                fix="check the image pull secret",
            )
        finally:
            answer.close()

    return ask


def _combined(failures: Sequence[ForgeError]) -> ForgeError:
    """The last failure, with what the hosts before it said."""
    last = failures[-1]
    # A mirror and the registry behind it may be one server.
    others = "; ".join(dict.fromkeys(failure.what for failure in failures[:-1] if failure.what != last.what))
    if not others:
        return last
    if isinstance(last, NotFound):
        return NotFound(last.noun, last.name, where=f"{last.where or 'any host'} (before that: {others})")
    return type(last)(f"{last.what} (before that: {others})", fix=last.fix)


def refusal(answer: Response, endpoint: Endpoint, name: str) -> ForgeError | Busy:
    """What an answer other than success means."""
    said = _said(answer)
    match answer.status:
        case 404:
            noun, _, which = name.partition(" ")
            return NotFound(noun, which, where=endpoint.origin)
        case 401 | 403:
            return PermissionDenied(f"{endpoint.origin}: {name}: access denied ({answer.status}){said}")
        case 429:
            return Busy(f"{endpoint.origin}: {name}: too many requests (429){said}", _retry_after(answer))
        case status if status >= 500:
            return Busy(f"{endpoint.origin}: {name}: server error {status}{said}", _retry_after(answer))
        case status:
            return Unavailable(f"{endpoint.origin}: {name}: unexpected answer {status}{said}")


def _said(answer: Response) -> str:
    """The registry's own words about an error, made harmless; nothing when it is not in the specified form."""
    try:
        errors = msgspec.json.decode(answer.read(_MAX_ERROR_BODY, "an error"), type=_Errors).errors
    except (msgspec.MsgspecError, ValueError, RecursionError, ForgeError, TransportError):
        return ""
    words = ": ".join(part for part in (errors[0].code, errors[0].message) if part) if errors else ""
    return ": " + "".join(c for c in words if c.isprintable())[:200] if words else ""


def _retry_after(answer: Response) -> float:
    value = answer.header("Retry-After")
    return float(value) if value.isascii() and value.isdigit() and len(value) < 6 else 0.5


def drain(answer: Response) -> None:
    """Read a short body that does not matter, so that the connection can be used again."""
    try:
        answer.read(_MAX_ERROR_BODY, "an answer")
    except (ForgeError, TransportError):
        return


def joined(base: str, target: str) -> str:
    """What a Location header means; empty for what is no URL."""
    try:
        return urljoin(base, target)
    except ValueError:
        return ""


def foreign(url: str, other: str) -> bool:
    """Whether two URLs are of different servers, so that the second is told no secret of the first."""
    a, b = urlsplit(url), urlsplit(other)
    return (a.scheme, a.netloc) != (b.scheme, b.netloc)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
