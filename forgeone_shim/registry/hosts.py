"""Where to ask for an image: ``certs.d/<host>/hosts.toml`` in containerd's format, and ``_default``.

https://github.com/containerd/containerd/blob/main/docs/hosts.md

Every key of that format is known and any other is an error. ForgeOne adds one table, ``auth``, at the top level (for
``server``) or below a host; it holds ``username``, ``password``, ``auth``, ``identity_token``, ``registry_token``, or
``file``, the path of a TOML file with those keys. The file that holds secrets must be readable by its owner alone::

    [host."https://mirror.example"]
      capabilities = ["pull", "resolve"]
      [host."https://mirror.example".auth]
        file = "mirror-auth.toml"

Credentials that come with a pull go only to the host they are for, never to another mirror.
"""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import SplitResult, urlsplit

from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.registry.model import Credentials
from forgeone_shim.registry.reference import DEFAULT_REGISTRY

DOCKER_HUB: Final = "registry-1.docker.io"
DEFAULT_DIAL_TIMEOUT: Final = 30.0
_DOCKER_NAMES: Final = frozenset({DEFAULT_REGISTRY, DOCKER_HUB, "index.docker.io"})
_CAPABILITIES: Final = frozenset({"pull", "resolve", "push", "referrers"})
_HOST_KEYS: Final = frozenset(
    {"capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout", "auth"}
)
_AUTH_KEYS: Final = frozenset({"username", "password", "auth", "identity_token", "registry_token"})
_MAX_FILE: Final = 1 << 20
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PATH_TEXT = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)(h|ms|m|s))")
_UNIT: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """How to know a server, and how to be known by it. A client pair without a key has both in one file."""

    ca: tuple[Path, ...] = ()
    client: tuple[tuple[Path, Path | None], ...] = ()
    skip_verify: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One host to ask, ready to use.

    ``path`` is the API root (``/v2``). ``namespace`` is sent as ``ns`` to a host that is not the registry itself.
    """

    scheme: str
    host: str
    path: str
    namespace: str = ""
    pull: bool = True
    resolve: bool = True
    push: bool = True
    referrers: bool = True
    tls: TlsSettings = TlsSettings()
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    dial_timeout: float = DEFAULT_DIAL_TIMEOUT
    credentials: Credentials | None = None

    @property
    def origin(self) -> str:
        """Scheme and host: what errors and logs call this endpoint."""
        return f"{self.scheme}://{self.host}"


def endpoints_for(config_path: Path, registry: str, credentials: Credentials | None = None) -> tuple[Endpoint, ...]:
    """The endpoints for a registry in the order to try, with the caller's credentials where they belong.

    :raises FailedPrecondition: naming the file when it cannot be used.
    """
    directory = _directory(config_path, registry)
    if directory is None:
        plan: tuple[Endpoint, ...] = (_default_endpoint(registry),)
    else:
        file = directory / "hosts.toml"
        text = _read(file)
        if text.strip():
            plan = parse_hosts(text, directory, registry, secret=_is_secret(file))
        else:
            plan = (replace(_default_endpoint(registry), tls=_docker_layout(directory)),)
    return place_credentials(plan, registry, credentials)


def place_credentials(
    plan: tuple[Endpoint, ...], registry: str, credentials: Credentials | None
) -> tuple[Endpoint, ...]:
    """Give the caller's credentials to the endpoints of the host they are for, and to no other."""
    if not credentials:
        return plan
    meant = _address(credentials.server_address) if credentials.server_address else registry
    return tuple(replace(e, credentials=credentials) if _same_host(e, meant) else e for e in plan)


def parse_hosts(text: str, directory: Path, registry: str, *, secret: bool) -> tuple[Endpoint, ...]:
    """Plan from the text of a ``hosts.toml``; ``secret`` says that only its owner can read the file.

    :raises FailedPrecondition: naming the file and the key that is wrong.
    """
    reader = _HostsReader(directory, registry, secret)
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise reader.bad("", f"not TOML: {error}") from None
    return reader.read(table)


