"""``guest/protocol.h``, made from :mod:`engines.microvm.wire.protocol`."""

from __future__ import annotations

from enum import IntEnum

from engines.microvm.wire import protocol
from engines.microvm.wire.protocol import Kind, MountKind, PidMode, Tag

_NUMBERS = ("VERSION", "HEADER_SIZE", "DATA_MAX", "REQUEST_MAX", "WINDOW", "NUMBER_MAX")


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


if __name__ == "__main__":
    print(header(), end="")
