"""One configuration from four sources: flags over environment over file over defaults.

Every key of :class:`~forgeone_shim.config.model.Config` can be set from each source, by one rule:

================  ==========================================
TOML              ``[network]`` ``bridge = "forge0"``
environment       ``FORGEONE_NETWORK__BRIDGE=forge0``
flag              ``--network-bridge forge0``
================  ==========================================

Lists are comma-separated in the environment and in flags. An unknown key, in any source, is an error.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from forgeone_shim.config.model import Config
from forgeone_shim.errors import ForgeError, InvalidInput
from forgeone_shim.version import VERSION

DEFAULT_FILE = "/etc/forgeone/config.toml"
ENVIRONMENT_PREFIX = "FORGEONE_"
# Read by the loader itself and by the `forge` command, not keys of the model.
_RESERVED = frozenset({"FORGEONE_CONFIG"})

_TRUE, _FALSE = frozenset({"true", "1", "yes", "on"}), frozenset({"false", "0", "no", "off"})
_STRINGS = tuple[str, ...]
_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false", _STRINGS: "a list of strings"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Key:
    """A settable key: its dotted ``path`` (``network.bridge``) and its Python type."""

    path: str
    type: Any

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return ENVIRONMENT_PREFIX + self.path.replace(".", "__").upper()

    @property
    def flag(self) -> str:
        """The command-line flag that sets it."""
        return "--" + self.path.replace(".", "-").replace("_", "-")


def keys(section: Any = Config, prefix: str = "") -> Iterator[Key]:
    """Every key of the model, in its order."""
    for name, hint in _hints(section).items():
        if is_dataclass(hint):
            yield from keys(hint, f"{prefix}{name}.")
        else:
            yield Key(prefix + name, hint)


def load(argv: Sequence[str], environ: Mapping[str, str]) -> Config:
    """The effective configuration. ``argv`` is without the program's name.

    ``--help``, ``--version`` and ``--print-config`` print and raise SystemExit(0); a flag argparse refuses raises
    SystemExit(2).

    :raises InvalidInput: a key is unknown, or its value has the wrong type or is out of bounds.
    """
    flags = vars(_parser().parse_args(argv))
    explicit = flags.pop("--config") or environ.get("FORGEONE_CONFIG", "")
    print_config = flags.pop("--print-config")
    values = _from_file(Path(explicit or DEFAULT_FILE), required=bool(explicit))
    values |= _from_environment(environ)
    values |= {key.path: _from_text(key.type, flags[key.path], key.flag) for key in keys() if key.path in flags}
    config = build(values)
    if print_config:
        sys.stdout.write(to_toml(config))
        raise SystemExit(0)
    return config


def load_or_exit(argv: Sequence[str], environ: Mapping[str, str]) -> Config:
    """:func:`load` for a program's start: an error is one line on standard error and exit code 2."""
    try:
        return load(argv, environ)
    except ForgeError as error:
        sys.stderr.write(f"forgeoned: {error}\n")
        raise SystemExit(2) from None


def to_toml(config: Config) -> str:
    """The configuration as a TOML file that :func:`load` reads back to the same value."""
    return "\n".join(_toml_lines(config, "")).strip() + "\n"


