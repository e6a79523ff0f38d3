"""Mounts, and opening paths that others wrote, by the kernel's own rules.

The new mount API (``fsopen(2)``, ``open_tree(2)``) is used first: one string per overlay layer, a mount that is
complete before anyone sees it, no page-sized option limit. ``mount(2)`` is the fallback on kernels that lack a part
of it.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from forgeone_shim.errors import InvalidInput, syscall_error
from forgeone_shim.kernel import syscalls

StrPath = str | Path

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 8, 32, 4096, 16384
MS_PRIVATE = 1 << 18
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8

_AT_FDCWD = -100
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_CLOEXEC, _OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 1, 1, 4
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_IDMAP = 1, 2, 4, 0x100000

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 0x01, 0x02, 0x04
RESOLVE_BENEATH, RESOLVE_IN_ROOT = 0x08, 0x10

# fs/overlayfs/params.c and ovl_entry.h: no more layers below an upper than this.
MAX_LOWER_LAYERS = 500
# strndup_user() in fsconfig(2) takes no longer value; mount(2) takes no more than a page of options.
_FSCONFIG_VALUE_MAX = 255
_MOUNT_DATA_MAX = 4095
# What a kernel answers that has not the call, the file system type in the new API, or the key.
_NOT_SUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


class _OpenHow(ctypes.Structure):
    """``struct open_how`` of ``openat2(2)``."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _MountAttr(ctypes.Structure):
    """``struct mount_attr`` of ``mount_setattr(2)``."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def openat2(dir_fd: int, path: StrPath | bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """``openat2(2)``; the descriptor is close-on-exec. Raises OSError."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    name = os.fsencode(path)
    # EAGAIN: somewhere a rename or mount raced with the walk, so the kernel could not prove that it stayed inside.
    for attempt in range(64):
        try:
            return syscalls.syscall(
                syscalls.OPENAT2, dir_fd, name, ctypes.byref(how), ctypes.sizeof(how), path=os.fsdecode(name)
            )
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR) or attempt == 63:
                raise
    raise AssertionError


def open_in_root(root: int | StrPath, relative: StrPath, flags: int = os.O_RDONLY, mode: int = 0) -> int:
    """Open a path as a process chrooted to ``root`` (a directory or its descriptor) would; no magic links.

    Symlinks, ``..`` and absolute targets stay inside. Raises OSError; the caller closes the descriptor.
    """
    how = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    if isinstance(root, int):
        return openat2(root, relative, flags, how, mode)
    with _directory(root) as root_fd:
        return openat2(root_fd, relative, flags, how, mode)


def mount_overlay(
    target: StrPath,
    lowers: Sequence[StrPath],
    upper: StrPath = "",
    work: StrPath = "",
    *,
    readonly: bool = False,
    context: str = "",
) -> None:
    """Mount an overlay; ``lowers`` has the topmost layer first. ``volatile`` where the kernel has it (5.10).

    Without ``upper`` and ``work`` nobody can write to it, and it takes two lowers at least. ``context`` is the SELinux
    label of all its files, where there is one. Raises InternalError.
    """
    try:
        attach_overlay(target, lowers, upper, work, readonly=readonly, context=context)
    except OSError as error:
        raise syscall_error("mount overlay on", target, error) from error


def attach_overlay(
    target: StrPath, lowers: Sequence[StrPath], upper: StrPath, work: StrPath, *, readonly: bool, context: str = ""
) -> None:
    """What :func:`mount_overlay` does. Raises OSError, and InvalidInput for too many layers."""
    if not 0 < len(lowers) <= MAX_LOWER_LAYERS:
        raise InvalidInput("layers", f"{len(lowers)} layers; an overlay takes 1 to {MAX_LOWER_LAYERS}")
    mount = _overlay_by_fsopen if takes_layers_one_by_one() else _overlay_by_mount
    mount(target, lowers, upper, work, readonly=readonly, context=context)


@functools.cache
def takes_layers_one_by_one() -> bool:
    """Whether this kernel's overlay has ``lowerdir+`` (6.7).

    Asked once a process, without mounting: a kernel that lacks it writes a line to its log for each attempt. Where
    overlay does not know the new mount API (before 6.5), the kernel collects options unread, so that it takes any name.
    """
    return _overlay_knows("lowerdir+", b"/") and not _overlay_knows("no-such-option", b"/")


def _overlay_knows(option: str, value: bytes) -> bool:
    try:
        with ExitStack() as stack:
            _set_string(_fsopen(stack, b"overlay"), option, value)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        return False
    return True


