from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.dna.behaviour.baseline import SIZE_MAX, Baseline, learn, parse
from forgeone_shim.dna.behaviour.library import Library
from forgeone_shim.dna.behaviour.profile import Profile, Seen, profile
from forgeone_shim.dna.behaviour.program import OTHER, SLOTS
from forgeone_shim.dna.behaviour.recorder import Counts
from forgeone_shim.errors import FailedPrecondition, InvalidInput, NotFound
from forgeone_shim.state.store import StateStore

IMAGE = f"sha256:{'1' * 64}"


def seen(*names: str, count: int = 1, whole: bool = True, host: tuple[str, ...] = ()) -> Profile:
    calls = tuple(Seen(name, count) for name in names)
    return Profile(machine="x86_64", system=calls, host=tuple(Seen(name, 1) for name in host), whole=whole)


def learned(*names: str) -> Baseline:
    return learn(None, IMAGE, "native", seen(*names))


def test_calls_are_in_the_order_in_which_each_came_first() -> None:
    counts, order = [0] * SLOTS, [0] * SLOTS
    counts[0], order[0] = 5, 2
    counts[435], order[435] = 1, 1
    counts[OTHER] = 1
    found = profile(Counts(tuple(counts), tuple(order)))
    assert [one.count for one in found.system] == [1, 5, 1]
    assert [found.system[0].name, found.system[2].name] == ["clone3", "other"], "one without a place yet came last"
    assert found.calls == 7


def test_what_several_containers_do_is_learned_together() -> None:
    first = learned("read", "write")
    both = learn(first, IMAGE, "native", seen("mmap", "read", count=2))
    assert both.system == (Seen("read", 3), Seen("write", 1), Seen("mmap", 2))
    assert (both.containers, both.image) == (2, IMAGE)


@pytest.mark.parametrize(
    ("before", "given", "engine", "why"),
    [
        (None, seen(), "native", "nothing yet"),
        (None, seen("read", whole=False), "native", "not watched from its beginning"),
        (learned("read"), seen("read"), "wasm", "learned from native"),
        (learned("read"), replace(seen("read"), machine="aarch64"), "native", "on aarch64"),
    ],
)
def test_what_cannot_be_learned_is_refused(before: Baseline | None, given: Profile, engine: str, why: str) -> None:
    with pytest.raises(FailedPrecondition, match=why):
        learn(before, IMAGE, engine, given)


def test_one_that_was_not_seen_from_its_beginning_can_be_added() -> None:
    assert learn(learned("read"), IMAGE, "native", seen("write", whole=False)).containers == 2


calls = st.lists(
    st.builds(
        Seen,
        st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20),
        st.integers(1, 2**64),
    ),
    max_size=8,
    unique_by=lambda one: one.name,
).map(tuple)


@given(calls, calls, st.integers(1, 9))
def test_a_document_is_read_as_it_was_written(system: tuple[Seen, ...], host: tuple[Seen, ...], number: int) -> None:
    one = Baseline(image=IMAGE, engine="native", machine="x86_64", containers=number, system=system, host=host)
    again = parse(one.canonical())
    assert (again, again.digest) == (one, one.digest)


@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(InvalidInput):
        parse(noise)


@given(st.data())
def test_a_document_with_a_byte_changed_is_another_or_none(data: st.DataObject) -> None:
    one = learned("read", "write")
    content = bytearray(one.canonical())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[at]))
    try:
        found = parse(bytes(content))
    except InvalidInput:
        return
    assert found.digest != one.digest or bytes(content).strip() == one.canonical()


def _document(**changes: Any) -> bytes:
    return json.dumps(
        {**json.loads(learned("read").canonical()), **changes}, separators=(",", ":"), sort_keys=True
    ).encode()


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (b" " * (SIZE_MAX + 1), "more than"),
        (_document(format=2), "format"),
        (_document(more=1), "more"),
        (_document(containers=0), "containers"),
        (_document(engine=""), "engine"),
        (_document(system=[{"name": "read", "count": 0}]), "read"),
        (_document(system=[{"name": "read", "count": "1e3"}]), "read"),
        (_document(system=[{"name": "read", "count": 1}] * 2), "twice"),
        (_document(system=[{"name": "\x1b[2J", "count": 1}]), "system.name"),
        (_document(system=[{"name": f"c{n}", "count": 1} for n in range(4097)]), "4097 calls"),
        (b'{"format":1,' + _document()[1:], "canonical|duplicate"),
        (_document().replace(b":", b": "), "canonical"),
        (b"[" * 100_000, "recursion|Recursion|Expected"),
    ],
)
def test_a_document_that_is_none_is_refused_with_the_field(document: bytes, field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        parse(document)


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    store = StateStore(tmp_path / "db")
    yield Library(store)
    store.close()


def test_what_is_learned_counts_once_it_is_pinned(library: Library) -> None:
    with pytest.raises(NotFound, match="what is usual"):
        library.pin(IMAGE)
    draft = library.learn(IMAGE, "native", seen("read"))
    assert (library.draft(IMAGE), library.pinned(IMAGE)) == (draft, None)
    assert library.pin(IMAGE) == draft
    assert (library.draft(IMAGE), library.pinned(IMAGE)) == (None, draft)
    assert library.pin(IMAGE) == draft, "a repetition"


def test_what_is_pinned_does_not_change_by_learning(library: Library) -> None:
    library.learn(IMAGE, "native", seen("read"))
    first = library.pin(IMAGE)
    more = library.learn(IMAGE, "native", seen("write"))
    assert [one.name for one in more.system] == ["read", "write"]
    assert library.pinned(IMAGE) == first
    assert library.pin(IMAGE) == more
    assert library.named(first.digest) == first, "a contract may name it still"


def test_learning_anew_forgets_what_was_learned(library: Library) -> None:
    library.learn(IMAGE, "native", seen("read"))
    anew = library.learn(IMAGE, "native", seen("write"), anew=True)
    assert [one.name for one in anew.system] == ["write"]


def test_a_baseline_from_elsewhere_is_adopted_and_let_go(library: Library) -> None:
    one = learned("read")
    library.adopt(parse(one.canonical()))
    assert library.pinned(IMAGE) == one
    library.unpin(IMAGE)
    assert (library.pinned(IMAGE), library.named(one.digest)) == (None, one)
    with pytest.raises(NotFound):
        library.unpin(IMAGE)