def _hints(section: type) -> dict[str, Any]:
    hints = get_type_hints(section)
    return {item.name: hints[item.name] for item in fields(section)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="forgeoned",
        description="ForgeOne's CRI server. Flags override the environment, which overrides the file.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action="version", version=f"forgeoned {VERSION}")
    parser.add_argument(
        "--config",
        dest="--config",
        default="",
        metavar="FILE",
        help=f"TOML file (default: {DEFAULT_FILE} if it exists)",
    )
    parser.add_argument(
        "--print-config", dest="--print-config", action="store_true", default=False, help="print the effective TOML"
    )
    for key in keys():
        parser.add_argument(key.flag, dest=key.path, metavar="VALUE", help=f"{_NAMES[key.type]}; {key.variable}")
    return parser


def _from_file(path: Path, *, required: bool) -> dict[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if required:
            raise InvalidInput("config", f"{path} does not exist") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("config", f"{path} cannot be read: {error}") from None
    return _from_toml(text, path)


def parsed(text: str, path: Path) -> Config:
    """The configuration that a file of this text makes, without flags and environment.

    :raises InvalidInput: it is not TOML, a key is unknown, or its value has the wrong type or is out of bounds.
    """
    return build(_from_toml(text, path))


def _from_toml(text: str, path: Path) -> dict[str, object]:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput("config", f"{path} is not TOML: {error}") from None
    try:
        return dict(_flatten(Config, table, ""))
    except InvalidInput as error:
        raise InvalidInput(error.field, error.reason, fix="; ".join(filter(None, (error.fix, f"in {path}")))) from None


def _flatten(section: type, table: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    hints = _hints(section)
    for name, value in table.items():
        path = prefix + name
        if name not in hints:
            raise _unknown(path, [key.path for key in keys()], _sections())
        hint = hints[name]
        if not is_dataclass(hint):
            yield path, checked(hint, value, path)
        elif isinstance(value, dict):
            yield from _flatten(hint, value, path + ".")  # type: ignore[arg-type]
        else:
            raise InvalidInput(path, f"is a section, got {_kind(value)}", fix=f"write it as [{path}]")


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    known = {key.variable: key for key in keys()}
    values: dict[str, object] = {}
    for name in sorted(environ):
        if not name.startswith(ENVIRONMENT_PREFIX) or name in _RESERVED:
            continue
        if name not in known:
            raise _unknown(name, list(known), [])
        values[known[name].path] = _from_text(known[name].type, environ[name], name)
    return values


def checked(hint: Any, value: object, path: str) -> object:
    """A TOML value of the model's type. An integer is a number; a truth value is no integer."""
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint == _STRINGS and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if hint in {str, int, float, bool} and type(value) is hint:
        return value
    raise InvalidInput(path, f"must be {_NAMES[hint]}, got {_kind(value)}")


def _from_text(hint: Any, text: str, name: str) -> object:
    """A value of the model's type from a flag or a variable."""
    if hint == _STRINGS:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if hint is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
    elif hint is str:
        return text
    else:
        try:
            return hint(text)
        except ValueError:
            pass
    raise InvalidInput(name, f"must be {_NAMES[hint]}, got {text!r}")


def values(config: Config) -> dict[str, object]:
    """The value of every key, by its path."""
    return {key.path: attrgetter(key.path)(config) for key in keys()}


def build(values: Mapping[str, object]) -> Config:
    """The configuration with these values of keys, and defaults for the rest.

    :raises InvalidInput: a value is out of bounds.
    """
    return _build(Config, values)


def _build(section: type[T], values: Mapping[str, object], prefix: str = "") -> T:
    given: dict[str, object] = {}
    for name, hint in _hints(section).items():
        path = prefix + name
        if is_dataclass(hint):
            given[name] = _build(hint, values, path + ".")  # type: ignore[arg-type]
        elif path in values:
            given[name] = values[path]
    return section(**given)


def _unknown(name: str, known: list[str], sections: list[str]) -> InvalidInput:
    # A key written outside its section, or in the wrong one; else a slip of the pen.
    last = name.rsplit(".", 1)[-1]
    near = [path for path in known if path.rsplit(".", 1)[-1] == last]
    near = near or difflib.get_close_matches(name, [*known, *sections], n=1, cutoff=0.6)
    return InvalidInput(name, "is not a key ForgeOne knows", fix=f"did you mean {near[0]!r}?" if near else "")


def _sections() -> list[str]:
    return [name for name, hint in _hints(Config).items() if is_dataclass(hint)]


def _kind(value: object) -> str:
    names = {
        str: "a string",
        bool: "a truth value",
        int: "an integer",
        float: "a number",
        list: "a list",
        dict: "a table",
    }
    return names.get(type(value), "a date or time")


def _toml_lines(section: object, prefix: str) -> Iterator[str]:
    nested: list[tuple[str, object]] = []
    for item in fields(section):  # type: ignore[arg-type]
        value = getattr(section, item.name)
        if is_dataclass(value):
            nested.append((prefix + item.name, value))
        else:
            yield f"{item.name} = {toml(value)}"
    for path, value in nested:
        yield ""
        yield f"[{path}]"
        yield from _toml_lines(value, path + ".")


def toml(value: object) -> str:
    """A value of the model as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, str):
        # TOML's basic string: control characters, the quote and the backslash are escaped, all else is itself.
        return '"' + "".join(_escape(character) for character in value) + '"'
    return repr(value)


def _escape(character: str) -> str:
    if character in {'"', "\\"}:
        return "\\" + character
    return f"\\u{ord(character):04x}" if ord(character) < 0x20 or ord(character) == 0x7F else character
