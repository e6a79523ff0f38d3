"""Patterns of repositories and of the bus's subjects: what matches one, and what matches two at once. Pure."""

from __future__ import annotations

from typing import Final

ANY: Final = "*"
REST: Final = ">"


def matches(glob: str, text: str) -> bool:
    """Whether ``text`` is as ``glob`` has it: ``*`` is any characters but ``/``, ``**`` any, all else itself.

    Takes time in proportion to the product of both lengths, whatever they are.
    """
    if ANY not in glob:
        return glob == text
    parts = _parts(glob)
    states = _skipped({0}, parts)
    for character in text:
        moved = set()
        for at in states:
            if at == len(parts):
                continue
            part = parts[at]
            if part == "**" or (part == ANY and character != "/"):
                moved.add(at)
            elif part == character:
                moved.add(at + 1)
        states = _skipped(moved, parts)
        if not states:
            return False
    return len(parts) in states


def _parts(glob: str) -> list[str]:
    found: list[str] = []
    for character in glob:
        if character == ANY and found and found[-1] in {ANY, "**"}:
            found[-1] = "**"
        else:
            found.append(character)
    return found


def _skipped(states: set[int], parts: list[str]) -> set[int]:
    """The states, and those that are reached by a wildcard standing for nothing."""
    found = set(states)
    for at in states:
        here = at
        while here < len(parts) and parts[here] in {ANY, "**"}:
            here += 1
            found.add(here)
    return found


def subjects_meet(one: str, other: str) -> str | None:
    """The subject pattern that matches what both match; ``None``: there is no such subject."""
    left, right = one.split("."), other.split(".")
    met: list[str] = []
    for at in range(max(len(left), len(right))):
        a, b = (tokens[at] if at < len(tokens) else "" for tokens in (left, right))
        if not a or not b:
            return None
        if a == REST:
            return ".".join([*met, *right[at:]])
        if b == REST:
            return ".".join([*met, *left[at:]])
        if a != b and ANY not in {a, b}:
            return None
        met.append(b if a == ANY else a)
    return ".".join(met)