class _HostsReader:
    """Turns the tables of one file into endpoints; knows where it is for error messages."""

    def __init__(self, directory: Path, registry: str, secret: bool) -> None:
        self._directory = directory
        self._registry = registry
        self._secret = secret

    def bad(self, key: str, why: str) -> FailedPrecondition:
        where = f"{self._directory / 'hosts.toml'}"
        return FailedPrecondition(f"{where}: {key + ': ' if key else ''}{why}", fix="correct the file and pull again")

    def read(self, table: Mapping[str, object]) -> tuple[Endpoint, ...]:
        hosts = table.get("host", {})
        if not isinstance(hosts, dict):
            raise self.bad("host", "must be tables named by URL")
        plan: list[Endpoint] = []
        for url, settings in hosts.items():
            if not isinstance(settings, dict):
                raise self.bad(f'host."{url}"', "must be a table")
            plan += self._endpoint(self._url(url, bool(settings.get("override_path"))), settings, f'host."{url}".')
        server = table.get("server", "")
        if not isinstance(server, str):
            raise self.bad("server", "must be a URL")
        root = {key: value for key, value in table.items() if key not in ("host", "server")}
        base = self._url(server, bool(root.get("override_path"))) if server else _default_endpoint(self._registry)
        plan += self._endpoint(base, root, "")
        return tuple(plan)

    def _endpoint(self, base: Endpoint, settings: Mapping[str, object], at: str) -> list[Endpoint]:
        for key in settings:
            if key not in _HOST_KEYS:
                raise self.bad(at + key, "unknown key")
        capabilities = self._strings(settings, "capabilities", at)
        if unknown := [c for c in capabilities if c.lower() not in _CAPABILITIES]:
            raise self.bad(at + "capabilities", f"unknown capability {unknown[0]!r}")
        can = {c.lower() for c in capabilities} or _CAPABILITIES
        tls = TlsSettings(
            ca=tuple(self._directory / name for name in self._strings(settings, "ca", at)),
            client=self._pairs(settings.get("client", ()), at),
            skip_verify=self._flag(settings, "skip_verify", at),
        )
        self._flag(settings, "override_path", at)
        endpoint = replace(
            base,
            pull="pull" in can,
            resolve="resolve" in can,
            push="push" in can,
            referrers="referrers" in can,
            tls=tls,
            headers=self._headers(settings.get("header", {}), at),
            dial_timeout=self._duration(settings.get("dial_timeout", ""), at),
            credentials=self._auth(settings.get("auth"), at),
        )
        if endpoint.scheme == "http" and tls != TlsSettings() and not endpoint.host.endswith(":80"):
            # containerd's rule: TLS settings beside an http URL mean "try TLS, then plain".
            return [replace(endpoint, scheme="https"), endpoint]
        return [endpoint]

    def _url(self, text: str, override_path: bool) -> Endpoint:
        parts = split_url(text if "://" in text else f"https://{text}")
        if parts is None or parts.query or parts.fragment:
            raise self.bad("host or server", f"{_harmless(text)!r} is not an http or https URL of a host")
        path = "" if parts.path in ("", "/") else str(PurePosixPath("/", *_safe_segments(parts.path)))
        if not override_path and not path.endswith("/v2"):
            path += "/v2"
        host = parts.netloc.lower()
        itself = _canonical(parts.scheme, host) == _canonical(parts.scheme, _upstream(self._registry))
        return Endpoint(parts.scheme, host, path, namespace="" if itself else self._registry)

    def _strings(self, settings: Mapping[str, object], key: str, at: str) -> list[str]:
        value = settings.get(key, [])
        if isinstance(value, str):
            return [value]
        if isinstance(value, list):
            texts = [item for item in value if isinstance(item, str)]
            if len(texts) == len(value):
                return texts
        raise self.bad(at + key, "must be a string or a list of strings")

    def _flag(self, settings: Mapping[str, object], key: str, at: str) -> bool:
        value = settings.get(key, False)
        if not isinstance(value, bool):
            raise self.bad(at + key, "must be true or false")
        return value

    def _pairs(self, value: object, at: str) -> tuple[tuple[Path, Path | None], ...]:
        pairs: list[tuple[Path, Path | None]] = []
        for item in [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [None]:
            match item:
                case str():
                    pairs.append((self._directory / item, None))
                case [str(cert), str(key)]:
                    pairs.append((self._directory / cert, self._directory / key if key else None))
                case _:
                    raise self.bad(at + "client", "must be a path, a list of paths or a list of [cert, key] pairs")
        return tuple(pairs)

    def _headers(self, value: object, at: str) -> tuple[tuple[str, str], ...]:
        if not isinstance(value, dict):
            raise self.bad(at + "header", "must be a table")
        headers: list[tuple[str, str]] = []
        for name, texts in value.items():
            if not _HEADER_NAME.fullmatch(name):
                raise self.bad(at + "header", f"{name!r} is not a header name")
            for text in [texts] if isinstance(texts, str) else texts if isinstance(texts, list) else [None]:
                if not isinstance(text, str) or not text.isascii() or not text.isprintable():
                    raise self.bad(f"{at}header.{name}", "must be printable text or a list of it")
                headers.append((name, text))
        return tuple(headers)

    def _duration(self, value: object, at: str) -> float:
        if value == "":
            return DEFAULT_DIAL_TIMEOUT
        parts = _DURATION.findall(value) if isinstance(value, str) and len(value) < 32 else []
        seconds = sum(float(number) * _UNIT[unit] for number, unit in parts)
        if "".join(number + unit for number, unit in parts) != value or not 0 < seconds <= 3600:
            raise self.bad(at + "dial_timeout", "must be a duration such as 500ms or 10s, at most 1h")
        return seconds

    def _auth(self, value: object, at: str) -> Credentials | None:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.bad(at + "auth", "must be a table")
        if set(value) == {"file"} and isinstance(value["file"], str):
            path = self._directory / value["file"]
            if not _is_secret(path):
                raise _exposed(path)
            try:
                value = tomllib.loads(_read(path))
            except (ValueError, RecursionError):
                raise FailedPrecondition(f"{path}: not TOML") from None
        elif not self._secret:
            raise _exposed(self._directory / "hosts.toml")
        fields = {key: text for key, text in value.items() if key in _AUTH_KEYS and isinstance(text, str)}
        if len(fields) != len(value) or not fields:
            raise self.bad(at + "auth", f"takes {', '.join(sorted(_AUTH_KEYS))} (text), or file alone")
        return Credentials(**fields)


def split_url(text: str) -> SplitResult | None:
    """An absolute http or https URL without user info and control characters, or ``None``."""
    if len(text) > 8192 or not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        return None
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or port == 0:
        return None
    if not _PATH_TEXT.fullmatch(parts.path):
        return None
    return parts


def _directory(config_path: Path, registry: str) -> Path | None:
    host, colon, port = registry.rpartition(":")
    names = [f"{host}_{port}_", registry] if colon and port.isdigit() else [registry]
    try:
        return next((config_path / name for name in [*names, "_default"] if (config_path / name).is_dir()), None)
    except OSError as error:
        raise FailedPrecondition(f"{config_path}: {error.strerror}") from error


def _docker_layout(directory: Path) -> TlsSettings:
    """Docker's folder layout: ``*.crt`` are CAs, ``*.cert`` with ``*.key`` are client certificates."""
    certs = sorted(directory.glob("*.cert"))
    keys = [cert.with_suffix(".key") for cert in certs]
    return TlsSettings(
        ca=tuple(sorted(directory.glob("*.crt"))),
        client=tuple((cert, key if key.exists() else None) for cert, key in zip(certs, keys, strict=True)),
    )


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
        text = data.decode()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise FailedPrecondition(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise FailedPrecondition(f"{path}: not UTF-8 text") from None
    if len(data) > _MAX_FILE:
        raise FailedPrecondition(f"{path}: larger than {_MAX_FILE} bytes")
    return text


def _is_secret(path: Path) -> bool:
    try:
        status = path.stat()
    except OSError as error:
        raise FailedPrecondition(f"{path}: {error.strerror}") from error
    return not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)


def _exposed(path: Path) -> FailedPrecondition:
    return FailedPrecondition(
        f"{path}: holds credentials and others than its owner can read it", fix=f"chmod 600 {path}"
    )


def _upstream(registry: str) -> str:
    return DOCKER_HUB if registry == DEFAULT_REGISTRY else registry


def _default_endpoint(registry: str) -> Endpoint:
    return Endpoint("https", _upstream(registry), "/v2")


def _canonical(scheme: str, authority: str) -> str:
    """A host with its port spelled out; Docker Hub's several names are one."""
    host, port = authority.lower(), "443" if scheme == "https" else "80"
    head, colon, tail = host.rpartition(":")
    if colon and tail.isdigit() and not head.endswith(":"):
        host, port = head, tail
    return f"{DOCKER_HUB if host in _DOCKER_NAMES else host}:{port}"


def _address(server_address: str) -> str:
    """The host of a credential's server address, which may be a host or a URL such as https://index.docker.io/v1/."""
    text = server_address.strip()
    scheme, found, rest = text.rpartition("://")
    host = rest.partition("/")[0]
    # Only an explicit default port can be dropped: "registry" and "https://registry" mean the same host.
    return _canonical(scheme, host) if found else host


def _same_host(endpoint: Endpoint, meant: str) -> bool:
    return _canonical(endpoint.scheme, endpoint.host) == _canonical(endpoint.scheme, meant)


def _safe_segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment not in ("", ".", "..")]


def _harmless(text: str) -> str:
    """A URL for an error message: without anything that may be a password."""
    scheme, found, rest = text.rpartition("://")
    return f"{scheme if found else 'https'}://{rest.rpartition('@')[2]}"[:200]
