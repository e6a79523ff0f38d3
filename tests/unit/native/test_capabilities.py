from __future__ import annotations

import pytest

from engines.base import Security
from engines.native.capabilities import DEFAULT, sets
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.kernel.capabilities import KNOWN, from_mask

ALL = frozenset(KNOWN)


def held(**asked: object) -> set[str]:
    return set(sets(Security(**asked), ALL)["effective"])  # type: ignore[arg-type]


def test_a_plain_container_has_the_fourteen_defaults_and_nothing_inheritable() -> None:
    found = sets(Security(), ALL)
    assert set(found["bounding"]) == set(found["permitted"]) == DEFAULT
    assert len(DEFAULT) == 14
    assert "inheritable" not in found
    assert "ambient" not in found


@pytest.mark.parametrize("name", ["NET_ADMIN", "CAP_NET_ADMIN", "net_admin"])
def test_a_name_counts_with_and_without_its_prefix(name: str) -> None:
    assert held(add_capabilities=(name,)) == DEFAULT | {"CAP_NET_ADMIN"}


def test_all_is_applied_before_single_names() -> None:
    assert held(drop_capabilities=("ALL",)) == set()
    assert held(drop_capabilities=("ALL",), add_capabilities=("CHOWN",)) == {"CAP_CHOWN"}
    assert held(add_capabilities=("ALL",)) == ALL
    assert held(add_capabilities=("all",), drop_capabilities=("CHOWN",)) == ALL - {"CAP_CHOWN"}


def test_an_unknown_capability_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"add_capabilities.*FLY"):
        held(add_capabilities=("FLY",))
    with pytest.raises(InvalidInput, match=r"drop_capabilities.*FLY"):
        held(drop_capabilities=("FLY",))


def test_a_capability_the_host_lacks_is_refused_by_name_and_left_out_of_all() -> None:
    less = ALL - {"CAP_SYS_RESOURCE"}
    with pytest.raises(FailedPrecondition, match="CAP_SYS_RESOURCE"):
        sets(Security(add_capabilities=("SYS_RESOURCE",)), less)
    assert set(sets(Security(add_capabilities=("ALL",)), less)["bounding"]) == less
    assert set(sets(Security(privileged=True), less)["bounding"]) == less


def test_an_ambient_capability_is_inheritable_and_permitted_too() -> None:
    found = sets(Security(add_ambient_capabilities=("NET_ADMIN",)), ALL)
    assert found["ambient"] == found["inheritable"] == ["CAP_NET_ADMIN"]
    assert "CAP_NET_ADMIN" in found["permitted"]


def test_a_dropped_capability_is_never_ambient() -> None:
    found = sets(Security(add_ambient_capabilities=("KILL",), drop_capabilities=("KILL",)), ALL)
    assert "ambient" not in found
    assert "CAP_KILL" not in found["bounding"]


def test_a_mask_names_its_bits() -> None:
    assert from_mask(0b1) == {"CAP_CHOWN"}
    assert from_mask(1 << 21) == {"CAP_SYS_ADMIN"}
    assert from_mask((1 << 64) - 1) == ALL
