"""What is said by requests, answers and words: a struct for each group of fields of :mod:`protocol`.

A field's annotation says its tag and its bounds, and whether it is a list; one without a default has to be there, and
one that is as its default is left out. ``guest/schema.h`` is made from these structs, so that both sides check alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Final

import msgspec

from engines.microvm.wire.fields import U32, Of
from engines.microvm.wire.protocol import DATA_MAX, NUMBER_MAX, Kind, MountKind, PidMode, Tag

# The kernel's PATH_MAX, with its NUL; what is no path but a line of text has this bound too.
_LINE: Final = 4095
_ID: Final = 128
# uid_t and gid_t; the last one means "none".
_USER: Final = U32 - 1

_Container = Annotated[str, Of(Tag.CONTAINER, 1, _ID)]
_Process = Annotated[int, Of(Tag.PROCESS, 0, NUMBER_MAX - 1)]
_Number = Annotated[int | None, Of(Tag.PROCESS, 0, NUMBER_MAX - 1)]
_Name = Annotated[str, Of(Tag.NAME, 1, _LINE)]
_Mac = Annotated[bytes, Of(Tag.MAC, 6, 6)]
_Lun = Of(Tag.LUN, 0, 255)
_Uid = Annotated[int, Of(Tag.UID, 0, _USER)]
_Gid = Annotated[int, Of(Tag.GID, 0, _USER)]
_Time = Annotated[int, Of(Tag.TIME, 1, (1 << 63) - 1)]
_ENTROPY: Final = Of(Tag.ENTROPY, 32, 4096)


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A group of fields."""


class Done(Message, frozen=True, kw_only=True):
    """Nothing: of QUIESCE and POWEROFF, and the answer to what has no other."""


class Hello(Message, frozen=True, kw_only=True):
    """HELLO: which version of the protocol is spoken."""

    version: Annotated[int, Of(Tag.VERSION)]


class Greeting(Message, frozen=True, kw_only=True):
    """The answer to HELLO; ``release`` is the guest's kernel's."""

    version: Annotated[int, Of(Tag.VERSION)]
    release: Annotated[str, Of(Tag.RELEASE, 0, _LINE)]
    features: Annotated[tuple[str, ...], Of(Tag.FEATURE, 1, _LINE)] = ()


class Setting(Message, frozen=True, kw_only=True):
    """A sysctl, or a file of a cgroup, and what to write there."""

    name: _Name
    value: Annotated[str, Of(Tag.VALUE, 0, _LINE)]


class Route(Message, frozen=True, kw_only=True):
    """A route of an interface: ``destination`` is ADDRESS/PREFIX, ``scope`` as in rtnetlink(7)."""

    destination: Annotated[str, Of(Tag.DESTINATION, 1, _ID)]
    gateway: Annotated[str, Of(Tag.GATEWAY, 1, _ID)] = ""
    scope: Annotated[int, Of(Tag.SCOPE, 0, 255)] = 0
    source: Annotated[str, Of(Tag.SOURCE, 1, _ID)] = ""
    priority: Annotated[int, Of(Tag.PRIORITY, 0, U32)] = 0


class Neighbour(Message, frozen=True, kw_only=True):
    """A permanent neighbour."""

    address: Annotated[str, Of(Tag.ADDRESS, 1, _ID)]
    mac: _Mac


class Interface(Message, frozen=True, kw_only=True):
    """The machine's interface as the pod has it; ``addresses`` are ADDRESS/PREFIX."""

    name: Annotated[str, Of(Tag.NAME, 1, 15)]
    mac: _Mac
    mtu: Annotated[int, Of(Tag.MTU, 68, 65535)]
    addresses: Annotated[tuple[str, ...], Of(Tag.ADDRESS, 1, _ID)] = ()
    routes: Annotated[tuple[Route, ...], Of(Tag.ROUTE)] = ()
    neighbours: Annotated[tuple[Neighbour, ...], Of(Tag.NEIGHBOUR)] = ()


