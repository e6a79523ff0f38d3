"""Classes of block I/O: what a node's administrator calls them, and what they mean on the devices this host has.

The file is goresctrl's (containerd and CRI-O read the same): ``Classes``, and for each a list of ``Devices``
(patterns), ``Weight`` and ``Throttle{Read,Write}{Bps,IOPS}``. A later element of the list wins over an earlier one for
a device that both name.
"""

from __future__ import annotations

import glob
import math
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import structlog

from engines.base import BlockIO, DeviceRate
from forgeone_shim.dropins import documents
from forgeone_shim.errors import FailedPrecondition, InvalidInput

_SIZE_MAX = 1 << 20
_RATE_MAX = 2**63 - 1
_WEIGHT_MIN, _WEIGHT_MAX = 10, 1000
_RATES = {
    "ThrottleReadBps": "read_bps",
    "ThrottleWriteBps": "write_bps",
    "ThrottleReadIOPS": "read_iops",
    "ThrottleWriteIOPS": "write_iops",
}
_KEYS = frozenset({"Devices", "Weight", *_RATES})
# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
_QUANTITY = re.compile(r"\+?(\d{1,19}(?:\.\d{0,9})?|\.\d{1,9})(?:([eE][+-]?\d{1,2})|([kMGTPE]|[KMGTPE]i))?", re.ASCII)
_SUFFIXES = {suffix: 1000**power for power, suffix in enumerate("kMGTPE", 1)} | {
    f"{suffix}i": 1024**power for power, suffix in enumerate("KMGTPE", 1)
}

Class = tuple["Part", ...]
Numbers = Callable[[str], Iterable[tuple[int, int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One element of a class: ``weight`` 0 is none; ``rates`` by field of :class:`engines.base.BlockIO`."""

    devices: tuple[str, ...] = ()
    weight: int = 0
    rates: Mapping[str, int] = field(default_factory=dict)


def quantity(text: str) -> int:
    """A Kubernetes quantity such as ``50M`` or ``1.5Gi``, rounded up; ValueError for what is none."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity such as 50M")
    number = Fraction(match[1].rstrip(".") + (match[2] or "")) * _SUFFIXES.get(match[3] or "", 1)
    up: int = math.ceil(number)
    return up


def parse(path: str, data: bytes) -> dict[str, Class]:
    """The classes of a file.

    :raises InvalidInput: the first thing in it that cannot be used.
    """
    whole = documents.parse(path, data)
    if whole is None:
        return {}
    if not isinstance(whole, dict) or set(whole) - {"Classes"}:
        raise InvalidInput(path, "is not a mapping with Classes alone")
    classes = whole.get("Classes")
    if classes is None:
        return {}
    if not isinstance(classes, dict):
        raise InvalidInput(f"{path}: Classes", "is not a mapping")
    return {name: _class(f"{path}: Classes.{name}", parts) for name, parts in classes.items()}


def _class(where: str, parts: object) -> Class:
    if not isinstance(parts, list):
        raise InvalidInput(where, "is not a list")
    return tuple(_part(f"{where}[{index}]", part) for index, part in enumerate(parts))


def _part(where: str, part: object) -> Part:
    if not isinstance(part, dict) or set(part) - _KEYS:
        raise InvalidInput(where, f"is not a mapping of {', '.join(sorted(_KEYS))}")
    devices = part.get("Devices") or []
    if not isinstance(devices, list) or not all(isinstance(one, str) and one.startswith("/") for one in devices):
        raise InvalidInput(f"{where}.Devices", "is not a list of absolute paths")
    if any("\0" in one or ".." in one.split("/") for one in devices):
        raise InvalidInput(f"{where}.Devices", "holds a path with '..' or NUL")
    rates = {ours: _amount(f"{where}.{key}", part[key], 0, _RATE_MAX) for key, ours in _RATES.items() if key in part}
    if rates and not devices:
        raise InvalidInput(where, "limits rates, but names no Devices")
    weight = _amount(f"{where}.Weight", part["Weight"], _WEIGHT_MIN, _WEIGHT_MAX) if "Weight" in part else 0
    return Part(devices=tuple(devices), weight=weight, rates=rates)


def _amount(where: str, value: object, low: int, high: int) -> int:
    try:
        found = quantity(str(value)) if isinstance(value, str | int | float) and not isinstance(value, bool) else -1
    except ValueError as error:
        raise InvalidInput(where, str(error)) from None
    if not low <= found <= high:
        raise InvalidInput(where, f"{value!r} is not in {low}..{high}")
    return found


def resolve(parts: Class, numbers: Numbers) -> BlockIO:
    """A class on the devices that are there now; ``numbers`` are the majors and minors behind a pattern."""
    weight = 0
    found: dict[str, dict[tuple[int, int], int]] = {key: {} for key in ("weights", *_RATES.values())}
    for part in parts:
        if not part.devices:
            weight = part.weight or weight
        for device in (one for pattern in part.devices for one in numbers(pattern)):
            if part.weight:
                found["weights"][device] = part.weight
            for key, rate in part.rates.items():
                found[key][device] = rate
    # A rate of 0 takes the limit of an earlier element away.
    rates = {
        key: tuple(DeviceRate(*device, value) for device, value in sorted(by_device.items()) if value)
        for key, by_device in found.items()
    }
    return BlockIO(weight=weight, **rates)


def block_devices(pattern: str) -> list[tuple[int, int]]:
    """Major and minor of every block device that a pattern matches, wherever symlinks lead."""
    found = []
    for path in sorted(glob.glob(pattern)):  # noqa: PTH207
        try:
            node = os.stat(path)  # noqa: PTH116
        except OSError:
            continue
        if stat.S_ISBLK(node.st_mode):
            found.append((os.major(node.st_rdev), os.minor(node.st_rdev)))
    if not found:
        structlog.get_logger("blockio").warning("no block device matches", pattern=pattern)
    return found


class Classes:
    """The classes of the file at ``path`` (empty: none), read again when it has changed. Thread-safe."""

    def __init__(self, path: str, numbers: Numbers = block_devices) -> None:
        self._path, self._numbers = path, numbers
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] = ()
        self._classes: dict[str, Class] | None = None

    def find(self, name: str) -> BlockIO | None:
        """What a class means now; ``None`` for the empty name.

        :raises FailedPrecondition: there is no file, it cannot be used, or it has no such class.
        """
        if not name:
            return None
        if not self._path:
            fix = "name a file of classes in resources.blockio_config_file"
            raise FailedPrecondition(f"block I/O class {name!r} was asked for, but this node has none", fix=fix)
        with self._lock:
            classes = self._read()
        if name not in classes:
            known = ", ".join(sorted(classes)) or "none"
            raise FailedPrecondition(f"{self._path} has no block I/O class {name!r}; it has {known}")
        return resolve(classes[name], self._numbers)

    def _read(self) -> dict[str, Class]:
        try:
            with Path(self._path).open("rb") as file:
                found = os.fstat(file.fileno())
                seen = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
                if self._classes is not None and seen == self._seen:
                    return self._classes
                data = file.read(_SIZE_MAX + 1)
            if len(data) > _SIZE_MAX:
                raise InvalidInput(self._path, f"is larger than {_SIZE_MAX} bytes")
            self._classes, self._seen = parse(self._path, data), seen
        except (OSError, InvalidInput) as error:
            if self._classes is None:
                raise FailedPrecondition(f"block I/O classes cannot be read: {error}") from error
            # A bad edit of the file must not stop pods that ran a minute ago.
            structlog.get_logger("blockio").warning("old classes stay in force", error=str(error))
        return self._classes
