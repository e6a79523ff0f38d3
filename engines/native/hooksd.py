"""Hook definitions of a host (oci-hooks(5), version 1.0.0): which of them a container gets.

They are read as they are when a container is created. One that cannot be used refuses containers, as nobody can tell
which of them it was meant for.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from engines.base import Hook, HookStage
from forgeone_shim.dropins import documents
from forgeone_shim.dropins.files import DropIn, DropIns
from forgeone_shim.dropins.table import Table
from forgeone_shim.errors import FailedPrecondition, InvalidInput

_VERSION = "1.0.0"
_STAGES = {stage.value: stage for stage in HookStage}
_TIMEOUT_MAX = 86400
# Patterns are an administrator's, but what they look at is a pod's, matching may take the square of its length, and no
# thread runs meanwhile. No program has a longer path (PATH_MAX).
_VALUE_MAX = 4096
# POSIX classes, which Python's expressions do not know.
_CLASSES = {
    "[:alnum:]": "a-zA-Z0-9",
    "[:alpha:]": "a-zA-Z",
    "[:blank:]": r" \t",
    "[:cntrl:]": r"\x00-\x1f\x7f",
    "[:digit:]": "0-9",
    "[:graph:]": r"\x21-\x7e",
    "[:lower:]": "a-z",
    "[:print:]": r"\x20-\x7e",
    "[:punct:]": r"\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e",
    "[:space:]": r"\s",
    "[:upper:]": "A-Z",
    "[:xdigit:]": "0-9A-Fa-f",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A hook, its stages, and the conditions of which all that are given must hold."""

    hook: Hook
    stages: tuple[HookStage, ...]
    always: bool | None = None
    annotations: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...] = ()
    commands: tuple[re.Pattern[str], ...] = ()
    bind_mounts: bool | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """What conditions look at: annotations of container and pod, the command, whether the caller asked for mounts."""

    annotations: Mapping[str, str]
    command: str
    bind_mounts: bool


@dataclass(frozen=True, slots=True)
class Matched:
    """Hooks in their order, and the annotations that they were chosen for."""

    hooks: tuple[Hook, ...]
    annotations: Mapping[str, str]


class HookDirectories:
    """Definitions in directories, of which a later one's file replaces an earlier one's of the same name."""

    def __init__(self, directories: Sequence[str]) -> None:
        self._files = DropIns(directories, (".json",), lambda path, data: definition(path, documents.parse(path, data)))

    def matching(self, subject: Subject) -> Matched:
        """The hooks of a container.

        :raises FailedPrecondition: a definition cannot be used.
        """
        return choose(self._files.read(), subject)

    def unusable(self) -> list[str]:
        """The files that cannot be used, each with the reason."""
        return [f"{file.path}: {file.error}" for file in _by_name(self._files.read()) if file.error]


def choose(files: Sequence[DropIn[Definition]], subject: Subject) -> Matched:
    """The hooks for ``subject`` among these files."""
    hooks: list[Hook] = []
    annotations: dict[str, str] = {}
    for file in _by_name(files):
        if file.value is None:
            raise FailedPrecondition(f"hook definition {file.path}: {file.error}", fix="correct or remove it")
        found = match(file.value, subject)
        if found is not None:
            hooks += [replace(file.value.hook, stage=stage) for stage in file.value.stages]
            annotations |= found
    return Matched(tuple(hooks), annotations)


def _by_name(files: Sequence[DropIn[Definition]]) -> list[DropIn[Definition]]:
    """Those that count, in their order; the key of a directory that cannot be used is its own name."""
    found = {posixpath.basename(file.path): file for file in files}
    return [found[name] for name in sorted(found, key=lambda name: (name.lower(), name))]


def match(definition: Definition, subject: Subject) -> Mapping[str, str] | None:
    """The annotations by which the conditions hold (perhaps none), or ``None`` where they do not."""
    if definition.always is False or (definition.bind_mounts is not None and not subject.bind_mounts):
        return None
    if definition.bind_mounts is False:
        return None
    if definition.commands:
        _short("command", subject.command)
        if not any(pattern.search(subject.command) for pattern in definition.commands):
            return None
    matched: dict[str, str] = {}
    for key_pattern, value_pattern in definition.annotations:
        found = {
            key: value
            for key, value in subject.annotations.items()
            if key_pattern.search(_short("annotations", key))
            and value_pattern.search(_short(f"annotations[{key!r}]", value))
        }
        if not found:
            return None
        matched |= found
    return matched


def _short(field: str, text: str) -> str:
    if len(text) > _VALUE_MAX:
        raise InvalidInput(field, f"is longer than the {_VALUE_MAX} characters that a hook looks at")
    return text


def definition(where: str, document: object) -> Definition:
    """A file's content; ``where`` names the file in errors.

    :raises InvalidInput: the first field that cannot be used.
    """
    with Table(where, document) as table:
        version = table.text("version", required=True)
        if version != _VERSION:
            raise table.wrong("version", f"{version!r} is not {_VERSION}")
        hook = table.table("hook", _hook)
        if hook is None:
            raise table.wrong("hook", "is missing")
        stages = table.texts("stages")
        if not stages or len(set(stages)) != len(stages) or set(stages) - set(_STAGES):
            raise table.wrong("stages", f"are not some of {', '.join(_STAGES)}")
        found = table.table("when", lambda when: _when(when, hook, tuple(_STAGES[stage] for stage in stages)))
        if found is None:
            raise table.wrong("when", "is missing")
    if found.always is None and found.bind_mounts is None and not (found.annotations or found.commands):
        raise InvalidInput(f"{where}.when", "has no condition")
    return found


def _hook(table: Table) -> Hook:
    path = table.path("path", required=True)
    return Hook(
        stage=HookStage.PRESTART,
        path=path,
        args=table.texts("args") or (path,),
        env=table.variables("env"),
        timeout=table.number("timeout", 1, _TIMEOUT_MAX) or 0,
    )


def _when(table: Table, hook: Hook, stages: tuple[HookStage, ...]) -> Definition:
    return Definition(
        hook=hook,
        stages=stages,
        always=table.truth("always") if "always" in table.given else None,
        annotations=tuple(
            (_pattern(table, "annotations", key), _pattern(table, "annotations", value))
            for key, value in table.labels("annotations").items()
        ),
        commands=tuple(_pattern(table, "commands", text) for text in table.texts("commands")),
        bind_mounts=table.truth("hasBindMounts") if "hasBindMounts" in table.given else None,
    )


def _pattern(table: Table, key: str, text: str) -> re.Pattern[str]:
    translated = text
    for name, characters in _CLASSES.items():
        translated = translated.replace(name, characters)
    try:
        return re.compile(translated)
    except (re.error, RecursionError, OverflowError) as error:
        raise table.wrong(key, f"{text!r} is not a regular expression: {error}") from None
