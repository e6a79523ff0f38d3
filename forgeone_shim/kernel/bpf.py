"""Seccomp profiles compiled once by libseccomp, the library that crun itself would compile them with every time.

crun takes the result from the annotation ``run.oci.seccomp_bpf_data`` (crun(1)) and keeps it for later execs. What this
compiler does not know (flags, listeners) is left to crun.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

ANNOTATION = "run.oci.seccomp_bpf_data"
_LIBRARY = "libseccomp.so.2"
_NOT_A_SYSCALL = -1
_EEXIST = 17
_EPERM = 1
_OPTIMIZE, _BINARY_TREE = 8, 2
_MAX_ARGUMENTS = 6
_KEPT = 64
# seccomp(3): the action's bits, and whether its low 16 bits carry a number.
ACTIONS = {
    "SCMP_ACT_KILL": (0x00000000, False),
    "SCMP_ACT_KILL_THREAD": (0x00000000, False),
    "SCMP_ACT_KILL_PROCESS": (0x80000000, False),
    "SCMP_ACT_TRAP": (0x00030000, False),
    "SCMP_ACT_ERRNO": (0x00050000, True),
    "SCMP_ACT_TRACE": (0x7FF00000, True),
    "SCMP_ACT_LOG": (0x7FFC0000, False),
    "SCMP_ACT_ALLOW": (0x7FFF0000, False),
}
OPERATORS = {
    f"SCMP_CMP_{name}": number for number, name in enumerate(("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"), start=1)
}


class _Compare(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


class NotCompilable(Exception):
    """The profile asks for something that is left to crun, which does it or says what is wrong with it."""


class Compiler:
    """Compiles profiles and remembers the last ones. Safe to call from many threads."""

    def __init__(self) -> None:
        # Not at the top: see forgeone_shim.kernel.namespaces.
        import threading

        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, str | None] = OrderedDict()
        try:
            self._library: ctypes.CDLL | None = _load()
        except (OSError, AttributeError):
            self._library = None

    @property
    def usable(self) -> bool:
        """Whether the host has the library."""
        return self._library is not None

    def compile(self, profile: Mapping[str, Any]) -> str | None:
        """The annotation's value for a profile (OCI ``linux.seccomp``); ``None``: let crun compile it."""
        if self._library is None:
            return None
        key = json.dumps(profile, sort_keys=True).encode()
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            try:
                found = base64.b64encode(_compile(self._library, profile)).decode()
            except (NotCompilable, KeyError, TypeError, ValueError, OSError):
                found = None
            self._known[key] = found
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
            return found


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(_LIBRARY)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_release.restype = None
    library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    library.seccomp_arch_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Compare),
    ]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return library


def _action(name: str, errno: object) -> int:
    bits, numbered = ACTIONS[name]
    if not numbered:
        if errno is not None:
            raise NotCompilable
        return bits
    number = _EPERM if errno is None else int(str(errno))
    if not 0 <= number <= 0xFFFF:
        raise NotCompilable
    return bits | number


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def _compile(library: ctypes.CDLL, profile: Mapping[str, Any]) -> bytes:
    if profile.get("flags"):
        raise NotCompilable
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    context = library.seccomp_init(default)
    if not context:
        raise NotCompilable
    try:
        for architecture in profile.get("architectures") or ():
            token = library.seccomp_arch_resolve_name(architecture.removeprefix("SCMP_ARCH_").lower().encode())
            if not token:
                raise NotCompilable
            result = library.seccomp_arch_add(context, token)
            if result != -_EEXIST:
                _check(result)
        for rule in profile.get("syscalls") or ():
            action = _action(rule["action"], rule.get("errnoRet"))
            if action != default:
                _add(library, context, action, rule)
        # A tree of comparisons instead of a list: every system call of the container passes through it. Older
        # libraries do not know it, and the list is as right.
        library.seccomp_attr_set(context, _OPTIMIZE, _BINARY_TREE)
        return _export(library, context)
    finally:
        library.seccomp_release(context)


def _add(library: ctypes.CDLL, context: int, action: int, rule: Mapping[str, Any]) -> None:
    """As crun reads a rule: calls unknown to the library are left out, and conditions that name one argument twice
    are alternatives."""
    conditions = [
        _Compare(int(c["index"]), OPERATORS[c["op"]], int(c.get("value", 0)), int(c.get("valueTwo", 0)))
        for c in rule.get("args") or ()
    ]
    if len(conditions) > _MAX_ARGUMENTS or any(condition.arg >= _MAX_ARGUMENTS for condition in conditions):
        raise NotCompilable
    alternatives = len({condition.arg for condition in conditions}) < len(conditions)
    groups = [[condition] for condition in conditions] if alternatives else [conditions]
    for name in rule["names"]:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == _NOT_A_SYSCALL:
            continue
        for group in groups:
            array = (_Compare * len(group))(*group)
            _check(library.seccomp_rule_add_array(context, action, number, len(group), array))


def _export(library: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _check(library.seccomp_export_bpf(context, fd))
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)
