"""What is said to the fork server that keepers come from, to a keeper, and what they answer: MessagePack.

An order comes over a connection of its own, of :mod:`forgeone_shim.shim.wire`. What in it is ``payload`` are fields of
:mod:`engines.microvm.wire.protocol` that the agent is told, or has answered, as they are.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, TypeVar

import msgspec

from engines.microvm.vmm.base import Confinement, Machine
from forgeone_shim.shim.supervision import Failed, Supervision
from forgeone_shim.shim.wire import ProtocolError

# Another one for each change of what is said, here or in what is said in it.
VERSION: Final = 4

# Names in a sandbox's directory: where its keeper takes orders, and the keeper's process (``PID STARTTIME``).
SOCKET: Final = "vm.sock"
PIDFILE: Final = "vm.pid"
# What the guest, or the keeper, had to say to the node's operator.
LOG: Final = "vm.log"
# In a container's bundle, beside those of :mod:`forgeone_shim.shim.supervision`: "1" while it is frozen.
FROZEN: Final = "frozen"
# The first of a keeper's words; the second is the sandbox's id.
TITLE: Final = "forgeone-vm"
# Why a container ended (the reason of its verdict) that did not end by itself.
VM_DIED: Final = "VMDied"
GUEST_PROTOCOL: Final = "GuestProtocol"
GUEST_SILENT: Final = "GuestSilent"
KILLED_CODE: Final = 137


class Driver(StrEnum):
    """Which monitor runs the machine."""

    QEMU = "qemu"
    FIRECRACKER = "firecracker"
    CLOUD_HYPERVISOR = "cloud-hypervisor"


class Monitor(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A monitor's program, an absolute path of the host's."""

    driver: Driver
    program: str


# Requests of the fork server's


