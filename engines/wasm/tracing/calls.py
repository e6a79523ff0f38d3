"""The host functions whose arguments and results can be told in words.

https://github.com/WebAssembly/WASI/blob/wasi-0.1/preview1/docs.md, and ``forgeone_shim/abi/include/forgeone.h``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from forgeone_shim import abi

P1: Final = ("wasi_snapshot_preview1", "wasi_unstable")
# Texts of one call that fit into its record.
TEXTS_MAX: Final = 2


class Form(Enum):
    """How an argument is told. The value is the number of parameters that it takes."""

    NUMBER = (1, "unsigned")
    SIGNED = (1, "signed")
    FLAGS = (1, "flags")
    ADDRESS = (1, "address")
    OUT_32 = (1, "u32")
    OUT_64 = (1, "u64")
    TEXT = (2, "text")
    VECTORS = (2, "vectors")
    BUFFER = (2, "buffer")

    @property
    def width(self) -> int:
        """Parameters that it takes."""
        return self.value[0]


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument. An ``OUT`` is where the function writes a result to; a text, where the guest has it."""

    name: str
    form: Form


@dataclass(frozen=True, slots=True)
class Call:
    """One function. ``brief``: it never waits, so that how long it took is not worth a look at the clock.

    ``errno``: its result is one of WASI's error numbers; of ForgeOne's functions, negative where it is one.
    """

    arguments: tuple[Argument, ...]
    brief: bool = False

    @property
    def texts(self) -> tuple[int, ...]:
        """The parameters that are addresses of texts (the next one is the length), as many as fit a record."""
        return tuple(at for at, one in self._placed() if one.form is Form.TEXT)[:TEXTS_MAX]

    @property
    def out(self) -> tuple[int, int] | None:
        """The first parameter that is the address of a result, and that result's size in bytes."""
        sizes = {Form.OUT_32: 4, Form.OUT_64: 8}
        return next(((at, sizes[one.form]) for at, one in self._placed() if one.form in sizes), None)

    @property
    def width(self) -> int:
        """Parameters of the function."""
        return sum(one.form.width for one in self.arguments)

    def _placed(self) -> list[tuple[int, Argument]]:
        at, placed = 0, []
        for one in self.arguments:
            placed.append((at, one))
            at += one.form.width
        return placed


_FORMS: Final = {
    "": Form.NUMBER,
    "s": Form.SIGNED,
    "x": Form.FLAGS,
    "*": Form.ADDRESS,
    "u32": Form.OUT_32,
    "u64": Form.OUT_64,
    "text": Form.TEXT,
    "iovs": Form.VECTORS,
    "bytes": Form.BUFFER,
}


def _call(text: str, *, brief: bool = False) -> Call:
    words = [word.partition(":") for word in text.split()]
    return Call(tuple(Argument(name, _FORMS[form]) for name, _, form in words), brief)


_WASI: Final = {
    "args_get": _call("argv:* buf:*", brief=True),
    "args_sizes_get": _call("count:u32 size:*", brief=True),
    "clock_res_get": _call("clock resolution:u64", brief=True),
    "clock_time_get": _call("clock precision time:u64", brief=True),
    "environ_get": _call("environ:* buf:*", brief=True),
    "environ_sizes_get": _call("count:u32 size:*", brief=True),
    "fd_advise": _call("fd offset len advice"),
    "fd_allocate": _call("fd offset len"),
    "fd_close": _call("fd"),
    "fd_datasync": _call("fd"),
    "fd_fdstat_get": _call("fd stat:*", brief=True),
    "fd_fdstat_set_flags": _call("fd flags:x"),
    "fd_fdstat_set_rights": _call("fd rights:x inheriting:x"),
    "fd_filestat_get": _call("fd stat:*"),
    "fd_filestat_set_size": _call("fd size"),
    "fd_filestat_set_times": _call("fd atime mtime flags:x"),
    "fd_pread": _call("fd buffers:iovs offset read:u32"),
    "fd_prestat_dir_name": _call("fd buf:bytes", brief=True),
    "fd_prestat_get": _call("fd prestat:*", brief=True),
    "fd_pwrite": _call("fd buffers:iovs offset written:u32"),
    "fd_read": _call("fd buffers:iovs read:u32"),
    "fd_readdir": _call("fd buf:bytes cookie used:u32"),
    "fd_renumber": _call("fd to", brief=True),
    "fd_seek": _call("fd offset:s whence position:u64", brief=True),
    "fd_sync": _call("fd"),
    "fd_tell": _call("fd position:u64", brief=True),
    "fd_write": _call("fd buffers:iovs written:u32"),
    "path_create_directory": _call("fd path:text"),
    "path_filestat_get": _call("fd flags:x path:text stat:*"),
    "path_filestat_set_times": _call("fd flags:x path:text atime mtime fstflags:x"),
    "path_link": _call("fd flags:x path:text to new:text"),
    "path_open": _call("fd dirflags:x path:text oflags:x rights:x inheriting:x fdflags:x opened:u32"),
    "path_readlink": _call("fd path:text buf:bytes used:u32"),
    "path_remove_directory": _call("fd path:text"),
    "path_rename": _call("fd path:text to new:text"),
    "path_symlink": _call("target:text fd path:text"),
    "path_unlink_file": _call("fd path:text"),
    "poll_oneoff": _call("in:* out:* count events:u32"),
    "proc_exit": _call("code"),
    "proc_raise": _call("signal"),
    "random_get": _call("buf:bytes", brief=True),
    "sched_yield": _call("", brief=True),
    "sock_accept": _call("fd flags:x accepted:u32"),
    "sock_recv": _call("fd buffers:iovs flags:x read:u32 roflags:*"),
    "sock_send": _call("fd buffers:iovs flags:x sent:u32"),
    "sock_shutdown": _call("fd how:x"),
}

_FORGEONE: Final = {
    (abi.INTROSPECT, "identity"): _call("what buf:bytes"),
    (abi.INTROSPECT, "state"): _call(""),
    (abi.INTROSPECT, "limits"): _call("buf:bytes"),
    (abi.INTROSPECT, "usage"): _call("buf:bytes"),
    (abi.INTROSPECT, "history"): _call("buf:bytes"),
    (abi.INTROSPECT, "trust"): _call("buf:bytes"),
    (abi.LOG, "write"): _call("level context:text message:text"),
    (abi.YIELD, "give_up"): _call(""),
}

CALLS: Final[Mapping[tuple[str, str], Call]] = MappingProxyType(
    {(module, name): call for module in P1 for name, call in _WASI.items()} | _FORGEONE
)

_ERRORS: Final = """
success 2big acces addrinuse addrnotavail afnosupport again already badf badmsg busy canceled child connaborted
connrefused connreset deadlk destaddrreq dom dquot exist fault fbig hostunreach idrm ilseq inprogress intr inval io
isconn isdir loop mfile mlink msgsize multihop nametoolong netdown netreset netunreach nfile nobufs nodev noent noexec
nolck nolink nomem nomsg noprotoopt nospc nosys notconn notdir notempty notrecoverable notsock notsup notty nxio
overflow ownerdead perm pipe proto protonosupport prototype range rofs spipe srch stale timedout txtbsy xdev
notcapable
"""
# In the order of their numbers.
ERRNO: Final = tuple(_ERRORS.split())
