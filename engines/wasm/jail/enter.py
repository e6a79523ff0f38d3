"""Into the jail: control group, namespaces, files. Runs in the guest's process, which has one thread and is still root.

All sources are opened as mount trees while the host's files can be seen, and none has a path once the root is changed.
What is mounted is complete, and without set-id bits, devices and programs, before it is attached.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from engines.wasm.jail.owners import owners_namespace
from engines.wasm.jail.places import place
from engines.wasm.jail.plan import Bind, JailPlan
from forgeone_shim.errors import FailedPrecondition, ForgeError, InternalError, NotFound, syscall_error
from forgeone_shim.kernel import mounts, privileges, trees
from forgeone_shim.kernel.cgroups import write
from forgeone_shim.kernel.namespaces import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    raise_loopback,
)
from forgeone_shim.kernel.syscalls import number, syscall

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWPID: Final = 0x20000000

_SAFE: Final = trees.NOSUID | trees.NODEV | trees.NOEXEC
# Name, number of memory(4), random(4) and null(4) in major 1; none of them is anybody's to take away.
_DEVICES: Final = (("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9))
_TMPFS_SIZE: Final = "64k"
_ATTRIBUTE: Final = "/proc/self/attr/current"
# Where several security modules run, each has files of its own (Linux 5.8).
_ATTRIBUTE_OF_APPARMOR: Final = "/proc/self/attr/apparmor/current"


def before_fork(plan: JailPlan) -> None:
    """In the guest's parent: its children from now on are in the jail's PID namespace.

    :raises ForgeError: it cannot be made, or is gone.
    """
    if plan.pid is None:
        return
    if plan.pid:
        _join(plan.pid, CLONE_NEWPID)
    else:
        with _step("unshare", "the PID namespace"):
            syscall(number("unshare"), CLONE_NEWPID)


def enter_processes(target: int) -> None:
    """As :func:`before_fork`, for the PID namespace that the process of a pidfd is in."""
    with _step("setns", "the container's processes"):
        syscall(number("setns"), target, CLONE_NEWPID)


def enter(plan: JailPlan) -> None:
    """Into a jail of its own; :func:`engines.wasm.jail.lock.lock` comes next.

    :raises InvalidInput: a mount cannot be where it is to be.
    :raises ForgeError: anything else went wrong. The process is of no use then.
    """
    _alone()
    _unseen()
    os.umask(0o022)
    with ExitStack() as stack:
        _join_cgroup(plan)
        labels = _open_labels(plan, stack)
        root = _root(plan, stack)
        sources = [_tree(bind, stack) for bind in plan.binds]
        user = _open(plan.user, stack) if plan.user else None
        _namespaces(plan)
        with _step("mount", plan.rootfs or "an empty root"):
            trees.keep_to_itself()
            trees.stage(root, plan.rootfs or "/")
        dev = _dev(root, plan, stack) if plan.dev else None
        for source, bind in zip(sources, plan.binds, strict=True):
            _attach(source.fd, root, bind.destination, plan.root, directory=source.directory)
        _restrict_paths(root, plan, stack)
        with _step("mkdir", plan.cwd):
            os.close(place(root, plan.cwd, plan.root, directory=True))
        with _step("remount", "the root"):
            # Last, as what is mounted below needs places to be mounted on.
            if dev is not None:
                trees.change(dev, trees.RDONLY)
            if plan.readonly:
                trees.change(root, trees.RDONLY)
            trees.become_root()
        if user is not None:
            with _step("setns", "the user namespace"):
                syscall(number("setns"), user, CLONE_NEWUSER)
        _take_labels(labels)


def join(plan: JailPlan, target: int) -> None:
    """Into the jail that the process of the pidfd ``target`` is in, which was made by ``plan``; no less locked then.

    :raises ForgeError: the container is gone, or cannot be joined.
    """
    _alone()
    _unseen()
    os.umask(0o022)
    with ExitStack() as stack:
        _join_cgroup(plan)
        labels = _open_labels(plan, stack)
        kinds = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
        with _step("setns", "the container"):
            syscall(number("setns"), target, kinds)
            # Last: the others are not this one's, and need the host's root to be joined.
            if plan.user:
                syscall(number("setns"), target, CLONE_NEWUSER)
        _take_labels(labels)


# -- control group and namespaces


def _alone() -> None:
    # One entry for each thread, besides "." and "..".
    if os.stat("/proc/self/task").st_nlink != 3:  # noqa: PTH116 - a Path made here costs a guest forty pages
        raise InternalError("enter the jail: this process has several threads, of which only one would be in it")


def _unseen() -> None:
    # Whoever else is in the pod's PID namespace sees the process long before it has given up what it has.
    with _step("prctl", "the process"):
        privileges.not_dumpable()


def _join_cgroup(plan: JailPlan) -> None:
    # What may be killed first, before there is anything to kill for.
    with _step("write", "/proc/self/oom_score_adj"):
        write("/proc/self/oom_score_adj", str(plan.oom_score_adj))
    for directory in plan.cgroups:
        with _step("write", f"{directory}/cgroup.procs"):
            write(f"{directory}/cgroup.procs", "0")


def _namespaces(plan: JailPlan) -> None:
    new = CLONE_NEWNS | CLONE_NEWCGROUP
    kinds = ((plan.network, CLONE_NEWNET), (plan.ipc, CLONE_NEWIPC), (plan.uts, CLONE_NEWUTS))
    for path, kind in kinds:
        if path:
            _join(path, kind)
        elif path is not None:
            new |= kind
    with _step("unshare", "namespaces"):
        syscall(number("unshare"), new)
        if plan.network == "":
            raise_loopback()
        if plan.uts == "" and plan.hostname:
            socket.sethostname(plan.hostname)


def _join(path: str, kind: int) -> None:
    with ExitStack() as stack:
        fd = _open(path, stack)
        with _step("setns", path):
            syscall(number("setns"), fd, kind)


def _open(path: str, stack: ExitStack) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound("namespace", path) from None
    except OSError as error:
        raise syscall_error("open", path, error) from error
    stack.callback(os.close, fd)
    return fd


# -- files


@dataclass(frozen=True, slots=True)
class _Source:
    fd: int
    directory: bool


def _root(plan: JailPlan, stack: ExitStack) -> int:
    with _step("open_tree", plan.rootfs or "an empty root"):
        if plan.rootfs:
            tree = mounts.clone(plan.rootfs)
            stack.callback(os.close, tree)
            trees.change(tree, _SAFE, propagation="rprivate")
        else:
            tree = _tmpfs(plan, "755", _SAFE)
            stack.callback(os.close, tree)
    return tree


def _tmpfs(plan: JailPlan, mode: str, attributes: int) -> int:
    label = {"context": plan.mount_label} if plan.mount_label else {}
    return trees.tmpfs({"mode": mode, "size": _TMPFS_SIZE} | label, attributes)


def _tree(bind: Bind, stack: ExitStack) -> _Source:
    with _step("open_tree", bind.source):
        mapped = bool(bind.owners or bind.uids)
        tree = mounts.clone(bind.source, recursive=not mapped)
        stack.callback(os.close, tree)
        if mapped:
            userns = _open(bind.owners, stack) if bind.owners else owners_namespace(bind, stack)
            trees.change(tree, 0, userns=userns)
        trees.change(tree, _SAFE | bind.below, below=True, propagation=bind.propagation)
        if bind.attributes or bind.clear:
            trees.change(tree, bind.attributes, clear=bind.clear)
        return _Source(tree, stat.S_ISDIR(os.fstat(tree).st_mode))


def _dev(root: int, plan: JailPlan, stack: ExitStack) -> int:
    with _step("mount", "/dev"):
        # The only mount on which a device is one. Nobody but root of the host can make another, and nobody at all
        # changes these: the mount is read-only in the end, which says nothing of writing to a device.
        dev = _tmpfs(plan, "755", trees.NOSUID | trees.NOEXEC)
        stack.callback(os.close, dev)
        umask = os.umask(0)
        try:
            for name, minor in _DEVICES:
                os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(1, minor), dir_fd=dev)
        finally:
            os.umask(umask)
        os.mkdir("shm", dir_fd=dev)
        target = place(root, "/dev", plan.root, directory=True)
        try:
            trees.attach(dev, target)
        finally:
            os.close(target)
    return dev


def _attach(tree: int, root: int, destination: str, owner: tuple[int, int], *, directory: bool) -> None:
    with _step("mount on", destination):
        target = place(root, destination, owner, directory=directory)
        try:
            if stat.S_ISDIR(os.fstat(target).st_mode) != directory:
                kinds = ("a directory", "a file") if directory else ("a file", "a directory")
                raise FailedPrecondition(f"mount {destination}: {kinds[0]} cannot be mounted on {kinds[1]}")
            trees.attach(tree, target)
        finally:
            os.close(target)


def _restrict_paths(root: int, plan: JailPlan, stack: ExitStack) -> None:
    for path in plan.masked:
        _over(root, path, lambda found: _nothing(found, plan, stack))
    for path in plan.read_only_paths:
        _over(root, path, lambda found: _read_only(found, stack))


def _over(root: int, path: str, tree: Callable[[int], int]) -> None:
    with _step("mount on", path):
        try:
            target = mounts.open_in_root(root, path, os.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            trees.attach(tree(target), target)
        finally:
            os.close(target)


def _nothing(target: int, plan: JailPlan, stack: ExitStack) -> int:
    if stat.S_ISDIR(os.fstat(target).st_mode):
        tree = _tmpfs(plan, "000", _SAFE | trees.RDONLY)
    else:
        tree = mounts.clone("/dev/null")
        trees.change(tree, _SAFE | trees.RDONLY, propagation="rprivate")
    stack.callback(os.close, tree)
    return tree


def _read_only(target: int, stack: ExitStack) -> int:
    tree = mounts.clone(f"/proc/self/fd/{target}", recursive=True)
    stack.callback(os.close, tree)
    trees.change(tree, trees.RDONLY, below=True, propagation="rprivate")
    return tree


# -- security modules


def _open_labels(plan: JailPlan, stack: ExitStack) -> list[tuple[int, bytes, str]]:
    """Where to say which label the process is to have, opened while there is a /proc."""
    found = []
    if plan.selinux:
        found.append((_attribute(_ATTRIBUTE, stack), plan.selinux.encode(), plan.selinux))
    if plan.apparmor:
        path = _ATTRIBUTE_OF_APPARMOR if os.access(_ATTRIBUTE_OF_APPARMOR, os.F_OK) else _ATTRIBUTE
        found.append((_attribute(path, stack), b"changeprofile " + plan.apparmor.encode(), plan.apparmor))
    return found


def _attribute(path: str, stack: ExitStack) -> int:
    with _step("open", path):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def _take_labels(labels: list[tuple[int, bytes, str]]) -> None:
    for fd, text, name in labels:
        try:
            os.write(fd, text)
        except OSError as error:
            raise FailedPrecondition(
                f"the process cannot be given the label {name}: {error.strerror}",
                fix="let the policy allow forgeoned's label the change to it, as for container runtimes",
            ) from error


@contextmanager
def _step(call: str, what: str) -> Iterator[None]:
    try:
        yield
    except ForgeError:
        raise
    except OSError as error:
        raise syscall_error(call, what, error) from error
