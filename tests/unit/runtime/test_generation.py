from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from engines.base import Mount
from forgeone_shim.errors import InternalError, InvalidInput
from forgeone_shim.runtime.generation import FILE, mount, place


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ((), ""),
        (("FORGEONE_GENERATION=",), ""),
        (("FORGEONE_GENERATIONS=/a", "A=FORGEONE_GENERATION=/b"), ""),
        (("FORGEONE_GENERATION=/run/generation",), "/run/generation"),
        (("FORGEONE_GENERATION=/a", "FORGEONE_GENERATION=/b"), "/b"),
        (("FORGEONE_GENERATION=/a", "FORGEONE_GENERATION="), ""),
        (("FORGEONE_GENERATION=/mine",), ""),
    ],
)
def test_a_container_gets_the_file_where_its_variable_says(env: tuple[str, ...], expected: str) -> None:
    assert place(env, (Mount("/mine/", "/x"),)) == expected


@pytest.mark.parametrize(
    "path", ["run/x", "/", "//", "//proc/x", "/a/../b", "/a/", "/a//b", "/proc/x", "/sys", "/dev/shm/x", "/a\0b"]
)
def test_what_cannot_be_a_file_is_refused(path: str) -> None:
    with pytest.raises(InvalidInput, match="FORGEONE_GENERATION"):
        place((f"FORGEONE_GENERATION={path}",), ())


def test_each_container_s_is_another_and_stays(tmp_path: Path) -> None:
    env, found = ("FORGEONE_GENERATION=/run/generation",), []
    for name in ("one", "two"):
        bundle = tmp_path / name
        bundle.mkdir()
        (made,) = mount(env, (), bundle)
        assert (made.destination, made.source, made.readonly) == ("/run/generation", str(bundle / FILE), True)
        text = (bundle / FILE).read_text()
        assert re.fullmatch(r"[0-9a-f]{32}\n", text)
        assert mount(env, (), bundle) == (made,) and (bundle / FILE).read_text() == text
        found.append(text)
    assert found[0] != found[1]


def test_every_user_of_the_container_can_read_it(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        mount(("FORGEONE_GENERATION=/g",), (), tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o444


def test_nothing_is_made_for_who_does_not_ask(tmp_path: Path) -> None:
    assert mount((), (), tmp_path) == () and list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(InternalError):
        mount(("FORGEONE_GENERATION=/g",), (), tmp_path / "gone")
