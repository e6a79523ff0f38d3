"""What a guest says of its use, as far as a kernel could have said it: others read it as a kernel's files. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from engines.base import Measured, Measurement
from engines.microvm.wire.messages import File, Stats

# Bytes, microseconds and counts that no machine comes to; a thousand times as much still fits 63 bits.
_MOST: Final = 1 << 53
_PROCESSES: Final = 1 << 22
_LINES: Final = 128
_NUMBER: Final = "(?:0|[1-9][0-9]{0,15})"
_SHARE: Final = r"[0-9]{1,3}\.[0-9]{2}"
_ONE: Final = re.compile(_NUMBER)
_LIMIT: Final = re.compile(f"max|{_NUMBER}")
_PAIR: Final = re.compile(f"[a-z0-9_]{{1,64}} {_NUMBER}")
_STALL: Final = re.compile(f"(?:some|full) avg10={_SHARE} avg60={_SHARE} avg300={_SHARE} total={_NUMBER}")
_DEVICE: Final = re.compile(rf"[0-9]{{1,4}}:[0-9]{{1,7}}(?: [a-z]{{1,16}}={_NUMBER})+")
_DIGITS: Final = re.compile(r"[0-9]+")


def _single(form: re.Pattern[str]) -> Callable[[str], str]:
    return lambda content: content if form.fullmatch(content) and _fits(content) else ""


def _lines(form: re.Pattern[str], most: int = _LINES) -> Callable[[str], str]:
    def clean(content: str) -> str:
        lines = content.split("\n", most)[:most]
        return "\n".join(line for line in lines if form.fullmatch(line) and _fits(line))

    return clean


def _fits(line: str) -> bool:
    return all(int(digits) < _MOST for digits in _DIGITS.findall(line))


# https://docs.kernel.org/admin-guide/cgroup-v2.html
_OWN: Final = "forgeone.stat"
"""The agent's, besides its kernel's files (guest/usage.c)."""
_FILES: Final[Mapping[str, Callable[[str], str]]] = {
    "cpu.stat": _lines(_PAIR),
    "memory.stat": _lines(_PAIR),
    "memory.events": _lines(_PAIR),
    "memory.current": _single(_ONE),
    "memory.peak": _single(_ONE),
    "memory.max": _single(_LIMIT),
    "memory.swap.current": _single(_ONE),
    "memory.swap.max": _single(_LIMIT),
    "pids.current": _single(_ONE),
    "pids.max": _single(_LIMIT),
    "cpu.pressure": _lines(_STALL, 2),
    "memory.pressure": _lines(_STALL, 2),
    "io.pressure": _lines(_STALL, 2),
    "io.stat": _lines(_DEVICE, 16),
}


def measurement(cgroup: str, told: Iterable[Stats], wanted: Collection[str]) -> Measurement:
    """What a guest tells of its containers, of those that were asked for, and their machine's cgroup on the host."""
    return Measurement(
        cgroup=cgroup, containers={one.container: measured(one) for one in told if one.container in wanted}
    )


def measured(told: Stats) -> Measured:
    """What a guest tells of one container; what could not be of a kernel's making is left out."""
    own = _own(told)
    return Measured(
        files=dict(filter(None, map(_clean, told.files))),
        processes=min(told.processes, _PROCESSES),
        layer_bytes=min(told.layer_bytes, _MOST),
        layer_inodes=min(told.layer_inodes, _MOST),
        descriptors=own.get("descriptors"),
        sockets=own.get("sockets"),
        open_files=own.get("open_files"),
        layer_size=own.get("layer_size"),
        layer_inodes_total=own.get("layer_inodes"),
        layer_inodes_free=own.get("layer_inodes_free"),
    )


def _own(told: Stats) -> dict[str, int]:
    contents = [_text(file) for file in told.files if file.name == _OWN]
    lines = _lines(_PAIR)("\n".join(contents)).split("\n")
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value}


def _text(file: File) -> str:
    return file.content.decode("ascii", "replace").rstrip("\n")


def _clean(file: File) -> tuple[str, str] | None:
    clean = _FILES.get(file.name)
    if clean is None:
        return None
    kept = clean(_text(file))
    return (file.name, kept) if kept else None
