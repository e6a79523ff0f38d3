"""Namespaces of a pod that live without any process: made by a short-lived thread and held by bind mounts.

A thread may leave the process's network, UTS and IPC namespaces on its own (unshare(2), setns(2)); everything it does
under ``/proc/sys`` and every socket it opens then belongs to the new ones. When the thread ends, only the bind mounts
of ``/proc/thread-self/ns/*`` keep the namespaces.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from forgeone_shim.errors import FailedPrecondition, InvalidInput, NotFound, syscall_error
from forgeone_shim.kernel.syscalls import number, syscall
from forgeone_shim.texts import parameter_owner, parameter_parts

T = TypeVar("T")

CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
KINDS: Final[Mapping[str, int]] = {"net": CLONE_NEWNET, "uts": CLONE_NEWUTS, "ipc": CLONE_NEWIPC}
# What may be pinned: a user namespace is made elsewhere, as no thread of a process with several can make one.
PINS: Final = ("user", *KINDS)
HOSTNAME_MAX_BYTES: Final = 64

_MS_BIND: Final = 0x1000
_MNT_DETACH: Final = 0x2
_UMOUNT_NOFOLLOW: Final = 0x8
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 0x1
_IFREQ_FLAGS: Final = struct.Struct("16sH22x")

_SYSCTL_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]*")
_SYSCTL_VALUE_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Sysctl:
    """One validated kernel parameter: ``key`` as it was asked for, ``path`` its file, ``value`` what to write."""

    key: str
    path: str
    value: str


class _Call(Generic[T]):
    """A function run once in a thread of its own, whose outcome its caller takes over."""

    __slots__ = ("_error", "_function", "_result", "_thread")

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._error: BaseException | None = None
        self._result: T
        # Not at the top: a fork server has no threads, and what this module does in each of its children costs them.
        import threading

        self._thread = threading.Thread(target=self._run, name="namespace", daemon=True)

    def _run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error

    def outcome(self) -> T:
        """Run to the end; the function's result, or its exception raised here."""
        self._thread.start()
        self._thread.join()
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None
        return self._result


def plan_sysctls(sysctls: Mapping[str, str], kinds: Collection[str]) -> tuple[Sysctl, ...]:
    """Check kernel parameters against the namespaces the pod has of its own.

    Only namespaced parameters pass: ``net.*`` with a pod network, ``kernel.shm*``, ``kernel.msg*``, ``kernel.sem`` and
    ``fs.mqueue.*`` with a pod IPC namespace. Keys are written ``net.ipv4.ip_forward`` or ``net/ipv4/ip_forward``; as in
    sysctl.d(5) the first separator counts, and the other one then stands for a literal dot in a name.

    :raises InvalidInput: naming the parameter that does not pass.
    """
    return tuple(_plan_sysctl(key, value, kinds) for key, value in sysctls.items())


def _plan_sysctl(key: str, value: str, kinds: Collection[str]) -> Sysctl:
    field = f"sysctls[{key!r}]"
    parts = parameter_parts(key)
    if len(parts) < 2 or not all(_SYSCTL_PART.fullmatch(part) for part in parts):
        raise InvalidInput(field, "is not the name of a kernel parameter")
    owner = parameter_owner(parts)
    if owner is None:
        raise InvalidInput(
            field,
            "is not a namespaced kernel parameter; setting it would change the host",
            fix="allowed are net.*, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.*",
        )
    if owner not in kinds:
        noun = "network" if owner == "net" else "IPC namespace"
        raise InvalidInput(field, f"needs a pod {noun}, but the pod uses the host's")
    if len(value) > _SYSCTL_VALUE_MAX or any(char in value for char in "\0\n\r"):
        raise InvalidInput(field, "its value is longer than 4096 characters or has a line break or NUL in it")
    return Sysctl(key, "/proc/sys/" + "/".join(parts), value)


def pin_namespaces(
    directory: Path | str,
    kinds: Sequence[str] = ("net", "uts", "ipc"),
    hostname: str = "",
    sysctls: Mapping[str, str] | None = None,
) -> None:
    """Make new namespaces and pin each at ``directory/<kind>``; loopback is up in a new network namespace.

    ``hostname`` is set when ``uts`` is among the kinds; ``sysctls`` are checked by :func:`plan_sysctls`. What an
    earlier, interrupted attempt left in ``directory`` is replaced. On failure nothing stays.

    :raises InvalidInput: a kernel parameter or the host name cannot be used.
    :raises InternalError: a kernel call failed.
    """
    root = Path(directory)
    planned = plan_sysctls(sysctls or {}, kinds)
    if len(hostname.encode()) > HOSTNAME_MAX_BYTES:
        raise InvalidInput("hostname", f"is longer than {HOSTNAME_MAX_BYTES} bytes")
    flags = 0
    for kind in kinds:
        flags |= KINDS[kind]
    if not flags:
        return
    _Call(lambda: _pin(root, tuple(kinds), flags, hostname, planned)).outcome()


