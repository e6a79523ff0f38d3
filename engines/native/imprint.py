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
    ambient: tuple[str, ...] = ()


class _Hook(msgspec.Struct):
    path: str
    args: tuple[str, ...] = ()


class _Process(msgspec.Struct):
    env: tuple[str, ...] = ()
    capabilities: _Capabilities = msgspec.field(default_factory=_Capabilities)
    apparmor: str = msgspec.field(default="", name="apparmorProfile")
    selinux: str = msgspec.field(default="", name="selinuxLabel")
    rlimits: msgspec.Raw = msgspec.Raw()


class _Device(msgspec.Struct):
    path: str
    type: str
    major: int = -1
    minor: int = -1


class _Rule(msgspec.Struct):
    allow: bool
    access: str = ""
    type: str = ""
    major: int = -1
    minor: int = -1


class _Resources(msgspec.Struct):
    devices: tuple[_Rule, ...] = ()


class _Linux(msgspec.Struct):
    seccomp: msgspec.Raw = msgspec.Raw()
    devices: tuple[_Device, ...] = ()
    resources: _Resources = msgspec.field(default_factory=_Resources)


class _Mount(msgspec.Struct):
    destination: str
    type: str = ""
    options: tuple[str, ...] = ()


class _Config(msgspec.Struct):
    """What is needed of an OCI runtime configuration."""

    process: _Process
    linux: _Linux = msgspec.field(default_factory=_Linux)
    mounts: tuple[_Mount, ...] = ()
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
    """Hooks without their timeouts, which are what was left of a deadline.

    Of mounts what they are and where, as their sources are of this pod: the node adds some, and annotations ask for
    others than the pod's specification does. So it is with variables and devices.
    """
    process = config.process
    found = {
        "env": _digest(_ENCODER.encode(sorted({one.partition("=")[0] for one in process.env}))),
        "mounts": _digest(_ENCODER.encode(config.mounts)),
    }
    if config.linux.devices:
        found["devices"] = _devices(config.linux)
    if process.capabilities.ambient:
        found["ambient"] = " ".join(sorted(process.capabilities.ambient))
    if process.selinux:
        # user:role:type:level, and the level is another in each pod.
        found["selinux"] = ":".join(process.selinux.split(":")[:3])
    if config.hooks:
        found["hooks"] = _digest(_ENCODER.encode(config.hooks))
    if bytes(config.process.rlimits):
        found["rlimits"] = _digest(bytes(config.process.rlimits))
    return found


def _devices(linux: _Linux) -> str:
    """Each with what may be done to it; a container that may do everything to all has those of its host."""
    allowed = [one for one in linux.resources.devices if one.allow]
    if any(not one.type for one in allowed):
        return "all"
    access = {(one.type, one.major, one.minor): one.access for one in allowed}
    return " ".join(
        sorted(
            f"{one.path}={one.type}{one.major}:{one.minor}:{access.get((one.type, one.major, one.minor), '')}"
            for one in linux.devices
        )
    )


def _read(path: Path, container_id: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound("container", container_id) from error
    except OSError as error:
        raise syscall_error("read", path, error) from error


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
