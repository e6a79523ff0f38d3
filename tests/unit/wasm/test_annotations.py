from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.wasm import annotations
from engines.wasm.annotations import Asked
from forgeone_shim.errors import InvalidInput

P = annotations.PREFIX


def test_nothing_is_asked_unless_it_is_said() -> None:
    assert annotations.read({"other/key": "x"}, "main") == Asked()


def test_every_key_is_read() -> None:
    said = {"exec": "check, dump", "memory-max": "64Mi", "cpu-budget": "1.5s", "cpu-slice": "20ms", "trace": "true"}
    found = annotations.read({P + key: value for key, value in said.items()}, "main")
    assert found == Asked(exports=("check", "dump"), memory_max=64 << 20, cpu_budget=1.5, cpu_slice=0.02, trace=True)


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_said_of_one_container_goes_before_what_is_said_of_all(order: int) -> None:
    said = dict([(P + "memory-max", "1Mi"), (P + "memory-max.main", "2Mi"), (P + "memory-max.other", "3Mi")][::order])
    assert annotations.read(said, "main").memory_max == 2 << 20
    assert annotations.read(said, "third").memory_max == 1 << 20


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("memory", "1"),
        ("exec.", "a"),
        ("", ""),
        ("exec", "a,,b"),
        ("exec", "a\nb"),
        ("memory-max", "0"),
        ("memory-max", "-1"),
        ("memory-max", "1k"),
        ("memory-max", "1024"),
        ("memory-max", "9999999999Gi"),
        ("memory-max", ""),
        ("cpu-budget", "5"),
        ("cpu-budget", "0s"),
        ("cpu-budget", "1e3s"),
        ("cpu-slice", "10"),
        ("trace", "yes"),
        ("trace.other", "yes"),
    ],
)
def test_what_is_not_understood_is_refused(key: str, value: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        annotations.read({P + key: value}, "main")
    assert P + key in str(caught.value)


@given(st.sampled_from(["exec", "memory-max", "cpu-budget", "trace"]), st.text())
def test_any_value_is_taken_or_refused_by_name(key: str, value: str) -> None:
    try:
        annotations.read({P + key: value}, "main")
    except InvalidInput as error:
        assert key in error.field
