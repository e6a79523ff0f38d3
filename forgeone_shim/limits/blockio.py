"""Limits of block I/O, written into a container's cgroup while it waits to be started.

The files: Documentation/admin-guide/cgroup-v1/blkio-controller.rst and cgroup-v2.rst (IO). They are written here and
not by crun because which of them hold weights depends on the kernel and its schedulers, which not every crun knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from engines.base import BlockIO, DeviceRate
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.kernel import cgroups
from forgeone_shim.kernel.cgroups import CgroupHost, Mode

_V1_RATES = (
    ("read_bps", "blkio.throttle.read_bps_device"),
    ("write_bps", "blkio.throttle.write_bps_device"),
    ("read_iops", "blkio.throttle.read_iops_device"),
    ("write_iops", "blkio.throttle.write_iops_device"),
)
_V2_RATES = (("read_bps", "rbps"), ("write_bps", "wbps"), ("read_iops", "riops"), ("write_iops", "wiops"))


@dataclass(frozen=True, slots=True)
class Line:
    """A line for the first of ``files`` that the cgroup has; none of them is an error unless ``optional``.

    A file that another scale of weights is in is named with its own text.
    """

    files: tuple[tuple[str, str], ...]
    optional: bool = False


def plan(asked: BlockIO, *, v2: bool) -> list[Line]:
    """The lines to write, in their order."""
    return _plan_v2(asked) if v2 else _plan_v1(asked)


def _plan_v1(asked: BlockIO) -> list[Line]:
    lines = []
    if asked.weight:
        lines.append(_weight(("blkio.bfq.weight", "blkio.weight"), str(asked.weight)))
    for one in asked.weights:
        names = ("blkio.bfq.weight_device", "blkio.weight_device")
        lines.append(_weight(names, f"{one.major}:{one.minor} {one.value}"))
    for field, name in _V1_RATES:
        rates: Sequence[DeviceRate] = getattr(asked, field)
        lines += [Line(((name, f"{one.major}:{one.minor} {one.value}"),)) for one in rates]
    return lines


def _plan_v2(asked: BlockIO) -> list[Line]:
    lines = []
    if asked.weight:
        lines.append(_either("default", asked.weight))
    lines += [_either(f"{one.major}:{one.minor}", one.value) for one in asked.weights]
    by_device: dict[tuple[int, int], list[str]] = {}
    for field, word in _V2_RATES:
        for one in getattr(asked, field):
            by_device.setdefault((one.major, one.minor), []).append(f"{word}={one.value}")
    lines += [
        Line((("io.max", f"{major}:{minor} {' '.join(words)}"),)) for (major, minor), words in sorted(by_device.items())
    ]
    return lines


def _weight(names: Sequence[str], text: str) -> Line:
    return Line(tuple((name, text) for name in names), optional=True)


def _either(which: str, weight: int) -> Line:
    """BFQ's weights are 1 to 1000, those of the I/O cost model 1 to 10000 (as crun converts them)."""
    cost = 1 + (weight - 10) * 9999 // 990
    return Line((("io.bfq.weight", f"{which} {weight}"), ("io.weight", f"{which} {cost}")), optional=True)


def limit_io(asked: BlockIO, host: CgroupHost, cgroup: str) -> None:
    """Write the limits.

    :raises FailedPrecondition: the cgroup has not that controller, or the kernel refuses a limit.
    """
    v2 = host.mode is Mode.V2
    controller = "io" if v2 else "blkio"
    directory = host.directory(controller, cgroup)
    if directory is None or not Path(directory).is_dir():
        raise FailedPrecondition(f"block I/O cannot be limited: the container has no cgroup of controller {controller}")
    for line in plan(asked, v2=v2):
        there = next(((name, text) for name, text in line.files if Path(directory, name).exists()), None)
        if there is None:
            names = " or ".join(name for name, _ in line.files)
            if not line.optional:
                raise FailedPrecondition(f"block I/O cannot be limited: the container's cgroup has no {names}")
            structlog.get_logger("limits").warning("weight of block I/O without effect", cgroup=cgroup, missing=names)
            continue
        name, text = there
        try:
            cgroups.write(f"{directory}/{name}", text)
        except OSError as error:
            raise FailedPrecondition(f"block I/O: the kernel refuses {text!r} for {name}: {error.strerror}") from error
