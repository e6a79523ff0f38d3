"""A seccomp profile of the operator's that RuntimeDefault means, in the format that container engines ship theirs in.

That is OCI ``linux.seccomp`` with ``archMap``, and rules that hold only with certain capabilities, machines or kernels
(``includes``, ``excludes``). Checked to the last key before it is used: a profile that is read otherwise than it was
meant is worse than none.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from engines.native.capabilities import DEFAULT
from forgeone_shim.errors import InvalidInput
from forgeone_shim.kernel.bpf import ACTIONS, OPERATORS, Compiler
from forgeone_shim.kernel.capabilities import KNOWN

MAX_BYTES: Final = 4 << 20

_ARCHITECTURE: Final = re.compile(r"SCMP_ARCH_[A-Z0-9_]+")
_KERNEL: Final = re.compile(r"(\d{1,4})\.(\d{1,4})")
# seccomp(2). NEW_LISTENER is not among them: it would be handed every system call to decide.
_FLAGS: Final = frozenset(
    f"SECCOMP_FILTER_FLAG_{name}" for name in ("TSYNC", "LOG", "SPEC_ALLOW", "TSYNC_ESRCH", "WAIT_KILLABLE_RECV")
)
_NUMBERED: Final = frozenset({"SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"})
# The names that rules call machines by, which are Go's.
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_NATIVE: Final = {
    "ppc64le": "PPC64LE",
    "riscv64": "RISCV64",
    "s390x": "S390X",
    "x86_64": "X86_64",
    "aarch64": "AARCH64",
}

Json = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """When a rule is included, or excluded: ``includes`` wants all capabilities, ``excludes`` is met by any."""

    caps: frozenset[str] = frozenset()
    arches: frozenset[str] = frozenset()
    kernel: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """An OCI rule and when it holds."""

    oci: Json
    includes: Condition = field(default_factory=Condition)
    excludes: Condition = field(default_factory=Condition)

    def holds(self, capabilities: Collection[str], machine: str, kernel: tuple[int, int]) -> bool:
        """Whether it is part of the filter of a container with these capabilities."""
        no, yes = self.excludes, self.includes
        if machine in no.arches or not no.caps.isdisjoint(capabilities) or (no.kernel and kernel >= no.kernel):
            return False
        if (yes.arches and machine not in yes.arches) or not yes.caps <= set(capabilities):
            return False
        return yes.kernel is None or kernel >= yes.kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A checked profile; :meth:`profile` is what a container gets of it."""

    head: Json
    rules: tuple[Rule, ...]
    by_machine: Mapping[str, tuple[str, ...]]

    def profile(
        self, capabilities: Collection[str], machine: str | None = None, release: str | None = None
    ) -> dict[str, object]:
        """OCI ``linux.seccomp`` for a container whose bounding set is ``capabilities``."""
        here = machine or platform.machine()
        kernel = _release(release or os.uname().release)
        found = dict(self.head)
        if self.by_machine:
            found["architectures"] = list(self.by_machine.get(f"SCMP_ARCH_{_NATIVE.get(here, here.upper())}", ()))
        name = _MACHINES.get(here, here)
        found["syscalls"] = [rule.oci for rule in self.rules if rule.holds(capabilities, name, kernel)]
        return found


def read(key: str, path: str) -> str:
    """The text of a profile's file.

    :raises InvalidInput: names ``key``.
    """
    try:
        # A fifo would be waited for.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidInput(key, f"{path} is not a regular file")
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidInput(key, f"{path} cannot be read: {error.strerror}") from None
    if len(text) > MAX_BYTES:
        raise InvalidInput(key, f"{path} is larger than {MAX_BYTES} bytes")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(key, f"{path} is not UTF-8: {error.reason}") from None


