from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import Profile, ProfileType
from engines.native.seccomp import choose, default_profile
from forgeone_shim.errors import ForgeError, InvalidInput
from forgeone_shim.kernel.profiles import local_profile, parse_profile

PROFILE = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "seccomp"
    (folder / "team").mkdir(parents=True)
    (folder / "team" / "a.json").write_text(json.dumps(PROFILE))
    (tmp_path / "outside.json").write_text(json.dumps(PROFILE))
    (folder / "link.json").symlink_to("../outside.json")
    (folder / "absolute.json").symlink_to(tmp_path / "outside.json")
    (folder / "inside.json").symlink_to(folder / "team/a.json")
    os.mkfifo(folder / "fifo")
    return folder


@pytest.mark.parametrize(
    "form",
    ["team/a.json", "localhost/team/a.json", "{root}/team/a.json", "localhost/{root}/team/a.json", "inside.json"],
)
def test_a_local_profile_is_found_by_each_form_of_its_name(root: Path, form: str) -> None:
    found = local_profile(str(root), form.format(root=root))
    assert found["defaultAction"] == "SCMP_ACT_ALLOW"
    assert found["syscalls"] == PROFILE["syscalls"]


@pytest.mark.parametrize(
    "reference",
    (
        "",
        "localhost/",
        "../outside.json",
        "team/../../outside.json",
        "{parent}/outside.json",
        "{root}/../outside.json",
        "link.json",
        "absolute.json",
        "none.json",
        "team",
        "/etc/passwd",
        "a\0b",
        "team//a.json",
        "./team/a.json",
        "fifo",
    ),
)
def test_a_local_profile_cannot_be_outside_its_root(root: Path, reference: str) -> None:
    with pytest.raises(InvalidInput, match="localhost_ref"):
        local_profile(str(root), reference.format(root=root, parent=root.parent))


def test_without_a_root_a_profile_may_be_anywhere(root: Path) -> None:
    for form in (f"{root}/team/a.json", f"localhost/{root}/link.json", f"{root.parent}/outside.json"):
        assert local_profile("", form)["defaultAction"] == "SCMP_ACT_ALLOW"


@pytest.mark.parametrize(
    "reference",
    ("", "team/a.json", "/", "//etc/passwd", "{root}/../outside.json", "{root}/none", "{root}/fifo", "/dev/null"),
)
def test_without_a_root_a_profile_is_still_an_absolute_path_of_a_regular_file(root: Path, reference: str) -> None:
    with pytest.raises(InvalidInput, match="localhost_ref"):
        local_profile("", reference.format(root=root))


def test_a_profile_larger_than_any_is_refused(root: Path) -> None:
    with (root / "large.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(InvalidInput, match="larger"):
        local_profile("", f"{root}/large.json")


def test_docker_s_older_rules_and_nulls_are_understood() -> None:
    text = json.dumps(
        {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"name": "read", "action": "SCMP_ACT_ALLOW", "args": None}]}
    )
    assert parse_profile("f", text.encode())["syscalls"] == [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]


def test_a_profile_cannot_ask_for_a_listener() -> None:
    found = parse_profile("f", json.dumps(PROFILE | {"listenerPath": "/run/x.sock"}).encode())
    assert "listenerPath" not in found


_KEYS = st.sampled_from(["defaultAction", "syscalls", "action", "names"])
_VALUES = st.recursive(st.none() | st.text() | st.integers(), lambda v: st.lists(v) | st.dictionaries(_KEYS, v))


@given(st.binary(max_size=200) | _VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_file_is_read_or_refused(text: bytes) -> None:
    with contextlib.suppress(ForgeError):
        assert isinstance(parse_profile("f", text)["defaultAction"], str)


@pytest.mark.parametrize("rule", [{"action": "x"}, {"action": "x", "names": "read"}, {"action": "x", "names": [1]}])
def test_a_rule_without_a_list_of_names_is_refused_rather_than_read_as_none(rule: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="list of names"):
        parse_profile("f", json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}).encode())


def test_no_profile_and_unconfined_are_no_filter() -> None:
    assert choose(None, (), "/x") is None
    assert choose(Profile(ProfileType.UNCONFINED), (), "/x") is None
    assert choose(Profile(ProfileType.RUNTIME_DEFAULT), (), "/x") == default_profile(())


def test_an_unknown_machine_has_a_filter_for_itself() -> None:
    assert default_profile((), "pdp11")["architectures"] == []
