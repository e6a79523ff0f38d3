"""Which engines a pod may get that leaves the choice to the node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.scheduler.plan import Placement, Wanted, plan

ENGINES = ("native", "wasm", "microvm")
NOTHING = Wanted()


def planned(
    wanted: Wanted = NOTHING,
    order: Sequence[str] = ENGINES,
    labels: Sequence[str] = ("untrusted",),
    unfit: Mapping[str, str] | None = None,
) -> tuple[Placement, ...]:
    return tuple(plan(wanted, order=order, isolate_labels=labels, unfit=lambda engine: (unfit or {}).get(engine, "")))


def engines(*args: object, **kwargs: object) -> list[str]:
    return [one.engine for one in planned(*args, **kwargs)]  # type: ignore[arg-type]


def test_a_pod_of_which_nothing_is_known_gets_what_the_node_prefers() -> None:
    assert engines() == ["native", "wasm", "microvm"]
    assert engines(order=("microvm", "native")) == ["microvm", "native"]
    assert planned()[0].reason == "first in scheduler.order"


def test_one_that_cannot_is_passed_over_and_the_reason_says_so() -> None:
    first = planned(order=("microvm", "native"), unfit={"microvm": "qemu is not installed"})[0]
    assert first == Placement("native", "next in order; microvm cannot: qemu is not installed")


@pytest.mark.parametrize("engine", ENGINES)
def test_what_the_contract_demands_is_the_only_choice(engine: str) -> None:
    assert planned(Wanted(demanded=engine, shares="to be privileged", modules="run.oci.handler")) == (
        Placement(engine, f"the contract demands {engine} (exec_mode)"),
    )


def test_what_is_demanded_and_cannot_be_had_is_no_reason_for_less() -> None:
    with pytest.raises(FailedPrecondition, match=r"demands microvm .*and microvm cannot run it: qemu is not installed"):
        planned(Wanted(demanded="microvm"), unfit={"microvm": "qemu is not installed"})
    with pytest.raises(FailedPrecondition, match=r"never run by microvm \(add it to scheduler.order\)"):
        planned(Wanted(demanded="microvm"), order=("native",), labels=())
    with pytest.raises(FailedPrecondition, match=r"trust label 'untrusted' demands microvm .*cannot run it: gone"):
        planned(Wanted(label="untrusted"), unfit={"microvm": "gone"})


def test_a_label_isolates() -> None:
    assert engines(Wanted(label="untrusted", shares="to be privileged")) == ["microvm"]
    assert engines(Wanted(label="untrusted", demanded="microvm")) == ["microvm"]
    assert engines(Wanted(label="gold")) == ["native", "wasm", "microvm"]


def test_a_label_that_isolates_does_not_give_way_to_a_contract_that_demands_less() -> None:
    with pytest.raises(FailedPrecondition, match=r"'untrusted' demands microvm .*and the contract demands native"):
        planned(Wanted(label="untrusted", demanded="native"))


def test_what_a_pod_wants_of_the_host_goes_before_the_order() -> None:
    order = ("microvm", "wasm", "native")
    first = planned(Wanted(shares="to be privileged"), order=order)[0]
    assert first == Placement("native", "it wants to be privileged")
    assert engines(Wanted(shares="to be privileged"), order=("microvm",)) == ["microvm"]


def test_a_pod_that_says_it_has_modules_is_one_of_modules() -> None:
    first = planned(Wanted(modules="run.oci.handler", shares="the host's network"))[0]
    assert first == Placement("wasm", "it says that it has WebAssembly (run.oci.handler)")


def test_where_nothing_is_left_each_reason_is_told() -> None:
    with pytest.raises(FailedPrecondition, match="native cannot: a; wasm cannot: b"):
        planned(order=("native", "wasm"), labels=(), unfit={"native": "a", "wasm": "b"})


def test_an_engine_is_asked_about_when_its_turn_comes() -> None:
    asked: list[str] = []
    found = plan(NOTHING, order=ENGINES, isolate_labels=(), unfit=lambda engine: asked.append(engine) or "")
    assert next(found).engine == "native"
    assert asked == ["native"]


@given(
    demanded=st.sampled_from(("", *ENGINES)),
    label=st.sampled_from(("", "untrusted", "gold")),
    shares=st.sampled_from(("", "to be privileged")),
    modules=st.sampled_from(("", "run.oci.handler")),
    order=st.permutations(ENGINES).flatmap(lambda all_: st.integers(1, 3).map(lambda n: tuple(all_[:n]))),
    unfit=st.sets(st.sampled_from(ENGINES)),
)
def test_no_pod_gets_less_than_is_demanded_nor_what_cannot_run_it(
    demanded: str, label: str, shares: str, modules: str, order: tuple[str, ...], unfit: set[str]
) -> None:
    wanted = Wanted(demanded=demanded, label=label, shares=shares, modules=modules)
    try:
        found = engines(wanted, order, unfit=dict.fromkeys(unfit, "why"))
    except FailedPrecondition:
        return
    assert found
    assert len(set(found)) == len(found)
    assert set(found) <= set(order) - unfit
    if demanded:
        assert found == [demanded]
    if label == "untrusted":
        assert found == ["microvm"]
