from __future__ import annotations

import errno

import pytest

from forgeone_shim.errors import Kind, syscall_error


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, Kind.EXHAUSTED), (errno.EDQUOT, Kind.EXHAUSTED), (errno.EIO, Kind.INTERNAL)],
)
def test_a_full_disk_is_told_from_a_broken_one(number: int, kind: Kind) -> None:
    error = syscall_error("mkdir", "/somewhere", OSError(number, "why"))
    assert (error.kind, str(error)) == (kind, "mkdir /somewhere: why")
