"""Pictures of the documents show what was printed, and ask nobody for anything."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hack.pictures.terminal import Line, picture

ROOT = Path(__file__).resolve().parents[3]
SVG = "{http://www.w3.org/2000/svg}"


def shown(svg: str) -> str:
    return "".join(one.text or "" for one in ElementTree.fromstring(svg).iter(f"{SVG}text")).replace("\xa0", " ")


def test_a_picture_has_what_was_typed_and_what_was_printed() -> None:
    text = shown(picture("a title", "own", [Line("forge pods", "NAME  STATE\nweb   Ready\n"), Line("true", "")]))
    assert "a title" in text
    for words in ("$ forge pods", "NAME  STATE", "web   ", "Ready", "$ true"):
        assert words in text


@pytest.mark.parametrize("path", sorted((ROOT / "docs/pictures").glob("*.svg")), ids=lambda path: path.name)
def test_pictures_need_nothing_from_elsewhere_and_are_on_some_page(path: Path) -> None:
    svg = path.read_text()
    assert "$ forge " in shown(svg)
    assert re.findall(r"href=|@import|url\((?!#)|<script|https?://(?!www\.w3\.org/2000/svg)", svg) == []
    # What is about the host that it was taken on.
    assert re.findall(r"/tmp/[a-z]|127\.0\.0\.1", svg) == []
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert any(f"pictures/{path.name})" in page.read_text() for page in pages)
