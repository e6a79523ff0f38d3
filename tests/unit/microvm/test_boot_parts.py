"""What a boot set is made from: archives, compressed kernels, modules in their order, packages."""

from __future__ import annotations

import gzip
import lzma
import stat
import struct
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from engines.microvm.boot import assembly, cpio, kernel, modules, package, sources, unpacking
from engines.microvm.boot.elf import Elf
from engines.microvm.boot.settings import BootSettings
from engines.microvm.boot.sources import Installed, Package
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import DeadlineExceeded, FailedPrecondition, InvalidInput
from tests.unit.microvm import boot_files as files

PATHS = st.text("abc/._", min_size=1, max_size=40)


def read_cpio(data: bytes) -> list[tuple[str, int, int, bytes]]:
    """Name, mode, links and content of each member, by the kernel's document."""
    found, at = [], 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        start = at + 110
        name = data[start : start + fields[11] - 1].decode()
        start += fields[11] + -(110 + fields[11]) % 4
        if name == "TRAILER!!!":
            return found
        found.append((name, fields[1], fields[4], data[start : start + fields[6]]))
        at = start + fields[6] + -fields[6] % 4


@given(st.lists(st.tuples(PATHS, st.binary(max_size=50), st.integers(0, 0o777))))
def test_an_archive_holds_its_entries(entries: list[tuple[str, bytes, int]]) -> None:
    made = cpio.archive([cpio.directory("dev"), *(cpio.file(path, data, mode) for path, data, mode in entries)])
    assert len(made) % 4 == 0
    assert read_cpio(made) == [
        ("dev", stat.S_IFDIR | 0o755, 2, b""),
        *((path, stat.S_IFREG | mode, 1, data) for path, data, mode in entries),
    ]


@pytest.mark.parametrize(
    "compress",
    [
        gzip.compress,
        lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
        zstandard.ZstdCompressor().compress,
        files.lz4_legacy,
    ],
)
@pytest.mark.parametrize("size", [0, 1000, 8 << 20, (8 << 20) + 5])
def test_every_compression_of_kernels_is_read_and_what_is_behind_is_not(compress, size: int) -> None:  # type: ignore[no-untyped-def]
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    assert unpacking.unpack(compress(data) + struct.pack("<I", size), "x") == data
    with pytest.raises(FailedPrecondition, match="x cannot be decompressed"):
        unpacking.unpack(compress(data + b"12345")[:-6], "x")


@given(st.sampled_from([b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18"]), st.binary())
def test_what_is_damaged_is_refused(magic: bytes, rest: bytes) -> None:
    try:
        unpacking.unpack(magic + rest, "x")
    except FailedPrecondition as error:
        assert "x cannot be decompressed" in str(error)


@pytest.mark.parametrize("sectors", [0, 4, 26])
def test_the_kernel_comes_out_of_its_image(sectors: int) -> None:
    image = files.kernel()
    found = kernel.extract(files.bzimage(lzma.compress(image), sectors=sectors), "vmlinuz")
    assert (found.image, found.release) == (image, files.RELEASE)
    assert kernel.extract(image, "vmlinux").release == files.RELEASE
    assert kernel.release(files.bzimage(b"not looked at", sectors=sectors), "vmlinuz") == files.RELEASE


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"MZ" + bytes(5000), "neither a bzImage nor an ELF file"),
        (files.bzimage(b"x", protocol=0x207), "of boot protocol 2.07"),
        (files.bzimage(b"\x1f\x8bno"), "cannot be decompressed"),
        (files.bzimage(lzma.compress(files.kernel()))[:2700], "is cut short"),
        (files.bzimage(gzip.compress(files.kernel(pvh=False))), "has no PVH entry"),
        (files.elf({4: files.PVH}), "does not say which release"),
        (files.kernel()[:70], "is no ELF file of 64 bits, or is cut short"),
    ],
)
def test_what_is_no_kernel_is_refused_with_the_reason(image: bytes, message: str) -> None:
    with pytest.raises(FailedPrecondition, match=message):
        kernel.extract(image, "vmlinuz")


