"""Limits on reservations of huge pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.kernel.cgroups import CgroupHost, Driver, Mode
from forgeone_shim.limits.hugepages import file_of, limit_reservations


def host(mount: Path, mode: Mode = Mode.V2) -> CgroupHost:
    return CgroupHost(mode=mode, driver=Driver.CGROUPFS, unified=str(mount), v1={"hugetlb": str(mount)})


@pytest.mark.parametrize(
    ("mode", "name"), [(Mode.V2, "hugetlb.2MB.rsvd.max"), (Mode.HYBRID, "hugetlb.2MB.rsvd.limit_in_bytes")]
)
def test_a_size_the_kernel_counts_is_limited_and_others_are_left(tmp_path: Path, mode: Mode, name: str) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / name).touch()
    assert file_of(host(tmp_path, mode), "2MB") == name
    limit_reservations({"2MB": 4, "1GB": 5}, host(tmp_path, mode), "/c")
    assert (tmp_path / "c" / name).read_text() == "4"
    assert [path.name for path in (tmp_path / "c").iterdir()] == [name]


def test_a_refusal_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "hugetlb.2MB.rsvd.max").symlink_to("/dev/full")
    with pytest.raises(FailedPrecondition, match=r"2MB.*rsvd\.max"):
        limit_reservations({"2MB": 4}, host(tmp_path), "/")
