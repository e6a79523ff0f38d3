"""Credentials of files: whose they are, which of them count, and what is refused."""

from __future__ import annotations

import base64
import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.registry import authfiles
from forgeone_shim.registry.reference import Reference

APP = Reference.parse("quay.io/team/app:v1")


def entry(user: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:secret".encode()).decode()}


def user_of(text: object, reference: Reference = APP) -> str:
    found = authfiles.parse(json.dumps(text).encode(), "f.json", reference)
    return found.login()[0] if found else ""


def test_the_longest_beginning_of_the_name_counts() -> None:
    auths = {"quay.io": entry("host"), "quay.io/team": entry("team"), "quay.io/team/app": entry("app")}
    assert user_of({"auths": auths}) == "app"
    del auths["quay.io/team/app"]
    assert user_of({"auths": auths}) == "team"
    assert user_of({"auths": auths}, Reference.parse("quay.io/teamwork/app")) == "host"
    assert user_of({"auths": auths}, Reference.parse("other.io/team/app")) == ""


@pytest.mark.parametrize("key", ["docker.io", "https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io"])
def test_every_name_of_docker_s_hub_is_one(key: str) -> None:
    assert user_of({"auths": {key: entry("hub")}}, Reference.parse("busybox")) == "hub"


def test_what_a_file_has_beside_credentials_is_passed_over() -> None:
    assert user_of({"auths": {"quay.io": entry("u")}, "credsStore": "desktop", "HttpHeaders": {}}) == "u"


def test_an_error_does_not_quote_the_file() -> None:
    with pytest.raises(FailedPrecondition) as caught:
        authfiles.parse(b'{"auths": {"quay.io": {"password": "hunter2', "f.json", APP)
    assert "hunter2" not in str(caught.value)
    assert "f.json" in str(caught.value)


def test_a_namespace_has_its_own_before_the_node_s(tmp_path: Path) -> None:
    (tmp_path / "ns").mkdir()
    for name, user in (("node.json", "node"), ("ns/blue.json", "blue"), ("ns/green.json", "green")):
        text = json.dumps({"auths": {"quay.io": entry(user)}})
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    (tmp_path / "secret.json").write_text("never read")

    def find(namespace: str) -> str:
        found = authfiles.find(APP, namespace, namespaces=str(tmp_path / "ns"), node=str(tmp_path / "node.json"))
        return found.login()[0] if found else ""

    assert [find(name) for name in ("blue", "green", "red", "", "../secret")] == [
        "blue",
        "green",
        "node",
        "node",
        "node",
    ]


def test_an_entry_without_credentials_is_none(tmp_path: Path) -> None:
    for name, content in (("team.json", {"quay.io": {}}), ("node.json", {"quay.io": entry("node")})):
        (tmp_path / name).write_text(json.dumps({"auths": content}))
        (tmp_path / name).chmod(0o600)
    found = authfiles.find(APP, "team", namespaces=str(tmp_path), node=str(tmp_path / "node.json"))
    assert found is not None
    assert found.login()[0] == "node"


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "node.json"
    file.write_text(json.dumps({"auths": {}}))
    file.chmod(0o640)
    with pytest.raises(FailedPrecondition, match="others than its owner"):
        authfiles.find(APP, "", namespaces="", node=str(file))


def test_a_file_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert authfiles.find(APP, "blue", namespaces=str(tmp_path), node=str(tmp_path / "no.json")) is None


@given(st.binary(max_size=200))
def test_no_file_is_a_crash(data: bytes) -> None:
    with contextlib.suppress(FailedPrecondition):
        authfiles.parse(data, "f.json", APP)
