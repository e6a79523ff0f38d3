from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from engines.base import PortMapping
from forgeone_shim.config.model import NetworkConfig
from forgeone_shim.errors import FailedPrecondition, ResourceExhausted
from forgeone_shim.network.hostports import plan_host_ports
from forgeone_shim.network.ipam import INTENTS, LEASES, PORTS, Intent, Ipam, Stage
from forgeone_shim.network.plan import plan_layout
from forgeone_shim.state.store import StateStore

LAYOUT = plan_layout(NetworkConfig(ipv4="10.9.0.0/24", ipv6="fd09::/64"))
TINY = replace(LAYOUT, ipv4=plan_layout(NetworkConfig(ipv4="10.9.0.0/29")).ipv4)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    opened = StateStore(tmp_path / "forgeone.db")
    yield opened
    opened.close()


def _reserve(ipam: Ipam, name: str, *ports: PortMapping) -> Intent:
    return ipam.reserve(LAYOUT, name, f"/ns/{name}", plan_host_ports(ports))


def test_an_intent_holds_all_that_must_be_undone(store: StateStore) -> None:
    intent = _reserve(Ipam(store), "one", PortMapping(80, 8080))
    assert intent.addresses == ("10.9.0.2/24", "fd09::2/64")
    assert intent.ips == ("10.9.0.2", "fd09::2")
    assert intent.stage is Stage.INTENDED
    assert Ipam(store).intent("one") == intent
    assert [key for key, _ in store.items(LEASES, dict)] == ["10.9.0.2", "fd09::2"]


def test_an_address_just_given_back_is_not_the_next_one(store: StateStore) -> None:
    ipam = Ipam(store)
    first = _reserve(ipam, "one")
    ipam.forget([first])
    assert _reserve(ipam, "two").ips[0] == "10.9.0.3"
    assert _reserve(Ipam(store), "three").ips[0] == "10.9.0.4"


def test_allocation_wraps_around_to_what_is_free(store: StateStore) -> None:
    ipam = Ipam(store)
    intents = [ipam.reserve(TINY, f"pod{n}", "/ns", ()) for n in range(5)]
    ipam.forget([intents[1]])
    assert ipam.reserve(TINY, "late", "/ns", ()).ips == intents[1].ips


def test_a_full_range_is_exhausted_and_keeps_no_trace_of_the_attempt(store: StateStore) -> None:
    ipam = Ipam(store)
    for n in range(5):
        ipam.reserve(TINY, f"pod{n}", "/ns", ())
    with pytest.raises(ResourceExhausted, match=r"10\.9\.0\.0/29"):
        ipam.reserve(TINY, "late", "/ns", plan_host_ports([PortMapping(80, 8080)]))
    assert ipam.intent("late") is None
    assert not store.items(PORTS, dict)


def test_a_free_address_is_found_behind_many_taken_ones(store: StateStore) -> None:
    ipam = Ipam(store)
    intents = [_reserve(ipam, f"pod{n}") for n in range(LAYOUT.capacity)]
    with pytest.raises(ResourceExhausted):
        _reserve(ipam, "late")
    ipam.forget([intents[200]])
    assert _reserve(ipam, "late").ips == intents[200].ips


def test_a_slot_whose_ipv6_address_is_taken_is_skipped_whole(store: StateStore) -> None:
    ipam = Ipam(store)
    store.insert(LEASES, "fd09::2", {"sandbox_id": "another range's"})
    assert _reserve(ipam, "one").ips == ("10.9.0.3", "fd09::3")
    assert [key for key, _ in store.items(LEASES, dict)] == ["10.9.0.3", "fd09::2", "fd09::3"]


def test_parallel_reservations_through_two_connections_are_unique(store: StateStore, tmp_path: Path) -> None:
    other = StateStore(tmp_path / "forgeone.db")
    ipams = [Ipam(store), Ipam(other)]
    with ThreadPoolExecutor(8) as pool:
        intents = list(pool.map(lambda n: _reserve(ipams[n % 2], f"pod{n}"), range(100)))
    other.close()
    assert len({ip for intent in intents for ip in intent.ips}) == 200


def test_only_the_owner_gives_an_address_back(store: StateStore) -> None:
    ipam = Ipam(store)
    intent = _reserve(ipam, "one")
    stranger = replace(intent, sandbox_id="two")
    ipam.forget([stranger])
    assert len(store.items(LEASES, dict)) == 2
    ipam.forget([intent])
    ipam.forget([intent])
    assert not store.items(LEASES, dict)
    assert not store.items(INTENTS, dict)


def test_a_host_port_has_one_owner_on_each_address(store: StateStore) -> None:
    ipam = Ipam(store)
    _reserve(ipam, "one", PortMapping(80, 8080, host_ip="127.0.0.1"))
    _reserve(ipam, "two", PortMapping(80, 8080, host_ip="127.0.0.2"))
    for host_ip in ("", "0.0.0.0", "127.0.0.2"):
        with pytest.raises(FailedPrecondition, match="taken by sandbox"):
            _reserve(ipam, "three", PortMapping(80, 8080, host_ip=host_ip))
    assert ipam.intent("three") is None
    assert len(store.items(LEASES, dict)) == 4


def test_ports_go_back_before_the_addresses(store: StateStore) -> None:
    ipam = Ipam(store)
    one = _reserve(ipam, "one", PortMapping(80, 8080, host_ip="127.0.0.1"))
    two = _reserve(ipam, "two", PortMapping(80, 8080, host_ip="127.0.0.2"))
    one = ipam.release_ports(one)
    assert ipam.intent("one") == one
    assert one.ports == ()
    _reserve(ipam, "three", PortMapping(80, 8080, host_ip="127.0.0.1"))
    ipam.forget([one, two])
    assert [key for key, _ in store.items(PORTS, dict)] == ["tcp/8080"]


def test_what_is_held_without_a_readable_intent_can_be_given_back(store: StateStore) -> None:
    ipam = Ipam(store)
    shared = PortMapping(80, 8080, host_ip="127.0.0.1")
    _reserve(ipam, "lost", PortMapping(81, 8081), shared)
    kept = _reserve(ipam, "kept", PortMapping(80, 8080, host_ip="127.0.0.2"))
    store.put(INTENTS, "lost", {"sandbox_id": 5})
    assert [intent.sandbox_id for intent in ipam.intents()] == ["kept"]
    assert ipam.holders() == {"lost", "kept"}
    ipam.release("lost")
    ipam.release("kept")
    assert ipam.holders() == {"kept"}
    assert ipam.intent("kept") == kept
    assert _reserve(ipam, "next", PortMapping(81, 8081), shared).ports


def test_an_intent_that_is_readable_is_not_passed_over(store: StateStore) -> None:
    ipam = Ipam(store)
    intent = _reserve(ipam, "one", PortMapping(80, 8080))
    ipam.release("one")
    assert [key for key, _ in store.items(LEASES, dict)] == list(intent.ips)
