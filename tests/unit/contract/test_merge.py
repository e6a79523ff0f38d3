"""No contract widens what a floor allows: joining two is an intersection in every field."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgeone_shim.contract import patterns
from forgeone_shim.contract.facts import Bound, Facts, Point
from forgeone_shim.contract.judge import violated
from forgeone_shim.contract.merge import MAX_MEMBERS, normal, tighten
from forgeone_shim.contract.model import (
    UNRESTRICTED,
    Behaviour,
    Contract,
    HostPath,
    ImageRule,
    NetworkRule,
    Peer,
    PortRange,
    TrustProfile,
)
from forgeone_shim.contract.policies import Policies
from forgeone_shim.contract.policy import Policy
from forgeone_shim.errors import InvalidInput
from tests.unit.contract.strategies import CIDRS, PODS, SUBJECTS, contracts, facts

_points = st.sampled_from(tuple(Point))


def _allows(contract: Contract, point: Point, found: Facts) -> bool:
    return not violated(point, found, contract)[0]


@settings(max_examples=80, deadline=None)
@given(contracts, contracts, _points, facts())
def test_what_is_joined_allows_what_both_allow_and_nothing_else(
    floor: Contract, contract: Contract, point: Point, found: Facts
) -> None:
    both = _allows(floor, point, found) and _allows(contract, point, found)
    assert _allows(tighten(floor, contract), point, found) is both


@settings(max_examples=100, deadline=None)
@given(contracts, contracts, _points, facts())
def test_no_contract_widens_what_a_nodes_policies_allow(
    floor: Contract, contract: Contract, point: Point, found: Facts
) -> None:
    floor = replace(floor, runtime_policy_id="")
    policies = Policies([Policy(name="floor", floor=True, contract=floor), Policy(name="house")])
    held = policies.rebind(Bound(contract=contract, given=True, namespace="shop"))
    allowed = policies.judge(point, replace(found, contract=held)).allowed
    assert allowed is (_allows(floor, point, found) and _allows(contract, point, found))
    # What is kept says the same under the same policies, and under none.
    assert policies.rebind(held) == held
    assert allowed is (_allows(held.contract, point, found))


@settings(max_examples=80, deadline=None)
@given(contracts, contracts)
def test_joining_in_any_order_or_twice_is_the_same(one: Contract, other: Contract) -> None:
    joined = tighten(one, other)
    assert joined == tighten(other, one)
    assert tighten(one, joined) == joined == normal(joined)
    assert joined.digest == tighten(other, one).digest


@settings(max_examples=40, deadline=None)
@given(contracts, contracts, contracts, _points, facts())
def test_it_does_not_matter_which_two_of_three_are_joined_first(
    a: Contract, b: Contract, c: Contract, point: Point, found: Facts
) -> None:
    left, right = tighten(tighten(a, b), c), tighten(a, tighten(b, c))
    assert _allows(left, point, found) is _allows(right, point, found)


def _passes(rule: tuple[Peer, ...] | None, address: str, pod: str, port: int, protocol: str) -> bool:
    if rule is None:
        return True
    return any(
        (not one.cidr or ipaddress.ip_address(address) in ipaddress.ip_network(one.cidr))
        and (not one.pod or one.pod == pod or (one.pod.endswith("/*") and one.pod[:-1] == pod.partition("/")[0] + "/"))
        and (not one.protocol or one.protocol == protocol)
        and (not one.ports or (protocol != "icmp" and any(few.first <= port <= few.last for few in one.ports)))
        for one in rule
    )


@settings(max_examples=120, deadline=None)
@given(
    contracts,
    contracts,
    st.sampled_from(("10.1.2.3", "10.1.9.9", "10.9.9.9", "192.0.2.1", "fd00:1::1", "fd00:2::1", "2001:db8::1")),
    st.sampled_from(("shop/db", "shop/web", "pay/x", "other/db")),
    st.integers(1, 7),
    st.sampled_from(("tcp", "udp", "icmp")),
)
def test_a_packet_passes_where_both_rules_let_it(
    a: Contract, b: Contract, address: str, pod: str, port: int, protocol: str
) -> None:
    joined = tighten(a, b).profile.network or NetworkRule()
    for way in ("egress", "ingress"):
        both = all(
            _passes(getattr(one.profile.network or NetworkRule(), way), address, pod, port, protocol) for one in (a, b)
        )
        assert _passes(getattr(joined, way), address, pod, port, protocol) is both
    for word in ("node", "dns"):
        assert getattr(joined, word) is all(getattr(one.profile.network or NetworkRule(), word) for one in (a, b))


def _matches(pattern: str, subject: str) -> bool:
    return patterns.subjects_meet(pattern, subject) == subject


@settings(max_examples=80, deadline=None)
@given(contracts, contracts, st.sampled_from(("a", "b", "a.b", "a.c", "a.b.c", "a.x.c", "a.b.c.d", "b.b")))
def test_a_subject_is_allowed_where_both_allow_it(a: Contract, b: Contract, subject: str) -> None:
    joined = tighten(a, b).profile.bus
    for way in ("publish", "subscribe"):
        lists = [getattr(one, way) for one in (a.profile.bus, b.profile.bus, joined)]
        first, second, both = [one is None or any(_matches(each, subject) for each in one) for one in lists]
        assert both is (first and second)


def test_the_stricter_of_two_orders_about_drift_counts() -> None:
    a, b = (Contract(behaviour=Behaviour(on_drift=word)) for word in ("pause", "stop"))
    assert tighten(a, b).behaviour.on_drift == tighten(b, a).behaviour.on_drift == "stop"


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [
        ("exec_mode", Contract(exec_mode="wasm"), Contract(exec_mode="native")),
        ("runtime_policy_id", Contract(runtime_policy_id="a"), Contract(runtime_policy_id="b")),
        (
            "profile.trust_label",
            Contract(profile=TrustProfile(trust_label="a")),
            Contract(profile=TrustProfile(trust_label="b")),
        ),
        (
            "behaviour.baseline",
            Contract(behaviour=Behaviour(baseline="sha256:a")),
            Contract(behaviour=Behaviour(baseline="sha256:b")),
        ),
    ],
)
def test_two_of_what_there_can_be_one_of_are_refused(field: str, one: Contract, other: Contract) -> None:
    with pytest.raises(InvalidInput) as caught:
        tighten(one, other)
    assert caught.value.field == field


def test_nothing_in_common_is_nothing_and_not_everything() -> None:
    a = Contract(trusted_issuers=("key:a",), profile=TrustProfile(capabilities=("CHOWN",), volumes=("secret",)))
    b = Contract(trusted_issuers=("key:b",), profile=TrustProfile(capabilities=("KILL",), volumes=("csi",)))
    joined = tighten(a, b)
    assert joined.trusted_issuers == joined.profile.capabilities == joined.profile.volumes == ()


def test_what_another_member_covers_is_left_out() -> None:
    contract = Contract(
        profile=TrustProfile(
            images=(ImageRule(("docker.io/**",)), ImageRule(("docker.io/acme/web",))),
            host_paths=(HostPath("/srv"), HostPath("/srv/data", readonly=True)),
            network=NetworkRule(
                egress=(
                    Peer("10.0.0.0/8", ports=(PortRange(1, 9), PortRange(5, 20), PortRange(21, 22))),
                    Peer("10.1.0.0/16", ports=(PortRange(3, 4),), protocol="tcp"),
                )
            ),
        )
    )
    profile = normal(contract).profile
    assert profile.images == (ImageRule(("docker.io/**",)),)
    assert profile.host_paths == (HostPath("/srv"),)
    assert profile.network == NetworkRule(egress=(Peer("10.0.0.0/8", ports=(PortRange(1, 22),)),))


def test_a_list_that_would_grow_without_bound_is_refused() -> None:
    wide, other = (
        Contract(profile=TrustProfile(images=tuple(ImageRule((f"{word}{n}.io/**",)) for n in range(64))))
        for word in ("**/a", "b")
    )
    with pytest.raises(InvalidInput, match=f"more than {MAX_MEMBERS}"):
        tighten(wide, other)


def test_the_contract_of_nobody_is_its_own_normal_form() -> None:
    assert normal(UNRESTRICTED) is UNRESTRICTED
    assert tighten(UNRESTRICTED, UNRESTRICTED) == UNRESTRICTED


@pytest.mark.parametrize("pod", [one for one in PODS if one])
@pytest.mark.parametrize("cidr", [one for one in CIDRS if one])
def test_pods_and_a_range_together_are_the_pods_inside_it(pod: str, cidr: str) -> None:
    a = Contract(profile=TrustProfile(network=NetworkRule(egress=(Peer(pod=pod),))))
    b = Contract(profile=TrustProfile(network=NetworkRule(egress=(Peer(cidr=cidr),))))
    joined = tighten(a, b).profile.network
    assert joined is not None
    assert joined.egress == (Peer(cidr, pod),)


@pytest.mark.parametrize("one", SUBJECTS)
@pytest.mark.parametrize("other", SUBJECTS)
def test_subjects_meet_in_either_order(one: str, other: str) -> None:
    assert patterns.subjects_meet(one, other) == patterns.subjects_meet(other, one)
    assert patterns.subjects_meet(one, one) == one
