"""Which modules of a kernel a machine needs, and in which order they are loaded.

What a module depends on it says itself (``.modinfo``, modinfo(8)): no ``modules.dep`` is needed, which an unpacked
package does not have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from engines.microvm.boot import unpacking
from engines.microvm.boot.elf import Elf
from forgeone_shim.errors import FailedPrecondition, syscall_error

_TRANSPORT: Final = {
    "qemu": ("virtio_mmio", "virtio_console"),
    "firecracker": ("virtio_mmio", "vmw_vsock_virtio_transport"),
    "cloud-hypervisor": ("virtio_pci", "vmw_vsock_virtio_transport"),
}
_DISKS: Final = {
    "qemu": ("virtio_blk", "virtio_scsi", "sd_mod"),
    "firecracker": ("virtio_blk",),
    "cloud-hypervisor": ("virtio_blk",),
}
# What a machine has to have before it is a pod's, and what only before there are containers.
_POD: Final = ("virtio_net", "fuse")
_CONTAINERS: Final = ("virtio_rng", "erofs", "overlay", "ext4", "virtio_balloon")
# For containers with NET_ADMIN, as those that lead a pod's connections to a proxy beside it: loaded when the guest's
# kernel asks for them. iptables-legacy would ask by itself, in vain. A tunnel's device asks when it is opened.
LATER: Final = (
    *("bridge", "veth", "nfnetlink", "nf_tables", "nft_chain_nat", "nft_compat", "nft_ct", "nft_limit", "nft_masq"),
    *("nft_nat", "nft_redir", "nft_reject_inet", "nft_reject_ipv4", "nft_reject_ipv6", "xt_MASQUERADE", "xt_REDIRECT"),
    *("xt_addrtype", "xt_comment", "xt_conntrack", "xt_mark", "xt_multiport", "xt_nat", "xt_owner", "xt_tcpudp"),
    *("ipt_REJECT", "ip6t_REJECT", "tun"),
)
# scripts/sign-file.c: the signature's bytes, a structure of 12 that ends with their number, and this.
_SIGNED: Final = b"~Module signature appended~\n"
_SIGNATURE: Final = 12
_SUFFIXES: Final = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")


def urgent(vmm: str) -> tuple[str, ...]:
    """What a machine of that monitor (``microvm.vmm``) needs to be a pod's: first how it is reached."""
    return (*_TRANSPORT[vmm], *_POD)


def wanted(vmm: str) -> tuple[str, ...]:
    """All that it needs, first what is :func:`urgent`."""
    return (*urgent(vmm), *_DISKS[vmm], *_CONTAINERS)


@dataclass(frozen=True, slots=True)
class Module:
    """A module as the guest loads it: decompressed, and without its own signature, for all of the initrd has one."""

    name: str
    image: bytes


@dataclass(frozen=True, slots=True)
class Tree:
    """The modules of one kernel: paths by name, and names of what is built into the kernel."""

    files: Mapping[str, Path]
    builtin: frozenset[str]


def scan(directory: Path) -> Tree:
    """Look at ``/lib/modules/RELEASE``. :raises FailedPrecondition: there are no modules."""
    try:
        builtin = (directory / "modules.builtin").read_text().split()
    except FileNotFoundError:
        raise FailedPrecondition(f"{directory} has no modules.builtin: it is no kernel's") from None
    except OSError as error:
        raise syscall_error("read", directory / "modules.builtin", error) from None
    files = {
        module_name(name): Path(folder, name)
        for folder, _, names in os.walk(directory)
        for name in names
        if name.endswith(_SUFFIXES)
    }
    return Tree(files, frozenset(map(module_name, builtin)))


def module_name(path: str) -> str:
    """The name that the kernel knows the module of a file by."""
    return PurePosixPath(path).name.partition(".ko")[0].replace("-", "_")


def resolve(names: Sequence[str], tree: Tree, read: Callable[[Path], bytes] = Path.read_bytes) -> list[Module]:
    """The wanted modules and all that they depend on, each after what it depends on; what is built in is left out.

    :raises FailedPrecondition: one is missing, or damaged.
    """
    found: dict[str, Module] = {}
    under_way: list[str] = []

    def add(name: str) -> None:
        if name in found or name in tree.builtin:
            return
        if name in under_way:
            raise FailedPrecondition(f"module {name} depends on itself")
        path = tree.files.get(name)
        if path is None:
            user = f", which {under_way[-1]} depends on," if under_way else ""
            raise FailedPrecondition(
                f"the kernel has no module {name}{user} and nothing built in of that name",
                fix="name another kernel in microvm.kernel, or a Debian package of one",
            )
        image = _without_signature(unpacking.unpack(read(path), str(path)))
        under_way.append(name)
        for needed in _depends(Elf(image, str(path))):
            add(needed)
        under_way.pop()
        found[name] = Module(name, image)

    for name in names:
        add(name)
    return list(found.values())


def later(names: Sequence[str], loaded: Sequence[Module], tree: Tree) -> tuple[list[Module], list[tuple[str, ...]]]:
    """Modules for when a kernel asks for them: those, and what is to be loaded for each word that it may ask with.

    What a kernel has not, or has built in, is left out.

    :raises FailedPrecondition: one is damaged.
    """
    there, found, asked = {module.name for module in loaded}, dict[str, Module](), list[tuple[str, ...]]()
    for name in names:
        if name not in tree.files or name in tree.builtin:
            continue
        needed = [module for module in resolve([name], tree) if module.name not in there]
        found |= {module.name: module for module in needed}
        image = needed[-1].image if needed else b""
        for word in (name, *(_aliases(Elf(image, name)) if image else ())):
            asked.append((word, *(module.name for module in needed)))
    return list(found.values()), asked


def _depends(module: Elf) -> Iterator[str]:
    for value in _said(module, b"depends"):
        yield from (name.replace("-", "_") for name in value.split(",") if name)


def _aliases(module: Elf) -> Iterator[str]:
    """What it goes by besides its name; those of devices are patterns."""
    return (alias for alias in _said(module, b"alias") if not set(alias) & set("*?[ "))


def _said(module: Elf, wanted: bytes) -> Iterator[str]:
    for entry in (module.section(b".modinfo") or b"").split(b"\0"):
        key, _, value = entry.partition(b"=")
        if key == wanted:
            yield value.decode()


def _without_signature(image: bytes) -> bytes:
    if not image.endswith(_SIGNED):
        return image
    end = len(image) - len(_SIGNED)
    size = int.from_bytes(image[end - 4 : end], "big")
    return image[: end - _SIGNATURE - size] if size <= end - _SIGNATURE else image
