"""RuntimeService as one object."""

from __future__ import annotations

from cri.runtime.checkpoints import CheckpointVerbs
from cri.runtime.container import ContainerVerbs
from cri.runtime.events import EventVerbs
from cri.runtime.execution import ExecVerbs
from cri.runtime.sandbox import SandboxVerbs
from cri.runtime.stats import StatsVerbs
from cri.runtime.status import StatusVerbs
from cri.runtime.streams import StreamVerbs
from cri.runtime.updates import UpdateVerbs


class RuntimeService(
    StatusVerbs,
    SandboxVerbs,
    ContainerVerbs,
    ExecVerbs,
    StreamVerbs,
    StatsVerbs,
    EventVerbs,
    UpdateVerbs,
    CheckpointVerbs,
):
    """The verbs of pods and containers."""
