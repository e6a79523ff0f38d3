"""The system calls that no monitor has any use for, as a seccomp filter (seccomp(2), classic BPF).

It is in force before the monitor is executed; the monitor's own filter comes on top of it.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection
from typing import Final

# linux/filter.h: load a word, jump if equal, greater or equal, or if one of the bits is set, return.
_LOAD, _EQUAL, _AT_LEAST, _SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# linux/seccomp.h: offsets in struct seccomp_data, and actions.
_NUMBER, _ARCH, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_X86_64: Final = 0xC000003E
_X32_BIT: Final = 0x40000000

_FALLOCATE: Final = 285
# FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_PUNCH_HOLE: Final = 3
_CLONE: Final = 56
# CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID and NET.
_NAMESPACES: Final = 0x7E020000
_PRCTL: Final = 157
_PR_SET_PDEATHSIG: Final = 1
_NOT_THERE: Final = {"clone3": 435}
#: By name, with the number on x86-64, the only machine there is a microVM on.
DENIED: Final = {
    # Other processes' memory and descriptors.
    "ptrace": 101,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "kcmp": 312,
    "pidfd_open": 434,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "process_mrelease": 448,
    # Connections: what it may talk to, it was given.
    "socket": 41,
    "connect": 42,
    "accept": 43,
    "bind": 49,
    "listen": 50,
    "accept4": 288,
    # Namespaces, mounts, and files by other ways than a path.
    "unshare": 272,
    "setns": 308,
    "chroot": 161,
    "pivot_root": 155,
    "mount": 165,
    "umount2": 166,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "mount_setattr": 442,
    "statmount": 457,
    "listmount": 458,
    "name_to_handle_at": 303,
    "open_by_handle_at": 304,
    "fanotify_init": 300,
    "fanotify_mark": 301,
    # Large parts of the kernel, each with a history.
    "bpf": 321,
    "perf_event_open": 298,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "memfd_secret": 447,
    "vmsplice": 278,
    "modify_ldt": 154,
    # The host's own matters.
    "init_module": 175,
    "finit_module": 313,
    "delete_module": 176,
    "kexec_load": 246,
    "kexec_file_load": 320,
    "reboot": 169,
    "swapon": 167,
    "swapoff": 168,
    "syslog": 103,
    "acct": 163,
    "quotactl": 179,
    "quotactl_fd": 443,
    "iopl": 172,
    "ioperm": 173,
    "vhangup": 153,
    "settimeofday": 164,
    "clock_settime": 227,
    "adjtimex": 159,
    "clock_adjtime": 305,
    "sethostname": 170,
    "setdomainname": 171,
    "execveat": 322,
}


#: What those need that offer connections to the guest as sockets of the host's.
SOCKETS: Final = ("socket", "connect", "accept", "accept4", "bind", "listen")


def program(*, keep_holes: bool, allowed: Collection[str] = ()) -> bytes:
    """The filter, as the kernel takes it; ``allowed`` are names that are denied otherwise.

    With ``keep_holes`` a hole is said to have been made in a file and none is. That is for memory which is a private
    mapping of a template: QEMU gives a part of it back to the host first in the file, which is sealed and not its own,
    and then by madvise(2), in its own copy, which does it (``ram_block_discard_range``).
    """
    code = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]
    for number in sorted(_NOT_THERE.values()):
        # So that libraries take the older call, whose flags can be looked at.
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    # No namespace by way of a new thread, and it dies with its parent whatever it wants.
    code += _where(_CLONE, _FIRST_ARGUMENT, (_SET, _NAMESPACES), _ERRNO | errno.EPERM)
    code += _where(_PRCTL, _FIRST_ARGUMENT, (_EQUAL, _PR_SET_PDEATHSIG), _ERRNO | errno.EPERM)
    if keep_holes:
        code += _where(_FALLOCATE, _SECOND_ARGUMENT, (_EQUAL, _PUNCH_HOLE), _ERRNO)
    numbers = sorted(number for name, number in DENIED.items() if name not in allowed)
    code += [(_EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    code += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    return b"".join(struct.pack("=HBBI", *one) for one in code)


def _where(number: int, argument: int, test: tuple[int, int], action: int) -> list[tuple[int, int, int, int]]:
    """Of this call, with an argument (its lower half) that passes the test, the action, and otherwise it is allowed."""
    return [
        (_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, argument),
        (test[0], 0, 1, test[1]),
        (_RETURN, 0, 0, action),
        (_RETURN, 0, 0, _ALLOW),
    ]
