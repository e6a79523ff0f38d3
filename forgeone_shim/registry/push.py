"""Giving content to a registry: blobs it lacks, then the manifest that names them.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md#push
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import quote

from forgeone_shim.errors import FailedPrecondition, Unavailable
from forgeone_shim.registry.auth import Authorizer, parse_challenges
from forgeone_shim.registry.hosts import Endpoint, TlsSettings, split_url
from forgeone_shim.registry.layout import Blob
from forgeone_shim.registry.reference import Reference
from forgeone_shim.registry.source import Busy, asker, drain, foreign, joined, refusal
from forgeone_shim.registry.transport import Request, Response, Session, TransportError

_CHUNK: Final = 256 * 1024
_TRIES: Final = 3


class Target:
    """One repository to give content to. Lives as long as its session."""

    def __init__(self, session: Session, reference: Reference, endpoints: Sequence[Endpoint]) -> None:
        """``endpoints`` are those of the registry; what is pushed goes to the registry itself and to no mirror.

        :raises FailedPrecondition: nothing may be pushed there.
        """
        self._session, self.reference = session, reference
        self._endpoints = [each for each in endpoints if each.push and not each.namespace]
        if not self._endpoints:
            raise FailedPrecondition(f"{reference}: its hosts.toml lets nothing be pushed to {reference.registry}")
        scope = f"repository:{reference.repository}:pull,push"
        self._ways = {each: Authorizer(each, scope, asker(session, each)) for each in self._endpoints}

    def push(self, blobs: Iterable[Blob], manifest: bytes, media_type: str, tag: str) -> None:
        """Blobs first, so that the manifest never names what is not there.

        :raises PermissionDenied: the registry does not let us. Unavailable: it does not answer, or breaks off.
        """
        for blob in blobs:
            self._blob(blob)
        name = f"manifest {self.reference.name}:{tag}"
        headers = {"Content-Type": media_type}
        self._expect(self._reach("PUT", f"manifests/{tag}", headers, manifest), name, 201)

    def _blob(self, blob: Blob) -> None:
        name = f"blob {blob.digest}"
        endpoint, _, found = self._reach("HEAD", f"blobs/{blob.digest}", {}, None)
        found.close()
        if found.status == 200:
            return
        begun = self._reach("POST", "blobs/uploads/", {"Content-Length": "0"}, b"")
        location = begun[2].header("Location")
        self._expect(begun, name, 202)
        at = split_url(joined(begun[2].url, location))
        if at is None or (at.scheme == "http" and endpoint.scheme == "https"):
            raise Unavailable(f"{endpoint.origin}: it says to upload to something that is no URL of it")
        query = f"{at.query}&" if at.query else ""
        url = at._replace(query=f"{query}digest={quote(blob.digest)}", fragment="").geturl()
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        answer = self._ask(endpoint, "PUT", url, headers, lambda: _pieces(blob))
        self._expect((endpoint, url, answer), name, 201)

    def _reach(
        self, method: str, what: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[Endpoint, str, Response]:
        """The answer of the first endpoint that can be reached; the others are not asked again."""
        while True:
            endpoint = self._endpoints[0]
            url = f"{endpoint.origin}{quote(endpoint.path, safe='/%:@')}/{self.reference.repository}/{what}"
            try:
                return endpoint, url, self._ask(endpoint, method, url, headers, body)
            except Unavailable:
                if len(self._endpoints) == 1:
                    raise
                self._endpoints.pop(0)

    def _ask(
        self,
        endpoint: Endpoint,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Callable[[], Iterable[bytes]] | None,
    ) -> Response:
        way = self._ways[endpoint]
        away = foreign(endpoint.origin, url)
        tls = TlsSettings(ca=endpoint.tls.ca, skip_verify=endpoint.tls.skip_verify) if away else endpoint.tls
        for left in reversed(range(_TRIES)):
            sent = way.header
            secrets = {} if away else {**dict(endpoint.headers), **({"Authorization": sent} if sent else {})}
            try:
                answer = self._session.open(
                    Request(url, {**secrets, **headers}, tls, endpoint.dial_timeout, body, method)
                )
                if answer.status != 401 or away or not left:
                    return answer
                challenges = parse_challenges(answer.headers("WWW-Authenticate"))
                drain(answer)
                answer.close()
                way.answer(challenges, sent)
            except TransportError as error:
                raise Unavailable(str(error)) from None
            except Busy as busy:
                raise Unavailable(busy.what) from None
            except TimeoutError:
                raise Unavailable(f"{endpoint.origin}: no answer in time") from None
        raise AssertionError("the last try returns")

    @staticmethod
    def _expect(found: tuple[Endpoint, str, Response], name: str, status: int) -> None:
        endpoint, _, answer = found
        try:
            if answer.status == status:
                drain(answer)
                return
            why = refusal(answer, endpoint, name)
        finally:
            answer.close()
        raise Unavailable(why.what) if isinstance(why, Busy) else why


def _pieces(blob: Blob) -> Iterator[bytes]:
    buffer = memoryview(bytearray(_CHUNK))
    source = blob.open()
    try:
        while got := source.readinto(buffer):
            yield bytes(buffer[:got])
    finally:
        source.close()
