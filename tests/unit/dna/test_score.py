from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.dna.score import WEIGHTS, Contract, Standing, Watched, score

BEST = Standing(
    engine="microvm",
    signers=2,
    attestations=1,
    contract=Contract.SIGNED,
    entropy=256,
    watched=Watched(watched=True, baseline=True),
)
HARDENED = {
    "user_namespace": True,
    "seccomp": True,
    "no_new_privileges": True,
    "own_namespaces": True,
    "readonly_rootfs": True,
    "no_added_capabilities": True,
}
STANDINGS = st.builds(
    Standing,
    engine=st.sampled_from(["native", "wasm", "microvm", "another"]),
    signers=st.integers(0, 3),
    attestations=st.integers(0, 3),
    contract=st.sampled_from(Contract),
    privileged=st.booleans(),
    entropy=st.integers(-1, 1024),
    watched=st.builds(Watched, watched=st.booleans(), baseline=st.booleans(), drift=st.floats(-1, 2)),
    **{name: st.booleans() for name in HARDENED},
)


def test_the_best_have_all_points_and_the_parts_are_the_weights() -> None:
    best = score(BEST)
    assert best.total == sum(WEIGHTS.values()) == 100
    assert {name: getattr(best, name) for name in WEIGHTS} == dict(WEIGHTS)


@pytest.mark.parametrize(
    ("standing", "total"),
    [
        (Standing(engine="native"), 8),
        (Standing(engine="native", seccomp=True, own_namespaces=True, no_added_capabilities=True, entropy=256), 26),
        (Standing(engine="native", **HARDENED), 26),
        (Standing(engine="wasm"), 26),
        (Standing(engine="another"), 0),
        (Standing(engine="native", **HARDENED, privileged=True), 0),
        (Standing(engine="native", signers=1), 28),
        (Standing(engine="native", attestations=1), 18),
        (Standing(engine="native", contract=Contract.PLAIN), 18),
        (Standing(engine="native", contract=Contract.SIGNED), 28),
        (Standing(engine="native", entropy=128), 13),
        (Standing(engine="native", watched=Watched(watched=True)), 13),
        (Standing(engine="native", watched=Watched(baseline=True)), 8),
        (replace(BEST, watched=replace(BEST.watched, drift=0.5)), 50),
        (replace(BEST, watched=replace(BEST.watched, drift=1.0)), 0),
    ],
)
def test_points(standing: Standing, total: int) -> None:
    assert score(standing).total == total


@given(STANDINGS)
def test_a_score_is_between_0_and_100_and_no_part_above_its_weight(standing: Standing) -> None:
    found = score(standing)
    assert 0 <= found.total <= 100
    assert all(0 <= getattr(found, name) <= most for name, most in WEIGHTS.items())


@given(STANDINGS, st.sampled_from([*HARDENED, "signers", "attestations", "entropy"]))
def test_knowing_more_good_of_a_container_never_lowers_its_score(standing: Standing, name: str) -> None:
    better: Any = True if isinstance(getattr(standing, name), bool) else getattr(standing, name) + 1
    assert score(replace(standing, **{name: better})).total >= score(standing).total


@given(STANDINGS, st.floats(0, 1))
def test_drift_never_raises_it(standing: Standing, drift: float) -> None:
    drifted = replace(standing.watched, drift=max(standing.watched.drift, drift))
    assert score(replace(standing, watched=drifted)).total <= score(standing).total
