"""What the packing helper is told."""

from __future__ import annotations

import msgspec


class Order(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Paths of the host: ``tree`` is to be packed by ``program`` into the empty ``file`` of at most ``size_max`` bytes.

    ``empty`` is a directory for the helper to have its root on; ``parent`` is whose child it must be.
    """

    program: str
    tree: str
    file: str
    empty: str
    size_max: int
    parent: int