class Launch(msgspec.Struct, tag_field="kind", tag="launch", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A keeper, with a machine whose agent answers within ``seconds``; answered by :class:`Launched`.

    ``directory`` is the sandbox's. ``cgroups`` are the directories of the cgroup that the keeper joins; the monitor
    joins those of ``who``. Descriptors: the tap's if there is a ``tap``, and of a ``template`` its memory and state.
    """

    sandbox_id: str
    directory: str
    monitor: Monitor
    machine: Machine
    who: Confinement
    cgroups: tuple[str, ...] = ()
    tap: bool = False
    template: bool = False
    seconds: float = 60.0


class Save(msgspec.Struct, tag_field="kind", tag="save", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Boot a machine that is nobody's and save it; answered by :class:`Done` once it has ended.

    Descriptors: files for its memory and its state.
    """

    name: str
    monitor: Monitor
    machine: Machine
    who: Confinement
    cgroups: tuple[str, ...] = ()
    seconds: float = 60.0


# Orders for a keeper


class Setup(msgspec.Struct, tag_field="kind", tag="setup", forbid_unknown_fields=True, frozen=True):
    """The machine becomes the pod's (:attr:`Kind.SETUP`); answered by :class:`Done`."""

    payload: bytes


class Disk(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A raw image. Containers that name one ``key`` have one disk, which all of them only read."""

    key: str = ""
    readonly: bool = True


class Volume(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A file or directory of the host's that the guest is to have.

    ``common``: a directory that is one and the same for all containers that have it. ``live``: the host's own mounts,
    with those that it makes later.
    """

    readonly: bool = False
    common: bool = False
    live: bool = False


class Prepare(msgspec.Struct, tag_field="kind", tag="prepare", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Disks and volumes for the container that is created next over this connection; :class:`Prepared`.

    Descriptors: those of the disks, and then of the volumes (O_PATH). May be said several times; what no container
    was created with is taken back at the connection's end.
    """

    container_id: str
    disks: tuple[Disk, ...] = ()
    volumes: tuple[Volume, ...] = ()


class Create(msgspec.Struct, tag_field="kind", tag="create", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A container (:attr:`Kind.CREATE`, to which its PROCESS is added); answered by :class:`Created`.

    ``oom_score_adj`` (proc(5)) is for the monitor: of several containers' the lowest counts. Should the client go
    before it has read the answer, nothing is left of the container.
    """

    supervision: Supervision
    payload: bytes
    oom_score_adj: int = 0


class Start(msgspec.Struct, tag_field="kind", tag="start", forbid_unknown_fields=True, frozen=True):
    """Let a created container run; :class:`Done`."""

    container_id: str


class Signal(msgspec.Struct, tag_field="kind", tag="signal", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """For a container's first process, or all of them; :class:`Done`."""

    container_id: str
    signal: int
    everything: bool = False


class Update(msgspec.Struct, tag_field="kind", tag="update", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A container's limits in the guest (:attr:`Kind.UPDATE`); :class:`Done`."""

    container_id: str
    payload: bytes


class Freeze(msgspec.Struct, tag_field="kind", tag="freeze", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Let all of a container's processes stand still, or go on; :class:`Done`."""

    container_id: str
    on: bool


class Stats(msgspec.Struct, tag_field="kind", tag="stats", forbid_unknown_fields=True, frozen=True):
    """Ask the agent (:attr:`Kind.STATS`); :class:`Done` with its answer."""

    payload: bytes = b""


class Delete(msgspec.Struct, tag_field="kind", tag="delete", forbid_unknown_fields=True, frozen=True):
    """End a container and forget it, its exit told; one that is not there is no error. :class:`Done`."""

    container_id: str


class Exec(msgspec.Struct, tag_field="kind", tag="exec", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A command in a container (:attr:`Kind.EXEC`); :class:`Executing`, and at its end :class:`Ended`.

    ``payload`` has all but its PROCESS. ``streams`` are those of 0, 1 and 2 of which a descriptor
    comes with this. The command is killed at the connection's end; until then :class:`Resize` may be said.
    """

    container_id: str
    payload: bytes
    streams: tuple[int, ...] = ()


class Resize(msgspec.Struct, tag_field="kind", tag="resize", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The size of an executed command's terminal; without an answer."""

    width: int
    height: int


class Dial(msgspec.Struct, tag_field="kind", tag="dial", forbid_unknown_fields=True, frozen=True):
    """A TCP connection to the machine's loopback; :class:`Done`, and with it the connection's descriptor."""

    port: int


class Look(msgspec.Struct, tag_field="kind", tag="look", forbid_unknown_fields=True, frozen=True):
    """:class:`Seen`."""


class Stop(msgspec.Struct, tag_field="kind", tag="stop", forbid_unknown_fields=True, frozen=True):
    """End the machine, what is left in it, and the keeper. :class:`Done` once the exits of all are told."""


# Answers


class Launched(msgspec.Struct, tag_field="kind", tag="launched", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The keeper's process and the monitor's, with their start times; what the agent said of its kernel."""

    pid: int
    started: int
    monitor_pid: int
    monitor_started: int
    release: str = ""
    features: tuple[str, ...] = ()


class Done(msgspec.Struct, tag_field="kind", tag="done", forbid_unknown_fields=True, frozen=True):
    """It is so; ``payload`` is what the agent answered."""

    payload: bytes = b""


class Prepared(msgspec.Struct, tag_field="kind", tag="prepared", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The LUN of each disk, and each volume's path below the share's root."""

    luns: tuple[int, ...] = ()
    volumes: tuple[str, ...] = ()


class Created(msgspec.Struct, tag_field="kind", tag="created", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """``pid`` is the monitor's, on the host; ``payload`` is what the agent answered."""

    pid: int
    payload: bytes = b""


class Executing(
    msgspec.Struct, tag_field="kind", tag="executing", forbid_unknown_fields=True, frozen=True, kw_only=True
):
    """The command runs; ``payload`` is what the agent answered."""

    payload: bytes = b""


class Ended(msgspec.Struct, tag_field="kind", tag="ended", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The command has ended with this exit code, and all it wrote has been passed on."""

    code: int


class Seen(msgspec.Struct, tag_field="kind", tag="seen", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The pod as its keeper knows it: ids of containers that have not ended, and of those that have but are there.

    ``processes`` counts their first processes, executed commands and connections.
    """

    monitor_pid: int
    alive: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    processes: int = 0


Request = Launch | Save
Order = (
    Setup | Prepare | Create | Start | Signal | Update | Freeze | Stats | Delete | Exec | Resize | Dial | Look | Stop
)
Answer = Launched | Done | Prepared | Created | Executing | Ended | Seen | Failed
_T = TypeVar("_T")
_REQUESTS: Final[msgspec.msgpack.Decoder[Request]] = msgspec.msgpack.Decoder(Request)
_ORDERS: Final[msgspec.msgpack.Decoder[Order]] = msgspec.msgpack.Decoder(Order)
_ANSWERS: Final[msgspec.msgpack.Decoder[Answer]] = msgspec.msgpack.Decoder(Answer)
_ENCODER: Final = msgspec.msgpack.Encoder()


def encode(message: Request | Order | Answer) -> bytes:
    """The message as it travels."""
    return _ENCODER.encode(message)


def decode_request(data: bytes | bytearray) -> Request:
    """Strictly.

    :raises ProtocolError: it is none of the fork server's requests.
    """
    return _decode(_REQUESTS, data)


def decode_order(data: bytes | bytearray) -> Order:
    """As :func:`decode_request`, for a keeper's."""
    return _decode(_ORDERS, data)


def decode_answer(data: bytes | bytearray) -> Answer:
    """As :func:`decode_request`, for what is answered."""
    return _decode(_ANSWERS, data)


def _decode(decoder: msgspec.msgpack.Decoder[_T], data: bytes | bytearray) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ProtocolError(str(error)) from error
