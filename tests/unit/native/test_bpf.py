"""What the compiled filters really decide (numbers are x86_64's)."""

from __future__ import annotations

import base64
import ctypes.util

import pytest

from engines.native.capabilities import DEFAULT
from engines.native.seccomp import default_profile
from forgeone_shim.kernel.bpf import Compiler
from tests.unit.native.cbpf import ALLOW, ERRNO, decide

EPERM, ENOSYS = ERRNO | 1, ERRNO | 38
READ, CLONE, PTRACE, MOUNT, UNSHARE, KEXEC, SOCKET, CLONE3, PERSONALITY, KEYCTL = (
    0, 56, 101, 165, 272, 246, 41, 435, 135, 250,
)  # fmt: skip
CLONE_NEWUSER = 0x10000000

needs_library = pytest.mark.skipif(ctypes.util.find_library("seccomp") is None, reason="libseccomp is not here")


def compiled(profile: dict[str, object]) -> bytes:
    found = Compiler().compile(profile)
    assert found is not None
    return base64.b64decode(found)


@pytest.fixture(scope="module")
def default() -> bytes:
    return compiled(default_profile(DEFAULT, "x86_64"))


@needs_library
@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        ((READ,), ALLOW),
        ((PTRACE,), ALLOW),
        ((MOUNT,), EPERM),
        ((UNSHARE, CLONE_NEWUSER), EPERM),
        ((KEXEC,), EPERM),
        ((KEYCTL,), EPERM),
        ((CLONE, 0x1200011), ALLOW),
        ((CLONE, CLONE_NEWUSER | 17), EPERM),
        ((CLONE3,), ENOSYS),
        ((SOCKET, 1), ALLOW),
        ((SOCKET, 2), ALLOW),
        ((SOCKET, 16), ALLOW),
        ((SOCKET, 38), EPERM),
        ((SOCKET, 39), ALLOW),
        ((SOCKET, 40), EPERM),
        ((SOCKET, 41), ALLOW),
        ((PERSONALITY, 0), ALLOW),
        ((PERSONALITY, 0x0040000), EPERM),
        ((100000,), EPERM),
    ],
)
def test_the_default_filter_decides(default: bytes, call: tuple[int, ...], wanted: int) -> None:
    assert decide(default, *call) == wanted


@needs_library
def test_sys_admin_opens_what_it_may_do_anyway() -> None:
    program = compiled(default_profile({*DEFAULT, "CAP_SYS_ADMIN"}, "x86_64"))
    assert decide(program, MOUNT) == decide(program, CLONE, CLONE_NEWUSER) == decide(program, CLONE3) == ALLOW
    assert decide(program, KEXEC) == EPERM


@needs_library
def test_a_foreign_architecture_is_not_run_by_the_list_of_another(default: bytes) -> None:
    assert decide(default, READ, arch=0xC00000B7) not in {ALLOW}


@needs_library
def test_conditions_on_one_argument_are_alternatives_as_crun_reads_them() -> None:
    condition = {"index": 0, "op": "SCMP_CMP_EQ", "valueTwo": 0}
    rule = {
        "names": ["socket"],
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": 13,
        "args": [condition | {"value": 1}, condition | {"value": 2}],
    }
    program = compiled({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [rule]})
    assert decide(program, SOCKET, 1) == decide(program, SOCKET, 2) == ERRNO | 13
    assert decide(program, SOCKET, 3) == ALLOW


@needs_library
def test_a_call_the_library_does_not_know_is_left_out() -> None:
    program = compiled(
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["flyaway", "read"], "action": "SCMP_ACT_LOG"}]}
    )
    assert decide(program, READ) == 0x7FFC0000


@needs_library
@pytest.mark.parametrize(
    "profile",
    [
        {"defaultAction": "SCMP_ACT_NOTIFY"},
        {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]},
        {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_Z80"]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_FLY"}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1},
        {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 70000},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_LOG"}]},
        {},
    ],
)
def test_what_it_does_not_know_is_left_to_crun(profile: dict[str, object]) -> None:
    assert Compiler().compile(profile) is None


@needs_library
def test_a_profile_is_compiled_once() -> None:
    compiler = Compiler()
    first = compiler.compile(default_profile(DEFAULT))
    assert compiler.compile(default_profile(DEFAULT)) is first
