from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.dna import health
from forgeone_shim.dna.entropy import DUPLICATING, FULL, Cause, Seeding, bits, duplicated, seeded
from forgeone_shim.dna.source import Health, Source


def event(cause: Cause, drawn: int = 0, *, healthy: bool = True) -> Seeding:
    return Seeding(at=1, cause=cause, bits=drawn, healthy=healthy)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], 0),
        ([event(Cause.CREATE, 256)], 256),
        ([event(Cause.CREATE, 4096)], FULL),
        ([event(Cause.CREATE, 256, healthy=False)], 0),
        ([event(Cause.CREATE, -5)], 0),
        ([event(Cause.CREATE, 256), event(Cause.RESEED, 128)], 384),
        ([event(Cause.CREATE, 256), event(Cause.RESTORE)], 0),
        ([event(Cause.CREATE, 256), event(Cause.FORK)], 0),
        ([event(Cause.CREATE, 256), event(Cause.MIGRATE), event(Cause.RESEED, 256)], 256),
        ([event(Cause.RESTORE), event(Cause.RESEED, 256, healthy=False)], 0),
    ],
)
def test_bits_are_those_drawn_since_the_state_could_last_be_duplicated(events: list[Seeding], expected: int) -> None:
    assert bits(events) == expected


@given(st.lists(st.builds(event, st.sampled_from(Cause), st.integers(-10, 1000), healthy=st.booleans())))
def test_whatever_was_drawn_before_a_duplication_counts_for_nothing(events: list[Seeding]) -> None:
    for cause in DUPLICATING:
        assert bits([*events, event(cause)]) == 0
        assert bits([*events, event(cause, 64)]) == 64


def test_an_unhealthy_source_gives_nothing() -> None:
    assert seeded(Cause.CREATE, source="x", healthy=False).bits == 0
    assert bits([seeded(Cause.CREATE, source="x", healthy=True)]) == FULL
    assert bits([duplicated(Cause.RESTORE)]) == 0


def test_cutoffs_are_those_of_sp_800_90b() -> None:
    assert (health.repetition_cutoff(1), health.repetition_cutoff(8), health.repetition_cutoff(2.5)) == (21, 4, 9)
    assert (health.proportion_cutoff(1), health.proportion_cutoff(4), health.proportion_cutoff(8)) == (311, 62, 13)


@given(st.integers(0, 255))
def test_a_stuck_source_fails_both_tests(value: int) -> None:
    samples = bytes([value]) * health.STARTUP
    assert health.repeats(samples, 1)
    assert health.dominated(samples, 1)
    assert health.most_common_value(samples) == 0


def test_a_source_that_mostly_gives_one_value_fails_the_second_test() -> None:
    samples = b"ab" * (health.STARTUP // 2)
    assert not health.repeats(samples, 1)
    assert health.dominated(b"aab" * 342, 1)
    assert not health.dominated(bytes(range(256)) * 4, 1)


def test_a_counter_passes_for_statistics_prove_nothing() -> None:
    counter = bytes(range(256)) * 4
    assert not health.repeats(counter, 1)
    assert health.most_common_value(counter) > 6


def host(root: Path, raw: bytes, name: str = "virtio_rng.0") -> Source:
    hw = root / "sys/class/misc/hw_random"
    hw.mkdir(parents=True)
    (hw / "rng_current").write_text(f"{name}\n")
    (root / "dev").mkdir()
    (root / "dev/hwrng").write_bytes(raw)
    return Source(root)


def test_a_healthy_host_seeds_with_the_whole_key(tmp_path: Path) -> None:
    source = host(tmp_path, bytes(range(256)) * 5)
    found = source.health()
    assert (found.ready, found.hardware, found.samples, found.healthy) == (True, "virtio_rng.0", 1024, True)
    assert bits([source.seeded(Cause.CREATE)]) == FULL


def test_a_stuck_raw_source_makes_seeds_count_for_nothing(tmp_path: Path) -> None:
    source = host(tmp_path, bytes(2048))
    assert source.health().healthy is False
    assert bits([source.seeded(Cause.CREATE)]) == 0


@pytest.mark.parametrize("raw", [b"", b"\0" * 1023])
def test_a_raw_source_that_gives_too_little_says_nothing(tmp_path: Path, raw: bytes) -> None:
    found = host(tmp_path, raw, "none").health()
    assert (found.samples, found.hardware, found.healthy) == (0, "", True)


def test_a_host_without_one_is_told_by_the_kernel_alone(tmp_path: Path) -> None:
    assert Source(tmp_path).health() == Health(ready=True)


def test_a_generator_that_has_not_been_seeded_seeds_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unseeded(*_: object) -> bytes:
        raise BlockingIOError

    monkeypatch.setattr("os.getrandom", unseeded)
    assert Source(tmp_path).health().healthy is False
    assert bits([Source(tmp_path).seeded(Cause.CREATE)]) == 0


def test_what_a_hypervisor_tells_is_seen(tmp_path: Path) -> None:
    driver = tmp_path / "sys/bus/platform/drivers/vmgenid"
    driver.mkdir(parents=True)
    (driver / "bind").touch()
    assert not Source(tmp_path).health().generation
    (driver / "VMGENCTR:00").symlink_to("elsewhere")
    assert Source(tmp_path).health().generation
