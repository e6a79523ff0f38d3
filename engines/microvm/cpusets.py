"""The host's processors and memory nodes of a pod's machine: all that its containers may run on, taken together.

Which of them runs on which is the guest's to say, so that no container is held to its own within the machine.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from engines.base import Resources
from forgeone_shim.errors import ForgeError, InternalError, syscall_error
from forgeone_shim.kernel import cgroups
from forgeone_shim.kernel.host import Host
from forgeone_shim.limits import updates

NAME: Final = "cpusets"
"""The directory, in a pod's, with a file for each container that may not run everywhere."""


class Cpuset(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Lists as of cpuset(7); empty: anywhere."""

    cpus: str = ""
    mems: str = ""


_DECODER: Final = msgspec.json.Decoder(Cpuset)


def union(found: Iterable[Cpuset]) -> Cpuset:
    """What is in any of them; nothing where none of them says anything.

    :raises InvalidInput: one is no list.
    """
    cpus: set[int] = set()
    mems: set[int] = set()
    for one in found:
        cpus |= updates.cpu_list(one.cpus, "linux.cpuset_cpus")
        mems |= updates.cpu_list(one.mems, "linux.cpuset_mems")
    return Cpuset(",".join(map(str, sorted(cpus))), ",".join(map(str, sorted(mems))))


class Cpusets:
    """Thread-safe. ``put`` writes a file of a control group."""

    def __init__(self, host: Host, put: updates.Put = cgroups.write) -> None:
        self._host, self._put = host, put
        self._lock = threading.Lock()

    def give(self, pod: Path, cgroup: str, container_id: str, asked: Resources) -> Cpuset:
        """Let the machine run where one of its containers may from now on; returns what was so before.

        ``pod`` is the pod's directory, ``cgroup`` its machine's. What is not set stays as it is.

        :raises InvalidInput: a list that is none.
        :raises FailedPrecondition: it is not within what the pod's control group has.
        """
        with self._lock:
            known = _read(pod)
            before = known.get(container_id, Cpuset())
            wanted = Cpuset(asked.cpuset_cpus or before.cpus, asked.cpuset_mems or before.mems)
            if wanted != before:
                union([wanted])
                with updates.applied(self._plan(cgroup, {**known, container_id: wanted}.values()), self._put):
                    _write(pod, container_id, wanted)
            return before

    def put_back(self, pod: Path, cgroup: str, container_id: str, before: Cpuset) -> None:
        """Undo :meth:`give`; for a container that goes, ``before`` is an empty one."""
        with self._lock:
            known = _read(pod)
            if known.pop(container_id, Cpuset()) == before:
                return
            if before != Cpuset():
                known[container_id] = before
            _write(pod, container_id, before)
            # A machine that is gone, or whose pod has other processors by now, is where it is.
            with contextlib.suppress(ForgeError), updates.applied(self._plan(cgroup, known.values()), self._put):
                pass

    def _plan(self, cgroup: str, found: Iterable[Cpuset]) -> list[updates.Write]:
        """Where nothing is asked for any more the machine stays where it is."""
        both = union(found)
        return updates.plan(Resources(cpuset_cpus=both.cpus, cpuset_mems=both.mems), self._host, cgroup)


def _read(pod: Path) -> dict[str, Cpuset]:
    place = pod / NAME
    try:
        return {
            path.name: _DECODER.decode(path.read_bytes()) for path in place.iterdir() if not path.name.startswith(".")
        }
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise syscall_error("read", place, error) from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InternalError(f"{place} is not as known: {error}") from error


def _write(pod: Path, container_id: str, wanted: Cpuset) -> None:
    """Whole or not at all."""
    path, draft = pod / NAME / container_id, pod / NAME / f".{container_id}"
    try:
        if wanted == Cpuset():
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(mode=0o700, exist_ok=True)
        draft.write_bytes(msgspec.json.encode(wanted))
        draft.replace(path)
    except OSError as error:
        raise syscall_error("write", path, error) from error
