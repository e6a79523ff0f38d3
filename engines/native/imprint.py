"""What lies in a container's bundle, as a fingerprint counts it: the digest of ``config.json`` and what it says."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any, Final

import msgspec

from engines.base import Imprint
from engines.native import checks
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import InternalError, NotFound, syscall_error
from forgeone_shim.kernel import bpf
from forgeone_shim.kernel.spawn import run

_VERSION_SECONDS: Final = 5.0


class _Capabilities(msgspec.Struct):
    bounding: tuple[str, ...] = ()


class _Hook(msgspec.Struct):
    path: str
    args: tuple[str, ...] = ()


class _Process(msgspec.Struct):
    capabilities: _Capabilities = msgspec.field(default_factory=_Capabilities)
    apparmor: str = msgspec.field(default="", name="apparmorProfile")
    rlimits: msgspec.Raw = msgspec.Raw()


class _Linux(msgspec.Struct):
    seccomp: msgspec.Raw = msgspec.Raw()


class _Config(msgspec.Struct):
    """What is needed of an OCI runtime configuration."""

    process: _Process
    linux: _Linux = msgspec.field(default_factory=_Linux)
    hooks: dict[str, list[_Hook]] = msgspec.field(default_factory=dict)
    annotations: dict[str, Any] = msgspec.field(default_factory=dict)


_ENCODER: Final = msgspec.json.Encoder(order="sorted")
_DECODER: Final = msgspec.json.Decoder(_Config)


class Version:
    """Of a program, asked again when its file has changed. Safe to call from many threads."""

    def __init__(self, path: str, name: str) -> None:
        self._path, self._name = path, name
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] = ()
        self._text = name

    def text(self) -> str:
        """``NAME VERSION``; the name alone where it says none.

        :raises ForgeError: it does not answer.
        """
        try:
            found = Path(self._path).stat()
        except OSError as error:
            raise syscall_error("stat", self._path, error) from error
        mark = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        with self._lock:
            if mark != self._seen:
                self._text = self._asked()
                self._seen = mark
            return self._text

    def _asked(self) -> str:
        said = run(self._path, [self._name, "--version"], Deadline.after(_VERSION_SECONDS)).text
        numbers = ".".join(str(part) for part in checks.parse_version(said))
        return f"{self._name} {numbers}".rstrip()


def seal(path: Path, container_id: str) -> str:
    """The digest of the configuration.

    :raises NotFound: there is no such container (any more).
    """
    return _digest(_read(path, container_id))


def imprint(path: Path, container_id: str, version: str) -> Imprint:
    """What the configuration says.

    :raises NotFound: there is no such container (any more).
    :raises InternalError: it is no such file.
    """
    content = _read(path, container_id)
    try:
        config = _DECODER.decode(content)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InternalError(f"{path} is not as it was written: {error}") from error
    # Compiled, where it could be, and then crun is told nothing else.
    compiled = config.annotations.get(bpf.ANNOTATION)
    found = compiled.encode() if isinstance(compiled, str) else bytes(config.linux.seccomp)
    return Imprint(
        version=version,
        seal=_digest(content),
        seccomp=_digest(found) if found else "",
        apparmor=config.process.apparmor,
        capabilities=config.process.capabilities.bounding,
        facts=_facts(config),
    )


def _facts(config: _Config) -> dict[str, str]:
    """Hooks without their timeouts, which are what was left of a deadline."""
    found = {}
    if config.hooks:
        found["hooks"] = _digest(_ENCODER.encode(config.hooks))
    if bytes(config.process.rlimits):
        found["rlimits"] = _digest(bytes(config.process.rlimits))
    return found


def _read(path: Path, container_id: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound("container", container_id) from error
    except OSError as error:
        raise syscall_error("read", path, error) from error


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
