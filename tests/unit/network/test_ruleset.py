"""A pod's rules as messages. What they mean to the kernel is in tests/e2e/test_network_policy.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.contract.model import NetworkRule, Peer
from forgeone_shim.kernel.netlink import Reply, Request, attribute, nested, text
from forgeone_shim.network import ruleset
from forgeone_shim.network.nftables import SUBSYSTEM, genmsg
from forgeone_shim.network.policy import Local, Ruleset, Surroundings, packed, plan
from forgeone_shim.network.ruleset import Count, Drops

RULE = NetworkRule(egress=(Peer(pod="shop/*"),), ingress=())
NEWSETELEM, DELSETELEM = SUBSYSTEM | 12, SUBSYSTEM | 14


def rules(*ips: str, rule: NetworkRule = RULE) -> Ruleset:
    pod = Local(namespace="shop", name="db", addresses=packed(ips))
    return plan(rule, Surroundings(node=packed(("10.88.0.1",)), pods=(pod,)))


def changes(before: Ruleset, after: Ruleset) -> list[int]:
    made = ruleset.change(before, after)
    assert made is not None
    return [one.type for one in made]


def labels(requests: list[Request]) -> list[str]:
    return [request.label.partition(" of table")[0] for request in requests]


def test_the_table_is_replaced_in_one_transaction_and_dropping_is_its_chains_policy() -> None:
    made = ruleset.install(rules("10.88.0.5"), Drops())
    assert labels(made)[:3] == ["add table", "delete table forgeone_contract", "add table"]
    chains = [request for request in made if request.label.startswith("add chain")]
    assert labels(chains) == ["add chain ingress", "add chain egress", "add chain forward"]
    policy_drop = attribute(5, bytes(4))
    assert all(policy_drop in chain.body for chain in chains)


@pytest.mark.parametrize("rule", [NetworkRule(egress=()), NetworkRule(ingress=())])
def test_a_direction_that_is_not_spoken_of_has_its_chain_too(rule: NetworkRule) -> None:
    """What was open before the rule would get through it, and look as if the other side had begun it."""
    made = labels(ruleset.install(rules(rule=rule), Drops()))
    assert [label for label in made if label.startswith("add chain")] == [
        "add chain ingress",
        "add chain egress",
        "add chain forward",
    ]


@pytest.mark.parametrize("rule", [RULE, NetworkRule(egress=()), NetworkRule(ingress=())])
def test_packets_of_a_machine_are_held_to_the_rule_as_they_are_passed_on(rule: NetworkRule) -> None:
    made = ruleset.install(replace(rules(rule=rule), machine=packed(("10.88.0.9", "fd88::9"))), Drops())
    chains = [request for request in made if request.label.startswith("add chain")]
    names = ("machine", "egress", "ingress", "forward", "input", "output")
    assert labels(chains) == [f"add chain {name}" for name in names]
    hooks = [
        nested(4, attribute(1, bytes((0, 0, 0, hook))), attribute(2, at.to_bytes(4, "big", signed=True)))
        for hook, at in ((0, -450), (2, -1), (2, 0), (2, 1), (1, 0), (3, 0))
    ]
    assert all(hook in chain.body for hook, chain in zip(hooks, chains, strict=True))
    assert all(attribute(5, bytes(4)) in chain.body for chain in chains)
    assert any(packed(("10.88.0.9",))[0][1] in request.body for request in made)
    assert ruleset.change(rules(rule=rule), replace(rules(rule=rule), machine=())) is None


def test_addresses_come_and_go_without_the_rules() -> None:
    assert changes(rules("10.88.0.5"), rules("10.88.0.5")) == []
    assert changes(rules(), rules("10.88.0.5", "fd88::5")) == [NEWSETELEM, NEWSETELEM]
    assert changes(rules("10.88.0.5"), rules("10.88.0.6")) == [DELSETELEM, NEWSETELEM]
    assert changes(rules("10.88.0.5"), rules()) == [DELSETELEM]


def test_another_rule_is_more_than_addresses() -> None:
    assert ruleset.change(rules(), rules(rule=replace(RULE, ingress=None))) is None
    assert ruleset.change(rules(), rules(rule=replace(RULE, egress=(Peer(pod="shop/db"), Peer())))) is None
    assert ruleset.change(rules(), rules(rule=replace(RULE, node=False))) is None


def test_a_message_never_outgrows_its_size_field() -> None:
    many = rules(*(f"fd88::{number:x}" for number in range(5000)))
    assert max(len(request.body) for request in ruleset.install(many, Drops())) < 1 << 15


def test_generations_go_round_without_zero() -> None:
    assert ruleset.next_generation(1) == 2
    assert ruleset.next_generation(0xFFFFFFFE) == 0xFFFFFFFF
    assert ruleset.next_generation(0xFFFFFFFF) == 1


def test_a_generation_is_read_from_the_kernels_answer() -> None:
    answer = Reply(SUBSYSTEM | 15, genmsg() + attribute(1, (77).to_bytes(4, "big")) + text(3, "nft"))
    assert ruleset.read_generation([Reply(3, b""), answer]) == 77
    assert ruleset.read_generation([]) == 0


def counter(name: str, packets: int, size: int) -> Reply:
    data = nested(4, attribute(1, size.to_bytes(8, "big")), attribute(2, packets.to_bytes(8, "big")))
    return Reply(SUBSYSTEM | 18, genmsg() + text(1, ruleset.TABLE) + text(2, name) + data)


def test_counters_are_read_by_their_names() -> None:
    both = [counter("ingress", 3, 180), counter("egress", 2**40, 2**50)]
    assert ruleset.read_drops(both) == Drops(egress=Count(2**40, 2**50), ingress=Count(3, 180))
    assert ruleset.read_drops(both[:1]) == Drops(ingress=Count(3, 180))
    assert ruleset.read_drops([]) == Drops()


@given(body=st.binary(max_size=64))
def test_no_answer_is_too_odd_to_be_read(body: bytes) -> None:
    ruleset.read_generation([Reply(SUBSYSTEM | 15, body)])
    ruleset.read_drops([Reply(SUBSYSTEM | 18, body)])
