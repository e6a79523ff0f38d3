"""The units that systemd has of ForgeOne (systemd.service(5)): pure texts.

forgeoned's comes with its bundle, and names that version's directory: all that a forgeoned starts is of its own
version, also in the moment between the switch of ``current`` and its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from forgeone_shim.node import layout

HEAD: Final = "# Written by `forge node install`, and replaced by it; changes belong into a drop-in (systemctl edit).\n"
SERVICE: Final = f"{layout.UNITS}/{layout.UNIT}"
PREPARE: Final = f"{layout.UNITS}/{layout.PREPARE_UNIT}"
LINKS: Final[Mapping[str, str]] = {
    f"{layout.UNITS}/multi-user.target.wants/{layout.UNIT}": SERVICE,
    f"{layout.UNITS}/{layout.UNIT}.wants/{layout.PREPARE_UNIT}": PREPARE,
}
"""What ``systemctl enable`` makes of their ``[Install]``."""

_PREPARE: Final = """\
[Unit]
Description=What ForgeOne needs of this host
Before={service}

[Service]
Type=oneshot
RemainAfterExit=yes
# What it cannot mend is told by its findings, and by forgeoned itself.
ExecStart=-{prefix}/bin/forge node prepare
TimeoutStartSec=120

[Install]
WantedBy={service}
"""


def units(prefix: str, service: bytes | None) -> Mapping[str, bytes]:
    """The units of the version in ``prefix``, by their paths; ``service`` is its bundle's (``None``: there is one)."""
    prepare = HEAD + _PREPARE.format(prefix=prefix, service=layout.UNIT)
    return {PREPARE: prepare.encode()} | ({} if service is None else {SERVICE: HEAD.encode() + service})
