"""Registry authentication: ``WWW-Authenticate`` challenges and the ways to answer them.

RFC 7235 and 7617; https://distribution.github.io/distribution/spec/auth/token/ and .../spec/auth/oauth/
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final
from urllib.parse import parse_qsl, urlencode

import msgspec

from forgeone_shim.errors import PermissionDenied, Unavailable
from forgeone_shim.registry.hosts import Endpoint, split_url
from forgeone_shim.registry.model import Credentials

MAX_TOKEN_RESPONSE: Final = 256 * 1024
_MAX_TOKEN: Final = 64 * 1024
_MAX_HEADER: Final = 8 * 1024
_MAX_CHALLENGES: Final = 16
_CLIENT_ID: Final = "forgeone"

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"[\s,]*({_WORD})(?=[\s,]|$)")
_PARAM = re.compile(rf'[\s,]*({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_WORD}))(?=[\s,]|$)')
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))")
_ESCAPE = re.compile(r"\\(.)")
_BEARER = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in that a server offers; the scheme and the names of parameters are in lower case."""

    scheme: str
    params: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What to ask a token server. ``authorization`` and ``body`` hold secrets."""

    url: str
    authorization: str = field(default="", repr=False)
    body: bytes | None = field(default=None, repr=False)


class TokenReply(msgspec.Struct, frozen=True):
    """A token server's answer; ``token`` and ``access_token`` mean the same."""

    token: Annotated[str, msgspec.Meta(max_length=_MAX_TOKEN)] | None = None
    access_token: Annotated[str, msgspec.Meta(max_length=_MAX_TOKEN)] | None = None


def parse_challenges(headers: Sequence[str]) -> tuple[Challenge, ...]:
    """Read the values of all ``WWW-Authenticate`` headers; what does not parse ends that header's list."""
    found: list[Challenge] = []
    for header in headers:
        if len(header) <= _MAX_HEADER:
            found += _parse_header(header)
    return tuple(found[:_MAX_CHALLENGES])


def _parse_header(text: str) -> list[Challenge]:
    found: list[Challenge] = []
    at = 0
    while len(found) < _MAX_CHALLENGES and (scheme := _SCHEME.match(text, at)):
        at = scheme.end()
        params: dict[str, str] = {}
        while param := _PARAM.match(text, at):
            name, quoted, plain = param.groups()
            params.setdefault(name.lower(), _ESCAPE.sub(r"\1", quoted) if quoted is not None else plain)
            at = param.end()
        if not params and (opaque := _TOKEN68.match(text, at)) and _PARAM.match(text, at) is None:
            at = opaque.end()
        found.append(Challenge(scheme[1].lower(), params))
    return found


def basic(user: str, password: str) -> str:
    """The value of an ``Authorization`` header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def plan_token(challenge: Challenge, endpoint: Endpoint, credentials: Credentials | None, scope: str) -> TokenRequest:
    """How to ask for a token with what we have; without credentials, anonymously.

    :raises PermissionDenied: when the challenge would have us send secrets in clear or to nowhere.
    """
    realm = split_url(challenge.params.get("realm", ""))
    if realm is None:
        raise PermissionDenied(f"{endpoint.origin}: asks for a token but names no usable token server")
    if realm.scheme == "http" and endpoint.scheme != "http":
        raise PermissionDenied(f"{endpoint.origin}: its token server is plain http", fix="use a token server with TLS")
    url = realm._replace(query="", fragment="").geturl()
    service, scopes = challenge.params.get("service", ""), challenge.params.get("scope", "") or scope
    refresh = credentials.refresh_token() if credentials else ""
    if refresh:
        form = {"grant_type": "refresh_token", "service": service, "client_id": _CLIENT_ID, "scope": scopes}
        return TokenRequest(url, body=urlencode({**form, "refresh_token": refresh}).encode())
    query = [*parse_qsl(realm.query, keep_blank_values=True)]
    query += [("service", service)] if service else []
    query += [("scope", one) for one in scopes.split()]
    user, password = credentials.login() if credentials else ("", "")
    return TokenRequest(f"{url}?{urlencode(query)}", basic(user, password) if user else "")


def read_token(data: bytes, server: str) -> str:
    """The token in a token server's answer, safe to put in a header."""
    try:
        reply = msgspec.json.decode(data, type=TokenReply)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Unavailable(f"{server}: its answer is not a token") from None
    token = reply.access_token or reply.token or ""
    if not _BEARER.fullmatch(token):
        raise Unavailable(f"{server}: its answer holds no usable token")
    return token


class Authorizer:
    """The way into one endpoint for one pull. Thread-safe; secrets live as long as it does."""

    def __init__(self, endpoint: Endpoint, scope: str, ask: Callable[[TokenRequest], bytes]) -> None:
        self._endpoint = endpoint
        self._credentials = endpoint.credentials
        self._scope = scope
        self._ask = ask
        self._lock = threading.Lock()
        token = self._credentials.registry_token if self._credentials else ""
        if token and not _BEARER.fullmatch(token):
            raise PermissionDenied(f"{endpoint.origin}: the registry token has characters no token can have")
        self._header = f"Bearer {token}" if token else ""

    @property
    def header(self) -> str:
        """What to send as ``Authorization`` now; empty for nothing."""
        with self._lock:
            return self._header

    def answer(self, challenges: Sequence[Challenge], sent: str) -> None:
        """Find a new header after ``sent`` was answered with 401.

        :raises PermissionDenied: when nothing we have answers any challenge.
        """
        with self._lock:
            if self._header != sent:
                return  # another thread found one while this one was being refused
            schemes = {challenge.scheme: challenge for challenge in reversed(challenges)}
            fixed = bool(self._credentials and self._credentials.registry_token)
            if "bearer" in schemes and not fixed:
                request = plan_token(schemes["bearer"], self._endpoint, self._credentials, self._scope)
                server = request.url.partition("?")[0]
                self._header = f"Bearer {read_token(self._ask(request), server)}"
                return
            user, password = self._credentials.login() if self._credentials else ("", "")
            if "basic" in schemes and user and not sent:
                self._header = basic(user, password)
                return
        had = "the credentials given were refused" if self._credentials else "no credentials for it were given"
        raise PermissionDenied(f"{self._endpoint.origin}: unauthorized: {had}", fix="check the image pull secret")
