"""What the compiled filters of guests really decide (numbers are x86_64's)."""

from __future__ import annotations

import ctypes.util

import pytest

from engines.base import Profile, ProfileType
from engines.wasm.jail.filter import guest_profile, reaper_profile
from engines.wasm.jail.planning import compile_filters, compiled
from forgeone_shim.errors import InvalidInput, Unavailable
from forgeone_shim.kernel.bpf import Compiler
from tests.unit.native.cbpf import ALLOW, ERRNO, decide

EPERM, ENOSYS = ERRNO | 1, ERRNO | 38
THREAD = 0x3D0F00
EXEC = 4
CALLS = {
    "read": 0, "open": 2, "mmap": 9, "mprotect": 10, "ioctl": 16, "fcntl": 72, "socket": 41,
    "socketpair": 53, "clone": 56, "fork": 57,
    "vfork": 58, "execve": 59, "kill": 62, "ptrace": 101, "setuid": 105, "prctl": 157, "chroot": 161, "mount": 165,
    "mknod": 133, "mknodat": 259, "unshare": 272, "prlimit64": 302, "open_by_handle_at": 304, "setns": 308,
    "process_vm_readv": 310, "seccomp": 317, "bpf": 321, "execveat": 322, "userfaultfd": 323, "pkey_mprotect": 329,
    "io_uring_setup": 425, "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438, "keyctl": 250, "personality": 135,
    "wait4": 61, "rt_sigtimedwait": 128, "openat2": 437, "epoll_wait": 232, "chmod": 90, "fchmod": 91, "shmget": 29,
    "perf_event_open": 298, "name_to_handle_at": 303, "memfd_create": 319, "sendmmsg": 307, "tgkill": 234,
}  # fmt: skip
NEVER = """
bpf chmod chroot execve execveat fchmod fork io_uring_setup keyctl kill mknod mknodat mount name_to_handle_at
open_by_handle_at perf_event_open personality pidfd_getfd pidfd_open pkey_mprotect process_vm_readv ptrace seccomp setns
setuid shmget socketpair unshare userfaultfd vfork wait4
"""
pytestmark = pytest.mark.skipif(ctypes.util.find_library("seccomp") is None, reason="libseccomp is not here")


@pytest.fixture(scope="module")
def guest() -> bytes:
    return compiled(guest_profile(machine="x86_64"), Compiler()).program


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("read", ()),
        ("openat2", ()),
        ("epoll_wait", ()),
        ("memfd_create", ()),
        ("sendmmsg", ()),
        ("tgkill", ()),
        ("mmap", (0, 4096, 3)),
        ("mprotect", (0, 4096, 1)),
        ("clone", (THREAD,)),
        ("socket", (2, 1)),
        ("socket", (10, 2 | 0o2004000)),
        ("ioctl", (0, 0x5401)),
        *[("fcntl", (0, order)) for order in (0, 1, 2, 3, 4, 1030)],
        ("prctl", (15,)),
        ("prlimit64", (0, 3, 0)),
    ],
)
def test_a_guest_may(guest: bytes, name: str, arguments: tuple[int, ...]) -> None:
    assert decide(guest, CALLS[name], *arguments) == ALLOW


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *[(name, ()) for name in NEVER.split()],
        ("mmap", (0, 4096, 1 | EXEC)),
        ("mprotect", (0, 4096, EXEC)),
        ("clone", (17,)),
        ("clone", (0x10000000 | THREAD,)),
        ("clone", (0x10000000 | 17,)),
        ("socket", (1, 1)),
        ("socket", (16, 3)),
        ("socket", (17, 3)),
        ("socket", (2, 3)),
        ("socket", (40, 1)),
        ("ioctl", (0, 0x5412)),
        # Who is told, a lease, a larger pipe, a note of changes in a directory.
        *[("fcntl", (0, order)) for order in (8, 10, 1024, 1031, 1026)],
        ("prctl", (4, 1)),
        ("prctl", (22, 2)),
        ("prlimit64", (0, 3, 1)),
        ("prlimit64", (7, 3, 0)),
    ],
)
def test_a_guest_may_not(guest: bytes, name: str, arguments: tuple[int, ...]) -> None:
    assert decide(guest, CALLS[name], *arguments) == EPERM


def test_a_thread_is_made_by_the_call_whose_flags_can_be_read(guest: bytes) -> None:
    assert decide(guest, CALLS["clone3"]) == ENOSYS


def test_a_guest_has_one_machine_s_calls(guest: bytes) -> None:
    assert decide(guest, CALLS["read"], arch=0x40000003) == 0
    assert decide(guest, CALLS["read"] | 0x40000000) != ALLOW


def test_the_other_machine_has_a_filter_too() -> None:
    program = compiled(guest_profile(machine="aarch64"), Compiler()).program
    assert decide(program, 63, arch=0xC00000B7) == ALLOW, "read"
    assert decide(program, 221, arch=0xC00000B7) == EPERM, "execve"


def test_an_init_waits_and_does_no_more() -> None:
    program = compiled(reaper_profile("x86_64"), Compiler()).program
    assert decide(program, CALLS["wait4"]) == decide(program, CALLS["rt_sigtimedwait"]) == ALLOW
    for name in ("open", "openat2", "socket", "clone", "fork", "execve", "kill"):
        assert decide(program, CALLS[name], 2, 1) == EPERM, name


@pytest.mark.parametrize("kind", [ProfileType.RUNTIME_DEFAULT, ProfileType.UNCONFINED])
def test_the_engine_s_own_filter_is_there_whatever_is_asked_for(kind: ProfileType, guest: bytes) -> None:
    (only,) = compile_filters(Profile(kind), Compiler(), "")
    assert len(only.program) == len(guest)
    assert compile_filters(None, Compiler(), "") == (only,)


def test_a_local_profile_comes_on_top(tmp_path: object) -> None:
    path = f"{tmp_path}/p.json"
    with open(path, "w") as file:
        file.write(
            '{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"],'
            ' "syscalls": [{"names": ["mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7}]}'
        )
    own, local = compile_filters(Profile(ProfileType.LOCALHOST, path), Compiler(), "")
    assert decide(local.program, 258) == ERRNO | 7
    assert local.flags == 2
    assert decide(own.program, CALLS["seccomp"]) == ALLOW, "without it the second could not be put on"
    assert decide(own.program, CALLS["execve"]) == EPERM


@pytest.mark.parametrize(
    "text",
    [
        '{"defaultAction": "SCMP_ACT_FLY"}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}',
        "{}",
        "[",
    ],
)
def test_a_local_profile_that_cannot_be_used_is_refused(tmp_path: object, text: str) -> None:
    path = f"{tmp_path}/p.json"
    with open(path, "w") as file:
        file.write(text)
    with pytest.raises(InvalidInput, match="localhost_ref"):
        compile_filters(Profile(ProfileType.LOCALHOST, path), Compiler(), "")


def test_without_a_library_no_container_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiler, "compile", lambda self, profile: None)
    with pytest.raises(Unavailable, match="libseccomp"):
        compile_filters(None, Compiler(), "")