class Setup(Message, frozen=True, kw_only=True):
    """SETUP: the machine becomes one pod's. ``time`` in nanoseconds since the epoch, ``shm_size`` in bytes."""

    time: _Time
    entropy: Annotated[bytes, _ENTROPY]
    hostname: Annotated[str, Of(Tag.HOSTNAME, 1, 64)]
    machine_id: Annotated[str, Of(Tag.MACHINE_ID, 32, 32)]
    interfaces: Annotated[tuple[Interface, ...], Of(Tag.INTERFACE)] = ()
    sysctls: Annotated[tuple[Setting, ...], Of(Tag.SYSCTL)] = ()
    shm_size: Annotated[int, Of(Tag.SHM_SIZE, 4096, 1 << 48)] = 64 << 20
    shared_pid: Annotated[bool, Of(Tag.SHARED_PID)] = False


class Clock(Message, frozen=True, kw_only=True):
    """CLOCK: what time it is, in nanoseconds since the epoch, after a pause or a restore."""

    time: _Time
    entropy: Annotated[bytes, _ENTROPY] = b""


class Rootfs(Message, frozen=True, kw_only=True):
    """A container's root: an image, and where what is written goes: ``upper_size`` bytes of memory or a disk of ext4.

    One that is ``readonly`` needs neither.
    """

    lun: Annotated[int, _Lun]
    fstype: Annotated[str, Of(Tag.FSTYPE, 1, 16)]
    readonly: Annotated[bool, Of(Tag.READONLY)] = False
    upper_size: Annotated[int, Of(Tag.UPPER_SIZE, 4096, 1 << 48)] = 0
    upper_lun: Annotated[int | None, Of(Tag.UPPER_LUN, 0, 255)] = None


class Caps(Message, frozen=True, kw_only=True):
    """Sets of capabilities as masks."""

    bounding: Annotated[int, Of(Tag.BOUNDING)]
    effective: Annotated[int, Of(Tag.EFFECTIVE)]
    permitted: Annotated[int, Of(Tag.PERMITTED)]
    inheritable: Annotated[int, Of(Tag.INHERITABLE)]
    ambient: Annotated[int, Of(Tag.AMBIENT)]


class Rlimit(Message, frozen=True, kw_only=True):
    """A limit of setrlimit(2), by its number."""

    resource: Annotated[int, Of(Tag.RESOURCE, 0, 15)]
    soft: Annotated[int, Of(Tag.SOFT)]
    hard: Annotated[int, Of(Tag.HARD)]


class Program(Message, frozen=True, kw_only=True):
    """What is executed, and as whom. ``seccomp`` is an array of ``struct sock_filter``."""

    args: Annotated[tuple[str, ...], Of(Tag.ARG, 0, 128 * 1024, least=1)]
    env: Annotated[tuple[str, ...], Of(Tag.ENV, 0, 128 * 1024)] = ()
    cwd: Annotated[str, Of(Tag.CWD, 1, _LINE)]
    uid: _Uid
    gid: _Gid
    groups: Annotated[tuple[int, ...], Of(Tag.GROUP, 0, _USER)] = ()
    umask: Annotated[int, Of(Tag.UMASK, 0, 0o777)] = 0o022
    tty: Annotated[bool, Of(Tag.TTY)] = False
    stdin: Annotated[bool, Of(Tag.STDIN)] = False
    caps: Annotated[Caps, Of(Tag.CAPS)]
    no_new_privs: Annotated[bool, Of(Tag.NO_NEW_PRIVS)] = False
    seccomp: Annotated[bytes, Of(Tag.SECCOMP, 8, 8 * 4096)] = b""
    seccomp_flags: Annotated[int, Of(Tag.SECCOMP_FLAGS, 0, U32)] = 0
    rlimits: Annotated[tuple[Rlimit, ...], Of(Tag.RLIMIT)] = ()
    oom_score_adj: Annotated[int | None, Of(Tag.OOM_SCORE_ADJ, -1000, 1000, offset=1000)] = None


