"""The numbers of the protocol between the host and the agent; ``guest/protocol.h`` is made from this module.

A frame is a header of 12 bytes (``u32 size, u16 kind, u16 zero, u32 id``, little-endian) and ``size`` bytes.
Requests and their answers carry fields: ``u16 tag``, ``u32 size``, and so many bytes; numbers are ``u64``, texts are
UTF-8, a group has fields in it, and a field that may come more than once is a list. An unknown tag, a field of another
size than its type's, and a second one of what is no list are errors on both sides.

What each kind of frame has in it, and within which bounds, is in :mod:`messages`.

Every process, and every connection into the machine, has a number that the host gives it, below 2**28; its streams are
``number * 4 +`` 0 (to it), 1 and 2 (from it). A side sends of a stream at most :data:`WINDOW` bytes more than the other
side has granted back by :attr:`Kind.CREDIT`. What comes for a process that has ended is passed over, for it may have
been under way.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

VERSION: Final = 1
HEADER_SIZE: Final = 12
# Of a stream's frame, and of any other.
DATA_MAX: Final = 64 * 1024
REQUEST_MAX: Final = 1024 * 1024
WINDOW: Final = 512 * 1024
NUMBER_MAX: Final = 1 << 28
STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2
# Names of the ports by which the guest finds its channels (/sys/class/virtio-ports/*/name).
CONTROL_PORT: Final = "forgeone.control"
SHARE_PORT: Final = "forgeone.share"
# The host's vsock port of the first of them, where a machine has vsock and no such names; the second's is the next one.
VSOCK_PORT: Final = 1024


class Kind(IntEnum):
    """What a frame is. Requests are answered once each, by REPLY or FAILED with their id, in any order."""

    # Requests of the host's.
    HELLO = 1  # VERSION -> VERSION, RELEASE, FEATURE*
    SETUP = 2  # the machine becomes one pod's; see Tag
    CREATE = 3  # a container, held before its first instruction -> PID
    START = 4  # CONTAINER
    EXEC = 5  # CONTAINER, PROCESS, PROGRAM -> PID
    SIGNAL = 6  # CONTAINER or PROCESS, SIGNO, ALL?; a connection is hung up by any
    UPDATE = 7  # CONTAINER, CGROUP*
    FREEZE = 8  # CONTAINER, ON; answered once all its processes stand still
    STATS = 9  # CONTAINER* (none: all) -> STATS*, FILE*
    DELETE = 10  # CONTAINER: killed, unmounted, forgotten; answered when its disk may go, after its processes' EXITED
    DIAL = 11  # PROCESS (its number), PORT: a connection to the machine's loopback
    QUIESCE = 12  # the machine is about to be saved as a template
    POWEROFF = 13  # answered, then done
    CLOCK = 14  # TIME, ENTROPY?: after a pause or restore
    # Words without an answer.
    RESIZE = 32  # id: process; WIDTH, HEIGHT
    DATA = 33  # id: stream; bytes
    EOF = 34  # id: stream; nothing more comes of it
    CREDIT = 35  # id: stream; u64 bytes that may be sent more
    # Of the agent's.
    REPLY = 64
    FAILED = 65  # ERRNO, STEP, MESSAGE, FIELD? (the field of the request that is at fault)
    EXITED = 66  # id: process; CODE (0-255, 128 + signal), OOM?; after all its DATA
    NOTE = 67  # a line for the operator: MESSAGE


class Tag(IntEnum):
    """What a field is. ``*``: a list; ``{}``: a group."""

    VERSION = 1  # u64
    RELEASE = 2  # text: of the guest's kernel
    FEATURE = 3  # text*
    ERRNO = 4  # u64
    STEP = 5  # text
    MESSAGE = 6  # text
    FIELD = 7  # text
    CONTAINER = 8  # text; in STATS a list
    PROCESS = 9  # u64
    PID = 10  # u64: in the guest's first PID namespace
    SIGNO = 11  # u64
    ALL = 12  # u64 0/1: every process of the container
    ON = 13  # u64 0/1
    PORT = 14  # u64
    CODE = 15  # u64
    OOM = 16  # u64 0/1: the kernel killed a process of its container for memory
    WIDTH = 17  # u64
    HEIGHT = 18  # u64
    # SETUP
    TIME = 32  # u64: nanoseconds since the epoch
    ENTROPY = 33  # bytes, at least 32
    HOSTNAME = 34  # text
    MACHINE_ID = 35  # text: 32 hexadecimal digits
    INTERFACE = 36  # {}*: NAME, MAC, MTU, ADDRESS*, ROUTE*, NEIGHBOUR*
    NAME = 37  # text
    MAC = 38  # 6 bytes
    MTU = 39  # u64
    ADDRESS = 40  # text*: ADDRESS/PREFIX
    ROUTE = 41  # {}*: DESTINATION (ADDRESS/PREFIX), GATEWAY?, SCOPE?, SOURCE?, PRIORITY?
    DESTINATION = 42  # text
    GATEWAY = 43  # text
    SCOPE = 44  # u64 (rtnetlink)
    SOURCE = 45  # text
    PRIORITY = 46  # u64
    NEIGHBOUR = 47  # {}*: ADDRESS (without prefix), MAC
    SYSCTL = 48  # {}*: NAME, VALUE
    VALUE = 49  # text
    SHM_SIZE = 50  # u64: bytes of the pod's /dev/shm
    SHARED_PID = 51  # u64 0/1: the pod's containers share one PID namespace
    # CREATE (and PROGRAM in EXEC)
    ROOTFS = 64  # {}: LUN, FSTYPE, READONLY?, UPPER_SIZE | UPPER_LUN
    LUN = 65  # u64
    FSTYPE = 66  # text
    READONLY = 67  # u64 0/1
    UPPER_SIZE = 68  # u64: bytes of a writable layer in memory
    UPPER_LUN = 69  # u64: an ext4 disk for it
    # ARG*, ENV*, CWD, UID, GID, GROUP*, UMASK?, TTY?, STDIN?, CAPS, NO_NEW_PRIVS?, SECCOMP?, SECCOMP_FLAGS?, RLIMIT*,
    # OOM_SCORE_ADJ?
    PROGRAM = 70  # {}
    ARG = 71  # text*
    ENV = 72  # text*
    CWD = 73  # text
    UID = 74  # u64
    GID = 75  # u64
    GROUP = 76  # u64*
    UMASK = 77  # u64
    TTY = 78  # u64 0/1
    STDIN = 79  # u64 0/1
    CAPS = 80  # {}: BOUNDING, EFFECTIVE, PERMITTED, INHERITABLE, AMBIENT (u64 masks)
    BOUNDING = 81
    EFFECTIVE = 82
    PERMITTED = 83
    INHERITABLE = 84
    AMBIENT = 85
    NO_NEW_PRIVS = 86  # u64 0/1
    SECCOMP = 87  # bytes: struct sock_filter[]
    SECCOMP_FLAGS = 88  # u64
    RLIMIT = 89  # {}*: RESOURCE, SOFT, HARD
    RESOURCE = 90  # u64 (setrlimit(2))
    SOFT = 91  # u64
    HARD = 92  # u64
    OOM_SCORE_ADJ = 93  # u64: 1000 more than it is
    PID_MODE = 94  # u64: PidMode
    TARGET = 95  # text: the container for PidMode.TARGET
    IPC_OWN = 96  # u64 0/1: not the pod's
    MOUNT = 97  # {}*: MOUNT_KIND, DESTINATION, SOURCE?, FLAGS, OPTIONS?, CONTENT?, MODE?, LUN?, PROPAGATION?
    MOUNT_KIND = 98  # u64: MountKind
    FLAGS = 99  # u64: of mount(2), for the mount alone
    OPTIONS = 100  # text: the file system's
    CONTENT = 101  # bytes
    MODE = 102  # u64
    PROPAGATION = 103  # u64: MS_PRIVATE | MS_SLAVE | MS_SHARED, with MS_REC
    MASKED = 104  # text*
    READONLY_PATH = 105  # text*
    DEVICE = 106  # {}*: NAME (path), MODE, UID, GID, DEVICE_KIND, MAJOR, MINOR
    DEVICE_KIND = 107  # u64: ord of b, c or p
    MAJOR = 108
    MINOR = 109
    CGROUP = 110  # {}*: NAME (file of the container's cgroup), VALUE
    ID_MAP = 111  # reserved
    # STATS
    STATS = 128  # {}*: CONTAINER, FILE* (of its cgroup), PROCESSES, LAYER_BYTES, LAYER_INODES, STATE
    FILE = 129  # {}*: NAME, CONTENT
    PROCESSES = 130  # u64
    LAYER_BYTES = 131  # u64
    LAYER_INODES = 132  # u64
    STATE = 133  # text: created, running, paused, stopped


class PidMode(IntEnum):
    """Whose PID namespace a container's processes are in."""

    OWN = 0
    POD = 1
    TARGET = 2


class MountKind(IntEnum):
    """Where what is mounted comes from."""

    SHARE = 0  # SOURCE: a path below the root of the share
    KERNEL = 1  # a new file system of type SOURCE (proc, sysfs, tmpfs, mqueue, devpts, cgroup2)
    FILE = 2  # a file of CONTENT and MODE, in memory
    POD = (
        3  # SOURCE: the name of a directory of the pod's in the guest, made at its first use with MODE; OPTIONS: tmpfs'
    )
    SHM = 4  # the pod's /dev/shm
    IMAGE = 5  # the disk LUN of FSTYPE erofs; SOURCE: a path in it, which a symlink cannot lead out of
