"""A package's limits: only where nobody else says any."""

from __future__ import annotations

import pytest

from engines.base import Resources
from forgeone_shim.contract.model import UNRESTRICTED, Ceilings, Contract, TrustProfile
from forgeone_shim.runtime.suggested import capped, filled, limits

NOTES = {"forgeone.dev/package-memory": "33554432", "forgeone.dev/package-cpu": "250"}
BOTH = Resources(memory_limit=32 << 20, cpu_quota=25_000, cpu_period=100_000)


@pytest.mark.parametrize(
    ("asked", "pod", "given"),
    [
        (Resources(), Resources(), BOTH),
        (Resources(memory_limit=1), Resources(), Resources(memory_limit=1, cpu_quota=25_000, cpu_period=100_000)),
        (Resources(cpu_quota=1000), Resources(), Resources(cpu_quota=1000, memory_limit=32 << 20)),
        (Resources(), Resources(memory_limit=1, cpu_quota=1000), Resources()),
        (Resources(), Resources(memory_limit=1), Resources(cpu_quota=25_000, cpu_period=100_000)),
        (Resources(unified={"memory.max": "1", "cpu.max": "max"}), Resources(),
         Resources(unified={"memory.max": "1", "cpu.max": "max"})),
        (Resources(memory_limit=1, cpu_quota=1000), Resources(), Resources(memory_limit=1, cpu_quota=1000)),
        (Resources(cpu_shares=5, memory_limit=1, cpu_period=10_000), Resources(),
         Resources(cpu_shares=5, memory_limit=1, cpu_period=10_000, cpu_quota=2500)),
    ],
)  # fmt: skip
def test_what_is_said_goes_before_what_is_suggested(asked: Resources, pod: Resources, given: Resources) -> None:
    assert filled(asked, limits(pod, NOTES)) == given


@pytest.mark.parametrize("text", ["", "-1", "much", "1e9", "9" * 30, "١"])
def test_notes_of_an_image_that_are_no_numbers_say_nothing(text: str) -> None:
    assert limits(Resources(), {"forgeone.dev/package-memory": text}) is None


def test_a_ceiling_of_processes_becomes_the_limit_that_nobody_can_ask_for() -> None:
    contract = Contract(profile=TrustProfile(resources=Ceilings(pids=10)))
    assert capped(None, UNRESTRICTED) is None
    assert capped(BOTH, UNRESTRICTED) is BOTH
    assert filled(Resources(memory_limit=1), capped(None, contract)) == Resources(memory_limit=1, pids_limit=10)
    assert filled(Resources(), capped(BOTH, contract)).pids_limit == 10
    asked = Resources(unified={"pids.max": "max"})
    assert filled(asked, capped(None, contract)) == asked
