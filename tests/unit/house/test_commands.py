"""Commands that the pages name are there, with those options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from forgeone_shim.cli.main import parser

ROOT = Path(__file__).resolve().parents[3]
PAGES = (ROOT / "README.md", ROOT / "charts/forgeone/README.md", *(ROOT / "docs").glob("*.md"))
# Where a command stands: in backticks, or at the beginning of a line of an example, after a prompt and `sudo`.
NAMED = re.compile(
    r"`(?:[\w./-]*/)?forge ([a-z][^`\n]*)`|^ *(?:\$ )?(?:sudo )?(?:[\w./-]*/)?forge ([a-z][^\n]*)$", re.M
)


def named(text: str) -> Iterator[str]:
    """The commands of a page, without what another program has of their lines."""
    for found in NAMED.finditer(text):
        yield re.split(r"\s(?:[#|&]|-- |…)|;", found[1] or found[2])[0].strip()


def unknown(command: str) -> str:
    """The first word of it that ``forge`` would not take, as far as words are commands and options; or nothing."""
    at, verbs, told = parser(), True, set[str]()
    for word in command.split():
        below = next((one.choices for one in at._actions if isinstance(one, argparse._SubParsersAction)), None)
        told |= {flag for action in at._actions for flag in action.option_strings}
        if word.startswith("-"):
            flag = word.partition("=")[0]
            if flag not in told and not (flag[1] != "-" and f"-{flag[1]}" in told):
                return word
        elif verbs and below and word in below:
            at = below[word]
            told |= {flag for action in at._actions for flag in action.option_strings}
        elif verbs and below and re.fullmatch(r"[a-z][a-z-]*", word):
            return word
        else:
            # An argument. What follows may be a command of a container's own.
            verbs = False
            if at.prog.endswith((" run", " exec")):
                break
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_has_forge_do_it_can(page: Path) -> None:
    wrong = {command: word for command in named(page.read_text()) if (word := unknown(command))}
    assert wrong == {}


def test_a_command_or_an_option_that_is_not_there_is_found() -> None:
    text = "`forge node instal`\n    $ sudo /x/forge node install --besides  # a\n```\nforge ps -a | less --x\n```\n"
    assert [unknown(one) for one in named(text)] == ["instal", "--besides", ""]
    assert unknown("run --rm image --of-its-own") == ""


def test_targets_and_modules_that_pages_name_are_there() -> None:
    texts = [page.read_text() for page in (*PAGES, *(ROOT / "docs/adr").glob("*.md"))]
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    asked = {one for text in texts for one in re.findall(r"(?:`|^)make ([a-z][a-z0-9-]*)", text, re.M)}
    modules = {one for text in texts for one in re.findall(r"python -m ((?:hack|cri|forgeone_shim)\.[\w.]*\w)", text)}
    assert asked
    assert asked - targets == set()
    assert modules
    assert {one for one in modules if find_spec(one) is None} == set()
