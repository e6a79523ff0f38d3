"""The keys of forgeoned's configuration, and those of a file that makes a runtime handler."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from forgeone_shim.config import handlers, model
from forgeone_shim.config.loader import toml
from hack.reference.texts import Section, sections

WIDTH = 128
_HEAD = ("| key | default | meaning |", "|---|---|---|")


def keys() -> str:
    """A section of the page for each of the configuration."""
    known, hints = sections(model), get_type_hints(model.Config)
    top = known["Config"]
    parts = ["## Top level", "", *_HEAD]
    default = model.Config()
    parts += [
        _row(item.name, getattr(default, item.name), top.text(item.name))
        for item in fields(model.Config)
        if not is_dataclass(hints[item.name])
    ]
    for item in fields(model.Config):
        if is_dataclass(hints[item.name]):
            parts += ["", *_section(item.name, getattr(default, item.name), known[hints[item.name].__name__])]
    return "\n".join(parts)


def _section(name: str, default: Any, section: Section) -> Iterator[str]:
    yield from (f"## `[{name}]`", "")
    yield from textwrap.wrap(section.intro, WIDTH, break_long_words=False, break_on_hyphens=False)
    yield from ("", *_HEAD)
    for item in fields(default):
        yield _row(f"{name}.{item.name}", getattr(default, item.name), section.text(item.name))


def _row(key: str, default: object, text: str) -> str:
    return f"| `{key}` | `{toml(default)}` | {_cell(text)} |"


def _cell(text: str) -> str:
    return text.replace("\n", "<br>")


def handler_keys() -> str:
    """What a file in ``handlers_dir`` may say."""
    section = sections(handlers)[handlers.Handler.__name__]
    rows = [f"| `{name}` | {_cell(section.text(name))} |" for name in handlers.file_keys()]
    return "\n".join(("| key | meaning |", "|---|---|", *rows))
