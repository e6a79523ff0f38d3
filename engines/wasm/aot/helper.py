"""The compile helper: one module from a descriptor to another, in a process that may do nothing else.

What it compiles is a stranger's. By the time the first byte of that is read, the process is nobody's, in an empty root
directory, with no network, a bounded memory and time, and system calls for nothing but its threads and its files.
"""

from __future__ import annotations

import base64
import ctypes
import itertools
import os
import resource
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NoReturn

import msgspec
from wasmtime import Engine, FuncType, Module, WasmtimeError, wat2wasm
from wasmtime import component as components

from engines.wasm.aot import target
from engines.wasm.aot.compiler import ANSWER, CODE, MODULE, Answer, Compiled, Invalid, Order
from engines.wasm.aot.target import Kind
from engines.wasm.guest.loading import configure
from forgeone_shim.kernel import bpf, namespaces
from forgeone_shim.kernel.syscalls import number, syscall

_NOBODY: Final = 65534
_NICE: Final = 10
_MAGIC: Final = b"\0asm"
# The 16 bits after the version: 0 is a core module, 1 a component (binary format of the component model).
_COMPONENT_LAYER: Final = b"\x01\x00"
_ELF: Final = b"\x7fELF"
_NAMES_MAX: Final = 10_000
_NAMES_LENGTH_MAX: Final = 1 << 20
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_SIGKILL: Final = 9
_ENOENT, _ENOSYS = 2, 38
_CLONE_THREAD: Final = 0x10000
_INSTRUCTION: Final = 8
_PROGRAM: Final = struct.Struct("HxxxxxxP")
# What Python, cranelift and its threads do with the files that are open already. Anything else fails, and what is no
# process's business here (clone3, whose flags a filter cannot see) is not known to this kernel.
_CALLS: Final = (
    "read pread64 write close fstat newfstatat lseek fcntl mmap munmap mremap mprotect madvise brk futex"
    " set_robust_list rseq rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack sched_getaffinity sched_yield"
    " gettid getpid getppid getrandom clock_gettime clock_nanosleep nanosleep prctl prlimit64 getrlimit"
    " restart_syscall exit exit_group"
)


def main() -> NoReturn:
    """Do as the order in ``sys.argv`` says, and exit. Whoever started it kills it when that takes too long."""
    order = msgspec.json.decode(sys.argv[1], type=Order)
    if target.fingerprint(order.variant) != order.fingerprint:
        print("wasmtime is not the one that was there when forgeoned started: restart it", file=sys.stderr)
        os._exit(1)
    confine(order)
    try:
        answer: Answer = compiled(read_all(MODULE), order)
    except MemoryError:
        print("out of memory", file=sys.stderr)
        os._exit(1)
    except (WasmtimeError, ValueError) as error:
        answer = Invalid(_reason(str(error)))
    _write(ANSWER, msgspec.json.encode(answer))
    os._exit(0)


def compiled(binary: bytes, order: Order) -> Compiled:
    """Compile to descriptor :data:`CODE`.

    :raises WasmtimeError: it is not valid.
    :raises ValueError: it is not WebAssembly at all.
    """
    if binary.startswith(_ELF):
        raise ValueError("is native code, which is run only where this node made it of a module")
    if not binary.startswith(_MAGIC):
        binary = _from_text(binary)
    engine = Engine(configure(order.variant, parallel=True))
    if binary[6:8] == _COMPONENT_LAYER:
        component = components.Component(engine, binary)
        kind = component.type
        imports = kind.imports(engine)
        _named(_all(imports, engine))
        found = Compiled(Kind.COMPONENT, _named(_all(kind.exports(engine), engine)), _named(imports))
        code = component.serialize()
    else:
        module = Module(engine, binary)
        exported, imported = module.exports, module.imports
        _named(one.name for one in exported)
        _named(one.name or "" for one in imported)
        functions = [one.name for one in exported if isinstance(one.type, FuncType)]
        found = Compiled(Kind.MODULE, _named(functions), _named({one.module: None for one in imported}))
        code = module.serialize()
    _write(CODE, code)
    return found


def _from_text(text: bytes) -> bytes:
    if text.lstrip()[:1] not in (b"(", b";"):
        raise ValueError("is not WebAssembly: it does not begin with \\0asm")
    try:
        return bytes(wat2wasm(text.decode()))
    except UnicodeError as error:
        raise ValueError("is not WebAssembly: neither \\0asm nor text in UTF-8") from error


def _all(items: Mapping[str, Any], engine: Engine) -> Iterator[str]:
    """The names of a component's exports or imports, and ``INTERFACE#NAME`` of those in its interfaces."""
    for name, item in items.items():
        yield name
        of = item.ty
        if isinstance(of, components.ComponentInstanceType):
            yield from (f"{name}#{inner}" for inner in of.exports(engine))


def _named(names: Iterable[str]) -> tuple[str, ...]:
    """All of them: whoever loads the code goes through them, too, so they are bounded."""
    found = tuple(itertools.islice(names, _NAMES_MAX + 1))
    if len(found) > _NAMES_MAX or sum(map(len, found)) > _NAMES_LENGTH_MAX:
        raise ValueError(f"has more than {_NAMES_MAX} imports or exports, or more than 1 MiB of their names")
    return found


def _reason(text: str) -> str:
    """The library's words in one line."""
    return " ".join(text.split())


def confine(order: Order) -> None:
    """Give up all that compiling does not need; as much as can be where it has no privileges to begin with."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    # The library that makes it is not to be found any more in an empty directory.
    calls = _filter()
    os.nice(_NICE)
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: order.code_max,
        resource.RLIMIT_CPU: order.seconds * max(1, os.cpu_count() or 1),
        resource.RLIMIT_DATA: order.memory,
    }
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (allowed, allowed))
    if os.geteuid() == 0:
        syscall(number("unshare"), namespaces.CLONE_NEWNET | namespaces.CLONE_NEWIPC | namespaces.CLONE_NEWUTS)
        os.chroot(order.empty)
        os.chdir("/")
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # A change of ids takes it back, so it comes last.
    prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != order.parent:
        os._exit(1)
    if calls and prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, calls, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the filter of system calls is refused")


def _filter() -> ctypes.Array[ctypes.c_char] | None:
    """A filter of system calls (``struct sock_fprog``), where this host has the library that makes one."""
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": _CALLS.split(), "action": "SCMP_ACT_ALLOW"},
            {
                "names": ["clone"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": _CLONE_THREAD, "valueTwo": _CLONE_THREAD, "op": "SCMP_CMP_MASKED_EQ"}],
            },
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
            {"names": ["open", "openat", "stat"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOENT},
        ],
    }
    text = bpf.Compiler().compile(profile)
    if text is None:
        return None
    code = base64.b64decode(text)
    # In one buffer with the instructions, to which it has to point.
    held = ctypes.create_string_buffer(_PROGRAM.size + len(code))
    at = ctypes.addressof(held) + _PROGRAM.size
    held.raw = _PROGRAM.pack(len(code) // _INSTRUCTION, at) + code
    return held


def read_all(fd: int) -> bytes:
    """A file from its beginning."""
    size = os.fstat(fd).st_size
    parts, at = [], 0
    while at < size and (chunk := os.pread(fd, size - at, at)):
        parts.append(chunk)
        at += len(chunk)
    return b"".join(parts)


def _write(fd: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
