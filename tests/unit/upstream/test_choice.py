"""Which store an image is asked of: the rules as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from cri.upstream.choice import LATELY, Asked, Choice, Pod, PodKey, Side, Wanted, canonical

OURS, UPSTREAM = Side.OURS, Side.UPSTREAM
NOW = 10**18
SEEN = "kubernetes.io/config.seen"


def key(name: str) -> PodKey:
    return PodKey("default", name, f"uid-{name}", 0)


def pod(name: str, **annotations: str) -> Pod:
    return Pod(key(name), annotations)


def seen(name: str, at: str, **annotations: str) -> Pod:
    return Pod(key(name), {SEEN: at, "kubernetes.io/config.source": "api", **annotations})


@dataclass
class Around:
    mine: Sequence[Pod] = ()
    theirs: Sequence[Pod] = ()
    lately: frozenset[Side] | None = frozenset()
    silent: bool = False
    asked: list[str] = field(default_factory=list)

    def ours(self) -> Sequence[Pod]:
        return self.mine

    def upstream(self) -> Sequence[Pod]:
        self.asked.append("upstream")
        return () if self.silent else self.theirs

    def active(self, since: int) -> frozenset[Side] | None:
        assert since == NOW - LATELY
        self.asked.append("active")
        return None if self.silent else self.lately


def choice(default: Side = UPSTREAM) -> Choice:
    def side_of(handler: str) -> Side:
        return default if not handler else OURS if handler.startswith("forgeone-") else UPSTREAM

    return Choice(side_of, lambda: NOW)


BOTH = Around((pod("a"),), (pod("b"),), lately=frozenset({OURS, UPSTREAM}))


@pytest.mark.parametrize(
    ("asked", "of", "around", "default", "expected"),
    [
        pytest.param(Asked("x", "forgeone-wasm"), key("b"), BOTH, UPSTREAM, OURS, id="a handler decides"),
        pytest.param(Asked("x", "kata"), key("a"), BOTH, OURS, UPSTREAM, id="a handler of the other one decides"),
        pytest.param(Asked("x"), key("a"), BOTH, UPSTREAM, OURS, id="the pod is ours"),
        pytest.param(Asked("x"), key("b"), BOTH, OURS, UPSTREAM, id="the pod is the other one's"),
        pytest.param(Asked("x"), key("c"), BOTH, UPSTREAM, UPSTREAM, id="nobody has the pod"),
        pytest.param(Asked("x"), key("c"), BOTH, OURS, OURS, id="nobody has the pod, and ours are unnamed"),
        pytest.param(Asked("x"), None, BOTH, UPSTREAM, UPSTREAM, id="no pod is said"),
        pytest.param(Asked("x"), None, Around(lately=frozenset({OURS})), UPSTREAM, OURS, id="only ours wait"),
        pytest.param(Asked("x"), None, Around(silent=True), UPSTREAM, UPSTREAM, id="the other one is silent"),
        pytest.param(
            Asked("x", annotations={"k": "1"}),
            key("c"),
            Around((pod("a", k="1"),), (pod("b", k="2"),)),
            UPSTREAM,
            OURS,
            id="by annotations, where the pod is not ready",
        ),
    ],
)
def test_where_an_image_is_pulled_to(
    asked: Asked, of: PodKey | None, around: Around, default: Side, expected: Side
) -> None:
    assert choice(default).pull(asked, of, around) is expected


def given(**annotations: str) -> Mapping[str, str]:
    return annotations


@pytest.mark.parametrize(
    ("asked", "around", "expected"),
    [
        pytest.param(Asked("x", "forgeone-native"), BOTH, (OURS,), id="a handler decides"),
        pytest.param(Asked("x"), BOTH, (UPSTREAM, OURS), id="either, the default's first"),
        pytest.param(Asked("x"), Around(lately=frozenset({OURS})), (OURS,), id="only ours wait"),
        pytest.param(Asked("x"), Around(lately=frozenset({UPSTREAM})), (UPSTREAM,), id="only theirs wait"),
        pytest.param(Asked("x"), Around(silent=True), (UPSTREAM, OURS), id="what waits is unknown"),
        pytest.param(
            Asked("x", annotations=seen("a", "1").annotations),
            Around((seen("a", "1"),), (seen("b", "2"),)),
            (OURS,),
            id="the kubelet's annotations are ours",
        ),
        pytest.param(
            Asked("x", annotations=seen("b", "2").annotations),
            Around((seen("a", "1"),), (seen("b", "2"),), lately=frozenset({OURS})),
            (UPSTREAM,),
            id="the kubelet's annotations are theirs",
        ),
        pytest.param(
            Asked("x", annotations=seen("a", "1", edited="yes").annotations),
            Around((seen("a", "1"),), (seen("b", "2"),)),
            (OURS,),
            id="annotations were edited since, and the pod seen then",
        ),
        pytest.param(
            Asked("x", annotations=seen("a", "9", app="a").annotations),
            Around((seen("a", "1", app="a"),), (seen("b", "2", app="b"),)),
            (OURS,),
            id="the kubelet was restarted since",
        ),
        pytest.param(
            Asked("x", annotations=given(app="a")),
            Around((pod("a", app="a"),), (pod("b", app="a"),)),
            (UPSTREAM, OURS),
            id="both have such a pod",
        ),
        pytest.param(
            Asked("x", annotations=given(app="z")),
            Around((pod("a"),), (pod("b"),), lately=frozenset({OURS})),
            (OURS,),
            id="nobody has such a pod, and only ours wait",
        ),
    ],
)
def test_whose_image_counts(asked: Asked, around: Around, expected: tuple[Side, ...]) -> None:
    assert choice().look(asked, around) == expected


def test_nobody_else_is_asked_about_what_is_ours_for_certain() -> None:
    around = Around((seen("a", "1"),), silent=True)
    assert choice().look(Asked("x", annotations=seen("a", "1").annotations), around) == (OURS,)
    assert choice().pull(Asked("x"), key("a"), around) is OURS
    assert choice().look(Asked("x", "forgeone-native"), around) == (OURS,)
    assert around.asked == []


def test_an_image_that_a_pod_misses_counts_as_absent_until_it_is_there() -> None:
    rules = choice()
    rules.wanted.mark(("sha256:1", "busybox"), OURS, "pod1")
    assert rules.look(Asked("docker.io/library/busybox:latest"), BOTH) == (OURS,)
    assert rules.look(Asked("sha256:1"), BOTH) == (OURS,)
    assert rules.look(Asked("nginx"), BOTH) == (UPSTREAM, OURS)
    assert rules.pull(Asked("busybox:latest"), None, BOTH) is OURS
    rules.wanted.arrived(("docker.io/busybox", "sha256:1"), OURS)
    assert rules.look(Asked("busybox"), BOTH) == (UPSTREAM, OURS)
    assert rules.look(Asked("sha256:1"), BOTH) == (UPSTREAM, OURS)


def test_what_is_said_of_the_pod_counts_more_than_what_others_miss() -> None:
    rules = choice()
    rules.wanted.mark(("busybox",), OURS, "pod1")
    around = Around((seen("a", "1"),), (seen("b", "2"),))
    assert rules.look(Asked("busybox", annotations=seen("b", "2").annotations), around) == (UPSTREAM,)
    assert rules.pull(Asked("busybox"), key("b"), around) is UPSTREAM


def test_what_a_pod_missed_is_forgotten_with_it() -> None:
    wanted = Wanted()
    wanted.mark(("busybox", ""), OURS, "pod1")
    wanted.mark(("nginx",), UPSTREAM, "pod2")
    wanted.gone("pod1")
    assert (wanted.on("busybox"), wanted.on("nginx")) == ((), (UPSTREAM,))


def test_marks_do_not_grow_without_end() -> None:
    wanted = Wanted()
    for number in range(3000):
        wanted.mark((f"image{number}",), OURS, "pod1")
    assert [bool(wanted.on(f"image{number}")) for number in (0, 1975, 1976, 2999)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("one", "another"),
    [("busybox", "docker.io/library/busybox:latest"), ("a.b/c", "a.b/c:latest"), ("sha256:12", "sha256:12")],
)
def test_names_of_one_image_have_one_spelling(one: str, another: str) -> None:
    assert canonical(one) == canonical(another)