def checked(key: str, text: str, compiler: Compiler) -> Template:
    """The profile of a text, compiled as containers will have it: with the usual capabilities, with none and with all.

    :raises InvalidInput: names ``key`` and what in the profile is wrong.
    """
    try:
        found = parse(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(key, f"is not a seccomp profile: {error}") from None
    for capabilities in (DEFAULT, (), KNOWN):
        # Flags are the loader's, not the filter's.
        profile = {name: value for name, value in found.profile(capabilities).items() if name != "flags"}
        if compiler.usable and compiler.compile(profile) is None:
            raise InvalidInput(key, "libseccomp makes no filter of it")
    return found


def parse(text: str) -> Template:
    """:raises ValueError: says where it is not a profile."""
    whole = _table("it", json.loads(text))
    _only("it", whole, "defaultAction defaultErrnoRet defaultErrno architectures archMap flags syscalls comment")
    head: Json = {"defaultAction": _action("defaultAction", whole.get("defaultAction"))}
    number = _errno("default", whole, "defaultErrnoRet", "defaultErrno", str(head["defaultAction"]))
    if number is not None:
        head["defaultErrnoRet"] = number
    if whole.get("architectures") and whole.get("archMap"):
        raise ValueError("it has architectures and an archMap, of which one is enough")
    if whole.get("architectures"):
        head["architectures"] = [_architecture(one) for one in _strings("architectures", whole["architectures"])]
    flags = _strings("flags", whole.get("flags"))
    if unknown := sorted(set(flags) - _FLAGS):
        raise ValueError(f"flags: {unknown[0]!r} is not one of {', '.join(sorted(_FLAGS))}")
    if flags:
        head["flags"] = list(flags)
    rules = _list("syscalls", whole.get("syscalls"))
    return Template(
        head=head,
        rules=tuple(_rule(f"syscalls[{index}]", rule) for index, rule in enumerate(rules)),
        by_machine=_by_machine(_list("archMap", whole.get("archMap"))),
    )


def _by_machine(entries: Sequence[object]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for index, entry in enumerate(entries):
        where = f"archMap[{index}]"
        table = _table(where, entry)
        _only(where, table, "architecture subArchitectures")
        native = _architecture(table.get("architecture"))
        others = _strings(f"{where}.subArchitectures", table.get("subArchitectures"))
        found[native] = (native, *(_architecture(other) for other in others))
    return found


def _rule(where: str, value: object) -> Rule:
    rule = _table(where, value)
    _only(where, rule, "names name action errnoRet errno args comment includes excludes priority")
    names = _strings(f"{where}.names", rule.get("names"))
    if rule.get("name"):
        if names:
            raise ValueError(f"{where} has a name and names")
        names = _strings(f"{where}.name", [rule["name"]])
    if not names:
        raise ValueError(f"{where} has no names")
    action = _action(f"{where}.action", rule.get("action"))
    oci: Json = {"names": list(names), "action": action}
    number = _errno(where, rule, "errnoRet", "errno", action)
    if number is not None:
        oci["errnoRet"] = number
    conditions = _list(f"{where}.args", rule.get("args"))
    if conditions:
        oci["args"] = [_argument(f"{where}.args[{index}]", one) for index, one in enumerate(conditions)]
    return Rule(
        oci=oci,
        includes=_condition(f"{where}.includes", rule.get("includes")),
        excludes=_condition(f"{where}.excludes", rule.get("excludes")),
    )


def _condition(where: str, value: object) -> Condition:
    if value is None:
        return Condition()
    table = _table(where, value)
    _only(where, table, "caps arches minKernel")
    caps = _strings(f"{where}.caps", table.get("caps"))
    if unknown := sorted(set(caps) - set(KNOWN)):
        raise ValueError(f"{where}.caps: {unknown[0]!r} is not a capability")
    kernel = table.get("minKernel")
    return Condition(
        caps=frozenset(caps),
        arches=frozenset(_strings(f"{where}.arches", table.get("arches"))),
        kernel=None if kernel in (None, "") else _version(f"{where}.minKernel", kernel),
    )


def _argument(where: str, value: object) -> Json:
    table = _table(where, value)
    _only(where, table, "index value valueTwo op")
    found: Json = {}
    for name, limit in (("index", 6), ("value", 1 << 64), ("valueTwo", 1 << 64)):
        number = table.get(name, 0 if name == "valueTwo" else None)
        if type(number) is not int or not 0 <= number < limit:
            raise ValueError(f"{where}.{name}: {number!r} is not a number below {limit}")
        found[name] = number
    if table.get("op") not in OPERATORS:
        raise ValueError(f"{where}.op: {table.get('op')!r} is not one of {', '.join(OPERATORS)}")
    return found | {"op": table["op"]}


def _action(where: str, value: object) -> str:
    if not isinstance(value, str) or value not in ACTIONS:
        raise ValueError(f"{where}: {value!r} is not one of {', '.join(ACTIONS)}")
    return value


def _errno(where: str, table: Mapping[str, object], number_key: str, name_key: str, action: str) -> int | None:
    """By number or by name, where both are given they must agree; the kernel has EPERM where neither is."""
    number, name = table.get(number_key), table.get(name_key)
    if name not in (None, ""):
        named = getattr(errno, name, None) if isinstance(name, str) and name.startswith("E") else None
        if not isinstance(named, int):
            raise ValueError(f"{where}: {name_key} {name!r} is not the name of an error")
        if number not in (None, named):
            raise ValueError(f"{where}: {number_key} {number!r} is not {name}")
        number = named
    if number is None:
        return None
    if type(number) is not int or not 0 <= number < 4096:
        raise ValueError(f"{where}: {number_key} {number!r} is not the number of an error")
    if action not in _NUMBERED:
        raise ValueError(f"{where}: {action} returns no error")
    return number


def _architecture(value: object) -> str:
    if not isinstance(value, str) or not _ARCHITECTURE.fullmatch(value):
        raise ValueError(f"{value!r} is not an architecture (SCMP_ARCH_...)")
    return value


def _version(where: str, value: object) -> tuple[int, int]:
    found = _KERNEL.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{where}: {value!r} is not a kernel's version (4.8)")
    return int(found[1]), int(found[2])


def _release(text: str) -> tuple[int, int]:
    found = _KERNEL.match(text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _table(where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")  # noqa: TRY004 - what all of a wrong profile is
    return value


def _list(where: str, value: object) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{where} is not a list")  # noqa: TRY004
    return value


def _strings(where: str, value: object) -> tuple[str, ...]:
    found = _list(where, value)
    if not all(isinstance(one, str) and one and "\0" not in one for one in found):
        raise ValueError(f"{where} is not a list of names")
    return tuple(found)


def _only(where: str, table: Mapping[str, object], known: str) -> None:
    if unknown := sorted(set(table) - set(known.split())):
        raise ValueError(f"{where} has {unknown[0]!r}, which is not known")
