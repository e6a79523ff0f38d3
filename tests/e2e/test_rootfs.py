"""Root file systems: what a container sees of its image's layers, and that nothing of it stays."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forgeone_shim.deadline import NEVER
from forgeone_shim.errors import InternalError, InvalidInput, NotFound
from forgeone_shim.fs.layers import LayerStore
from forgeone_shim.fs.rootfs import RootfsStore
from forgeone_shim.kernel import mounts
from tests.unit.fs.archives import Member, diff_id, directory, hard_link, symlink, tar

pytestmark = pytest.mark.root

Layer = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    store = LayerStore(tmp_path / "layers", sync_delay=3600)
    yield store
    store.close()


@pytest.fixture
def rootfs(tmp_path: Path, store: LayerStore) -> Iterator[RootfsStore]:
    descriptors = len(os.listdir("/proc/self/fd"))
    yield RootfsStore(tmp_path / "root", tmp_path / "state", store)
    left = mounts.mounts_below(tmp_path)
    for point in left:
        mounts.unmount(point)
    assert left == []
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.fixture
def layer(store: LayerStore) -> Layer:
    def layer(*members: Member) -> str:
        data = tar(members)
        store.unpack(diff_id(data), "none", io.BytesIO(data), NEVER)
        return diff_id(data)

    return layer


def test_a_kernel_without_the_new_mount_calls_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts.syscalls, "FSOPEN", 9999)
    assert not mounts.takes_layers_one_by_one.__wrapped__()


def seen(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_layers_show_as_one_and_writes_stay_with_the_container(layer: Layer, rootfs: RootfsStore) -> None:
    layers = [
        layer(directory("d"), Member("d/old"), Member("gone"), Member("both", b"1"), directory("o"), Member("o/x")),
        layer(Member(".wh.gone"), Member("both", b"2"), directory("o"), Member("o/.wh..wh..opq"), Member("o/y")),
    ]
    one, two = rootfs.mount("one", layers), rootfs.mount("two", layers, True)
    assert seen(one) == seen(two) == ["both", "d", "d/old", "o", "o/y"]
    assert (one / "both").read_bytes() == b"2"
    (one / "new").write_bytes(b"x" * 10_000)
    assert not (two / "new").exists()
    assert rootfs.usage("one")[0] - rootfs.usage("two")[0] >= 10_000
    assert rootfs.usage("one")[1] == 2
    for name in ("one", "two"):
        rootfs.remove(name)
        rootfs.remove(name)
    assert rootfs.usage("one") == (0, 0)


def test_the_root_directory_is_everyones_to_enter(layer: Layer, rootfs: RootfsStore) -> None:
    before = os.umask(0o077)
    try:
        status = rootfs.mount("c", [layer(directory(".", 0o700), Member("f"))]).stat()
    finally:
        os.umask(before)
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o755, 0, 0)
    rootfs.remove("c")


def test_mounting_twice_and_unmounting_twice_are_as_once(layer: Layer, rootfs: RootfsStore) -> None:
    layers = [layer(Member("f"))]
    root = rootfs.mount("c", layers)
    (root / "mine").touch()
    assert rootfs.mount("c", layers) == root
    rootfs.unmount("c")
    assert seen(root) == []
    rootfs.unmount("c")
    assert seen(rootfs.mount("c", layers)) == ["f", "mine"]
    rootfs.remove("c")


def test_the_same_layer_twice_and_no_layer_at_all(layer: Layer, rootfs: RootfsStore) -> None:
    base, over = layer(Member("f", b"base"), Member("g")), layer(Member("f", b"over"), Member(".wh.g"))
    assert (rootfs.mount("a", [base, over, base]) / "f").read_bytes() == b"base"
    assert seen(rootfs.mount("a2", [base, over, base])) == ["f", "g"]
    assert (rootfs.mount("b", [base, over, over]) / "f").read_bytes() == b"over"
    empty = rootfs.mount("c", [])
    (empty / "f").touch()
    for name in ("a", "a2", "b", "c"):
        rootfs.remove(name)


def test_an_opaque_root_hides_every_layer_below(layer: Layer, rootfs: RootfsStore) -> None:
    layers = [layer(Member("old")), layer(Member("f"), Member(".wh..wh..opq")), layer(Member("g"))]
    assert seen(rootfs.mount("c", layers)) == ["f", "g"]
    rootfs.remove("c")


def test_more_than_a_hundred_layers(layer: Layer, rootfs: RootfsStore) -> None:
    layers = [layer(Member(f"f{i}"), Member("same", b"%d" % i)) for i in range(110)]
    root = rootfs.mount("c", layers)
    assert len(seen(root)) == 111
    assert (root / "same").read_bytes() == b"109"
    rootfs.remove("c")


def test_mount_2_does_the_same_where_the_new_calls_are_missing(
    layer: Layer, rootfs: RootfsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [layer(Member(f"f{i}"), Member("same", b"%d" % i)) for i in range(110)]
    monkeypatch.setattr(mounts, "takes_layers_one_by_one", lambda: False)
    monkeypatch.setattr(mounts.syscalls, "FSOPEN", 9999)
    root = rootfs.mount("c", layers)
    assert len(seen(root)) == 111
    assert (root / "same").read_bytes() == b"109"
    rootfs.remove("c")


def test_a_root_whose_path_is_longer_than_the_kernel_takes_in_one_option(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 200) / ("y" * 200)
    store = LayerStore(deep / "layers", sync_delay=3600)
    data = tar([Member("f")])
    store.unpack(diff_id(data), "none", io.BytesIO(data), NEVER)
    rootfs = RootfsStore(deep / "root", tmp_path / "state", store)
    assert seen(rootfs.mount("c", [diff_id(data)])) == ["f"]
    rootfs.remove("c")
    store.close()


def test_parents_a_layer_only_implies_look_as_the_layer_below_has_them(layer: Layer, rootfs: RootfsStore) -> None:
    base = layer(
        directory("tmp", 0o1777, mtime=111),
        directory("srv", 0o2750, uid=7, gid=8, mtime=222),
        directory("srv/data", 0o700, uid=9, mtime=333),
        directory("hidden", 0o700),
        directory("replaced", 0o700),
    )
    middle = layer(Member("tmp/a"), Member("srv/data/x/f"), Member(".wh.hidden"), Member(".wh.replaced"))
    top = layer(Member("srv/data/y"), Member("hidden/f"), directory("replaced", 0o711), Member("new/f"))
    root = rootfs.mount("c", [base, middle, top])

    def look(name: str) -> tuple[str, int, int]:
        status = (root / name).stat()
        return oct(status.st_mode & 0o7777), status.st_uid, status.st_gid

    assert look("tmp") == ("0o1777", 0, 0)
    assert look("srv") == ("0o2750", 7, 8)
    assert look("srv/data") == ("0o700", 9, 0)
    assert look("srv/data/x") == look("hidden") == look("new") == ("0o755", 0, 0)
    assert look("replaced") == ("0o711", 0, 0)
    assert [int((root / name).stat().st_mtime) for name in ("tmp", "srv", "srv/data")] == [111, 222, 333]
    assert sorted(path.name for path in (root / "srv/data").iterdir()) == ["x", "y"]
    rootfs.remove("c")


def test_a_directory_only_implied_leaves_a_symlink_below_in_place(
    layer: Layer, rootfs: RootfsStore, tmp_path: Path
) -> None:
    base = layer(
        directory("usr", 0o751, mtime=111),
        directory("usr/bin", 0o711, mtime=222),
        Member("usr/bin/old", b"old"),
        Member("usr/bin/gone", b"gone"),
        Member("usr/bin/was", b"was"),
        directory("run", 0o700),
        symlink("bin", "usr/bin"),
        symlink("sbin", "bin"),
        symlink("var/run", "/run"),
        symlink("lib", "usr/lib"),
        symlink("explicit", "usr/bin"),
        symlink("hidden", "usr/bin"),
        symlink("circle", "circle"),
        symlink("to-file", "usr/bin/old"),
        symlink("up", "../../../usr"),
    )
    middle = layer(
        Member("bin/tool", b"tool", mode=0o4755, uid=5),
        Member("bin/.wh.gone"),
        Member("bin/was/f", b"f"),
        Member("sbin/deep/er", b"deep"),
        directory("sbin/own", 0o1700, uid=6, mtime=333),
        Member("sbin/own/f", b"own"),
        Member("var/run/pid", b"1"),
        Member("lib/new", b"new"),
        directory("explicit"),
        Member("explicit/f", b"f"),
        Member(".wh.hidden"),
        Member("hidden/f", b"f"),
        Member("circle/f", b"f"),
        Member("to-file/f", b"f"),
        Member("up/bin/up", b"up"),
        hard_link("bin/again", "bin/tool"),
    )
    top = layer(Member("usr/bin/tool", b"newer"), Member("bin/top", b"top"))
    root = rootfs.mount("c", [base, middle, top])
    links = ("bin", "sbin", "var/run", "lib", "up")
    assert [str((root / name).readlink()) for name in links] == [
        "usr/bin",
        "bin",
        "/run",
        "usr/lib",
        "../../../usr",
    ]
    for name in ("explicit", "hidden", "circle", "to-file"):
        assert (root / name).is_dir()
        assert not (root / name).is_symlink()
        assert seen(root / name) == ["f"]
    names = sorted(path.name for path in (root / "usr/bin").iterdir())
    assert names == ["again", "deep", "old", "own", "tool", "top", "up", "was"]
    assert (root / "usr/bin/tool").read_bytes() == b"newer"
    assert (root / "usr/bin/again").read_bytes() == b"tool"
    assert (root / "usr/bin/again").stat().st_mode & 0o7777 == 0o4755
    assert (root / "usr/bin/deep/er").read_bytes() == b"deep"
    assert seen(root / "usr/bin/was") == ["f"]
    own = (root / "usr/bin/own").stat()
    assert (own.st_mode & 0o7777, own.st_uid, int(own.st_mtime)) == (0o1700, 6, 333)
    assert (root / "run/pid").read_bytes() == b"1"
    assert (root / "usr/lib/new").read_bytes() == b"new"
    for name, mode, mtime in (("usr", 0o751, 111), ("usr/bin", 0o711, 222)):
        status = (root / name).stat()
        assert (status.st_mode & 0o7777, int(status.st_mtime)) == (mode, mtime)
    assert (root / "run").stat().st_mode & 0o7777 == 0o700
    # Written in the container, the layer stays as it is.
    (root / "bin/again").write_bytes(b"changed")
    other = rootfs.mount("d", [base, middle])
    assert (other / "bin/again").read_bytes() == (other / "usr/bin/tool").read_bytes() == b"tool"
    rootfs.unmount("c")
    assert (rootfs.mount("c", [base, middle, top]) / "usr/bin/again").read_bytes() == b"changed"
    for name in ("c", "d"):
        rootfs.remove(name)
    assert not list((tmp_path / "root/containers").iterdir())


def test_an_image_volume_is_its_layers_for_nobody_to_write_to(
    layer: Layer, rootfs: RootfsStore, tmp_path: Path
) -> None:
    base = layer(
        directory("d", 0o700), Member("d/f", b"base"), Member("d/gone"), symlink("l", "/d"), symlink("bin", "d")
    )
    over = layer(Member("d/.wh.gone"), Member("bin/tool", b"tool"), symlink("out", "/../../etc"))
    root = rootfs.mount_image("c", "0", [base, over])
    assert root == tmp_path / "state/containers/c/images/0"
    assert sorted(path.name for path in (root / "d").iterdir()) == ["f", "tool"]
    assert (root / "d").stat().st_mode & 0o7777 == 0o700
    with pytest.raises(OSError, match="Read-only"):
        (root / "d/x").touch()
    assert rootfs.mount_image("c", "0", [base, over], "l/f") == root / "d/f"
    assert rootfs.mount_image("c", "0", [base, over], "l/../../../d") == root / "d"
    for missing in ("nothing", "d/f/x", "out", "out/hostname"):
        with pytest.raises(InvalidInput, match="image_sub_path"):
            rootfs.mount_image("c", "0", [base, over], missing)
    assert seen(rootfs.mount_image("c", "1", [])) == []
    assert seen(rootfs.mount_image("c", "2", [layer(Member("one"))])) == ["one"]
    rootfs.unmount("c")
    assert mounts.mounts_below(tmp_path) == []
    assert (rootfs.mount_image("c", "0", [base, over]) / "d/f").read_bytes() == b"base"
    rootfs.remove("c")
    assert mounts.mounts_below(tmp_path) == []
    assert not list((tmp_path / "root/containers").iterdir())


def test_an_image_volume_by_mount_2(layer: Layer, rootfs: RootfsStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "takes_layers_one_by_one", lambda: False)
    monkeypatch.setattr(mounts.syscalls, "FSOPEN", 9999)
    root = rootfs.mount_image("c", "0", [layer(Member("f", b"f"))])
    assert (root / "f").read_bytes() == b"f"
    with pytest.raises(OSError, match="Read-only"):
        (root / "x").touch()
    rootfs.remove("c")


def test_what_cannot_be_mounted_leaves_nothing(layer: Layer, rootfs: RootfsStore, tmp_path: Path) -> None:
    there = layer(Member("f"))
    with pytest.raises(NotFound):
        rootfs.mount("c", [there, "sha256:" + "0" * 64])
    with pytest.raises(InvalidInput):
        rootfs.mount("../c", [there])
    (tmp_path / "state/containers/c").mkdir(parents=True)
    (tmp_path / "state/containers/c/rootfs").write_text("in the way")
    with pytest.raises(InternalError):
        rootfs.mount("c", [there])
    assert not list((tmp_path / "root/containers").iterdir())


def test_too_many_layers_are_refused_by_number(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="501"):
        mounts.mount_overlay(tmp_path, [tmp_path] * 501, tmp_path, tmp_path)


def test_removal_follows_no_link_a_container_left(layer: Layer, rootfs: RootfsStore, tmp_path: Path) -> None:
    (tmp_path / "precious/dir").mkdir(parents=True)
    (tmp_path / "precious/file").touch()
    root = rootfs.mount("c", [layer(symlink("in-layer", "/"), Member("d/f"))])
    (root / "out").symlink_to(tmp_path / "precious")
    (root / "d/out").symlink_to("../../../../../../precious")
    (root / "d/f").unlink()
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    (root / "x/y/z").mkdir(parents=True)
    rootfs.remove("c")
    assert seen(tmp_path / "precious") == ["dir", "file"]
    assert not list((tmp_path / "root/containers").iterdir())


def test_a_container_that_still_uses_its_root_does_not_keep_it(layer: Layer, rootfs: RootfsStore) -> None:
    root = rootfs.mount("c", [layer(Member("f", b"x"))])
    with (root / "f").open("rb") as held:
        rootfs.remove("c")
        assert held.read() == b"x"
        assert seen(root) == []


def test_binds_and_tmpfs(tmp_path: Path) -> None:
    source, target = tmp_path / "source dir", tmp_path / "target\tdir"
    (source / "sub").mkdir(parents=True)
    target.mkdir()
    mounts.mount_tmpfs(source / "sub", 1 << 20, 0o700)
    (source / "sub/f").touch()
    mounts.bind(source, target, readonly=True, recursive=True)
    try:
        *inner, outer = mounts.mounts_below(tmp_path)
        assert (set(inner), outer) == ({str(target / "sub"), str(source / "sub")}, str(target))
        for name in ("x", "sub/x"):
            with pytest.raises(OSError, match="Read-only"):
                (target / name).touch()
        (source / "sub/x").touch()
    finally:
        mounts.unmount(target)
        mounts.unmount(source / "sub")
    assert mounts.mounts_below(tmp_path) == []
    mounts.unmount(target)
    mounts.unmount(tmp_path / "nothing")
    with pytest.raises(InternalError, match="nothing"):
        mounts.bind(source, tmp_path / "nothing")


def test_opening_in_a_root_stays_in_it(tmp_path: Path) -> None:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/f").write_text("inside")
    (tmp_path / "root/l").symlink_to("/etc/f")
    (tmp_path / "root/up").symlink_to("../../../../etc/f")
    (tmp_path / "root/magic").symlink_to("/proc/self/root/etc/hostname")
    for name in ("etc/f", "/etc/f", "l", "up", "../../etc/f"):
        fd = mounts.open_in_root(tmp_path / "root", name)
        assert os.read(fd, 100) == b"inside"
        assert not os.get_inheritable(fd)
        os.close(fd)
    with pytest.raises(FileNotFoundError):
        mounts.open_in_root(tmp_path / "root", "magic")
