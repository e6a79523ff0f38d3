"""What the documents say is what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from forgeone_shim.config.loader import keys, to_toml
from forgeone_shim.config.model import Config
from forgeone_shim.contract import parse
from forgeone_shim.lifecycle.machine import diagram

ROOT = Path(__file__).resolve().parents[3]
ROW = re.compile(r"^\| `([a-z0-9_.]+)` \| `(.+)` \| (.+) \|$", re.MULTILINE)


def documented() -> dict[str, str]:
    return {key: default for key, default, _ in ROW.findall((ROOT / "docs/configuration.md").read_text())}


def test_every_key_is_documented_and_nothing_else() -> None:
    assert list(documented()) == [key.path for key in keys()]


def test_documented_defaults_are_the_defaults() -> None:
    flat: dict[str, object] = {}
    for name, value in tomllib.loads(to_toml(Config())).items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    assert {key: tomllib.loads(f"x = {default}")["x"] for key, default in documented().items()} == flat


def test_the_state_diagram_is_the_generated_one() -> None:
    assert f"```mermaid\n{diagram()}\n```\n" in (ROOT / "docs/architecture.md").read_text()


def test_every_annotation_of_the_code_is_documented_and_no_other() -> None:
    key = re.compile(r"[\"`]([a-z.]*forgeone\.dev/[a-z_-]+)[\"`]")
    code = {
        name
        for room in ("cri", "forgeone_shim", "engines")
        for path in (ROOT / room).rglob("*.py")
        for name in key.findall(path.read_text())
    }
    code |= {f"{parse.PREFIX}{name}" for name in (parse.DOCUMENT, *parse.FIELDS)}
    assert set(key.findall((ROOT / "docs/annotations.md").read_text())) == code


def test_every_decision_is_in_the_index() -> None:
    index = (ROOT / "docs/adr/README.md").read_text()
    pages = [page.name for page in (ROOT / "docs/adr").glob("[0-9]*.md")]
    assert pages
    assert [page for page in pages if f"({page})" not in index] == []


def test_every_test_that_shows_a_promise_exists() -> None:
    page = (ROOT / "docs/promises.md").read_text()
    named = re.findall(r"`(tests/[a-z0-9_/]+\.py)::(\w+)`", page)
    assert [(f, test) for f, test in named if f"\ndef {test}(" not in (ROOT / f).read_text()] == []
    rows = re.findall(r"^\| (\d+) \|[^|]*\| ([^|]*) \| ([^|]*)\|$", page, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 21))
    assert [number for number, here, shown in rows if not shown and here != "not yet"] == []


@pytest.mark.parametrize("page", ["README.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))])
def test_links_between_documents_lead_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_targets_named_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target
        for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
        for line in re.findall(r"`make ((?:[a-z0-9]+ ?)+)`", page.read_text())
        for target in line.split()
    }
    assert named <= targets
