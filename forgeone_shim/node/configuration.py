"""What ``/etc/forgeone/config.toml`` is to hold: pure. An administrator's file is read, and never written over."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from forgeone_shim.config import loader
from forgeone_shim.config.model import Config
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.node import layout


@dataclass(frozen=True, slots=True)
class Wanted:
    """``content`` is what the file shall hold (``None``: no such file), ``given`` what the installer made it of.

    ``ours``: it is the installer's, and goes with it.
    """

    content: bytes | None
    ours: bool
    given: bytes
    config: Config


def wanted(existing: bytes | None, written: bytes | None, given: bytes | None, kept: bytes, upstream: str) -> Wanted:
    """The file for a node.

    :param existing: what is there. :param written: what the installer has written (``None``: nothing).
    :param given: what it is told to write (``None``: nothing new). :param kept: what it was told before.
    :param upstream: the other runtime's socket; empty: there is none.
    :raises FailedPrecondition: an administrator's file says something else.
    :raises InvalidInput: it cannot be used.
    """
    if existing is None or existing == written:
        base = kept if given is None else given
        content = _with_upstream(base, upstream)
        return Wanted(content or None, True, base, _parsed(content))
    if given is not None and _table(given):
        if _table(_with_upstream(given, upstream)) != _table(existing):
            raise FailedPrecondition(
                f"{layout.CONFIG} is an administrator's and differs from --config", fix="move it away, or edit it"
            )
    elif not _table(existing):
        # Comments alone, as a package may bring it.
        content = _with_upstream(existing, upstream)
        return Wanted(content, content != existing, existing, _parsed(content))
    config = _parsed(existing)
    if layout.plain(config.upstream.socket) != upstream:
        what = f"{layout.CONFIG} is an administrator's, and has upstream.socket = {json.dumps(config.upstream.socket)}"
        raise FailedPrecondition(what, fix=f"set it to {json.dumps(upstream)} there, in [upstream]")
    return Wanted(existing, False, b"", config)


def upstream(existing: bytes | None) -> str:
    """The other runtime's socket that a file names; empty: it names none.

    :raises InvalidInput: it is not TOML.
    """
    section = _table(existing or b"").get("upstream")
    return str(section.get("socket", "")) if isinstance(section, dict) else ""


def _with_upstream(base: bytes, upstream: str) -> bytes:
    table = _table(base)
    section = table.get("upstream", {})
    said = section.get("socket") if isinstance(section, dict) else None
    if said is not None:
        if layout.plain(str(said)) != upstream:
            raise FailedPrecondition(
                f"--config: upstream.socket is {said!r}, and the other runtime's is {upstream!r}",
                fix="leave it out: it is set where ForgeOne is beside another runtime",
            )
        return base
    if not upstream:
        return base
    line = f"socket = {json.dumps(upstream)}"
    if "upstream" not in table:
        return base + (b"\n" if base and not base.endswith(b"\n") else b"") + f"[upstream]\n{line}\n".encode()
    head = b"[upstream]"
    lines = base.split(b"\n")
    at = next((number for number, text in enumerate(lines) if text.strip() == head), None)
    if at is None:
        raise FailedPrecondition(f"--config: [upstream] is not written as a section; add {line} to it")
    return b"\n".join([*lines[: at + 1], line.encode(), *lines[at + 1 :]])


def _table(content: bytes) -> dict[str, object]:
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput("config", f"is not TOML: {error}") from None


def _parsed(content: bytes) -> Config:
    config = loader.parsed(content.decode(), Path(layout.CONFIG))
    if config.socket != layout.SOCKET:
        raise InvalidInput(
            "socket", f"{config.socket} is not where forge node looks for it", fix=f"use {layout.SOCKET}"
        )
    return config
