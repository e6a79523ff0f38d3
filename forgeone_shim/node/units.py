"""The units that systemd has of ForgeOne (systemd.service(5)): pure texts.

They name a version's directory and not ``current``: all that a forgeoned starts is then of its own version, also in the
moment between the switch of that link and its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from forgeone_shim.node import layout

WANTED_BY: Final = f"{layout.UNITS}/multi-user.target.wants/{layout.UNIT}"
"""The link that ``systemctl enable`` makes of the service's ``[Install]``."""

_HEAD: Final = (
    "# Written by `forge node install`, and replaced by it; changes belong into a drop-in (systemctl edit).\n"
)
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_SERVICE: Final = """\
[Unit]
Description=ForgeOne, a Kubernetes container runtime
Documentation=file:{prefix}/share/doc/operate.md
Wants={prepare}
After=network.target local-fs.target {prepare} containerd.service crio.service
Before=kubelet.service

[Service]
Type=notify
NotifyAccess=main
Environment=PATH={prefix}/bin:{path}
ExecStart={prefix}/bin/forgeoned
# Not a signal: this one fails, with the reason, when the new configuration is refused.
ExecReload={prefix}/bin/forge reload
Restart=always
RestartSec=1

# forgeoned owns no container: containers, their supervisors and mounts stay when it is stopped or replaced.
KillMode=process
# Containers' cgroups below this unit's, if any are put there, are forgeoned's to manage.
Delegate=yes
# Mounts made here must be seen by the host and by the kubelet.
MountFlags=shared
OOMScoreAdjust=-999
LimitNOFILE=1048576
LimitNPROC=infinity
TasksMax=infinity

[Install]
WantedBy=multi-user.target
"""

_PREPARE: Final = """\
[Unit]
Description=What ForgeOne needs of this host
Before={service}

[Service]
Type=oneshot
RemainAfterExit=yes
Environment=PATH={prefix}/bin:{path}
# What it cannot mend is told by its findings, and by forgeoned itself.
ExecStart=-{prefix}/bin/forge node prepare
TimeoutStartSec=120
"""


def units(version: str) -> Mapping[str, bytes]:
    """The units of a version, by their paths."""
    words = {
        "prefix": layout.version_directory(version),
        "path": _PATH,
        "service": layout.UNIT,
        "prepare": layout.PREPARE_UNIT,
    }
    return {
        f"{layout.UNITS}/{layout.UNIT}": (_HEAD + _SERVICE.format(**words)).encode(),
        f"{layout.UNITS}/{layout.PREPARE_UNIT}": (_HEAD + _PREPARE.format(**words)).encode(),
    }
