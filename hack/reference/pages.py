"""Which part of which page is made by what."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from hack.reference import annotation_keys, commands, configuration, contracts

ROOT: Final = Path(__file__).resolve().parents[2]
BLOCKS: Final[Mapping[str, Mapping[str, Callable[[], str]]]] = {
    "docs/configuration.md": {"keys": configuration.keys, "handlers": configuration.handler_keys},
    "docs/annotations.md": {"annotations": annotation_keys.rows, "contracts": contracts.rows},
    "docs/cli.md": {"forge": commands.forge},
}
"""Of each page, the generated blocks by their names."""


def made(page: str, text: str) -> str:
    """The page with its blocks as they are to be."""
    for name, make in BLOCKS[page].items():
        begin, end = f"<!-- begin {name}: written by `make reference` -->", f"<!-- end {name} -->"
        pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise LookupError(f"{page} has no block, or several, between {begin!r} and {end!r}")
        block = f"{begin}\n\n{make()}\n\n{end}"
        # Not as a pattern: a text may have backslashes.
        before, after = pattern.split(text)
        text = f"{before}{block}{after}"
    return text


def stale(root: Path) -> list[str]:
    """The pages that are not as they are to be."""
    return [page for page in BLOCKS if (text := (root / page).read_text()) != made(page, text)]


def write(root: Path) -> list[str]:
    """Make them so; those that changed."""
    found = stale(root)
    for page in found:
        (root / page).write_text(made(page, (root / page).read_text()))
    return found
