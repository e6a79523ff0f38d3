"""CRI's enums and ForgeOne's, side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from cri.api import runtime_pb2 as pb
from engines.base import GroupsPolicy, NamespaceMode, PortProtocol, ProfileType, Propagation
from forgeone_shim.errors import InvalidInput
from forgeone_shim.lifecycle.machine import LIVE, State
from forgeone_shim.runtime.process import signal_number

PROTOCOLS: Final = MappingProxyType({pb.TCP: PortProtocol.TCP, pb.UDP: PortProtocol.UDP, pb.SCTP: PortProtocol.SCTP})

PROPAGATIONS: Final = MappingProxyType(
    {
        pb.PROPAGATION_PRIVATE: Propagation.PRIVATE,
        pb.PROPAGATION_HOST_TO_CONTAINER: Propagation.HOST_TO_CONTAINER,
        pb.PROPAGATION_BIDIRECTIONAL: Propagation.BIDIRECTIONAL,
    }
)
PROPAGATION_OF: Final = MappingProxyType({ours: theirs for theirs, ours in PROPAGATIONS.items()})

GROUPS_POLICIES: Final = MappingProxyType({pb.Merge: GroupsPolicy.MERGE, pb.Strict: GroupsPolicy.STRICT})

PROFILE_TYPES: Final = MappingProxyType(
    {
        pb.SecurityProfile.RuntimeDefault: ProfileType.RUNTIME_DEFAULT,
        pb.SecurityProfile.Unconfined: ProfileType.UNCONFINED,
        pb.SecurityProfile.Localhost: ProfileType.LOCALHOST,
    }
)

_MODES: Final = MappingProxyType(
    {
        pb.POD: NamespaceMode.POD,
        pb.CONTAINER: NamespaceMode.CONTAINER,
        pb.NODE: NamespaceMode.NODE,
        pb.TARGET: NamespaceMode.TARGET,
    }
)
MODE_OF: Final = MappingProxyType({ours: theirs for theirs, ours in _MODES.items()})


def _modes(*allowed: NamespaceMode) -> Mapping[pb.NamespaceMode.ValueType, NamespaceMode]:
    return MappingProxyType({theirs: ours for theirs, ours in _MODES.items() if ours in allowed})


SHARED_MODES: Final = _modes(NamespaceMode.POD, NamespaceMode.NODE)
"""What network, IPC and user namespaces can be: the pod's or the node's."""
SANDBOX_PID_MODES: Final = _modes(NamespaceMode.POD, NamespaceMode.CONTAINER, NamespaceMode.NODE)
CONTAINER_PID_MODES: Final = _modes(*NamespaceMode)

CONTAINER_STATES: Final = MappingProxyType(
    {
        state: pb.CONTAINER_EXITED
        if state in (State.TERMINATED, State.REMOVED)
        else pb.CONTAINER_RUNNING
        if state in LIVE
        else pb.CONTAINER_CREATED
        for state in State
    }
)

CGROUP_DRIVERS: Final = MappingProxyType({"systemd": pb.SYSTEMD, "cgroupfs": pb.CGROUPFS})

_REAL_TIME = re.compile(r"(SIGRT(?:MIN|MAX))(PLUS|MINUS)(\d+)")


def _signal_name(member: str) -> str:
    """``SIGNAL_SIGRTMINPLUS3`` as ``SIGRTMIN+3``."""
    if member == "SIGNAL_RUNTIME_DEFAULT":
        return ""
    text = member.removeprefix("SIGNAL_")
    return _REAL_TIME.sub(lambda m: f"{m[1]}{'+' if m[2] == 'PLUS' else '-'}{m[3]}", text)


SIGNALS: Final = MappingProxyType({number: _signal_name(member) for member, number in pb.Signal.items()})
"""Number in CRI's enum -> name as ForgeOne and images write it; empty: the runtime chooses."""
_SIGNAL_OF: Final = MappingProxyType({name: number for number, name in SIGNALS.items()})
# Of two names for one signal the enum's first.
_BY_NUMBER: Final[Mapping[int, pb.Signal.ValueType]] = MappingProxyType(
    {signal_number(name, field=name): number for name, number in reversed(list(_SIGNAL_OF.items())) if name}
)


def signal_of(name: str) -> pb.Signal.ValueType:
    """The enum's number of a signal as an image may write it: ``SIGTERM``, ``term``, ``15``, ``RTMIN+20``.

    One that no kernel or no enum knows is the default.
    """
    text = name.strip().upper()
    found = _SIGNAL_OF.get(text if text.startswith("SIG") or not text else f"SIG{text}")
    if found is not None:
        return found
    try:
        return _BY_NUMBER.get(signal_number(name, field="stop_signal"), pb.SIGNAL_RUNTIME_DEFAULT)
    except InvalidInput:
        return pb.SIGNAL_RUNTIME_DEFAULT
