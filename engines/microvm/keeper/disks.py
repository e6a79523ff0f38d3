"""The machine's disks: images that several containers are made of are plugged in once."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

from engines.microvm.keeper.orders import Disk
from engines.microvm.vmm.base import Vmm
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ForgeError, ResourceExhausted

_SECONDS: Final = 20.0


@dataclass(slots=True)
class _Plugged:
    key: str
    users: int = 1


class Disks:
    """Which image is which LUN, and how many containers use it."""

    def __init__(self, vmm: Vmm) -> None:
        self._vmm = vmm
        self._plugged: dict[int, _Plugged] = {}
        self._by_key: dict[str, int] = {}
        # Round and round: the guest may not have let go of the disk that had the number last.
        self._luns = itertools.cycle(range(vmm.luns))
        self._lost: set[int] = set()

    def take(self, disk: Disk, image: int) -> int:
        """The LUN of the image in the descriptor, which stays the caller's; :meth:`give_back` is due for it.

        :raises ForgeError: as :meth:`Vmm.add_disk`.
        """
        lun = self._by_key.get(disk.key, -1) if disk.key and disk.readonly else -1
        if lun >= 0:
            self._plugged[lun].users += 1
            return lun
        lun = self._free(readonly=disk.readonly)
        self._vmm.add_disk(lun, image, readonly=disk.readonly, deadline=Deadline.after(_SECONDS))
        shared = disk.key if disk.readonly else ""
        self._plugged[lun] = _Plugged(shared)
        if shared:
            self._by_key[shared] = lun
        return lun

    def give_back(self, lun: int) -> None:
        """The inverse of :meth:`take`, once the guest has unmounted it. Fails on nothing."""
        plugged = self._plugged[lun]
        plugged.users -= 1
        if plugged.users:
            return
        del self._plugged[lun]
        if plugged.key:
            del self._by_key[plugged.key]
        try:
            self._vmm.remove_disk(lun, Deadline.after(_SECONDS))
        except ForgeError:
            # It may be there still; nothing else is to be taken for it.
            self._lost.add(lun)

    def _free(self, *, readonly: bool) -> int:
        for lun in itertools.islice(self._luns, self._vmm.luns):
            fits = readonly or lun >= self._vmm.slots
            if fits and lun not in self._plugged and lun not in self._lost:
                return lun
        raise ResourceExhausted(f"the pod's machine has no room for more than {self._vmm.luns} disks")
