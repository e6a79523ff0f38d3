"""Filters for a pod's bandwidth on the built-in network: what fits the kernel's numbers, whatever the rate."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.network.shaping import plan_bucket

TICKS = 15.625
"""Of a microsecond, on every kernel of today."""


def test_a_burst_is_a_tenth_of_a_second() -> None:
    bucket = plan_bucket(80_000_000, TICKS)
    assert bucket.rate == 10_000_000
    assert bucket.buffer == 0.1 * 1_000_000 * TICKS
    assert bucket.limit == 1_000_000 + 10_000_000 * 0.025


def test_a_slow_pod_still_gets_its_packets() -> None:
    bucket = plan_bucket(1000, TICKS)
    largest = bucket.buffer / TICKS / 1_000_000 * bucket.rate
    assert largest > 9000


@given(st.integers(1000, 10**15))
def test_any_rate_has_a_filter_the_kernel_takes(bits: int) -> None:
    bucket = plan_bucket(bits, TICKS)
    assert bucket.rate == bits // 8
    assert 0 < bucket.buffer < 1 << 32
    assert 0 < bucket.limit < 1 << 32
    # Its buffer, in bytes: a packet fits.
    assert bucket.buffer / TICKS / 1_000_000 * bucket.rate > 9000
