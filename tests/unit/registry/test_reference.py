from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.errors import ForgeError, InvalidInput
from forgeone_shim.registry.reference import Reference

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("user/app", "docker.io/user/app:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("docker.io/library/busybox", "docker.io/library/busybox:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:v1", "localhost:5000/app:v1"),
        ("127.0.0.1:5000/a/b__c/d-e.f", "127.0.0.1:5000/a/b__c/d-e.f:latest"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        ("Registry.Example/app", "registry.example/app:latest"),
        (f"gcr.io/p/app@sha256:{HEX}", f"gcr.io/p/app@sha256:{HEX}"),
        (f"gcr.io/p/app:v1@sha256:{HEX}", f"gcr.io/p/app:v1@sha256:{HEX}"),
        (f"app@sha512:{HEX}{HEX}", f"docker.io/library/app@sha512:{HEX}{HEX}"),
    ],
)
def test_names_are_made_whole(text: str, full: str) -> None:
    assert str(Reference.parse(text)) == full


def test_a_digest_takes_the_tags_place() -> None:
    reference = Reference.parse(f"app:v1@sha256:{HEX}")
    assert reference.repo_tag == ""
    assert reference.at(reference.digest) == f"docker.io/library/app@sha256:{HEX}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEX,
        f"sha256:{HEX}@",
        "UPPER",
        "a//b",
        "../etc",
        "reg.example/../../x",
        "reg.example:99999/x",
        "app:",
        "app:a b",
        "app@sha256:short",
        f"app@md5:{HEX}",
        "-x.example/app",
        "a" * 300,
        "app\n",
        "reg.example/app:t\n",
        "http://reg.example/app",
        "user:pw@reg.example/app",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        Reference.parse(text)


@given(st.text(max_size=60) | st.text(alphabet="ab.:/@-_[]A0", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except ForgeError:
        return
    assert Reference.parse(str(reference)) == reference
    assert ".." not in reference.repository.split("/")
    assert "/" not in reference.registry