class Mount(Message, frozen=True, kw_only=True):
    """A mount in a container's root; what each kind needs is said at :class:`MountKind`."""

    kind: Annotated[MountKind, Of(Tag.MOUNT_KIND, 0, max(MountKind))]
    destination: Annotated[str, Of(Tag.DESTINATION, 1, _LINE)]
    source: Annotated[str, Of(Tag.SOURCE, 1, _LINE)] = ""
    flags: Annotated[int, Of(Tag.FLAGS, 0, U32)] = 0
    options: Annotated[str, Of(Tag.OPTIONS, 1, _LINE)] = ""
    content: Annotated[bytes, Of(Tag.CONTENT, 1, 512 * 1024)] = b""
    mode: Annotated[int | None, Of(Tag.MODE, 0, 0o7777)] = None
    lun: Annotated[int | None, _Lun] = None
    propagation: Annotated[int, Of(Tag.PROPAGATION, 0, U32)] = 0


class Device(Message, frozen=True, kw_only=True):
    """A device's node: ``name`` is its path in the container, ``kind`` ord of b, c or p."""

    name: _Name
    mode: Annotated[int, Of(Tag.MODE, 0, 0o7777)]
    uid: _Uid
    gid: _Gid
    kind: Annotated[int, Of(Tag.DEVICE_KIND, ord("b"), ord("p"))]
    major: Annotated[int, Of(Tag.MAJOR, 0, U32)]
    minor: Annotated[int, Of(Tag.MINOR, 0, U32)]


class Create(Message, frozen=True, kw_only=True):
    """CREATE: a container. Its ``process`` is given by the keeper (:func:`fields.numbered`)."""

    container: _Container
    rootfs: Annotated[Rootfs, Of(Tag.ROOTFS)]
    program: Annotated[Program, Of(Tag.PROGRAM)]
    pid_mode: Annotated[PidMode, Of(Tag.PID_MODE, 0, max(PidMode))] = PidMode.OWN
    target: Annotated[str, Of(Tag.TARGET, 1, _ID)] = ""
    ipc_own: Annotated[bool, Of(Tag.IPC_OWN)] = False
    mounts: Annotated[tuple[Mount, ...], Of(Tag.MOUNT)] = ()
    masked: Annotated[tuple[str, ...], Of(Tag.MASKED, 1, _LINE)] = ()
    readonly_paths: Annotated[tuple[str, ...], Of(Tag.READONLY_PATH, 1, _LINE)] = ()
    devices: Annotated[tuple[Device, ...], Of(Tag.DEVICE)] = ()
    cgroup: Annotated[tuple[Setting, ...], Of(Tag.CGROUP)] = ()
    process: _Number = None


class Created(Message, frozen=True, kw_only=True):
    """The answer to CREATE and EXEC: a process, in the guest's first PID namespace."""

    pid: Annotated[int, Of(Tag.PID, 1, 1 << 22)]


class Start(Message, frozen=True, kw_only=True):
    """START."""

    container: _Container


class Delete(Message, frozen=True, kw_only=True):
    """DELETE: nothing more comes of its processes after the answer."""

    container: _Container


class Exec(Message, frozen=True, kw_only=True):
    """EXEC: one more process in a container. Its ``process`` is given by the keeper (:func:`fields.numbered`)."""

    container: _Container
    program: Annotated[Program, Of(Tag.PROGRAM)]
    process: _Number = None


class Signal(Message, frozen=True, kw_only=True):
    """SIGNAL: to one process by its number, else to a container's first one or to ``all`` of its processes."""

    container: Annotated[str, Of(Tag.CONTAINER, 1, _ID)] = ""
    process: _Number = None
    signo: Annotated[int, Of(Tag.SIGNO, 1, 64)]
    all: Annotated[bool, Of(Tag.ALL)] = False


class Update(Message, frozen=True, kw_only=True):
    """UPDATE: files of a container's cgroup."""

    container: _Container
    cgroup: Annotated[tuple[Setting, ...], Of(Tag.CGROUP)] = ()


