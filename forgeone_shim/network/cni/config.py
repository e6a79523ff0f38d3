"""Network configurations: what is in the files of a folder, checked, in the order in which it counts.

CNI specification, section 1; which file counts when there are several is convention: the first by name.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from forgeone_shim.errors import InvalidInput
from forgeone_shim.network.cni.plugin import VERSIONS, Json

SUFFIXES: Final = (".conf", ".conflist", ".json")
NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_SIZE_MAX: Final = 1 << 20
_VERSION: Final = re.compile(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True)
class NetworkList:
    """A network: its plugins' configurations in the order of ADD. ``source`` is the file, for people.

    ``version`` is the one in force; ``candidates`` are those it may be, the newest first, where there is a choice.
    """

    name: str
    version: str
    plugins: tuple[Json, ...]
    source: str = ""
    disable_check: bool = False
    disable_gc: bool = False
    candidates: tuple[str, ...] = ()

    @property
    def types(self) -> tuple[str, ...]:
        """The plugins' types."""
        return tuple(str(plugin["type"]) for plugin in self.plugins)

    def at_least(self, version: str) -> bool:
        """Whether the version in force has what came with ``version``."""
        return VERSIONS.index(self.version) >= VERSIONS.index(version)


@dataclass(frozen=True, slots=True)
class Folder:
    """What a folder holds for new pods: ``networks``, or the ``problem`` with one of those that count.

    ``present`` says that there is a configuration, be it a bad one, or that nobody can tell.
    """

    networks: tuple[NetworkList, ...] = ()
    problem: str = ""
    present: bool = False


def read_folder(folder: str, at_most: int) -> Folder:
    """The first ``at_most`` configurations (0: all) by name. A bad one among them is told, never passed over."""
    networks: list[NetworkList] = []
    try:
        names = files_in(folder)
    except OSError as error:
        # There may well be one: pods must not go on another network meanwhile.
        return Folder(problem=f"{folder} cannot be read: {error.strerror}", present=True)
    for name in names[: at_most or None]:
        path = f"{folder}/{name}"
        try:
            networks.append(read_file(path))
        except InvalidInput as error:
            return Folder(problem=str(error), present=True)
    if len({network.name for network in networks}) != len(networks):
        shared = next(one.name for one in networks if sum(other.name == one.name for other in networks) > 1)
        return Folder(problem=f"{folder}: two configurations are of the network {shared!r}", present=True)
    return Folder(networks=tuple(networks), present=bool(names))


def files_in(folder: str) -> list[str]:
    """The names of its configuration files, in the order in which they count. Raises OSError."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if entry.name.endswith(SUFFIXES) and not entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=os.fsencode)


def folders_in(folder: str) -> frozenset[str]:
    """The names of folders in it that a network may have; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if NAME.fullmatch(entry.name) and entry.is_dir())
    except OSError:
        return frozenset()


def read_file(path: str) -> NetworkList:
    """The configuration in a file, with those in the folder of its network's name beside it (since 1.1).

    :raises InvalidInput: it cannot be used, with the reason; the field is the file's path.
    """
    table = _table(path)
    if path.endswith(".conflist"):
        inlined_only = _flag(path, table, "loadOnlyInlinedPlugins")
        plugins = [] if inlined_only else _beside(path, table)
        return parse_list(table, path, plugins)
    if "plugins" in table and "type" not in table:
        raise InvalidInput(path, "is a list of plugins", fix="give the file a name that ends in .conflist")
    return parse_list({**_only(table, "name", "cniVersion"), "plugins": [table]}, path)


