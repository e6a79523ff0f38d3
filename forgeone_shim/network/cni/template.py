"""A network configuration made from a template once the node's pod addresses are known, as containerd has it.

Of Go's text/template this is what such templates use, and nothing else: the fields ``.PodCIDR``, ``.PodCIDRRanges`` and
``.Routes``; ``range`` with or without variables; ``if``, ``else``, ``end``; ``index``; comments; the trim markers
``{{-`` and ``-}}``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Final

from forgeone_shim.errors import InvalidInput

_ACTION: Final = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.DOTALL)
_VARIABLE: Final = r"\$[A-Za-z_][A-Za-z0-9_]*"
_RANGE: Final = re.compile(rf"range\s+(?:({_VARIABLE})\s*(?:,\s*({_VARIABLE})\s*)?:=\s*)?(\S+)")
_INDEX: Final = re.compile(r"\(?\s*index\s+(\S+)\s+([0-9]{1,3})\s*\)?")
_COMMENT: Final = re.compile(r"/\*.*\*/", re.DOTALL)

_DEPTH_MAX: Final = 16

Value = str | int | Sequence[str]


@dataclass(frozen=True, slots=True)
class _Text:
    text: str


@dataclass(frozen=True, slots=True)
class _Print:
    expression: str


@dataclass(slots=True)
class _Block:
    """``range`` (with the names of its variables) or ``if``; ``other`` is what follows ``else``."""

    expression: str
    ranges: bool
    names: tuple[str, ...] = ()
    body: list[_Node] = field(default_factory=list)
    other: list[_Node] = field(default_factory=list)
    has_else: bool = False


_Node = _Text | _Print | _Block


def render(template: str, ranges: Sequence[str]) -> str:
    """The template's text for the node's ranges of pod addresses.

    :raises InvalidInput: ``cni.conf_template`` has something in it that is not known here.
    """
    versions = {ip_network(one).version for one in ranges}
    routes = [route for version, route in ((4, "0.0.0.0/0"), (6, "::/0")) if version in versions]
    scope: dict[str, Value] = {".PodCIDR": ranges[0], ".PodCIDRRanges": tuple(ranges), ".Routes": tuple(routes)}
    return "".join(_texts(_parse(template), scope))


def _wrong(what: str) -> InvalidInput:
    return InvalidInput("cni.conf_template", what)


def _tokens(template: str) -> Iterator[tuple[bool, str]]:
    """Texts (false) and actions (true) in turn, with what the trim markers take away taken away."""
    at, trim = 0, False
    for match in _ACTION.finditer(template):
        text = template[at : match.start()]
        text = text.lstrip() if trim else text
        yield False, text.rstrip() if match[1] else text
        yield True, match[2].strip()
        at, trim = match.end(), bool(match[3])
    rest = template[at:]
    if "{{" in rest:
        raise _wrong("has a {{ without its }}")
    yield False, rest.lstrip() if trim else rest


def _parse(template: str) -> list[_Node]:
    root: list[_Node] = []
    open_: list[_Block] = []
    into = root
    for is_action, text in _tokens(template):
        if not is_action:
            into.append(_Text(text))
        elif _COMMENT.fullmatch(text):
            continue
        elif text == "end":
            if not open_:
                raise _wrong("has an {{end}} that ends nothing")
            open_.pop()
            into = (open_[-1].other if open_[-1].has_else else open_[-1].body) if open_ else root
        elif text == "else":
            if not open_ or open_[-1].has_else:
                raise _wrong("has an {{else}} without its {{if}} or {{range}}")
            open_[-1].has_else = True
            into = open_[-1].other
        elif text.split(maxsplit=1)[:1] in (["range"], ["if"]):
            block = _block(text)
            if len(open_) >= _DEPTH_MAX:
                raise _wrong(f"is nested deeper than {_DEPTH_MAX} times")
            into.append(block)
            open_.append(block)
            into = block.body
        else:
            into.append(_Print(text))
    if open_:
        raise _wrong(f"has a {{{{{'range' if open_[-1].ranges else 'if'}}}}} without its {{{{end}}}}")
    return root


def _block(text: str) -> _Block:
    if text.startswith("if"):
        return _Block(text.removeprefix("if").strip(), ranges=False)
    match = _RANGE.fullmatch(text)
    if match is None:
        raise _wrong(f"has {{{{{text}}}}}, which is not known here")
    return _Block(match[3], ranges=True, names=tuple(name for name in (match[1], match[2]) if name))


def _texts(nodes: Sequence[_Node], scope: Mapping[str, Value]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, _Text):
            yield node.text
        elif isinstance(node, _Print):
            value = _value(node.expression, scope)
            if not isinstance(value, str | int):
                raise _wrong(f"prints {{{{{node.expression}}}}}, which is a list")
            yield str(value)
        elif node.ranges:
            yield from _repeated(node, scope)
        else:
            yield from _texts(node.body if _value(node.expression, scope) else node.other, scope)


def _repeated(block: _Block, scope: Mapping[str, Value]) -> Iterator[str]:
    items = _value(block.expression, scope)
    if isinstance(items, str | int):
        raise _wrong(f"has a range over {block.expression}, which is no list")
    if not items:
        yield from _texts(block.other, scope)
    for index, item in enumerate(items):
        inner: dict[str, Value] = {name: value for name, value in scope.items() if name.startswith("$")} | {".": item}
        if len(block.names) == 1:
            inner[block.names[0]] = item
        elif block.names:
            inner |= {block.names[0]: index, block.names[1]: item}
        # The dot is the item now; what it was outside is still there by the dollar.
        inner |= {f"${name}": value for name, value in scope.items() if name.startswith(".") and name != "."}
        yield from _texts(block.body, inner)


def _value(expression: str, scope: Mapping[str, Value]) -> Value:
    match = _INDEX.fullmatch(expression)
    if match is not None:
        items = _value(match[1], scope)
        if isinstance(items, str | int) or int(match[2]) >= len(items):
            raise _wrong(f"has {{{{{expression}}}}}, and there is no such item")
        return items[int(match[2])]
    if expression in scope:
        return scope[expression]
    if expression.startswith("$.") and expression[1:] in scope:
        return scope[expression[1:]]
    raise _wrong(f"has {{{{{expression}}}}}, which is not known here")
