"""Cache and memory bandwidth classes: resctrl groups that the node's administrator has made.

A container's first process is put into its group while it waits to be started, and all that it forks is there with it.
A command executed in it is started by a thread that is in the group. crun need not know resctrl for that: that of
Debian 12 does not. The files: Documentation/filesystems/resctrl.rst.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.kernel.cgroups import write

ROOT = Path("/sys/fs/resctrl")
# goresctrl's word for the group that everything is in from the beginning.
_WHOLE_HOST = "system/default"
_NO_GROUPS = frozenset({".", "..", "info", "mon_data", "mon_groups"})
_NAME_MAX = 255
_MARK = b'"intelRdt"'


class Resctrl:
    """The resctrl file system, if it is mounted on ``root``."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root

    def group(self, class_: str) -> str:
        """The group of a class, empty for the host's own.

        :raises InvalidInput: it cannot be the name of one.
        :raises FailedPrecondition: this host has no resctrl, or no such group.
        """
        if class_ in {"", _WHOLE_HOST}:
            return ""
        if class_ in _NO_GROUPS or "/" in class_ or any(c < " " for c in class_) or len(class_.encode()) > _NAME_MAX:
            raise InvalidInput("annotations", f"{class_!r} cannot name an RDT class")
        if not (self._root / "schemata").is_file():
            fix = "mount -t resctrl resctrl /sys/fs/resctrl, on a processor that has it"
            raise FailedPrecondition(f"RDT class {class_!r} was asked for, but resctrl is not mounted", fix=fix)
        if not (self._root / class_ / "tasks").is_file():
            raise FailedPrecondition(f"RDT class {class_!r} is not on this host", fix=f"mkdir {self._root / class_}")
        return class_

    def place(self, group: str, pid: int) -> None:
        """Put a process with one thread into a group; none is no group.

        :raises FailedPrecondition: the kernel refuses, or the group has gone.
        """
        if group:
            self._move(group, pid)

    @contextlib.contextmanager
    def entered(self, group: str) -> Iterator[None]:
        """What the calling thread starts meanwhile is in the group; none is no group, nor is one that has gone.

        The kernel puts the processes of a group that is removed into the host's own: there the container is, too.
        """
        if not group or not (self._root / group / "tasks").exists():
            yield
            return
        thread = threading.get_native_id()
        before = _own_group(thread)
        self._move(group, thread)
        try:
            yield
        finally:
            try:
                self._move(before, thread)
            except FailedPrecondition:
                # That group has gone: without it the thread would have been in the host's own.
                self._move("", thread)

    def _move(self, group: str, task: int) -> None:
        try:
            write(str(self._root / group / "tasks"), str(task))
        except OSError as error:
            raise FailedPrecondition(f"RDT class {group!r}: {error.strerror}") from error


def group_of(config_json: bytes) -> str:
    """The group that a container's configuration names (OCI ``linux.intelRdt.closID``)."""
    if _MARK not in config_json:
        return ""
    found = msgspec.json.decode(config_json).get("linux", {}).get("intelRdt") or {}
    return str(found.get("closID", ""))


def _own_group(thread: int) -> str:
    """The group a thread of this process is in; the host's own where the kernel does not tell."""
    try:
        text = Path(f"/proc/self/task/{thread}/cpu_resctrl_groups").read_text()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip("/ ") for line in text.splitlines() if line.startswith("res:")), "")
