"""What a forgeoned has on the host besides its files, found by names that no other forgeoned uses.

Found from the kernel's side only (mountinfo, links, cgroupfs, /proc), never by asking the daemon.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_FORK_SERVERS = ("forgeone_shim.shim.server", "engines.wasm.zygote", "engines.microvm.zygote")
_FAMILIES = ("inet", "ip", "ip6", "bridge")


@dataclass(frozen=True, slots=True)
class Marks:
    """What tells one forgeoned's things from all others: its directory, the prefix of its links, its cgroup's path."""

    directory: str
    link_prefix: str
    cgroup_root: str


def left(marks: Marks, ignore: Collection[int]) -> list[str]:
    """Everything that carries one of the marks, a line each, sorted; ``ignore`` are processes known to be alive."""
    return sorted(
        [
            *(f"mount {path}" for path in _mounts_of(marks)),
            *(f"link {name}" for name in links() if name.startswith(marks.link_prefix)),
            *(f"cgroup {path}" for path in cgroups(marks.cgroup_root)),
            *(f"process {pid} {command}" for pid, command in processes(marks, ignore)),
        ]
    )


def mounts() -> Iterator[str]:
    """Every mount point of this namespace (namespaces pinned by a bind mount are among them)."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        yield line.split(" ")[4].encode().decode("unicode_escape")


def links() -> Iterator[str]:
    """Every network interface of this namespace."""
    for _, name in socket.if_nameindex():
        yield name


def cgroups(root: str) -> Iterator[str]:
    """Every cgroup below one of that name at the top of any hierarchy; the top one itself may stay."""
    for top in _tops(root):
        yield from (str(path) for path in sorted(top.rglob("*/")) if path != top)


def processes(marks: Marks, ignore: Collection[int]) -> Iterator[tuple[int, str]]:
    """Processes whose command line names the directory or whose cgroup is below the root: pid and command line."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in ignore:
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            cgroup = (entry / "cgroup").read_text()
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        # A zombie holds nothing, and is a matter of its parent's.
        if state != "Z" and (marks.directory in command or f":/{marks.cgroup_root}" in cgroup):
            yield int(entry.name), command


def fork_servers(directory: str) -> Iterator[int]:
    """The fork servers of the forgeoned there: their pids. What they fork is not of their kind."""
    for pid, command in processes(Marks(directory, "/", "/"), ()):
        with suppress(ProcessLookupError):
            if any(name in command for name in _FORK_SERVERS) and os.getsid(pid) == pid:
                yield pid


def watches(forgeoned: int) -> Iterator[int]:
    """The process that watches a cluster for that forgeoned, of which there is one at most."""
    for entry in Path("/proc").iterdir():
        try:
            status, command = (entry / "status").read_text(), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if f"\nPPid:\t{forgeoned}\n" in status and b"forgeone_shim.cluster.child" in command:
            yield int(entry.name)


def sweep(marks: Marks, bridge: str, table: str) -> None:
    """End and take away whatever carries a mark, and what a forgeoned keeps between its runs. Fails on nothing."""
    for pid, _ in processes(marks, (os.getpid(),)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for path in sorted(_mounts_of(marks), reverse=True):
        subprocess.run(["umount", "--lazy", path], check=False, capture_output=True)
    links_left = [name for name in links() if name == bridge or name.startswith(marks.link_prefix)]
    commands = [["ip", "link", "delete", name] for name in links_left]
    if marks.cgroup_root.endswith(".slice"):
        # The slice is a unit, which systemd keeps.
        commands.append(["systemctl", "stop", marks.cgroup_root.rpartition("/")[2]])
    commands += [["nft", "delete", "table", family, table] for family in _FAMILIES]
    for command in commands:
        if shutil.which(command[0]):
            subprocess.run(command, check=False, capture_output=True)
    for top in _tops(marks.cgroup_root):
        for group in (*sorted(top.rglob("*/"), reverse=True), top):
            with suppress(OSError):
                group.rmdir()


def _mounts_of(marks: Marks) -> list[str]:
    below = (marks.directory, *(str(top) for top in _tops(marks.cgroup_root)))
    return [path for path in mounts() if path.startswith(tuple(f"{directory}/" for directory in below))]


def _tops(root: str) -> list[Path]:
    found = (_CGROUPS / root, *sorted(_CGROUPS.glob(f"*/{root}")))
    return [top for top in found if top.is_dir() and not top.is_symlink()]
