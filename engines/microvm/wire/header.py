"""``guest/protocol.h`` and ``guest/schema.h``, made from :mod:`protocol` and :mod:`messages`."""

from __future__ import annotations

import re
import sys
from enum import IntEnum

import msgspec

from engines.microvm.wire import protocol
from engines.microvm.wire.fields import FieldType, Rule, rules
from engines.microvm.wire.messages import REQUESTS, WORDS
from engines.microvm.wire.protocol import Kind, MountKind, PidMode, Tag

_NUMBERS = ("VERSION", "HEADER_SIZE", "DATA_MAX", "REQUEST_MAX", "WINDOW", "NUMBER_MAX", "VSOCK_PORT")


def header() -> str:
    """The whole file."""
    lines = ["/* Made from engines/microvm/wire/protocol.py; a test compares. */", "#pragma once", ""]
    lines += [f"#define FO_{name} {getattr(protocol, name)}u" for name in _NUMBERS]
    lines += [f'#define FO_{name} "{getattr(protocol, name)}"' for name in ("CONTROL_PORT", "SHARE_PORT")]
    for prefix, kind in (("K", Kind), ("T", Tag), ("PID", PidMode), ("MOUNT", MountKind)):
        lines += ["", *_enum(prefix, kind)]
    return "\n".join(lines) + "\n"


def _enum(prefix: str, kind: type[IntEnum]) -> list[str]:
    return ["enum {", *(f"\t{prefix}_{one.name} = {one.value}," for one in kind), "};"]


def schema() -> str:
    """The whole file: what the agent checks of what it is told."""
    lines = [
        "/* Made from engines/microvm/wire/messages.py; a test compares. */",
        "#pragma once",
        '#include "fields.h"',
        "",
    ]
    told = {kind: request for kind, (request, _) in REQUESTS.items()} | {Kind.RESIZE: WORDS[Kind.RESIZE]}
    done: set[type[msgspec.Struct]] = set()
    for request in told.values():
        lines += _group(request, done)
    lines.append("static const struct group *const told[] = {")
    lines += [f"\t[K_{kind.name}] = &{_name(request)}," for kind, request in told.items()]
    return "\n".join([*lines, "};"]) + "\n"


def _group(kind: type[msgspec.Struct], done: set[type[msgspec.Struct]]) -> list[str]:
    """Those of its fields first."""
    if kind in done:
        return []
    done.add(kind)
    found = rules(kind)
    lines = [line for rule in found if rule.shape is FieldType.GROUP for line in _group(rule.python, done)]
    name = _name(kind)
    if not found:
        return [*lines, f'static const struct group {name} = {{"{kind.__name__.lower()}", NULL, 0}};', ""]
    lines.append(f"static const struct rule {name}_rules[] = {{")
    lines += [f"\t{_line(rule)}," for rule in found]
    count = len(found)
    return [
        *lines,
        "};",
        f'static const struct group {name} = {{"{kind.__name__.lower()}", {name}_rules, {count}}};',
        "",
    ]


def _line(rule: Rule) -> str:
    flags = [name for name, set_ in (("MANY", rule.many), ("NEEDED", rule.required)) if set_]
    low, high = (f"UINT64_C({value + rule.offset})" for value in (rule.low, rule.high))
    group = f"&{_name(rule.python)}" if rule.shape is FieldType.GROUP else "NULL"
    return (
        f'{{T_{rule.tag.name}, AS_{rule.shape.name}, {" | ".join(flags) or 0}, {low}, {high}, "{rule.name}", {group}}}'
    )


def _name(kind: type[msgspec.Struct]) -> str:
    return "group_" + re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


if __name__ == "__main__":
    print({"protocol": header, "schema": schema}[sys.argv[1]](), end="")
