"""What was typed and printed, as an SVG that needs nothing from anywhere else."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Final

from rich import _export_format
from rich.console import Console
from rich.text import Text

WIDTH: Final = 118
_FONT: Final = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)
_NOTE: Final = re.compile(r"\s*<!--.*?-->")
# Rich's own asks a host for its font.
_FORMAT: Final = _NOTE.sub("", _FONT.sub("", _export_format.CONSOLE_SVG_FORMAT)).replace(
    "font-family: Fira Code, monospace", "font-family: ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
)
_MARKS: Final = (
    (re.compile(r"^(?:ok|yes|Ready|Running)\b|(?<=\s)(?:Ready|Running)(?=\s)", re.MULTILINE), "green"),
    (re.compile(r"^forge: .*|\bdenied\b", re.MULTILINE), "red"),
    (re.compile(r"^[A-Z][A-Z ]+(?: {2,}[A-Z][A-Z ]+)+$", re.MULTILINE), "bold"),
)
"""What a reader looks for; ``forge`` itself prints plain text."""


@dataclass(frozen=True, slots=True)
class Line:
    """A command as it was typed, and everything that it printed."""

    typed: str
    printed: str


def picture(title: str, name: str, lines: list[Line]) -> str:
    """The SVG; ``name`` makes its ids its own, as several may be on one page."""
    console = Console(width=WIDTH, record=True, force_terminal=True, color_system="truecolor", file=io.StringIO())
    for line in lines:
        console.print(Text.assemble(("$ ", "bright_black"), (line.typed, "bold cyan")), soft_wrap=False)
        text = Text(line.printed.rstrip("\n"))
        for pattern, style in _MARKS:
            text.highlight_regex(pattern, style)
        if line.printed:
            console.print(text, soft_wrap=False)
    return console.export_svg(title=title, code_format=_FORMAT, unique_id=name)
