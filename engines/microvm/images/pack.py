"""The packing helper: one tree into one erofs file, in a process that sees nothing else and may do nothing else.

What is in the tree is a stranger's. By the time the first name of it is read the process is nobody's, with the one
capability to read what others own, no network, and a root in which there are programs, the tree and the file.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from engines.microvm.images.order import Order
from forgeone_shim.kernel import mounts, privileges, trees
from forgeone_shim.kernel.capabilities import KNOWN
from forgeone_shim.kernel.namespaces import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWUTS
from forgeone_shim.kernel.syscalls import number, syscall

_NOBODY: Final = 65534
_NICE: Final = 10
_CLONE_NEWNS: Final = 0x00020000
_SYSTEM: Final = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_TREE, _FILE = "tree", "file"
_READ_ALL: Final = KNOWN.index("CAP_DAC_READ_SEARCH")
_ID: Final = "00000000-0000-0000-0000-000000000000"


def main() -> NoReturn:
    """Do as the order in ``sys.argv`` says: become ``mkfs.erofs``."""
    order = msgspec.json.decode(sys.argv[1], type=Order)
    os.nice(_NICE)
    syscall(number("unshare"), _CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
    _enter(order)
    for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, order.size_max)):
        resource.setrlimit(limit, (value, value))
    privileges.become_with(_NOBODY, _NOBODY, _READ_ALL)
    privileges.no_new_privileges()
    # A change of ids takes it back, so it comes last.
    privileges.die_with_parent(signal.SIGKILL)
    if os.getppid() != order.parent:
        os._exit(1)
    # Times of files are kept: Python, for one, compares its bytecode's with the source's.
    program = str(Path(order.program).resolve())
    argv = [program, "--quiet", "-U", _ID, f"/{_FILE}", f"/{_TREE}"]
    os.execve(program, argv, {"PATH": "/usr/bin:/bin"})  # noqa: S606


def _enter(order: Order) -> None:
    """Change into a root of this process's own."""
    trees.keep_to_itself()
    root = Path(order.empty)
    mounts.mount_tmpfs(root, 1 << 20)
    for name in _SYSTEM:
        source, target = Path("/", name), root / name
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.is_dir():
            target.mkdir()
            mounts.bind(source, target, readonly=True)
    # A program from elsewhere has its libraries in the directory beside its own.
    home = Path(order.program).resolve().parent.parent
    if len(home.parts) > 1 and home.parts[1] not in _SYSTEM:
        target = root.joinpath(*home.parts[1:])
        target.mkdir(parents=True)
        mounts.bind(home, target, readonly=True)
    (root / _TREE).mkdir()
    mounts.bind(order.tree, root / _TREE, readonly=True)
    (root / _FILE).touch()
    mounts.bind(order.file, root / _FILE)
    os.chdir(root)
    trees.become_root()
