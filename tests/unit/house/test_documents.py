"""What the documents say is what the code does."""

from __future__ import annotations

import functools
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from forgeone_shim.config.loader import keys, to_toml
from forgeone_shim.config.model import Config
from forgeone_shim.config.reload import LIVE
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


def test_the_keys_that_count_at_once_are_those_that_a_reload_changes() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    table = page[page.index("These count at once") : page.index("The answer and the log name")]
    cells = [
        key for line in table.splitlines() for key in re.findall(r"`([^`]+)`", line.removeprefix("|").partition("|")[0])
    ]
    assert {f"{key[1:-1]}." if key.startswith("[") else key.rstrip("*") for key in cells} == set(LIVE)


def test_the_state_diagram_is_the_generated_one() -> None:
    assert f"```mermaid\n{diagram()}\n```\n" in (ROOT / "docs/architecture.md").read_text()


def test_every_annotation_of_the_code_is_documented_and_no_other() -> None:
    key = re.compile(r"[\"`]([a-z.]*forgeone\.dev/[a-z_-]+)[\"`]")
    code = {
        name
        for room in ("cri", "forgeone_shim", "engines")
        for path in (ROOT / room).rglob("*.py")
        # What is said of nodes and to an API server are no annotations of pods.
        if not path.is_relative_to(ROOT / "forgeone_shim/node")
        and not path.is_relative_to(ROOT / "forgeone_shim/cluster")
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


PAGES = [
    "README.md",
    "CHANGELOG.md",
    "charts/forgeone/README.md",
    *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md")),
]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


def prose(path: Path) -> str:
    """A page without its examples."""
    return re.sub(r"^(```|~~~).*?^\1", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


@functools.cache
def anchors(path: Path) -> set[str]:
    """The headings of a page, as GitHub makes anchors of them, and those that it makes itself."""
    seen: Counter[str] = Counter()
    found = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", path.read_text()))
    for title in re.findall(r"^#{1,6} +(.+?) *#*$", prose(path), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_pages_and_headings_that_are_there(page: str) -> None:
    path = ROOT / page
    dead = []
    for target, anchor in LINK.findall(prose(path)):
        there = (path.parent / target).resolve() if target else path
        if not there.exists():
            dead.append(f"{target} is not there")
        elif anchor and there.suffix == ".md" and anchor not in anchors(there):
            dead.append(f"{target}#{anchor} has no heading")
    assert dead == []


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('# A `[b]` C-d!\n## Who may? [x](y)\n## Same\n## Same\n```\n# no heading\n```\n<a id="own"></a>\n')
    assert anchors(page) == {"a-b-c-d", "who-may-x", "same", "same-1", "own"}


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    pages = [path.name for path in ROOT.glob("docs/*.md") if path.name != "README.md"]
    assert [page for page in pages if f"({page})" not in index] == []


def test_targets_named_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target
        for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
        for line in re.findall(r"`make ((?:[a-z0-9]+ ?)+)`", page.read_text())
        for target in line.split()
    }
    assert named <= targets
