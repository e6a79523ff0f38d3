"""What the watch of the cluster gives up, and with it the programs that a kubeconfig names for credentials.

It stays root, for the files that it reads are root's. But it has no capabilities and cannot make a user namespace to
have some there; it changes no file but those of its scratch directory; and it reaches nobody over a local socket: there
are many who do whatever a root user asks of them, and Landlock does not know of those.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Final

from forgeone_shim.kernel import landlock, privileges
from forgeone_shim.kernel.bpf import Compiler

_FAMILIES: Final = 64
# IPv4, IPv6, and what C libraries ask for the host's addresses by.
_KNOWN_FAMILIES: Final = frozenset({2, 10, 16})
_NEW_USER: Final = 0x10000000
_EPERM, _EACCES, _ENOSYS = 1, 13, 38
_DENIED: Final = """
add_key bpf fsmount fsopen io_uring_enter io_uring_register io_uring_setup kcmp keyctl mount mount_setattr move_mount
open_tree perf_event_open pidfd_getfd pivot_root process_vm_readv process_vm_writev ptrace request_key setns unshare
userfaultfd
"""


def profile() -> dict[str, object]:
    """Its system calls (OCI ``linux.seccomp``)."""
    # The kernel looks at 32 bits of these, whatever the others are.
    families = [_argument(one, 0xFFFFFFFF) for one in range(_FAMILIES) if one not in _KNOWN_FAMILIES]
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            _refused(_DENIED.split(), _EPERM),
            # As is said of a socket that nobody may open: libraries go on without it.
            *(_refused(["socket"], _EACCES, one) for one in families),
            _refused(["clone"], _EPERM, _argument(_NEW_USER, _NEW_USER)),
            # Its flags cannot be seen; C libraries go on with clone.
            _refused(["clone3"], _ENOSYS),
        ],
    }


def confine(scratch: Path) -> None:
    """Give up what the watch does not need, for good; it has one thread yet. Raises OSError."""
    calls = Compiler().compile(profile())
    if os.geteuid() == 0:
        privileges.give_up_bounding()
        privileges.give_up_capabilities()
    privileges.no_new_privileges()
    privileges.not_dumpable()
    _restrict_files(scratch)
    # crun needs the library as well: where it is missing no pod runs.
    if calls is not None:
        privileges.filter_system_calls(base64.b64decode(calls))
    # A change of capabilities would undo it.
    privileges.die_with_parent()


def _restrict_files(scratch: Path) -> None:
    known = landlock.version()
    if not known:
        return
    everywhere = landlock.EXECUTE | landlock.READ_FILE | landlock.READ_DIR
    # Programs that a kubeconfig names for credentials throw away what they do not want to say.
    discard = landlock.WRITE_FILE | landlock.READ_FILE | landlock.TRUNCATE | landlock.IOCTL_DEV
    rules = (("/", everywhere), (os.devnull, discard), (str(scratch), landlock.rights(known)))
    opened = [(os.open(path, os.O_PATH | os.O_CLOEXEC), allowed) for path, allowed in rules]
    try:
        (root, allowed), *more = opened
        landlock.restrict(known, root, allowed, *more)
    finally:
        for fd, _ in opened:
            os.close(fd)


def _refused(names: list[str], errno: int, *conditions: dict[str, object]) -> dict[str, object]:
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": list(conditions)}


def _argument(value: int, mask: int) -> dict[str, object]:
    return {"index": 0, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
