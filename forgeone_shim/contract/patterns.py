"""Patterns of repositories and of the bus's subjects: what matches one, and what matches two at once. Pure."""

from __future__ import annotations

from typing import Final

ANY: Final = "*"
REST: Final = ">"
_ALL: Final = "**"
_WILD: Final = frozenset({ANY, _ALL})


def matches(glob: str, text: str) -> bool:
    """Whether ``text`` is as ``glob`` has it: ``*`` is any characters but ``/``, ``**`` any, all else itself.

    Takes time in proportion to the product of both lengths, whatever they are.
    """
    if ANY not in glob:
        return glob == text
    parts = _parts(glob)
    # A bit for each place in the glob that may be reached: one step is a handful of operations, however many there are.
    wild, rest, literals = 0, 0, dict.fromkeys(parts, 0)
    for at, part in enumerate(parts):
        wild |= (part in _WILD) << at
        rest |= (part == _ALL) << at
        literals[part] |= 1 << at
    # No wildcard follows another, so that one step suffices to pass those that stand for nothing.
    reached = 1 | (wild & 1) << 1
    for character in text:
        stayed = reached & (rest if character == "/" else wild)
        reached = stayed | (reached & literals.get(character, 0)) << 1
        reached |= (reached & wild) << 1
        if not reached:
            return False
    return bool(reached >> len(parts))


def _parts(glob: str) -> list[str]:
    found: list[str] = []
    for character in glob:
        if character == ANY and found and found[-1] in _WILD:
            found[-1] = _ALL
        else:
            found.append(character)
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
