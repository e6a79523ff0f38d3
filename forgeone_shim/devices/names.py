"""Names of CDI devices: ``vendor/class=device`` (CDI specification, "Kind" and "CDI Devices")."""

from __future__ import annotations

import re
from typing import Final

ANNOTATION_PREFIX: Final = "cdi.k8s.io/"
"""container; device plugins

Devices to add, `vendor/class=device`, several with commas between them; the same as CRI's `CDI_devices`. See
[operating](operate.md#devices-of-vendors).
"""
HOST_ANNOTATION: Final = "forgeone.dev/devices"
"""pod; whoever writes the pod

Devices of the host for each of its containers, such as `/dev/fuse,/dev/net/tun:/dev/net/tun:rw`. One that
`native.allowed_devices` does not list is refused with PERMISSION_DENIED.
"""

_VENDOR = r"[A-Za-z](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?"
_CLASS = r"[A-Za-z](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_DEVICE = r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?"

KIND: Final = re.compile(rf"{_VENDOR}/{_CLASS}")
DEVICE: Final = re.compile(_DEVICE)
QUALIFIED: Final = re.compile(rf"{_VENDOR}/{_CLASS}={_DEVICE}")