@given(st.binary(), st.integers(0, 300))
def test_no_elf_file_leads_out_of_its_bytes(junk: bytes, at: int) -> None:
    image = bytearray(files.elf({4: files.PVH}, {".modinfo": b"depends=\0"}))
    image[at : at + len(junk)] = junk
    for data in (bytes(image), b"\x7fELF\x02\x01\x01" + junk):
        read = Elf(data, "x")
        for question in (read.enters_by_pvh, read.has_interpreter, lambda read=read: read.section(b".modinfo")):
            try:
                question()
            except FailedPrecondition as error:
                assert "is no ELF file" in str(error)


def tree(tmp_path: Path, contents: dict[str, bytes], builtin: str = "") -> modules.Tree:
    (tmp_path / "kernel/deep").mkdir(parents=True)
    for name, content in contents.items():
        (tmp_path / "kernel/deep" / name).write_bytes(content)
    (tmp_path / "modules.builtin").write_text(builtin)
    return modules.scan(tmp_path)


def test_modules_come_after_what_they_depend_on_once_each_and_as_the_guest_loads_them(tmp_path: Path) -> None:
    found = tree(
        tmp_path,
        {
            "virtio-rng.ko": files.module("virtio_rng", "virtio", "rng-core", signed=True),
            "virtio.ko.xz": lzma.compress(files.module("virtio", "virtio-ring")),
            "virtio_ring.ko.zst": zstandard.compress(files.module("virtio_ring")),
            "sd_mod.ko.gz": gzip.compress(files.module("sd_mod", "virtio")),
            "other.ko": b"not looked at",
        },
        builtin="kernel/drivers/char/hw_random/rng-core.ko\nkernel/fs/ext4/ext4.ko\n",
    )
    made = modules.resolve(("virtio_rng", "ext4", "sd_mod"), found)
    assert [module.name for module in made] == ["virtio_ring", "virtio", "virtio_rng", "sd_mod"]
    assert made[0].image == files.module("virtio_ring")
    assert made[2].image == files.module("virtio_rng", "virtio", "rng-core")


def test_modules_for_later_are_listed_by_every_word_that_a_kernel_asks_with(tmp_path: Path) -> None:
    found = tree(
        tmp_path,
        {
            "fuse.ko": files.module("fuse", "core"),
            "core.ko": files.module("core"),
            "bridge.ko": files.module("bridge", "stp", "core", aliases=("rtnl-link-bridge", "pci:v*d*")),
            "stp.ko": files.module("stp"),
        },
        builtin="kernel/drivers/net/veth.ko\n",
    )
    loaded = modules.resolve(("fuse",), found)
    more, asked = modules.later(("bridge", "veth", "other"), loaded, found)
    assert [module.name for module in more] == ["stp", "bridge"]
    assert asked == [("bridge", "stp", "bridge"), ("rtnl-link-bridge", "stp", "bridge")]
    archive = assembly.initrd(b"agent", loaded, more, asked, urgent=1)
    assert b"bridge /lib/modules/stp.ko /lib/modules/bridge.ko\nrtnl-link-bridge /lib" in archive
    held = {name: data for name, _, _, data in read_cpio(archive)}
    assert (held["modules"], held["rest"]) == (b"/lib/modules/core.ko\n", b"/lib/modules/fuse.ko\n")


def test_a_module_that_is_missing_is_named_with_who_needs_it(tmp_path: Path) -> None:
    found = tree(tmp_path, {"a.ko": files.module("a", "b"), "c.ko": files.module("c", "c"), "d.ko": b"no"})
    with pytest.raises(FailedPrecondition, match="no module b, which a depends on,"):
        modules.resolve(("a",), found)
    with pytest.raises(FailedPrecondition, match="module c depends on itself"):
        modules.resolve(("c",), found)
    with pytest.raises(FailedPrecondition, match="no ELF file"):
        modules.resolve(("d",), found)
    with pytest.raises(FailedPrecondition, match=r"has no modules\.builtin"):
        modules.scan(tmp_path / "kernel")