def _overlay_by_fsopen(
    target: StrPath, lowers: Sequence[StrPath], upper: StrPath, work: StrPath, *, readonly: bool, context: str
) -> None:
    with ExitStack() as stack:
        fs = _fsopen(stack, b"overlay")
        for key, path in (("lowerdir+", p) for p in lowers):
            _set_string(fs, key, _short_name(stack, path, _FSCONFIG_VALUE_MAX))
        if upper:
            _set_string(fs, "upperdir", _short_name(stack, upper, _FSCONFIG_VALUE_MAX))
            _set_string(fs, "workdir", _short_name(stack, work, _FSCONFIG_VALUE_MAX))
            try:
                syscalls.syscall(syscalls.FSCONFIG, fs, _FSCONFIG_SET_FLAG, b"volatile", None, 0)
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
        if context:
            _set_string(fs, "context", context.encode())
        _create_and_attach(stack, fs, target, _ATTR_RDONLY if readonly else 0)


def _overlay_by_mount(
    target: StrPath, lowers: Sequence[StrPath], upper: StrPath, work: StrPath, *, readonly: bool, context: str
) -> None:
    """All options share one page, so every path becomes the name of a descriptor; that also needs no escaping."""
    with ExitStack() as stack:
        lower = b":".join(_short_name(stack, path, 0) for path in lowers)
        options = b"lowerdir=" + lower
        if upper:
            options += b",upperdir=%s,workdir=%s" % (_short_name(stack, upper, 0), _short_name(stack, work, 0))
        if context:
            # Quoted, as it may hold a comma.
            options += b',context="%s"' % context.encode()
        if len(options) + len(b",volatile") > _MOUNT_DATA_MAX:
            raise InvalidInput("layers", f"{len(lowers)} layers are more than this kernel's mount(2) takes")
        flags = MS_RDONLY if readonly else 0
        try:
            _mount(b"overlay", target, b"overlay", flags, options + (b",volatile" if upper else b""))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _mount(b"overlay", target, b"overlay", flags, options)


def bind(source: StrPath, target: StrPath, *, readonly: bool = False, recursive: bool = False) -> None:
    """Bind ``source`` onto ``target``; a read-only one is never seen writable. Raises InternalError."""
    try:
        try:
            _bind_by_open_tree(source, target, readonly, recursive)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            flags = MS_BIND | (MS_REC if recursive else 0)
            _mount(os.fsencode(source), target, None, flags, None)
            if readonly:
                _mount(None, target, None, flags | MS_REMOUNT | MS_RDONLY, None)
    except OSError as error:
        raise syscall_error(f"bind {source} on", target, error) from error


def _bind_by_open_tree(source: StrPath, target: StrPath, readonly: bool, recursive: bool) -> None:
    with ExitStack() as stack:
        tree = clone(source, recursive=recursive)
        stack.callback(os.close, tree)
        if readonly:
            attr = _MountAttr(attr_set=_ATTR_RDONLY)
            at = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
            syscalls.syscall(syscalls.MOUNT_SETATTR, tree, b"", at, ctypes.byref(attr), ctypes.sizeof(attr))
        attach(tree, target)


