"""What a pod's annotations say about its WebAssembly containers, taken apart strictly.

``wasm.forgeone.dev/KEY`` is for every container of the pod, ``wasm.forgeone.dev/KEY.NAME`` for the one of that name and
before the other. A key that is not one of ours is an error: what somebody believes to have asked for must be so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from forgeone_shim.errors import InvalidInput

PREFIX: Final = "wasm.forgeone.dev/"

EXEC: Final = "wasm.forgeone.dev/exec"
"""pod; whoever writes the pod

Exported functions, with commas between them, that an exec into a WebAssembly container may name as its command; each
runs in a fresh instance of the container's module.
"""
MEMORY_MAX: Final = "wasm.forgeone.dev/memory-max"
"""pod; whoever writes the pod

Bytes, `64Mi`, that each linear memory may grow to; a growth beyond is refused to the guest. Without it the container's
memory limit.
"""
CPU_BUDGET: Final = "wasm.forgeone.dev/cpu-budget"
"""pod; whoever writes the pod

CPU time, `1.5s`, after which the guest traps: exit code 134, reason `CPUBudgetExceeded`.
"""
CPU_SLICE: Final = "wasm.forgeone.dev/cpu-slice"
"""pod; whoever writes the pod

CPU time, `10ms`, after which the guest, in its next loop or call, lets others that wait for the processor have a turn,
again and again. Metered code, like a budget's, is a third slower. Not for an HTTP server, whose requests have a thread
each.
"""
TRACE: Final = "wasm.forgeone.dev/trace"
"""pod; whoever writes the pod

`true`: every call of the guest into the host is [recorded](operate.md#traces). Of core modules alone; a component is
refused.
"""
_KEYS: Final = (EXEC, MEMORY_MAX, CPU_BUDGET, CPU_SLICE, TRACE)

_BYTES: Final = re.compile(r"([1-9][0-9]{0,18})(Ki|Mi|Gi)?")
_UNITS: Final = {None: 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
# A page of linear memory; below it nothing could be instantiated.
_MEMORY_MIN: Final = 64 * 1024
_BUDGET_MIN: Final = 0.001
_EXPORT_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """``exports`` may be executed; ``memory_max`` in bytes, ``cpu_budget`` and ``cpu_slice`` in seconds of CPU time; 0:
    none."""

    exports: tuple[str, ...] = ()
    memory_max: int = 0
    cpu_budget: float = 0.0
    cpu_slice: float = 0.0
    trace: bool = False


def read(annotations: Mapping[str, str], container: str) -> Asked:
    """What the annotations of a pod say about its container of that name.

    :raises InvalidInput: a key below :data:`PREFIX` is unknown, or a value is not one; of other containers, too.
    """
    found: dict[str, str] = {}
    for key, value in annotations.items():
        if not key.startswith(PREFIX):
            continue
        name, dot, of = key.removeprefix(PREFIX).partition(".")
        name = PREFIX + name
        if name not in _KEYS or (dot and not of):
            raise InvalidInput(
                f"annotation {key}",
                "is none of this engine's",
                fix=f"one of: {', '.join(_KEYS)}, or with .CONTAINER behind it",
            )
        _check(name, f"annotation {key}", value)
        if of == container if dot else name not in found:
            found[name] = value
    return Asked(
        exports=_exports(EXEC, found.get(EXEC, "")),
        memory_max=_bytes(MEMORY_MAX, found[MEMORY_MAX]) if MEMORY_MAX in found else 0,
        cpu_budget=_duration(CPU_BUDGET, found[CPU_BUDGET]) if CPU_BUDGET in found else 0.0,
        cpu_slice=_duration(CPU_SLICE, found[CPU_SLICE]) if CPU_SLICE in found else 0.0,
        trace=_truth(TRACE, found.get(TRACE, "false")),
    )


def _check(name: str, field: str, value: str) -> None:
    {EXEC: _exports, MEMORY_MAX: _bytes, CPU_BUDGET: _duration, CPU_SLICE: _duration, TRACE: _truth}[name](field, value)


def _exports(field: str, value: str) -> tuple[str, ...]:
    if not value.strip():
        return ()
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
    for name in names:
        if not name or len(name) > _EXPORT_MAX or not name.isprintable():
            raise InvalidInput(field, f"{name!r} is not the name of an exported function")
    return names


def _bytes(field: str, value: str) -> int:
    parts = _BYTES.fullmatch(value)
    if parts is None:
        raise InvalidInput(field, f"{value!r} is not a number of bytes", fix="for example 67108864, or 64Mi")
    found = int(parts[1]) * _UNITS[parts[2]]
    if not _MEMORY_MIN <= found < 1 << 63:
        raise InvalidInput(field, f"{value!r} is outside {_MEMORY_MIN} bytes to 8 EiB")
    return found


def _duration(field: str, value: str) -> float:
    parts = _DURATION.fullmatch(value)
    if parts is None:
        raise InvalidInput(field, f"{value!r} is not a duration", fix="for example 500ms, 1.5s, 2m or 1h")
    found = float(parts[1]) * _SECONDS[parts[2]]
    if found < _BUDGET_MIN:
        raise InvalidInput(field, f"{value!r} is shorter than a millisecond")
    return found


def _truth(field: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise InvalidInput(field, f"{value!r} is neither 'true' nor 'false'")
    return value == "true"