@pytest.mark.parametrize("prefix", ["./", "./usr/", "/"])
def test_a_package_gives_its_kernel_and_its_modules(tmp_path: Path, prefix: str) -> None:
    held = {name.replace("./lib", f"{prefix}lib"): data for name, data in files.package_files(wanted=("fuse",)).items()}
    found = package.unpack(files.deb(tmp_path / "k.deb", held), tmp_path / "work", NEVER)
    assert kernel.extract(found.kernel.read_bytes(), "k").release == files.RELEASE
    assert list(modules.scan(found.modules).files) == ["fuse"]
    assert not list(tmp_path.rglob("System.map"))


def test_what_is_no_kernels_package_is_refused(tmp_path: Path) -> None:
    good = files.package_files(wanted=("fuse",))

    def refused(path: Path, message: str) -> None:
        with pytest.raises(FailedPrecondition, match=message):
            package.unpack(path, tmp_path / f"work-{path.name}", NEVER)

    refused(files.deb(tmp_path / "a", good | {"./lib/modules/../../../../evil.ko": b"x"}), "a package's file is called")
    assert not list(tmp_path.rglob("evil.ko"))
    refused(files.deb(tmp_path / "b", good | {"./boot/vmlinuz-2": b"x"}), "holds 2 kernels")
    refused(files.deb(tmp_path / "c", {}), "holds 0 kernels and the modules of 0")
    refused(files.deb(tmp_path / "d", good, data="data.tar.lzo"), "no data.tar, or one of an unknown compression")
    (tmp_path / "e").write_bytes(b"PK")
    refused(tmp_path / "e", "is no Debian package")
    (tmp_path / "f").write_bytes(files.deb(tmp_path / "g", good).read_bytes()[:-300])
    refused(tmp_path / "f", "is no Debian package, or is damaged")
    with pytest.raises(DeadlineExceeded):
        package.unpack(tmp_path / "g", tmp_path / "late", Deadline.after(0))


def test_the_newest_kernel_with_modules_is_taken_and_a_package_where_there_is_none(tmp_path: Path) -> None:
    boot, lib, cache = tmp_path / "boot", tmp_path / "lib", tmp_path / "cache"
    boot.mkdir()
    cache.mkdir()

    def find(settings: BootSettings | None = None) -> Installed | Package:
        return sources.find(settings or BootSettings(), boot=boot, modules=lib, packages=cache)

    with pytest.raises(FailedPrecondition, match=r"no kernel for guests .*hack/kernel"):
        find()
    for version in ("6.1.0-9", "6.1.0-56"):
        (cache / f"linux-image-{version}.deb").touch()
    assert find() == Package(cache / "linux-image-6.1.0-56.deb")
    for version, complete in (("6.1.0-9", True), ("6.1.0-12", True), ("6.12.0-1", False)):
        (boot / f"vmlinuz-{version}").touch()
        (lib / version).mkdir(parents=True)
        if complete:
            (lib / version / "modules.builtin").touch()
    assert find() == Installed(boot / "vmlinuz-6.1.0-12", lib / "6.1.0-12")
    named = tmp_path / "bzImage"
    named.write_bytes(files.bzimage(b""))
    assert find(BootSettings(kernel=str(named))) == Installed(named, lib / files.RELEASE)
    assert find(BootSettings(kernel=str(named), modules_dir="/m")) == Installed(named, Path("/m"))
    for settings, message in (
        (BootSettings(kernel="/nowhere"), "microvm.kernel: /nowhere is no file"),
        (BootSettings(modules_dir="/m"), "microvm.modules_dir: is of a kernel"),
        (BootSettings(kernel=str(cache / "linux-image-6.1.0-9.deb"), modules_dir="/m"), "is of no use with a package"),
    ):
        with pytest.raises(InvalidInput, match=message):
            find(settings)
