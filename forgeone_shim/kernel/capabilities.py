"""Linux capabilities by name and number (capabilities(7))."""

from __future__ import annotations

# Order is the kernel's numbering (include/uapi/linux/capability.h).
_KNOWN = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
    "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL "
    "SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
KNOWN = tuple(f"CAP_{name}" for name in _KNOWN.split())

_DEFAULT = (
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL "
    "AUDIT_WRITE"
)
# What a container has that asks for nothing else, with every runtime.
DEFAULT = frozenset(f"CAP_{name}" for name in _DEFAULT.split())


def from_mask(mask: int) -> frozenset[str]:
    """The names of the bits of a ``/proc/PID/status`` capability line; bits unknown here have no name and are left."""
    return frozenset(name for bit, name in enumerate(KNOWN) if mask >> bit & 1)
