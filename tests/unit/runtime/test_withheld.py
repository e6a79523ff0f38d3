"""What a pod's network rule takes from its containers, and which rule a pod is kept to."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from engines.base import Features, Security
from forgeone_shim.contract.facts import Bound
from forgeone_shim.contract.model import Contract, NetworkRule, TrustProfile
from forgeone_shim.errors import InternalError, InvalidInput
from forgeone_shim.runtime import placement
from forgeone_shim.runtime.guard import Guard
from tests.unit.runtime.test_guard import CONTAINER, POD, Around, create, guard

RULE = NetworkRule(egress=())
ENGINES = {POD.engine: SimpleNamespace(features=Features)}
RULED = Bound(contract=Contract(profile=TrustProfile(network=RULE)), given=True)


def capabilities(around: Around) -> tuple[str, ...]:
    container = around.asked[0][1].container
    assert container is not None
    return container.capabilities


def test_packet_sockets_are_withheld_where_there_is_a_rule_and_are_no_fact_then() -> None:
    around = Around(bound=RULED)
    made = create(around)
    assert made.withheld == ("NET_RAW",)
    assert made.security.drop_capabilities == ("NET_RAW",)
    assert made.spec.security == Security(), "what was asked for is what a retry is compared with"
    assert capabilities(around) == ("CHOWN",)
    free = Around()
    assert create(free).withheld == ()
    assert capabilities(free) == ("CHOWN", "NET_RAW")


def test_what_a_checkpoints_processes_have_they_keep() -> None:
    around = Around(bound=RULED)
    assert create(around, replace(CONTAINER, restored=True)).withheld == ()
    assert "NET_RAW" in capabilities(around)


def test_a_container_that_insists_is_judged_with_what_it_insists_on() -> None:
    around = Around(bound=RULED)
    asks = replace(CONTAINER.spec, security=Security(add_capabilities=("NET_RAW",)))
    assert create(around, replace(CONTAINER, spec=asks)).withheld == ()
    assert "NET_RAW" in capabilities(around)


def test_a_container_that_was_there_before_the_rule_is_judged_with_what_it_has() -> None:
    around = Around()
    made = create(around)
    assert made.withheld == ()
    assert replace(made, bound=RULED).security.drop_capabilities == ()


def test_a_pod_is_kept_to_the_rule_of_now_or_to_its_own_where_there_is_no_telling() -> None:
    class Tighter(Around):
        def rebind(self, bound: Bound) -> Bound:
            return RULED

    assert guard(Around()).network(POD) is None
    assert guard(Tighter()).network(POD) == RULE
    gone = guard(Around(refuse=InvalidInput("runtime_policy_id", "is gone")))
    assert gone.network(replace(POD, bound=RULED)) == RULE
    with pytest.raises(InternalError):
        guard(Around(refuse=InternalError("broken"))).network(POD)


def test_the_network_is_told_the_rule_of_the_pod_with_its_names() -> None:
    class Ask:
        guard: Guard = Guard(*[Around(bound=RULED)] * 4)
        engines = ENGINES

    told = placement.attachable(Ask(), replace(POD, bound=RULED))  # type: ignore[arg-type]
    assert (told.namespace, told.name, told.rule, told.restricted) == ("n", "p", RULE, True)
    assert not replace(told, rule=NetworkRule()).restricted
    assert not told.machine


def test_a_rule_from_before_a_reload_does_not_stay() -> None:
    """Policies that change while a rule is enforced have been enforced by the reload before that."""
    enforced: list[NetworkRule | None] = []

    class Reloaded(Around):
        def rebind(self, bound: Bound) -> Bound:
            return RULED if enforced else bound

    class Node:
        guard: Guard = Guard(*[Reloaded()] * 4)
        network = SimpleNamespace(enforce=lambda told, _ips: enforced.append(told.rule))
        engines = ENGINES

    attached = replace(POD, namespaces=replace(POD.namespaces, network="/run/net"))
    placement.restrain(Node(), attached)  # type: ignore[arg-type]
    assert enforced == [None, RULE]
    placement.restrain(Node(), replace(attached, namespaces=replace(POD.namespaces, network=None)))  # type: ignore[arg-type]
    assert enforced == [None, RULE]
