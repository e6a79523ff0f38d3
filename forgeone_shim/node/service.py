"""What systemd would execute for a service, read from its files (systemd.unit(5), systemd.exec(5)): pure.

Asked of files and not of systemd, because an answer has to say where each word stands.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from forgeone_shim.errors import FailedPrecondition, InvalidInput, NotFound
from forgeone_shim.node.tree import Tree

DIRECTORIES: Final = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
"""Where units are looked for, the first wins."""

_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_WHOLE: Final = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_PREFIXES: Final = "-:+!@|"
_SERVICE: Final = "[Service]"


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a command line, and the file it stands in."""

    text: str
    file: str


@dataclass(frozen=True, slots=True)
class _Assignment:
    key: str
    value: str
    file: str


def find(tree: Tree, unit: str) -> str:
    """The unit's file.

    :raises NotFound: there is none. FailedPrecondition: it is masked.
    """
    for directory in DIRECTORIES:
        path = f"{directory}/{unit}"
        if tree.masked(path):
            raise FailedPrecondition(f"{unit} is masked by {path}", fix=f"systemctl unmask {unit}")
        if tree.read(path) is not None:
            return path
    raise NotFound("unit", unit, where="this node")


def command(tree: Tree, unit: str) -> tuple[Word, ...]:
    """The service's command line, its variables expanded.

    :raises NotFound: there is no such unit. InvalidInput: it cannot be understood.
    """
    start, variables = None, dict[str, Word]()
    sources, inline = list[_Assignment](), list[_Assignment]()
    for item in _assignments(tree, unit):
        if item.key == "ExecStart":
            start = item if item.value else None
        elif item.key == "Environment":
            inline = [*inline, item] if item.value else []
        elif item.key == "EnvironmentFile":
            sources = [*sources, item] if item.value else []
    if start is None:
        raise InvalidInput(unit, "has no ExecStart")
    for item in inline:
        for word in _split(item.value, item.file):
            name, _, value = word.partition("=")
            variables[name] = Word(value, item.file)
    # What files say wins, wherever the unit names them (systemd.exec(5), EnvironmentFile=).
    for item in sources:
        variables |= _environment(tree, item)
    words = tuple(_expanded(start, variables))
    if not words:
        raise InvalidInput(start.file, f"ExecStart={start.value} comes to nothing")
    return words


def _assignments(tree: Tree, unit: str) -> Iterator[_Assignment]:
    files = [find(tree, unit)]
    dropins: dict[str, str] = {}
    # All are taken in the order of their names; of two of one name, the unit's own wins over that of every service.
    for kind in (f"{unit}.d", "service.d"):
        for directory in DIRECTORIES:
            for name in tree.names(f"{directory}/{kind}"):
                if name.endswith(".conf"):
                    dropins.setdefault(name, f"{directory}/{kind}/{name}")
    files += [path for _, path in sorted(dropins.items()) if not tree.masked(path)]
    for path in files:
        section = ""
        for line in _lines(_text(tree, path)):
            if line.startswith("["):
                section = line
            elif section == _SERVICE and "=" in line:
                key, _, value = line.partition("=")
                yield _Assignment(key.strip(), value.strip(), path)


def _environment(tree: Tree, item: _Assignment) -> dict[str, Word]:
    path = item.value.removeprefix("-")
    if not path.startswith("/") or set(path) & set("*?[%"):
        raise InvalidInput(item.file, f"EnvironmentFile={item.value} is more than a path")
    if tree.read(path) is None:
        if item.value.startswith("-"):
            return {}
        raise InvalidInput(item.file, f"EnvironmentFile={path} does not exist")
    found = {}
    for line in _lines(_text(tree, path)):
        name, equals, value = line.partition("=")
        if equals:
            found[name.strip()] = Word(" ".join(_split(value, path)), path)
    return found


def _expanded(start: _Assignment, variables: dict[str, Word]) -> Iterator[Word]:
    words = _split(start.value.lstrip(_PREFIXES), start.file)
    nothing = Word("", start.file)
    for word in words:
        if whole := _WHOLE.fullmatch(word):
            value = variables.get(whole[1], nothing)
            yield from (Word(part, value.file) for part in _split(value.text, value.file))
            continue
        named = [variables[name] for name in _VARIABLE.findall(word) if name in variables]
        text = _VARIABLE.sub(lambda found: variables.get(found[1], nothing).text, word)
        yield Word(text, named[0].file if named else start.file)


def _text(tree: Tree, path: str) -> str:
    try:
        return (tree.read(path) or b"").decode()
    except UnicodeDecodeError:
        raise InvalidInput(path, "is not text") from None


def _lines(text: str) -> Iterator[str]:
    """Lines joined where one ends with a backslash, without comments and empty ones."""
    kept = ""
    for line in text.splitlines():
        if line.lstrip().startswith(("#", ";")):
            continue
        if line.endswith("\\"):
            kept += line[:-1] + " "
            continue
        whole, kept = (kept + line).strip(), ""
        if whole:
            yield whole
    if kept.strip():
        yield kept.strip()


def _split(text: str, file: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidInput(file, f"{text!r}: {error}") from None
