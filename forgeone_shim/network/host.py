"""What the pod network needs of its host: IPv6 or not, forwarding, the default route. Reads first, writes rarely."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from forgeone_shim.kernel.namespaces import write_proc

IPV4_CONF: Final = "/proc/sys/net/ipv4/conf"
IPV6_CONF: Final = "/proc/sys/net/ipv6/conf"
_IP_FORWARD: Final = "/proc/sys/net/ipv4/ip_forward"
_ROUTES: Final = "/proc/thread-self/net/route"
_IPV6_ROUTES: Final = "/proc/thread-self/net/ipv6_route"
_RTF_UP: Final = 0x1
_RTF_REJECT: Final = 0x200


def read_sysctl(path: str) -> str | None:
    """A kernel parameter's value, ``None`` where this kernel or namespace has no such parameter."""
    try:
        return Path(path).read_text().strip()
    except FileNotFoundError:
        return None


def ensure_sysctl(path: str, value: str) -> None:
    """Write a kernel parameter unless it has the value already; one this kernel lacks is left out. Raises OSError."""
    current = read_sysctl(path)
    if current is not None and current != value:
        write_proc(path, value)


def has_ipv6() -> bool:
    """Whether new interfaces of this host get IPv6."""
    return all(read_sysctl(f"{IPV6_CONF}/{which}/disable_ipv6") == "0" for which in ("all", "default"))


def enable_forwarding(*, ipv6: bool) -> None:
    """Let the host pass packets on between its interfaces. Raises OSError."""
    ensure_sysctl(_IP_FORWARD, "1")
    if not ipv6 or read_sysctl(f"{IPV6_CONF}/all/forwarding") == "1":
        return
    # A host that forwards stops listening to router advertisements, and so loses its own default route, unless an
    # interface is set to 2.
    for interface in Path(IPV6_CONF).iterdir():
        path = str(interface / "accept_ra")
        if interface.name not in ("all", "default", "lo") and read_sysctl(path) == "1":
            with suppress(FileNotFoundError):
                write_proc(path, "2")
    write_proc(f"{IPV6_CONF}/all/forwarding", "1")


def default_route_device() -> str:
    """The interface of the default route, IPv4's before IPv6's; "" when there is none."""
    return _default_device(_read(_ROUTES)) or _default_device_ipv6(_read(_IPV6_ROUTES))


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except FileNotFoundError:
        return ""


def _default_device(table: str) -> str:
    """From /proc/net/route: of the routes to 0.0.0.0/0 that are up, the one with the lowest metric."""
    found: list[tuple[int, str]] = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or fields[1] != "00000000" or fields[7] != "00000000":
            continue
        flags = int(fields[3], 16)
        if flags & _RTF_UP and not flags & _RTF_REJECT:
            found.append((int(fields[6]), fields[0]))
    return min(found)[1] if found else ""


def _default_device_ipv6(table: str) -> str:
    """From /proc/net/ipv6_route, likewise."""
    found: list[tuple[int, str]] = []
    for line in table.splitlines():
        fields = line.split()
        if len(fields) < 10 or fields[0] != "0" * 32 or fields[1] != "00":
            continue
        flags = int(fields[8], 16)
        if flags & _RTF_UP and not flags & _RTF_REJECT and fields[9] != "lo":
            found.append((int(fields[5], 16), fields[9]))
    return min(found)[1] if found else ""
