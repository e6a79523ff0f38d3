"""Layers with all that only root can make, through the process that unpacks them and the overlay that shows them."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forgeone_shim.deadline import NEVER
from forgeone_shim.errors import InvalidInput, ResourceExhausted
from forgeone_shim.fs.layers import LayerStore
from forgeone_shim.kernel.mounts import mount_tmpfs, unmount
from tests.unit.fs.archives import Member, diff_id, directory, hard_link, header, symlink, tar
from tests.unit.fs.test_extract import HOSTILE
from tests.unit.fs.test_tar import END, pax

pytestmark = pytest.mark.root

# VFS_CAP_REVISION_2 with the effective bit; permitted: CAP_NET_BIND_SERVICE.
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)

Unpack = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    store = LayerStore(tmp_path / "layers", sync_delay=3600)
    yield store
    store.close()


@pytest.fixture
def unpack(store: LayerStore) -> Unpack:
    def unpack(*members: Member | bytes) -> Path:
        if members and isinstance(members[0], bytes):
            archive = b"".join(member for member in members if isinstance(member, bytes))
        else:
            archive = tar(member for member in members if isinstance(member, Member))
        store.unpack(diff_id(archive), "gzip", io.BytesIO(gzip.compress(archive)), NEVER)
        return store.path(diff_id(archive))

    return unpack


def test_owners_and_every_mode_bit(unpack: Unpack) -> None:
    tree = unpack(
        directory("d", 0o2750, uid=1, gid=2),
        Member("d/suid", mode=0o4755, uid=1000, gid=1001),
        Member("d/sgid", mode=0o2711, uid=70_000, gid=3_000_000),
        directory("tmp", 0o1777),
        Member("s", type=tarfile.SYMTYPE, link="x", uid=5, gid=6),
    )
    found = {path.name: path.lstat() for path in tree.rglob("*")}
    assert {name: (oct(s.st_mode & 0o7777), s.st_uid, s.st_gid) for name, s in found.items() if name != "s"} == {
        "d": ("0o2750", 1, 2),
        "suid": ("0o4755", 1000, 1001),
        "sgid": ("0o2711", 70_000, 3_000_000),
        "tmp": ("0o1777", 0, 0),
    }
    assert (found["s"].st_uid, found["s"].st_gid) == (5, 6)


def test_device_nodes(unpack: Unpack) -> None:
    tree = unpack(
        Member("c", type=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
        Member("b", type=tarfile.BLKTYPE, device=(4095, 1_048_575), mode=0o600, uid=3),
    )
    c, b = (tree / "c").stat(), (tree / "b").stat()
    assert (stat.S_ISCHR(c.st_mode), c.st_rdev, c.st_mode & 0o7777) == (True, os.makedev(1, 3), 0o666)
    assert (stat.S_ISBLK(b.st_mode), b.st_rdev, b.st_uid) == (True, os.makedev(4095, 1_048_575), 3)


def test_file_capabilities_survive_owner_and_content(unpack: Unpack) -> None:
    archive = pax((b"SCHILY.xattr.security.capability", CAPABILITY), (b"uid", b"1000"))
    tree = unpack(archive + header(b"f", size=5, at_100=b"0004755\0") + b"hello".ljust(512, b"\0") + END)
    assert os.getxattr(tree / "f", "security.capability") == CAPABILITY
    assert (tree / "f").stat().st_mode & 0o7777 == 0o4755


def test_attributes_of_symlinks_directories_and_devices(unpack: Unpack) -> None:
    record = pax((b"SCHILY.xattr.trusted.x", b"v"))
    tree = unpack(
        record + header(b"d", b"5"),
        record + header(b"d/s", b"2", link=b"nowhere"),
        record + header(b"d/c", b"3", at_329=b"0000001\0", at_337=b"0000003\0"),
        END,
    )
    for name in ("d", "d/s", "d/c"):
        assert os.getxattr(tree / name, "trusted.x", follow_symlinks=False) == b"v"


def test_user_attributes_where_the_kernel_has_none_are_left_out(unpack: Unpack) -> None:
    tree = unpack(pax((b"SCHILY.xattr.user.x", b"v")) + header(b"s", b"2", link=b"nowhere"), END)
    assert (tree / "s").is_symlink()


def test_a_capability_the_kernel_refuses_is_refused(unpack: Unpack) -> None:
    with pytest.raises(InvalidInput, match="f"):
        unpack(pax((b"SCHILY.xattr.security.capability", b"junk")) + header(b"f"), END)


def test_opaque_directories(unpack: Unpack) -> None:
    tree = unpack(directory("a"), Member("a/.wh..wh..opq"), Member("b/.wh..wh..opq"), directory("c"), Member("c/f"))
    assert os.getxattr(tree / "a", "trusted.overlay.opaque") == b"y"
    assert os.getxattr(tree / "b", "trusted.overlay.opaque") == b"y"
    assert not os.listxattr(tree / "c")


@pytest.mark.parametrize("order", [1, -1])
def test_a_directory_in_place_of_a_deleted_one_hides_it(unpack: Unpack, order: int) -> None:
    tree = unpack(*[Member(".wh.d"), directory("d")][::order], Member("e/.wh.d"), Member("e/d/f"))
    assert os.getxattr(tree / "d", "trusted.overlay.opaque") == b"y"
    assert os.getxattr(tree / "e/d", "trusted.overlay.opaque") == b"y"


def test_what_gnu_tar_packs_comes_out_the_same(unpack: Unpack, store: LayerStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "dir/deep").mkdir(parents=True)
    (source / ("n" * 200)).write_text("long name")
    (source / "dir/f").write_text("x" * 100)
    (source / "dir/h").hardlink_to(source / "dir/f")
    (source / "dir/s").symlink_to("l" * 200 + "/" + "m" * 200)
    os.chown(source / "dir/f", 12, 34)
    os.setxattr(source / "dir/f", "user.k", b"v")
    with (source / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
        file.truncate(1 << 22)
    pax = ["--format=posix", "--xattrs"]
    for options in (["--format=gnu"], pax, [*pax, "--sparse-version=0.0"], [*pax, "--sparse-version=0.1"]):
        archive = subprocess.run(
            ["tar", "--sparse", *options, "-C", str(source), "-c", "."], check=True, stdout=subprocess.PIPE
        ).stdout
        store.unpack(diff_id(archive), "none", io.BytesIO(archive), NEVER)
        tree = store.path(diff_id(archive))
        for path in source.rglob("*"):
            copy, want = tree / path.relative_to(source), path.lstat()
            have = copy.lstat()
            keys = ("st_mode", "st_uid", "st_gid", "st_nlink") + (() if stat.S_ISDIR(want.st_mode) else ("st_size",))
            assert [getattr(have, key) for key in keys] == [getattr(want, key) for key in keys], path
            assert int(have.st_mtime) == int(want.st_mtime)
            if stat.S_ISREG(want.st_mode):
                assert copy.read_bytes() == path.read_bytes()
        assert (tree / "sparse").stat().st_blocks < 100
        if options != ["--format=gnu"]:
            assert os.getxattr(tree / "dir/f", "user.k") == b"v"


@pytest.mark.parametrize("case", HOSTILE)
def test_the_process_refuses_what_is_hostile_and_nothing_is_left(
    unpack: Unpack, store: LayerStore, tmp_path: Path, case: str
) -> None:
    (tmp_path / "outside").write_text("secret")
    with pytest.raises(InvalidInput):
        unpack(*HOSTILE[case])
    assert not list((tmp_path / "layers").iterdir())
    assert (tmp_path / "outside").stat().st_nlink == 1
    assert store.ids() == []


def test_a_full_disk_is_told_as_such_and_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount_tmpfs(disk, 4 << 20)
    try:
        store = LayerStore(disk, sync_delay=3600)
        data = tar([Member("big", bytes(8 << 20))])
        with pytest.raises(ResourceExhausted, match="big"):
            store.unpack(diff_id(data), "gzip", io.BytesIO(gzip.compress(data)), NEVER)
        assert not list(disk.iterdir())
    finally:
        unmount(disk)


def test_what_is_remembered_of_a_layer_is_not_in_this_process(store: LayerStore) -> None:
    one = b"".join(header(b"d%07d" % i + b"x" * 90, b"5") for i in range(2000))
    before = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    store.unpack(diff_id(one), "gzip", io.BytesIO(gzip.compress(one)), NEVER)
    after = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert int(after.split()[1]) - int(before.split()[1]) < 8 * 1024
    assert store.info(diff_id(one)).inodes == 2001


def test_hard_links_and_symlinks_in_one_tree(unpack: Unpack) -> None:
    tree = unpack(Member("a", b"x", mode=0o4755), hard_link("b", "a"), symlink("c", "/a"))
    assert (tree / "a").stat().st_nlink == 2
    assert (tree / "b").stat().st_mode & 0o7777 == 0o4755
