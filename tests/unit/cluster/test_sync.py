"""What becomes of what the watch tells, over a store in a directory and a taker that remembers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgeone_shim.cluster import sync as syncing
from forgeone_shim.cluster.store import Kept, Store
from forgeone_shim.cluster.sync import SHADOWED, Sync
from forgeone_shim.cluster.wire import Begun, Came, Gone, Heard, Listed, Told, Trouble, Verdict
from forgeone_shim.contract.policy import Policy
from forgeone_shim.errors import InternalError
from tests.unit.cluster.test_objects import made

BAD: dict[str, Any] = {"flour": True}


def came(name: str, spec: Any = None, generation: int = 1, uid: str = "") -> Came:
    return Came(uid or f"uid-{name}", generation, made(name, {"floor": True} if spec is None else spec))


class Node:
    """A store, and what was put in force last."""

    def __init__(self, directory: Path, files: frozenset[str] = frozenset()) -> None:
        self.store, self.files = Store(directory), files
        self.store.prepare()
        self.taken: list[dict[str, bool]] = []
        self.sync = Sync(self.store, self.store.load(), self.take)

    def take(self, found: Mapping[str, Policy]) -> frozenset[str]:
        self.taken.append({name: one.floor for name, one in found.items()})
        return self.files & found.keys()

    def feed(self, *messages: Told) -> list[Verdict]:
        return self.sync.feed(messages)

    @property
    def kept(self) -> Kept:
        return self.store.load()

    @property
    def in_force(self) -> dict[str, bool]:
        return {name: one.floor for name, one in self.sync.policies.items()}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "cluster")


def test_a_list_counts_when_it_is_complete(node: Node) -> None:
    assert node.feed(Begun(), came("a"), came("b")) == []
    assert node.in_force == {} and not node.kept.policies and not node.sync.complete
    assert node.feed(Listed()) == [Verdict("a", "uid-a", 1, ""), Verdict("b", "uid-b", 1, "")]
    assert node.in_force == {"a": True, "b": True}
    assert list(node.kept.policies) == ["a", "b"] and node.kept.listed
    assert node.taken == [{"a": True, "b": True}]


def test_a_list_that_breaks_off_takes_nothing_away(node: Node) -> None:
    node.feed(Begun(), came("a"), Listed())
    node.sync.begin()
    node.feed(Begun(), came("b"))
    node.feed(Begun(), came("a"), came("c"), Listed())
    assert node.in_force == {"a": True, "c": True}


def test_a_change_counts_at_once(node: Node) -> None:
    node.feed(Begun(), came("a"), Listed())
    assert node.feed(came("a", {"floor": False}, 2)) == [Verdict("a", "uid-a", 2, "")]
    assert node.in_force == {"a": False}
    assert not node.kept.policies["a"].floor


def test_what_comes_together_is_put_in_force_once(node: Node) -> None:
    node.feed(Begun(), Listed())
    node.feed(came("a"), came("b"), came("a", {"floor": False}, 2), Gone("b"), Heard())
    assert node.taken == [{}, {"a": False}]


def test_an_object_that_says_the_same_again_changes_nothing(node: Node) -> None:
    node.feed(Begun(), came("a"), Listed())
    assert node.feed(came("a"), Trouble("x"), Heard()) == [Verdict("a", "uid-a", 1, "")]
    assert len(node.taken) == 1


def test_a_deletion_counts_after_a_complete_list_alone(node: Node) -> None:
    node.feed(Begun(), came("a"), Listed())
    node.sync.begin()
    node.feed(Gone("a"))
    assert node.in_force == {"a": True}
    node.feed(Begun(), came("a"), Listed(), Gone("a"))
    assert node.in_force == {}
    assert not node.kept.policies


def test_what_a_complete_list_does_not_have_goes(node: Node) -> None:
    node.feed(Begun(), came("a"), came("b"), Listed())
    node.sync.begin()
    node.feed(Begun(), came("b"), Listed())
    assert node.in_force == {"b": True} and list(node.kept.policies) == ["b"]


def test_of_one_that_cannot_be_used_what_was_there_stays(node: Node) -> None:
    node.feed(Begun(), came("a"), Listed())
    verdict = node.feed(came("a", BAD, 2))[0]
    assert (verdict.generation, "spec.flour" in verdict.why, "stays in force" in verdict.why) == (2, True, True)
    assert node.in_force == {"a": True} and node.kept.policies["a"].floor
    assert "spec.flour" in node.sync.refused["a"]
    assert node.feed(came("a", {"floor": False}, 3)) == [Verdict("a", "uid-a", 3, "")]
    assert node.sync.refused == {}


def test_of_one_that_never_could_be_used_nothing_is_kept(node: Node) -> None:
    verdict = node.feed(Begun(), came("a", BAD), Listed())[0]
    assert "spec.flour" in verdict.why and "stays" not in verdict.why
    assert node.in_force == {} and node.kept.listed
    node.feed(Gone("a"))
    assert node.sync.refused == {}


def test_what_could_not_be_handed_on_is_refused_with_the_reason(node: Node) -> None:
    node.feed(Begun(), came("a"), Listed())
    broken = Came("uid-a", 2, {key: value for key, value in made("a").items() if key != "spec"}, "is too deep")
    assert node.feed(broken)[0].why.startswith("ztapolicies/a: spec: is too deep; what it said before")
    assert node.in_force == {"a": True}


def test_one_that_breaks_its_reader_keeps_no_other_from_coming(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    real = syncing.objects.read

    def read(name: str, data: bytes) -> Policy:
        if name == "a":
            raise RecursionError("too deep")
        return real(name, data)

    monkeypatch.setattr(syncing.objects, "read", read)
    verdicts = node.feed(Begun(), came("a"), came("b"), Listed())
    assert [one.why for one in verdicts] == ["ztapolicies/a cannot be read: RecursionError", ""]
    assert node.in_force == {"b": True} and node.kept.listed


def test_a_name_that_no_policy_can_have_is_refused(node: Node) -> None:
    verdict = node.feed(Begun(), came("a" * 70), Listed())[0]
    assert "metadata.name" in verdict.why
    assert node.in_force == {}


def test_what_was_kept_is_in_force_until_a_list_says_otherwise(node: Node, tmp_path: Path) -> None:
    node.feed(Begun(), came("a"), came("b"), Listed())
    again = Node(tmp_path / "cluster")
    assert again.in_force == {"a": True, "b": True} and not again.sync.complete
    again.feed(Begun(), came("b"))
    assert again.in_force == {"a": True, "b": True}
    again.feed(Listed())
    assert again.in_force == {"b": True} and list(again.kept.policies) == ["b"]


def test_a_file_that_was_spoiled_is_written_anew(node: Node, tmp_path: Path) -> None:
    node.feed(Begun(), came("a"), came("b", generation=2), Listed())
    for name in ("a", "b"):
        (tmp_path / f"cluster/policies/{name}.json").write_text("{")
    again = Node(tmp_path / "cluster")
    assert set(again.kept.broken) == {"a", "b"}
    again.feed(Begun(), came("a"), came("b", BAD, 3), Listed())
    assert list(again.kept.policies) == ["a"] and not again.kept.broken


def test_a_namesake_of_a_file_is_told_so_and_that_it_counts_when_the_file_goes(tmp_path: Path) -> None:
    node = Node(tmp_path / "cluster", frozenset({"a"}))
    verdicts = {one.name: one.why for one in node.feed(Begun(), came("a"), came("b"), Listed())}
    assert verdicts == {"a": SHADOWED, "b": ""}
    assert node.sync.shadowed(frozenset({"b"})) == [
        Verdict("a", "uid-a", 1, ""),
        Verdict("b", "uid-b", 1, SHADOWED),
    ]


def test_more_than_a_node_keeps_are_refused_in_the_order_of_names(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncing, "MAX_POLICIES", 2)
    verdicts = node.feed(Begun(), came("c"), came("b"), came("a"), Listed())
    assert [bool(one.why) for one in verdicts] == [False, False, True]
    assert list(node.in_force) == ["a", "b"]


def test_what_found_no_room_is_taken_in_as_soon_as_there_is_some(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncing, "MAX_POLICIES", 2)
    node.feed(Begun(), *map(came, "abcd"), Listed())
    node.feed(Gone("c"), came("d", BAD, 2), came("e"))
    assert list(node.in_force) == ["a", "b"]
    verdicts = {one.name: one.why for one in node.feed(Gone("a"))}
    assert "spec.flour" in verdicts["d"] and verdicts["e"] == ""
    assert list(node.in_force) == list(node.kept.policies) == ["b", "e"]
    assert set(node.sync.refused) == {"d"}


def test_what_cannot_be_kept_is_in_force_and_comes_anew(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(name: str, data: bytes) -> None:
        raise InternalError("write: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(node.store, "write", full)
        with pytest.raises(InternalError):
            node.feed(Begun(), came("a"), Listed())
    assert node.in_force == {"a": True} and node.taken[-1] == {"a": True}
    # Not all of it is on disk: a node that restarts now has not had a complete list.
    assert not node.kept.listed
    node.sync.begin()
    node.feed(Begun(), came("a"), Listed())
    assert list(node.kept.policies) == ["a"] and node.kept.listed


NAMES = st.sampled_from("abc")
SPECS = st.sampled_from([{"floor": True}, {"floor": False}, BAD])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), NAMES, SPECS),
        st.tuples(st.just("delete"), NAMES),
        st.tuples(st.just("relist")),
        st.tuples(st.just("break")),
        st.tuples(st.just("restart")),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_whatever_happens_what_holds_is_the_last_that_could_be_used(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]]
) -> None:
    """Against a model: of each name the last usable spec, gone only where the cluster has no such object any more."""
    directory = tmp_path_factory.mktemp("model") / "cluster"
    node = Node(directory)
    there: dict[str, Any] = {}
    usable: dict[str, bool] = {}
    node.feed(Begun(), Listed())
    for generation, (kind, *rest) in enumerate(steps, 1):
        if kind == "put":
            name, spec = rest
            there[name] = spec
            if spec is not BAD:
                usable[name] = spec["floor"]
            node.feed(came(name, spec, generation))
        elif kind == "delete":
            there.pop(rest[0], None)
            usable.pop(rest[0], None)
            node.feed(Gone(rest[0]))
        else:
            if kind == "restart":
                node = Node(directory)
            node.sync.begin()
            listing = [came(name, spec, generation) for name, spec in there.items()]
            if kind == "break":
                node.feed(Begun(), *listing[:1])
                assert node.in_force == usable
            node.feed(Begun(), *listing, Listed())
        assert node.in_force == usable
        assert {name: one.floor for name, one in node.kept.policies.items()} == usable
        assert set(node.sync.refused) == {name for name, spec in there.items() if spec is BAD}
