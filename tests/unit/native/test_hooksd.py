from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import Hook, HookStage
from engines.native.hooksd import HookDirectories, Subject, definition, match
from forgeone_shim.errors import FailedPrecondition, InvalidInput


def document(when: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    whole = {"version": "1.0.0", "hook": {"path": "/bin/h"}, "when": when, "stages": ["prestart"]}
    return {key: value for key, value in {**whole, **changes}.items() if value is not ...}


def subject(command: str = "/bin/sh", *, mounts: bool = False, **annotations: str) -> Subject:
    return Subject(annotations, command, mounts)


@pytest.mark.parametrize(
    ("when", "about", "matches"),
    [
        ({"always": True}, subject(), True),
        ({"always": False}, subject(), False),
        ({"commands": ["sh$"]}, subject(), True),
        ({"commands": ["^/bin/(ba)?sh$", "x"]}, subject(), True),
        ({"commands": ["^sh"]}, subject(), False),
        ({"commands": ["/[[:lower:]]{2}$"]}, subject(), True),
        ({"hasBindMounts": True}, subject(mounts=True), True),
        ({"hasBindMounts": True}, subject(), False),
        ({"hasBindMounts": False}, subject(), False),
        ({"annotations": {"^a$": "^1$"}}, subject(a="1"), True),
        ({"annotations": {"^a$": "^1$"}}, subject(a="2", b="1"), False),
        ({"annotations": {"^a$": "1", "^b$": "2"}}, subject(a="1"), False),
        ({"annotations": {"^a$": "1"}, "commands": ["nosuch"]}, subject(a="1"), False),
        ({"always": True, "hasBindMounts": True}, subject(), False),
    ],
)
def test_all_conditions_that_are_given_must_hold(when: dict[str, Any], about: Subject, matches: bool) -> None:
    assert (match(definition("f", document(when)), about) is not None) is matches


def test_the_annotations_that_matched_are_told() -> None:
    found = match(definition("f", document({"annotations": {"^a": "1"}})), subject(a1="1", a2="2", b="1"))
    assert found == {"a1": "1"}


def test_a_hook_has_what_the_oci_says() -> None:
    hook = {"path": "/bin/h", "args": ["h", "x"], "env": ["A=1"], "timeout": 9}
    found = definition("f", document({"always": True}, hook=hook, stages=["poststop", "createRuntime"]))
    assert found.hook == Hook(HookStage.PRESTART, "/bin/h", ("h", "x"), ("A=1",), 9)
    assert found.stages == (HookStage.POSTSTOP, HookStage.CREATE_RUNTIME)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"version": ...}, "f.version"),
        ({"version": "0.1.0"}, "f.version"),
        ({"hook": ...}, "f.hook"),
        ({"hook": {"path": "h"}}, "f.hook.path"),
        ({"hook": {"path": "/h", "timeout": 0}}, "f.hook.timeout"),
        ({"hook": {"path": "/h", "argv": []}}, "f.hook.argv"),
        ({"when": ...}, "f.when"),
        ({"when": {}}, "f.when"),
        ({"when": {"commands": []}}, "f.when"),
        ({"when": {"never": True}}, "f.when.never"),
        ({"when": {"always": "yes"}}, "f.when.always"),
        ({"when": {"commands": ["("]}}, "f.when.commands"),
        ({"when": {"annotations": {"a": 1}}}, "f.when.annotations"),
        ({"stages": ...}, "f.stages"),
        ({"stages": []}, "f.stages"),
        ({"stages": ["later"]}, "f.stages"),
        ({"stages": ["prestart", "prestart"]}, "f.stages"),
        ({"comment": "x"}, "f.comment"),
    ],
)
def test_a_definition_that_says_something_else_is_refused_with_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        definition("f", document(**{"when": {"always": True}, **changes}))
    assert caught.value.field == field


def test_a_value_so_long_that_matching_it_takes_time_is_refused() -> None:
    one = definition("f", document({"annotations": {"^a$": ".*x$"}}))
    with pytest.raises(InvalidInput, match="longer than"):
        match(one, subject(a="y" * 5000))
    assert match(one, subject(b="y" * 5000)) is None
    with pytest.raises(InvalidInput, match="longer than"):
        match(one, Subject({"k" * 5000: "y"}, "sh", bind_mounts=False))
    commanded = definition("f", document({"commands": [".*/sh$"]}))
    with pytest.raises(InvalidInput, match="command"):
        match(commanded, Subject({}, "/" * 1_000_000, bind_mounts=False))


def put(directory: Path, name: str, path: str, **changes: Any) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(json.dumps(document({"always": True}, hook={"path": path}, **changes)))


def test_files_count_by_name_and_a_later_directorys_instead_of_an_earlier_ones(tmp_path: Path) -> None:
    put(tmp_path / "a", "2.json", "/a/2")
    put(tmp_path / "a", "1.json", "/a/1", stages=["poststop", "prestart"])
    put(tmp_path / "b", "2.json", "/b/2")
    put(tmp_path / "b", "B.json", "/b/b")
    put(tmp_path / "b", "a.json", "/b/a")
    (tmp_path / "b/readme.txt").write_text("no hook")
    hooks = HookDirectories([str(tmp_path / name) for name in ("a", "b", "nosuch")]).matching(subject()).hooks
    assert [(hook.path, hook.stage.value) for hook in hooks] == [
        ("/a/1", "poststop"),
        ("/a/1", "prestart"),
        ("/b/2", "prestart"),
        ("/b/a", "prestart"),
        ("/b/b", "prestart"),
    ]


def test_definitions_are_seen_as_they_are_now(tmp_path: Path) -> None:
    directories = HookDirectories([str(tmp_path / "a")])
    assert directories.matching(subject()).hooks == ()
    put(tmp_path / "a", "1.json", "/a/1")
    assert directories.matching(subject()).hooks[0].path == "/a/1"
    put(tmp_path / "a", "1.json", "/a/2")
    assert directories.matching(subject()).hooks[0].path == "/a/2"
    (tmp_path / "a/1.json").unlink()
    assert directories.matching(subject()).hooks == ()


def test_a_definition_that_cannot_be_used_refuses_containers_until_it_is_gone(tmp_path: Path) -> None:
    directories = HookDirectories([str(tmp_path / "a"), str(tmp_path / "b")])
    put(tmp_path / "a", "1.json", "/a/1")
    (tmp_path / "a/2.json").write_text("{")
    with pytest.raises(FailedPrecondition, match=r"a/2\.json"):
        directories.matching(subject())
    put(tmp_path / "b", "2.json", "/b/2")  # in the place of the bad one
    assert [hook.path for hook in directories.matching(subject()).hooks] == ["/a/1", "/b/2"]
    (tmp_path / "a").chmod(0o777)
    with pytest.raises(FailedPrecondition, match="everybody"):
        directories.matching(subject())


@given(
    st.dictionaries(
        st.sampled_from(["version", "hook", "when", "stages", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.text(max_size=4) | st.integers(),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=9), inner, max_size=2),
            max_leaves=5,
        ),
    )
)
def test_whatever_it_says_it_is_a_definition_or_refused(given_document: dict[str, Any]) -> None:
    try:
        definition("f", {**document({"always": True}), **given_document})
    except InvalidInput as error:
        assert error.field.startswith("f")
