from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.dna.behaviour.baseline import Baseline
from forgeone_shim.dna.behaviour.drift import ENTERING, GRAVE_CALLS, UNASKED, Drift, amount, drift, excused
from forgeone_shim.dna.behaviour.profile import Profile, Seen


def _baseline(system: dict[str, int], host: dict[str, int] | None = None) -> Baseline:
    return Baseline(
        image="sha256:1",
        engine="native",
        machine="x86_64",
        containers=1,
        system=tuple(Seen(*one) for one in system.items()),
        host=tuple(Seen(*one) for one in (host or {}).items()),
    )


def _seen(system: dict[str, int], host: dict[str, int] | None = None) -> Profile:
    return Profile(
        machine="x86_64",
        system=tuple(Seen(*one) for one in system.items()),
        host=tuple(Seen(*one) for one in (host or {}).items()),
    )


@pytest.mark.parametrize(
    ("usual", "done", "expected"),
    [
        ({"read": 1}, {"read": 9}, Drift()),
        ({"read": 1, "write": 1}, {"read": 1}, Drift(missing=("write",), shares=0.5)),
        ({"read": 3}, {"read": 3, "mmap": 1}, Drift(system=("mmap",), amount=0.1, shares=0.25)),
        ({"read": 1}, {"ptrace": 1}, Drift(system=("ptrace",), missing=("read",), amount=0.5, shares=1.0)),
        ({"a": 1, "b": 1, "c": 1}, {"c": 1, "a": 1, "b": 1}, Drift(order=0.6667)),
        ({}, {}, Drift()),
        ({}, {"read": 1}, Drift(system=("read",), amount=0.1, shares=1.0)),
    ],
)
def test_drift_is_what_the_baseline_does_not_have(usual: dict[str, int], done: dict[str, int], expected: Drift) -> None:
    found = drift(_baseline(usual), _seen(done))
    assert found == expected
    assert bool(found) is bool(expected.system)


def test_a_guests_calls_to_its_host_count_too() -> None:
    found = drift(_baseline({}, {"wasi fd_write": 4}), _seen({}, {"wasi fd_write": 1, "wasi sock_accept": 1}))
    assert (found.host, found.names, found.amount) == (("wasi sock_accept",), ("wasi sock_accept",), 0.1)


@pytest.mark.parametrize(
    ("names", "lost"),
    [
        ((), 0.0),
        (("read",), 0.1),
        (("read", "write"), 0.19),
        (("mount",), 0.5),
        (("32-bit:read",), 0.5),
        (("other",), 0.5),
    ],
)
def test_grave_calls_take_more_trust_than_others(names: tuple[str, ...], lost: float) -> None:
    assert amount(names) == lost


@given(st.lists(st.sampled_from(["read", "write", "mount", "bpf", "other", "32-bit:open"]), unique=True))
def test_more_that_is_new_never_takes_less(names: list[str]) -> None:
    assert 0 <= amount(names) <= 1
    assert all(amount(names[:number]) <= amount(names) for number in range(len(names)))


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 99)),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 99)),
)
def test_figures_are_shares(one: dict[str, int], other: dict[str, int]) -> None:
    found = drift(_baseline(one), _seen(other))
    assert 0 <= found.shares <= 1
    assert 0 <= found.order <= 1
    assert (set(found.system), set(found.missing)) == (other.keys() - one.keys(), one.keys() - other.keys())
    assert drift(_baseline(one), _seen(one)) == Drift()


def test_of_what_is_grave_only_the_way_into_a_container_is_excused() -> None:
    assert {call for calls in ENTERING.values() for call in calls & GRAVE_CALLS} == {"setns"}
    assert excused("wasm", executed=False) == excused("microvm", executed=True) == UNASKED
    assert excused("native", executed=True) == UNASKED | ENTERING["native"]
