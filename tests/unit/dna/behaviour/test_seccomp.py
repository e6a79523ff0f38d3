from __future__ import annotations

from dataclasses import replace

import pytest

from forgeone_shim.dna.behaviour import seccomp
from forgeone_shim.dna.behaviour.drift import GRAVE_CALLS
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.kernel.bpf import Compiler
from tests.unit.dna.behaviour.test_baseline import learned


def test_the_filter_lets_through_what_is_usual_and_what_the_runtime_needs() -> None:
    found = seccomp.export(learned("sendfile", "clone3"))
    (rule,) = found["syscalls"]
    assert rule["action"] == "SCMP_ACT_ALLOW"
    assert rule["names"] == sorted({"sendfile", "clone3"} | seccomp.RUNTIME)
    assert found["defaultAction"] == "SCMP_ACT_ERRNO"
    assert (found["defaultErrnoRet"], found["architectures"]) == (38, ["SCMP_ARCH_X86_64"])


def test_calls_of_32_bit_programs_are_let_through_where_they_are_usual() -> None:
    found = seccomp.export(learned("read", "32-bit:socketcall"))
    assert found["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert "socketcall" in found["syscalls"][0]["names"]


@pytest.mark.parametrize("name", ["other", "#500", "32-bit:#500"])
def test_a_call_without_a_name_cannot_be_let_through(name: str) -> None:
    with pytest.raises(FailedPrecondition, match=name):
        seccomp.export(learned("read", name))


def test_a_machine_that_is_not_known_has_no_filter() -> None:
    with pytest.raises(FailedPrecondition, match="s390x"):
        seccomp.export(replace(learned("read"), machine="s390x"))


def test_guests_have_a_filter_of_their_own() -> None:
    with pytest.raises(FailedPrecondition, match="of its own"):
        seccomp.export(replace(learned("read"), engine="wasm"))


def test_what_the_runtime_needs_is_nothing_grave() -> None:
    assert not seccomp.RUNTIME & GRAVE_CALLS


def test_libseccomp_compiles_it() -> None:
    compiler = Compiler()
    if not compiler.usable:
        pytest.skip("this host has no libseccomp")
    assert compiler.compile(seccomp.export(learned("read", "sendfile")))