def parse_list(table: Mapping[str, Any], source: str, beside: list[Json] | None = None) -> NetworkList:
    """A list of plugins, from its JSON; ``beside`` are plugins that follow its own.

    :raises InvalidInput: the field is ``source``.
    """
    name = table.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidInput(source, f"name {name!r} is not a network's name" if "name" in table else "has no name")
    inlined = table.get("plugins", [])
    if not isinstance(inlined, list):
        raise InvalidInput(source, "plugins is not a list")
    if _flag(source, table, "loadOnlyInlinedPlugins") and not inlined:
        raise InvalidInput(source, "loadOnlyInlinedPlugins is true, and it has no plugins")
    plugins = [*inlined, *(beside or [])]
    if not plugins:
        raise InvalidInput(source, "has no plugins")
    candidates = _versions(source, table)
    return NetworkList(
        name=name,
        version=candidates[0],
        plugins=tuple(_plugin(source, index, plugin) for index, plugin in enumerate(plugins)),
        source=source,
        disable_check=_flag(source, table, "disableCheck"),
        disable_gc=_flag(source, table, "disableGC"),
        candidates=candidates if len(candidates) > 1 else (),
    )


def _only(table: Mapping[str, Any], *keys: str) -> Json:
    return {key: table[key] for key in keys if key in table}


def _table(path: str) -> Json:
    try:
        # A FIFO would otherwise be waited for.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidInput(path, "is not a regular file")
            data = file.read(_SIZE_MAX + 1)
    except OSError as error:
        raise InvalidInput(path, f"cannot be read: {error.strerror}") from None
    if len(data) > _SIZE_MAX:
        raise InvalidInput(path, f"is larger than {_SIZE_MAX >> 20} MiB")
    return decode(path, data)


def decode(source: str, data: bytes) -> Json:
    """A JSON object.

    :raises InvalidInput: it is none; the field is ``source``.
    """
    if not data.strip():
        raise InvalidInput(source, "is empty")
    try:
        table = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(source, f"is not JSON: {error}") from None
    if not isinstance(table, dict):
        raise InvalidInput(source, "is not a JSON object")
    return table


def _beside(path: str, table: Mapping[str, Any]) -> list[Json]:
    """The plugins in the folder that has the network's name."""
    name = table.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return []
    folder = str(Path(path).parent / name)
    try:
        names = [one for one in files_in(folder) if one.endswith(".conf")]
    except OSError as error:
        raise InvalidInput(path, f"{folder} cannot be read: {error.strerror}") from None
    return [_plugin_file(f"{folder}/{one}") for one in names]


def _plugin_file(path: str) -> Json:
    return _plugin(path, None, _table(path))


def _plugin(source: str, index: int | None, plugin: object) -> Json:
    at = "" if index is None else f"plugins[{index}]"
    if not isinstance(plugin, dict):
        raise InvalidInput(source, f"{at} is not an object".strip())
    type_ = plugin.get("type")
    if not isinstance(type_, str) or not type_:
        raise InvalidInput(source, f"{at} has no type".strip())
    if "/" in type_ or "\0" in type_ or type_ in {".", ".."}:
        raise InvalidInput(source, f"{at} type {type_!r} is not a plugin's name".strip())
    capabilities = plugin.get("capabilities")
    if capabilities is not None and (
        not isinstance(capabilities, dict) or not all(isinstance(value, bool) for value in capabilities.values())
    ):
        raise InvalidInput(source, f"{at} capabilities are not names with true or false".strip())
    return plugin


def _flag(source: str, table: Mapping[str, Any], key: str) -> bool:
    """True or false, which some write as a string."""
    value = table.get(key, False)
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise InvalidInput(source, f"{key} is neither true nor false")
    return value


def _versions(source: str, table: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of the configuration's versions that ForgeOne knows, the newest first."""
    several = table.get("cniVersions", [])
    if not isinstance(several, list):
        raise InvalidInput(source, "cniVersions is not a list")
    asked = [*([table["cniVersion"]] if "cniVersion" in table else []), *several]
    for version in asked:
        if not isinstance(version, str) or not _VERSION.fullmatch(version):
            raise InvalidInput(source, f"cniVersion {version!r} is not a version")
    known = [version for version in reversed(VERSIONS) if version in asked]
    if not known:
        said = f"cniVersion {', '.join(asked)} is" if asked else "has no cniVersion, which means 0.1.0 and is"
        raise InvalidInput(source, f"{said} not supported", fix=f"one of {', '.join(VERSIONS)}")
    return tuple(known)
