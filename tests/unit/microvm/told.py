"""Any message there may be, as hypothesis makes them."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st

from engines.microvm.wire.fields import FieldType, Rule, rules
from engines.microvm.wire.messages import REQUESTS, WORDS

MESSAGES = sorted(
    {kind for pair in REQUESTS.values() for kind in pair} | set(WORDS.values()), key=lambda kind: kind.__name__
)


def messages(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Of this struct; nothing longer than it has to be."""
    return st.builds(kind, **{rule.name: _values(rule) for rule in rules(kind)})


def _values(rule: Rule) -> st.SearchStrategy[Any]:
    one = _one(rule)
    if rule.many:
        return st.lists(one, min_size=rule.least, max_size=rule.least + 2).map(tuple)
    return one if rule.default is msgspec.NODEFAULT else st.just(rule.default) | one


def _one(rule: Rule) -> st.SearchStrategy[Any]:
    if rule.shape is FieldType.GROUP:
        return messages(rule.python)
    if rule.shape is FieldType.NUMBER:
        edges = st.sampled_from((rule.low, rule.high)) | st.integers(rule.low, rule.high)
        return edges.map(rule.python)
    least, most = rule.low, min(rule.high, rule.low + 8)
    if rule.shape is FieldType.BYTES:
        return st.binary(min_size=least, max_size=most)
    plain = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=least, max_size=most)
    # Four bytes a character at most.
    wide = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=most // 4)
    return plain | wide.filter(lambda text: least <= len(text.encode()) <= most)
