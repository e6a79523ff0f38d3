"""Whose a file is on the host when it is some id's in a pod with a user namespace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.base import IdMapping

# What the kernel shows for an id that a namespace does not map (user_namespaces(7)); in no pod it is anybody's.
OVERFLOW = 65534


@dataclass(frozen=True, slots=True)
class Owners:
    """The ids of a user namespace, and where it is pinned."""

    userns: str
    uids: tuple[IdMapping, ...]
    gids: tuple[IdMapping, ...]

    @property
    def root(self) -> tuple[int, int]:
        """User and group of the namespace's root on the host."""
        return self.outside(0, 0)

    def outside(self, uid: int, gid: int) -> tuple[int, int]:
        """User and group on the host; :data:`OVERFLOW` for one that is not mapped."""
        return outside(self.uids, uid), outside(self.gids, gid)


def outside(mappings: Sequence[IdMapping], number: int) -> int:
    """The id on the host; :data:`OVERFLOW` for one that is not mapped."""
    for one in mappings:
        if one.container_id <= number < one.container_id + one.length:
            return one.host_id + number - one.container_id
    return OVERFLOW
