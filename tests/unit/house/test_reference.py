"""The generated parts of the pages are what the code says, and the generator says what is missing."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hack.reference import commands, pages, texts
from hack.reference.texts import Undocumented


@pytest.mark.parametrize("page", pages.BLOCKS)
def test_pages_are_what_the_code_says(page: str) -> None:
    text = (pages.ROOT / page).read_text()
    assert text == pages.made(page, text), f"{page} is not what the code says: run `make reference` and commit {page}"


def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> ModuleType:
    (tmp_path / "said_here.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "said_here", raising=False)
    return __import__("said_here")


SOURCE = '''
LIMIT: int = 1
"""How
many.

The rest."""


class Some:
    """What it is."""

    told: int = 0
    """One
    line.
    """
    untold: int = 0

    def method(self) -> None:
        """Not of a field."""
'''


def test_the_string_below_a_field_is_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = module(tmp_path, monkeypatch, SOURCE)
    section = texts.sections(made)["Some"]
    assert (section.intro, section.text("told")) == ("What it is.", "One line.")
    assert texts.constants(made) == {"LIMIT": "How many.\nThe rest."}


def test_a_field_without_one_is_named_with_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = texts.sections(module(tmp_path, monkeypatch, SOURCE))["Some"]
    with pytest.raises(Undocumented, match=r"^said_here\.Some\.untold has no text: .* run `make reference`$"):
        section.text("untold")


def test_what_is_around_a_block_stays_and_a_block_that_is_gone_is_told() -> None:
    name = next(iter(pages.BLOCKS["docs/cli.md"]))
    begin, end = f"<!-- begin {name}: written by `make reference` -->", f"<!-- end {name} -->"
    made = pages.made("docs/cli.md", f"before\n\n{begin}\nold\n{end}\nafter\n")
    assert made.startswith(f"before\n\n{begin}\n\n")
    assert made.endswith(f"\n\n{end}\nafter\n")
    assert "old\n" not in made
    with pytest.raises(LookupError, match="no block"):
        pages.made("docs/cli.md", "before\nafter\n")


def test_a_command_is_told_with_its_arguments_and_those_below_it() -> None:
    top = argparse.ArgumentParser(prog="x", description="Does x.")
    top.add_argument("-n", "--number", type=int, default=3, metavar="N", help="how many | much")
    top.add_argument("names", nargs="+", metavar="name")
    below = top.add_subparsers(dest="verb", required=False).add_parser("go", help="walk")
    below.add_argument("--how", choices=("fast", "slow"), required=True)
    text = "\n".join(commands._command("x", top, 2))
    assert "    x [OPTIONS] name ... [COMMAND]\n" in text
    assert "| `-n N, --number N` | how many \\| much (default: `3`) |" in text
    assert "### x go" in text
    assert "    x go [OPTIONS] --how fast|slow\n" in text
    assert "| `--how fast\\|slow` |" in text
