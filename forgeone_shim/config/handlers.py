"""Runtime handlers as files: ``NAME.toml`` in a directory is the handler NAME, read strictly.

A pod keeps the handler it was started with: what is read here goes into its record.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, get_type_hints

from engines.base import HandlerSettings
from forgeone_shim import texts
from forgeone_shim.config import checks
from forgeone_shim.config.loader import checked
from forgeone_shim.errors import InvalidInput

BUILT_IN_PREFIX: Final = "forgeone-"
"""Begins the names of the handlers that need no file, one for each engine."""
DEFAULT_ENGINE: Final = "native"
WASM_ENGINE: Final = "wasm"
"""The engine whose pods may have containers of the default one, too."""
ISOLATING_ENGINE: Final = "microvm"
"""The engine whose pods share no kernel with others."""
AUTO_ENGINE: Final = "auto"
"""In a handler: the engine of each of its pods is chosen when it is started."""

_SUFFIX: Final = ".toml"
_MAX_BYTES: Final = 1 << 20
_MAX_PROFILE_BYTES: Final = 4 << 20
_READ: Final = frozenset({"name", "seccomp"})
"""Fields that are no keys of a file."""
# What a RuntimeClass may name: a label as in RFC 1123.
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """What a pod gets that asks for it by ``name``; the empty name is the default handler.

    ``engine`` runs its containers, or is :data:`AUTO_ENGINE`. ``cni_conf_dir`` is where the configuration of its pods'
    network is looked for; empty: where it is for every other pod. ``seccomp_profile`` is the file that ``seccomp`` was
    read from. ``default_env`` are variables of its containers that say nothing else of them, nor their images.
    ``wasm_only`` says that its pods have no programs of this host in them.
    """

    name: str = ""
    engine: str = DEFAULT_ENGINE
    """What runs the pod's containers; `"native"` unless given. `"auto"`: [chosen](auto.md) for each pod."""
    cni_conf_dir: str = ""
    """Where the network configuration of its pods is, if not where everybody's is."""
    privileged_without_host_devices: bool = False
    """`true`: privileged containers have only the devices that they ask for, and may use no others."""
    seccomp_profile: str = ""
    """The file of the profile that RuntimeDefault means in its pods, as in `native.seccomp_default_profile`."""
    seccomp: str = ""
    default_env: tuple[str, ...] = ()
    """Variables `NAME=value` of its pods' containers that say nothing else of them, nor their images."""
    wasm_only: bool = False
    """`true`, with `engine = "wasm"`: its pods run WebAssembly and nothing else. A container of another image is
    refused, which the native engine would run otherwise.
    """

    def __post_init__(self) -> None:
        if not self.engine:
            raise InvalidInput("engine", "is empty")
        if self.cni_conf_dir:
            checks.absolute_path("cni_conf_dir", self.cni_conf_dir)
        if self.seccomp_profile:
            checks.absolute_path("seccomp_profile", self.seccomp_profile)
        checks.each("default_env", self.default_env, texts.variable)
        if self.wasm_only and self.engine != WASM_ENGINE:
            raise InvalidInput("wasm_only", f"has a meaning with engine = {WASM_ENGINE!r} alone, not {self.engine!r}")

    @property
    def chooses(self) -> bool:
        """Whether each of its pods has an engine chosen for it."""
        return self.engine == AUTO_ENGINE

    @property
    def settings(self) -> HandlerSettings:
        """What its engine is told."""
        return HandlerSettings(seccomp=self.seccomp, host_devices=not self.privileged_without_host_devices)


def read(directory: Path) -> tuple[Handler, ...]:
    """Every handler that ``directory`` has, by name; none where there is no such directory.

    What begins with a dot or does not end with ``.toml`` is left alone.

    :raises InvalidInput: a file cannot be read, or a key or value in it is not one; names file and key.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(directory))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise InvalidInput("handlers_dir", f"{directory} cannot be read: {error.strerror}") from None
    wanted = [name for name in names if name.endswith(_SUFFIX) and not name.startswith(".")]
    return tuple(_handler(directory / name) for name in wanted)


def parse(name: str, text: str) -> Handler:
    """The handler of a file's content.

    :raises InvalidInput: names the key.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            "name", f"{name!r} is not 1..63 lower-case letters, digits and dashes, as RuntimeClasses have"
        )
    if name.startswith(BUILT_IN_PREFIX):
        raise InvalidInput("name", f"{name!r} begins with {BUILT_IN_PREFIX!r}, as the built-in handlers do")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput("content", f"is not TOML: {error}") from None
    hints = _hints()
    for key, value in table.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            raise InvalidInput(key, "is not a key of a handler", fix=f"did you mean {near[0]!r}?" if near else "")
        table[key] = checked(hints[key], value, key)
    return Handler(name=name, **table)


def file_keys() -> tuple[str, ...]:
    """What a file may say."""
    return tuple(item.name for item in fields(Handler) if item.name not in _READ)


def _hints() -> dict[str, Any]:
    hints = get_type_hints(Handler)
    return {name: hints[name] for name in file_keys()}


def _handler(path: Path) -> Handler:
    try:
        handler = parse(path.name.removesuffix(_SUFFIX), _text("content", path, _MAX_BYTES))
        if not handler.seccomp_profile:
            return handler
        return replace(handler, seccomp=_text("seccomp_profile", Path(handler.seccomp_profile), _MAX_PROFILE_BYTES))
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error.field}", error.reason, fix=error.fix) from None


def _text(key: str, path: Path, limit: int) -> str:
    # A fifo would be waited for.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidInput(key, f"{path} is not a regular file")
            found = file.read(limit + 1)
        if len(found) > limit:
            raise InvalidInput(key, f"{path} is larger than {limit} bytes")
        return found.decode()
    except OSError as error:
        raise InvalidInput(key, f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(key, f"{path} is not UTF-8: {error.reason}") from None