class Freeze(Message, frozen=True, kw_only=True):
    """FREEZE, or let go on."""

    container: _Container
    on: Annotated[bool, Of(Tag.ON)]


class Dial(Message, frozen=True, kw_only=True):
    """DIAL: a TCP port of the machine's loopback; ``process`` is the connection's number."""

    process: _Process
    port: Annotated[int, Of(Tag.PORT, 1, 65535)]


class StatsRequest(Message, frozen=True, kw_only=True):
    """STATS: of these containers; none: of all."""

    containers: Annotated[tuple[str, ...], Of(Tag.CONTAINER, 1, _ID)] = ()


class File(Message, frozen=True, kw_only=True):
    """A file of a cgroup's, or of the machine's, as it was read."""

    name: _Name
    content: Annotated[bytes, Of(Tag.CONTENT, 0, DATA_MAX)]


class Stats(Message, frozen=True, kw_only=True):
    """What a container uses; ``state``: created, running, paused, stopped."""

    container: _Container
    files: Annotated[tuple[File, ...], Of(Tag.FILE)] = ()
    processes: Annotated[int, Of(Tag.PROCESSES)] = 0
    layer_bytes: Annotated[int, Of(Tag.LAYER_BYTES)] = 0
    layer_inodes: Annotated[int, Of(Tag.LAYER_INODES)] = 0
    state: Annotated[str, Of(Tag.STATE, 1, 16)]


class StatsReply(Message, frozen=True, kw_only=True):
    """The answer to STATS; ``files`` are the machine's."""

    containers: Annotated[tuple[Stats, ...], Of(Tag.STATS)] = ()
    files: Annotated[tuple[File, ...], Of(Tag.FILE)] = ()


class Resize(Message, frozen=True, kw_only=True):
    """RESIZE: columns and rows of a terminal."""

    width: Annotated[int, Of(Tag.WIDTH, 0, 65535)]
    height: Annotated[int, Of(Tag.HEIGHT, 0, 65535)]


class Exited(Message, frozen=True, kw_only=True):
    """EXITED: 0 to 255, 128 + the signal; ``oom``: the kernel killed a process of its container for memory."""

    code: Annotated[int, Of(Tag.CODE, 0, 255)]
    oom: Annotated[bool, Of(Tag.OOM)] = False


class Note(Message, frozen=True, kw_only=True):
    """NOTE."""

    message: Annotated[str, Of(Tag.MESSAGE, 0, _LINE)]


class Failed(Message, frozen=True, kw_only=True):
    """FAILED: an errno, what was being done, and a message for people; ``field``: of the request, at fault."""

    errno: Annotated[int, Of(Tag.ERRNO, 1, 4095)]
    step: Annotated[str, Of(Tag.STEP, 0, _LINE)]
    message: Annotated[str, Of(Tag.MESSAGE, 0, _LINE)]
    field: Annotated[str, Of(Tag.FIELD, 1, _LINE)] = ""


# What each request is, and what its answer.
REQUESTS: Final[Mapping[Kind, tuple[type[Message], type[Message]]]] = MappingProxyType(
    {
        Kind.HELLO: (Hello, Greeting),
        Kind.SETUP: (Setup, Done),
        Kind.CREATE: (Create, Created),
        Kind.START: (Start, Done),
        Kind.EXEC: (Exec, Created),
        Kind.SIGNAL: (Signal, Done),
        Kind.UPDATE: (Update, Done),
        Kind.FREEZE: (Freeze, Done),
        Kind.STATS: (StatsRequest, StatsReply),
        Kind.DELETE: (Delete, Done),
        Kind.DIAL: (Dial, Done),
        Kind.QUIESCE: (Done, Done),
        Kind.POWEROFF: (Done, Done),
        Kind.CLOCK: (Clock, Done),
    }
)
# Frames besides requests and REPLY whose payload is fields.
WORDS: Final[Mapping[Kind, type[Message]]] = MappingProxyType(
    {Kind.RESIZE: Resize, Kind.FAILED: Failed, Kind.EXITED: Exited, Kind.NOTE: Note},
)
