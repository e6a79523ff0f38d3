"""Letting packets pass through the host, as the plugins switch it on: for the IP versions of pods, and for good."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from forgeone_shim.network import host

_SYSCTLS: Final = {4: "/proc/sys/net/ipv4/ip_forward", 6: f"{host.IPV6_CONF}/all/forwarding"}


def forward(versions: Collection[int]) -> None:
    """Let packets of these IP versions pass. Raises OSError."""
    for version in sorted(versions):
        host.ensure_sysctl(_SYSCTLS[version], "1")
