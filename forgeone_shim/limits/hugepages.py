"""Reservations of huge pages: limited with the pages themselves, so that a program that asks for too many is told so.

The limit on pages alone is felt at the first touch of a page, and kills (SIGBUS); that on reservations at mmap(2): it
fails, and the program does without. Documentation/admin-guide/cgroup-v1/hugetlb.rst, Reservation limit; Linux 5.7.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.kernel import cgroups
from forgeone_shim.kernel.cgroups import CgroupHost, Mode


def file_of(host: CgroupHost, size: str) -> str:
    """The name of the file that limits reservations of pages of this size."""
    return f"hugetlb.{size}.rsvd.{'max' if host.mode is Mode.V2 else 'limit_in_bytes'}"


def limit_reservations(limits: Mapping[str, int], host: CgroupHost, cgroup: str) -> None:
    """Give a new container's cgroup these limits in bytes by page size, where the kernel has them.

    :raises FailedPrecondition: the kernel refuses one.
    """
    directory = host.directory("hugetlb", cgroup)
    for size, limit in limits.items():
        path = Path(directory or "", file_of(host, size))
        try:
            cgroups.write(str(path), str(limit))
        except FileNotFoundError:
            continue
        except OSError as error:
            what = f"hugepage_limits[{size}]: the kernel refuses {limit} for {path.name}: {error.strerror}"
            raise FailedPrecondition(what) from error