def clone(source: StrPath, *, recursive: bool = False) -> int:
    """A descriptor of a mount of what is at ``source``, attached nowhere; gone when it is closed. Raises OSError."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return syscalls.syscall(syscalls.OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags, path=source)


def set_apart(tree: int, *, readonly: bool = False) -> None:
    """Let no mount that is made elsewhere appear in a :func:`clone`, nor the other way round. Raises OSError.

    ``readonly`` is for its topmost mount alone.
    """
    private = _MountAttr(propagation=MS_PRIVATE)
    at = _AT_EMPTY_PATH | _AT_RECURSIVE
    syscalls.syscall(syscalls.MOUNT_SETATTR, tree, b"", at, ctypes.byref(private), ctypes.sizeof(private))
    if readonly:
        top = _MountAttr(attr_set=_ATTR_RDONLY)
        syscalls.syscall(syscalls.MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(top), ctypes.sizeof(top))


def set_owners(tree: int, userns: int) -> None:
    """Show the owners of files in a :func:`clone` as the user namespace (a descriptor) maps them. Raises OSError."""
    attr = _MountAttr(attr_set=_ATTR_IDMAP, userns_fd=userns)
    syscalls.syscall(syscalls.MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attr), ctypes.sizeof(attr))


def attach(tree: int, target: StrPath) -> None:
    """Mount a :func:`clone` on ``target``. Raises OSError."""
    to = os.fsencode(target)
    syscalls.syscall(syscalls.MOVE_MOUNT, tree, b"", _AT_FDCWD, to, _MOVE_MOUNT_F_EMPTY_PATH, path=target)


def has_recursive_attributes() -> bool:
    """Whether ``mount_setattr(2)`` is there (Linux 5.12), which changes a mount with all below it."""
    try:
        syscalls.syscall(syscalls.MOUNT_SETATTR, -1, b"", 0, None, 0)
    except OSError as error:
        # A filter of system calls may answer EPERM for one it does not know.
        return error.errno not in (errno.ENOSYS, errno.EPERM)
    return True


def mount_tmpfs(
    target: StrPath, size: int, mode: int = 0o755, context: str = "", owner: tuple[int, int] | None = None
) -> None:
    """Mount a tmpfs of at most ``size`` bytes (0: the kernel's default), without set-id bits and devices.

    ``context`` is the SELinux label of all its files, where there is one. Its root belongs to ``owner`` (user and
    group), root unless given. Raises InternalError.
    """
    options = {"mode": f"{mode:o}"} | ({"size": str(size)} if size else {}) | ({"context": context} if context else {})
    if owner is not None:
        options |= {"uid": str(owner[0]), "gid": str(owner[1])}
    try:
        try:
            with ExitStack() as stack:
                fs = _fsopen(stack, b"tmpfs")
                for key, value in options.items():
                    _set_string(fs, key, value.encode())
                _create_and_attach(stack, fs, target, _ATTR_NOSUID | _ATTR_NODEV)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            # Quoted, as a label may hold a comma.
            data = ",".join(f'{key}="{value}"' if "," in value else f"{key}={value}" for key, value in options.items())
            _mount(b"tmpfs", target, b"tmpfs", MS_NOSUID | MS_NODEV, data.encode())
    except OSError as error:
        raise syscall_error("mount tmpfs on", target, error) from error


def mount_bpf(target: StrPath) -> None:
    """Mount a bpf file system, where programs and maps are pinned; root's alone. Raises InternalError."""
    try:
        _mount(b"bpf", target, b"bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, b"mode=0700")
    except OSError as error:
        raise syscall_error("mount bpf on", target, error) from error


def unmount(target: StrPath, *, detach: bool = True) -> None:
    """Unmount everything stacked on ``target`` itself; nothing mounted there, or no such path, is no error.

    ``detach`` lets busy mounts go as soon as their last user does. Raises InternalError.
    """
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if detach else 0)
    while True:
        try:
            syscalls.syscall(syscalls.number("umount2"), os.fsencode(target), flags, path=target)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                return
            raise syscall_error("unmount", target, error) from error


def mounts_below(path: StrPath) -> list[str]:
    """Mount points at or below ``path``, deepest first: the order to unmount them in."""
    root = os.path.realpath(path)
    found = [point for point in _mount_points() if point == root or point.startswith(root.rstrip("/") + "/")]
    return sorted(found, key=lambda point: point.count("/"), reverse=True)


def _mount_points() -> Iterator[str]:
    """Fifth field of each line of mountinfo; the kernel writes blank, tab, newline and backslash as octal there."""
    data = Path("/proc/self/mountinfo").read_bytes()
    for line in data.splitlines():
        head, *rest = line.split(b" ", 5)[4].split(b"\\")
        yield os.fsdecode(head + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest))


def _fsopen(stack: ExitStack, fstype: bytes) -> int:
    fs = syscalls.syscall(syscalls.FSOPEN, fstype, _CLOEXEC)
    stack.callback(os.close, fs)
    return fs


def _set_string(fs: int, key: str, value: bytes) -> None:
    syscalls.syscall(syscalls.FSCONFIG, fs, _FSCONFIG_SET_STRING, key.encode(), value, 0, path=os.fsdecode(value))


def _create_and_attach(stack: ExitStack, fs: int, target: StrPath, attributes: int) -> None:
    syscalls.syscall(syscalls.FSCONFIG, fs, _FSCONFIG_CMD_CREATE, None, None, 0)
    mount = syscalls.syscall(syscalls.FSMOUNT, fs, _CLOEXEC, attributes)
    stack.callback(os.close, mount)
    attach(mount, target)


def _mount(source: bytes | None, target: StrPath, fstype: bytes | None, flags: int, data: bytes | None) -> None:
    syscalls.syscall(syscalls.number("mount"), source, os.fsencode(target), fstype, flags, data, path=target)


def _short_name(stack: ExitStack, path: StrPath, at_most: int) -> bytes:
    """The path itself, or when longer than ``at_most`` the name of a descriptor on it, open as long as ``stack``."""
    name = os.fsencode(path)
    if len(name) <= at_most:
        return name
    return b"/proc/self/fd/%d" % stack.enter_context(_directory(path))


@contextmanager
def _directory(path: StrPath) -> Iterator[int]:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
