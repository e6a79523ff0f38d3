"""What an installation consists of: steps as data, each with all that its inverse needs, for whoever has to undo it.

=============  ==============================================  =====================================================
step           done                                            undone
=============  ==============================================  =====================================================
``tree``       a bundle is laid out under its version          the version is removed, or the one before put back
``file``       a file is written, or removed                   its old bytes are put back, if the new are still there
``link``       a symlink is switched                           it leads where it did
``unit``       systemd starts, restarts, stops or reloads      nothing
``settle``     nothing                                         systemd reads units, and has one run as before
``ready``      forgeoned is waited for                         nothing
``healthy``    the kubelet is waited for                       nothing
``sweep``      pods of a runtime are stopped and removed       nothing: the kubelet makes them anew
``vacate``     nothing                                         the kubelet is stopped, and what it started since goes
=============  ==============================================  =====================================================

Steps are undone from the last to the first. A ``settle`` therefore stands before the files that a service is made of.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Do(StrEnum):
    """What systemd is asked for; ``reload`` reads all units anew."""

    START = "start"
    RESTART = "restart"
    STOP = "stop"
    RELOAD = "reload"


class _Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step"):
    pass


class Tree(_Step, frozen=True, tag="tree"):
    """``source`` is where this process sees the bundle; ``digest`` is its manifest's; ``replaces``: one is there."""

    source: str
    version: str
    digest: str
    replaces: bool


class File(_Step, frozen=True, tag="file"):
    """``new`` and ``old`` are what it holds after and before; ``None``: there is no such file."""

    path: str
    new: bytes | None
    old: bytes | None
    mode: int = 0o644


class Link(_Step, frozen=True, tag="link"):
    """Where a symlink leads after and before; ``None``: there is none."""

    path: str
    new: str | None
    old: str | None


class Unit(_Step, frozen=True, tag="unit"):
    """One job of systemd's, waited for."""

    do: Do
    unit: str = ""


class Settle(_Step, frozen=True, tag="settle"):
    """``active``: whether the service ran before."""

    unit: str
    active: bool


class Ready(_Step, frozen=True, tag="ready"):
    """forgeoned of this version answers on its socket, and says that it is ready."""

    version: str


class Healthy(_Step, frozen=True, tag="healthy"):
    """The kubelet's own word (``healthzBindAddress``, ``healthzPort``); port 0: it gives none, and has to stay up."""

    address: str
    port: int


class Sweep(_Step, frozen=True, tag="sweep"):
    """Pods of the runtime at ``socket``, but those that ``beside`` (another socket; empty: none) has as well.

    ``grace`` is in seconds, for each container; ``strict``: that one cannot be removed is an error; ``refuse``: so is
    one that runs, and nothing is stopped.
    """

    socket: str
    beside: str = ""
    grace: int = 30
    strict: bool = True
    refuse: bool = False


class Vacate(_Step, frozen=True, tag="vacate"):
    """Pods as :class:`Sweep` has them, of the runtime that the kubelet is about to use: it comes before the kubelet's
    files, so that their undoing finds the kubelet stopped and no pod runs twice.
    """

    socket: str
    beside: str = ""


Step = Tree | File | Link | Unit | Settle | Ready | Healthy | Sweep | Vacate


def said(step: Step) -> str:
    """A step for people."""
    match step:
        case Tree():
            return f"lay out version {step.version} from {step.source}"
        case File():
            return f"{'remove' if step.new is None else 'write' if step.old is None else 'change'} {step.path}"
        case Link():
            return f"remove {step.path}" if step.new is None else f"let {step.path} lead to {step.new}"
        case Unit():
            return "have systemd read its units" if step.do is Do.RELOAD else f"{step.do} {step.unit}"
        case Settle():
            return f"{step.unit} {'runs' if step.active else 'does not run'} now, and again if this fails"
        case Ready():
            return f"wait until forgeoned {step.version} is ready"
        case Healthy():
            return "wait until the kubelet is healthy"
        case Sweep():
            return f"{'find no' if step.refuse else 'stop and remove the'} pods of {step.socket}"
        case Vacate():
            return f"no pods of {step.socket} stay if this fails"
