"""What a fingerprint counts of a container's ``config.json``, and of crun."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.native import imprint
from engines.native.imprint import Version
from forgeone_shim.errors import InternalError, NotFound
from forgeone_shim.kernel import bpf

CONFIG: dict[str, Any] = {
    "process": {"capabilities": {"bounding": ["CAP_KILL"]}, "apparmorProfile": "p", "args": ["sh"]},
    "linux": {"resources": {}},
}


def written(directory: Path, config: object) -> Path:
    path = directory / "config.json"
    path.write_bytes(msgspec.json.encode(config))
    return path


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_it_says_what_decides_and_is_sealed_whole(tmp_path: Path) -> None:
    path = written(tmp_path, CONFIG)
    found = imprint.imprint(path, "id", "crun 1")
    assert (found.version, found.capabilities, found.apparmor, found.seccomp) == ("crun 1", ("CAP_KILL",), "p", "")
    assert found.seal == sha256(path.read_bytes()) == imprint.seal(path, "id")


def test_a_filter_counts_compiled_or_not(tmp_path: Path) -> None:
    compiled = imprint.imprint(written(tmp_path, {**CONFIG, "annotations": {bpf.ANNOTATION: "AAAA"}}), "id", "")
    assert compiled.seccomp == sha256(b"AAAA")
    profile = {"defaultAction": "SCMP_ACT_ERRNO"}
    plain = imprint.imprint(written(tmp_path, {**CONFIG, "linux": {"seccomp": profile}}), "id", "")
    assert plain.seccomp == sha256(msgspec.json.encode(profile))


def test_hooks_and_process_limits_count_where_there_are_any_and_timeouts_do_not(tmp_path: Path) -> None:
    def facts(hooks: object = None, rlimits: object = None) -> object:
        process = {**CONFIG["process"], **({} if rlimits is None else {"rlimits": rlimits})}
        config = {**CONFIG, "process": process, **({} if hooks is None else {"hooks": hooks})}
        found = imprint.imprint(written(tmp_path, config), "id", "").facts
        return {name: value for name, value in found.items() if name in ("hooks", "rlimits")}

    def hook(*args: str, timeout: int = 1) -> object:
        return {"createRuntime": [{"path": "/h", "args": args, "timeout": timeout}]}

    assert facts() == {}
    assert facts(hooks=hook("a")) == facts(hooks=hook("a", timeout=9)) != facts(hooks=hook("b"))
    assert facts(rlimits=[{"type": "RLIMIT_NOFILE", "hard": 1}]) != facts(
        rlimits=[{"type": "RLIMIT_NOFILE", "hard": 2}]
    )


def test_what_the_node_adds_and_annotations_ask_for_counts(tmp_path: Path) -> None:
    """The plan does not have it: only what the engine has made of that does."""

    def facts(**parts: Any) -> dict[str, str]:
        process = {**CONFIG["process"], **parts.get("process", {})}
        whole = {**CONFIG, "process": process, "linux": parts.get("linux", {}), "mounts": parts.get("mounts", [])}
        return dict(imprint.imprint(written(tmp_path, whole), "id", "").facts)

    def changed(**parts: Any) -> set[str]:
        plain, other = facts(), facts(**parts)
        return {name for name in {*plain, *other} if plain.get(name) != other.get(name)}

    assert set(facts()) == {"env", "mounts"} and changed() == set()
    assert changed(process={"env": ["LD_PRELOAD=/x.so"]}) == {"env"}
    assert facts(process={"env": ["A=1", "B=2"]}) == facts(process={"env": ["B=3", "A=4"]})
    cgroup = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]}
    assert changed(mounts=[cgroup]) == {"mounts"}
    assert facts(mounts=[cgroup]) != facts(mounts=[{**cgroup, "options": ["ro"]}])
    assert facts(mounts=[cgroup]) == facts(mounts=[{**cgroup, "source": "/run/of/this/pod"}])
    assert changed(process={"capabilities": {"bounding": ["CAP_KILL"], "ambient": ["CAP_KILL"]}}) == {"ambient"}
    assert facts(process={"selinuxLabel": "u:r:container_t:s0:c1,c2"})["selinux"] == "u:r:container_t"


def test_devices_count_with_what_may_be_done_to_them(tmp_path: Path) -> None:
    def devices(*rules: object, path: str = "/dev/kvm", minor: int = 232) -> str:
        device = {"path": path, "type": "c", "major": 10, "minor": minor, "uid": 0}
        linux = {"devices": [device], "resources": {"devices": [{"allow": False, "access": "rwm"}, *rules]}}
        return imprint.imprint(written(tmp_path, {**CONFIG, "linux": linux}), "id", "").facts["devices"]

    def rule(access: str) -> object:
        return {"allow": True, "type": "c", "major": 10, "minor": 232, "access": access}

    assert devices(rule("rw")) == "/dev/kvm=c10:232:rw"
    assert len({devices(), devices(rule("r")), devices(rule("r"), path="/dev/x"), devices(rule("r"), minor=1)}) == 4
    # What a privileged container has is its host's.
    assert devices({"allow": True, "access": "rwm"}) == "all"


def test_without_a_configuration_there_is_no_container(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        imprint.seal(tmp_path / "config.json", "id")
    with pytest.raises(NotFound):
        imprint.imprint(tmp_path / "config.json", "id", "")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"process": 1}', b'{"process": {}}x'])
def test_what_is_none_is_no_imprint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InternalError, match="not as it was written"):
        imprint.imprint(path, "id", "")
    assert imprint.seal(path, "id") == sha256(content)


def test_a_version_is_asked_for_once_and_again_when_the_program_has_changed(tmp_path: Path) -> None:
    program, asked = tmp_path / "crun", tmp_path / "asked"

    def install(version: str) -> None:
        new = tmp_path / "new"
        new.write_text(f"#!/bin/sh\necho x >> {asked}\necho crun version {version}\n")
        new.chmod(0o755)
        new.replace(program)

    install("1.8.1")
    version = Version(str(program), "crun")
    assert [version.text(), version.text()] == ["crun 1.8.1"] * 2
    assert asked.read_text() == "x\n"
    install("1.9")
    os.utime(program, (1, 1))
    assert version.text() == "crun 1.9"


def test_a_program_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="stat"):
        Version(str(tmp_path / "crun"), "crun").text()
