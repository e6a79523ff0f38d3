"""The operator's own RuntimeDefault: read as container engines read theirs, refused where it is anything else."""

from __future__ import annotations

import base64
import ctypes.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.native.capabilities import DEFAULT
from engines.native.runtime_default import checked, parse, read
from forgeone_shim.errors import InvalidInput
from forgeone_shim.kernel.bpf import Compiler
from forgeone_shim.kernel.capabilities import KNOWN
from tests.unit.native.cbpf import ALLOW, ERRNO, decide

SHIPPED = Path("/usr/share/containers/seccomp.json")
READ, CHROOT, MOUNT = 0, 161, 165
HERE = {"machine": "x86_64", "release": "6.1.0-13-amd64"}

needs_library = pytest.mark.skipif(ctypes.util.find_library("seccomp") is None, reason="libseccomp is not here")


def profile(*rules: dict[str, Any], **head: Any) -> str:
    return json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": list(rules)} | head)


def rule(*names: str, **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ALLOW"} | more


def allowed(text: str, capabilities: tuple[str, ...] = (), **host: str) -> list[str]:
    found: Any = parse(text).profile(capabilities, **(HERE | host))["syscalls"]
    return [name for one in found for name in one["names"]]


def test_a_plain_profile_is_as_it_is_written() -> None:
    condition = {"index": 1, "value": 7, "valueTwo": 0, "op": "SCMP_CMP_EQ"}
    text = profile(rule("read", args=[condition]), defaultErrnoRet=38, architectures=["SCMP_ARCH_X86_64"])
    assert parse(text).profile(()) == {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [condition]}],
    }


def test_a_rule_may_want_capabilities_all_of_which_the_container_has() -> None:
    text = profile(rule("bpf", includes={"caps": ["CAP_BPF", "CAP_SYS_ADMIN"]}))
    assert allowed(text, ("CAP_BPF",)) == []
    assert allowed(text, ("CAP_BPF", "CAP_SYS_ADMIN")) == ["bpf"]


def test_a_rule_may_be_for_containers_without_any_of_some_capabilities() -> None:
    text = profile(rule("clone", excludes={"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}))
    assert allowed(text) == ["clone"]
    assert allowed(text, ("CAP_BPF",)) == []


def test_a_rule_may_be_for_some_machines_and_kernels() -> None:
    text = profile(
        rule("a", includes={"arches": ["amd64", "x32"]}),
        rule("b", excludes={"arches": ["amd64"]}),
        rule("c", includes={"minKernel": "4.8"}),
        rule("d", excludes={"minKernel": "4.8"}),
    )
    assert allowed(text) == ["a", "c"]
    assert allowed(text, machine="aarch64", release="4.4.0") == ["b", "d"]


def test_the_map_of_architectures_gives_this_machines() -> None:
    text = profile(
        archMap=[
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": None},
        ]
    )
    found = parse(text)
    assert found.profile((), "x86_64")["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert found.profile((), "aarch64")["architectures"] == ["SCMP_ARCH_AARCH64"]
    assert found.profile((), "riscv64")["architectures"] == []


def test_an_error_may_be_given_by_its_name() -> None:
    found: Any = parse(profile(rule("x", action="SCMP_ACT_ERRNO", errno="ENOSYS"), defaultErrno="EPERM")).profile(())
    assert (found["defaultErrnoRet"], found["syscalls"][0]["errnoRet"]) == (1, 38)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[]", "it is not an object"),
        ("[" * 100_000, "is not a seccomp profile"),
        ("{}", "defaultAction: None is not one of"),
        (profile(defaultAction="SCMP_ACT_NOTIFY"), "'SCMP_ACT_NOTIFY' is not one of"),
        (profile(listenerPath="/run/x"), "it has 'listenerPath', which is not known"),
        (profile(flags=["SECCOMP_FILTER_FLAG_NEW_LISTENER"]), "flags: 'SECCOMP_FILTER_FLAG_NEW_LISTENER'"),
        (profile(architectures=["x86"]), "'x86' is not an architecture"),
        (profile(architectures=["SCMP_ARCH_X86"], archMap=[{"architecture": "SCMP_ARCH_X86"}]), "one is enough"),
        (profile(syscalls={}), "syscalls is not a list"),
        (profile(rule()), r"syscalls\[0\] has no names"),
        (profile(rule("read", name="write")), r"syscalls\[0\] has a name and names"),
        (profile(rule("read"), rule("x", when="now")), r"syscalls\[1\] has 'when'"),
        (profile(rule("x", includes={"cap": ["CAP_BPF"]})), r"syscalls\[0\]\.includes has 'cap'"),
        (profile(rule("x", excludes={"caps": ["BPF"]})), r"excludes\.caps: 'BPF' is not a capability"),
        (profile(rule("x", includes={"minKernel": 5})), r"minKernel: 5 is not a kernel's version"),
        (profile(rule("x", errnoRet=1)), "SCMP_ACT_ALLOW returns no error"),
        (profile(rule("x", action="SCMP_ACT_ERRNO", errnoRet=1, errno="ENOSYS")), "errnoRet 1 is not ENOSYS"),
        (profile(rule("x", action="SCMP_ACT_ERRNO", errno="EWHAT")), "'EWHAT' is not the name of an error"),
        (profile(rule("x", action="SCMP_ACT_ERRNO", errnoRet=True)), "True is not the number of an error"),
        (profile(rule("x", args=[{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}])), r"args\[0\]\.index: 6"),
        (profile(rule("x", args=[{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}])), r"args\[0\]\.value: -1"),
        (profile(rule("x", args=[{"index": 0, "value": 0, "op": "EQ"}])), r"args\[0\]\.op: 'EQ'"),
    ],
)  # fmt: skip
def test_what_is_not_understood_to_the_last_key_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as caught:
        checked("seccomp_profile", text, Compiler())
    assert caught.value.field == "seccomp_profile"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_no_json_makes_it_fail_otherwise(value: object) -> None:
    with pytest.raises(ValueError):
        parse(json.dumps({"defaultAction": value, "syscalls": [value]}))


@needs_library
def test_what_libseccomp_makes_no_filter_of_is_refused() -> None:
    with pytest.raises(InvalidInput, match="libseccomp makes no filter of it"):
        checked("seccomp_profile", profile(architectures=["SCMP_ARCH_NONE"]), Compiler())


@needs_library
@pytest.mark.skipif(not SHIPPED.exists(), reason="no profile of another engine is installed")
def test_the_profile_that_other_engines_ship_is_taken_and_follows_capabilities() -> None:
    compiler = Compiler()
    template = checked("key", read("key", str(SHIPPED)), compiler)

    def filtered(*capabilities: str) -> bytes:
        found = compiler.compile(template.profile(capabilities))
        assert found is not None
        return base64.b64decode(found)

    assert decide(filtered(*DEFAULT), READ) == ALLOW
    assert decide(filtered(*DEFAULT), CHROOT) == ALLOW
    assert decide(filtered(*DEFAULT), MOUNT) == ALLOW, "that profile leaves mount(2) to the capability"
    assert decide(filtered(), CHROOT) == ERRNO | 1
    assert decide(filtered(*KNOWN), CHROOT) == ALLOW


def test_a_file_is_read_only_if_it_is_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "bytes").write_bytes(b"\xff")
    for name, why in (("fifo", "regular"), ("bytes", "UTF-8"), ("none", "No such file"), (".", "cannot|regular")):
        with pytest.raises(InvalidInput, match=why):
            read("native.seccomp_default_profile", str(tmp_path / name))