def _pin(root: Path, kinds: tuple[str, ...], flags: int, hostname: str, sysctls: tuple[Sysctl, ...]) -> None:
    """Runs in a thread of its own, which never returns to the host's namespaces."""
    try:
        syscall(number("unshare"), flags, path=root)
        if "uts" in kinds and hostname:
            socket.sethostname(hostname)
        if "net" in kinds:
            raise_loopback()
    except OSError as error:
        raise syscall_error("unshare", root, error) from error
    for sysctl in sysctls:
        _write_sysctl(sysctl)
    _bind_all(root, {kind: f"/proc/thread-self/ns/{kind}" for kind in kinds})


def pin_descriptors(directory: Path | str, descriptors: Mapping[str, int]) -> None:
    """Pin namespaces that this process has open, each at ``directory/<kind>``; on failure nothing stays.

    :raises InternalError: a kernel call failed.
    """
    _bind_all(Path(directory), {kind: f"/proc/self/fd/{fd}" for kind, fd in descriptors.items()})


def _bind_all(root: Path, sources: Mapping[str, str]) -> None:
    with ExitStack() as undo:
        undo.callback(unpin, root)
        for kind, source in sources.items():
            _bind(source, root / kind)
        undo.pop_all()


def _bind(source: str, target: Path) -> None:
    try:
        _create_empty(target)
        # nsfs refuses to be bound recursively or with other flags; the target may lie on a shared mount, whose peers
        # then see the unmount as well.
        syscall(number("mount"), source.encode(), os.fsencode(target), None, _MS_BIND, None, path=target)
    except OSError as error:
        raise syscall_error("pin namespace", target, error) from error


def _create_empty(target: Path) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    try:
        os.close(os.open(target, flags, 0o600))
    except FileNotFoundError:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(target, flags, 0o600))
    except FileExistsError:
        _unpin_one(target)
        os.close(os.open(target, flags, 0o600))


def _write_sysctl(sysctl: Sysctl) -> None:
    try:
        write_proc(sysctl.path, sysctl.value)
    except OSError as error:
        raise sysctl_error(sysctl, error.errno or errno.EIO) from error


def sysctl_error(sysctl: Sysctl, number: int) -> InvalidInput:
    """What to tell the caller when writing a parameter failed with errno ``number``."""
    return InvalidInput(f"sysctls[{sysctl.key!r}]", _why_sysctl_failed(sysctl, number))


def _why_sysctl_failed(sysctl: Sysctl, number: int) -> str:
    match number:
        case errno.ENOENT:
            return "this kernel has no such parameter in a pod's namespace"
        case errno.EINVAL | errno.ERANGE:
            return f"the kernel refuses the value {sysctl.value!r}"
        case errno.EACCES | errno.EPERM:
            return "this kernel does not let a pod change it"
        case _:
            return f"cannot be written: {os.strerror(number)}"


def write_proc(path: str, value: str) -> None:
    """Write a file under /proc in one write(2), as its handlers demand. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def raise_loopback() -> None:
    """Bring ``lo`` of the calling thread's network namespace up. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        reply = fcntl.ioctl(sock, _SIOCGIFFLAGS, _IFREQ_FLAGS.pack(b"lo", 0))
        flags = _IFREQ_FLAGS.unpack(reply)[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, _IFREQ_FLAGS.pack(b"lo", flags | _IFF_UP))


def unpin(directory: Path | str) -> None:
    """Let go of every namespace pinned in ``directory`` and remove the directory if that empties it.

    Nothing pinned there is no error. The kernel frees a namespace once no process is in it either.

    :raises InternalError: a pin could not be removed.
    """
    root = Path(directory)
    try:
        for kind in PINS:
            _unpin_one(root / kind)
    except OSError as error:
        raise syscall_error("unpin", root, error) from error
    with suppress(OSError):
        root.rmdir()


def _unpin_one(target: Path) -> None:
    while True:
        try:
            syscall(number("umount2"), os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW, path=target)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                raise
            break
    with suppress(FileNotFoundError, NotADirectoryError):
        target.unlink()


def in_thread(function: Callable[[], T]) -> T:
    """Run ``function`` in a thread that ends with it, which may leave namespaces; its result or exception."""
    return _Call(function).outcome()


def run_in(netns_path: Path | str, function: Callable[[], T]) -> T:
    """Run ``function`` in a thread inside the network namespace pinned at ``netns_path``; returns its result.

    :raises NotFound: nothing is pinned there (any more).
    :raises FailedPrecondition: this process may not enter it.
    """

    def enter() -> T:
        enter_netns(netns_path)
        return function()

    return _Call(enter).outcome()


def enter_netns(netns_path: Path | str) -> None:
    """Move the calling thread, for good, into the network namespace at ``netns_path``; errors as :func:`run_in`."""
    try:
        fd = os.open(netns_path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("network namespace", str(netns_path)) from None
    except OSError as error:
        raise syscall_error("open", netns_path, error) from error
    try:
        syscall(number("setns"), fd, CLONE_NEWNET, path=netns_path)
    except OSError as error:
        # A plain file is what a pin becomes once it is unmounted, by a reboot for one.
        if error.errno == errno.EINVAL:
            raise NotFound("network namespace", str(netns_path)) from error
        raise FailedPrecondition(
            f"setns {netns_path}: {error.strerror}", fix="forgeoned needs CAP_SYS_ADMIN"
        ) from error
    finally:
        os.close(fd)
