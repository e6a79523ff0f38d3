from __future__ import annotations

import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgeone_shim.errors import ForgeError, InvalidInput
from forgeone_shim.fs.extract import Extractor
from forgeone_shim.fs.trees import remove_tree
from tests.unit.fs.archives import Member, directory, extract, hard_link, header, pax_record, symlink, tar
from tests.unit.fs.test_tar import END, SPARSE, mutations, pax

Unpack = Callable[..., Extractor]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "root").mkdir()
    (tmp_path / "trash").mkdir()
    yield tmp_path / "root"
    # Some trees are deeper than what pytest can remove when it tidies up.
    parent = os.open(tmp_path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        remove_tree(parent, "root")
    finally:
        os.close(parent)


@pytest.fixture
def unpack(root: Path) -> Unpack:
    def unpack(*members: Member | bytes) -> Extractor:
        if members and isinstance(members[0], bytes):
            archive = b"".join(member for member in members if isinstance(member, bytes))
        else:
            archive = tar(member for member in members if isinstance(member, Member))
        return extract(archive, root, root.parent / "trash")

    return unpack


def test_files_directories_links_and_fifos(unpack: Unpack, root: Path) -> None:
    unpack(
        directory("d", 0o750),
        Member("d/f", b"x" * 5000, mode=0o4755, mtime=123.5),
        symlink("d/s", "../../outside"),
        hard_link("h", "d/f"),
        Member("p", type=tarfile.FIFOTYPE, mode=0o622),
    )
    assert (root / "d/f").read_bytes() == b"x" * 5000
    assert stat.S_IMODE((root / "d/f").stat().st_mode) == 0o4755
    assert (root / "d/f").stat().st_mtime_ns == 123_500_000_000
    assert (root / "d/s").readlink() == Path("../../outside")
    assert (root / "h").stat().st_ino == (root / "d/f").stat().st_ino
    assert stat.S_ISFIFO((root / "p").stat().st_mode)
    assert stat.S_IMODE((root / "p").stat().st_mode) == 0o622


def test_times_of_directories_survive_what_is_put_into_them(unpack: Unpack, root: Path) -> None:
    unpack(directory("a", mtime=100), directory("a/b", mtime=200), Member("a/b/f"), Member("a/g"), symlink("s", "x"))
    assert ((root / "a").stat().st_mtime, (root / "a/b").stat().st_mtime) == (100, 200)
    assert (root / "s").lstat().st_mtime == 1_000_000_000


def test_a_hard_link_keeps_the_content_that_a_later_entry_replaces(unpack: Unpack, root: Path) -> None:
    unpack(Member("a", b"one"), hard_link("b", "a"), Member("a", b"two"))
    assert ((root / "a").read_bytes(), (root / "b").read_bytes()) == (b"two", b"one")


def test_a_hard_link_may_name_its_target_from_the_root(unpack: Unpack, root: Path) -> None:
    unpack(Member("d/a", b"one"), hard_link("b", "/d/a"), hard_link("b", "./d/a"), hard_link("d/a", "d/a"))
    assert (root / "b").stat().st_nlink == 2


def test_a_hard_link_may_replace_the_directory_its_target_is_in(unpack: Unpack, root: Path) -> None:
    unpack(Member("d/a", b"one"), hard_link("d", "d/a"))
    assert (root / "d").read_bytes() == b"one"


def test_a_hard_link_to_a_symlink_is_the_symlink(unpack: Unpack, root: Path) -> None:
    unpack(symlink("s", "nowhere"), hard_link("t", "s"))
    assert (root / "t").readlink() == Path("nowhere")


KINDS = [
    directory("x"),
    Member("x", b"data"),
    symlink("x", "elsewhere"),
    hard_link("x", "f"),
    Member("x", type=tarfile.FIFOTYPE),
]


@pytest.mark.parametrize("first", KINDS, ids=lambda member: f"from-{member.type!r}")
@pytest.mark.parametrize("second", KINDS, ids=lambda member: f"to-{member.type!r}")
def test_an_entry_replaces_an_earlier_one_of_any_type(
    unpack: Unpack, root: Path, first: Member, second: Member
) -> None:
    more = [Member("x/deep/inside")] if first.type == tarfile.DIRTYPE else []
    extractor = unpack(Member("f", b"target"), first, *more, second)
    mode = (root / "x").lstat().st_mode
    expected = {b"5": stat.S_ISDIR, b"0": stat.S_ISREG, b"2": stat.S_ISLNK, b"1": stat.S_ISREG, b"6": stat.S_ISFIFO}
    assert expected[second.type](mode)
    assert (root / "f").read_bytes() == b"target"
    assert not list((root.parent / "trash").iterdir())
    assert (root / "x/deep").exists() == (first.type == second.type == tarfile.DIRTYPE)
    assert extractor.replaced != (first.type == second.type == tarfile.DIRTYPE)


def test_a_repeated_directory_keeps_its_content_and_takes_the_later_mode(unpack: Unpack, root: Path) -> None:
    unpack(directory("d", 0o700), Member("d/f"), directory("d", 0o1777, mtime=5))
    assert (root / "d/f").exists()
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o1777
    assert (root / "d").stat().st_mtime == 5


def test_parents_that_are_absent_are_made_and_told_of(unpack: Unpack, root: Path) -> None:
    extractor = unpack(Member("a/b/f"), directory("c/d"), Member("e/f"), directory("e", 0o700))
    assert stat.S_IMODE((root / "a/b").stat().st_mode) == 0o755
    assert sorted(extractor.implied) == [b"a", b"a/b", b"c"]


def test_parents_without_an_entry_are_bounded(unpack: Unpack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forgeone_shim.fs.extract._MAX_IMPLIED", 100)
    unpack(*(directory(f"d{i}") for i in range(100)))
    with pytest.raises(InvalidInput, match="too many"):
        unpack(*(Member(f"e{i}/f") for i in range(100)))


def test_the_root_entry_changes_nothing(unpack: Unpack, root: Path) -> None:
    before = root.stat().st_mode
    unpack(directory("./", 0o000), directory("/", 0o777), Member("./f"))
    assert root.stat().st_mode == before
    assert (root / "f").exists()


@pytest.mark.parametrize("form", SPARSE)
def test_sparse_files_have_their_holes(unpack: Unpack, root: Path, form: str) -> None:
    unpack(SPARSE[form] + header(b"next") + END)
    data = (root / "s").read_bytes()
    assert len(data) == 8192
    assert data.replace(b"\0", b"") == b"abc"
    assert data[4096] == ord("a")
    assert (root / "next").exists()


def test_a_file_that_is_all_hole_takes_no_room(unpack: Unpack, root: Path) -> None:
    unpack(pax((b"GNU.sparse.size", b"1073741824"), (b"GNU.sparse.map", b"0,0")) + header(b"s") + END)
    assert ((root / "s").stat().st_size, (root / "s").stat().st_blocks) == (1 << 30, 0)


def test_extended_attributes_of_users(unpack: Unpack, root: Path) -> None:
    unpack(pax((b"SCHILY.xattr.user.x", b"a\0=\n")) + header(b"f") + END)
    assert os.getxattr(root / "f", "user.x") == b"a\0=\n"


def test_very_deep_paths_use_few_descriptors(unpack: Unpack, root: Path) -> None:
    deep = "/".join("d" * 1500)
    unpack(*(directory(f"{deep}/{i}") for i in range(3)), Member(f"{deep}/f", b"x"), hard_link("l", f"{deep}/f"))
    assert (root / "l").read_bytes() == b"x"


def test_many_directories_use_few_descriptors(unpack: Unpack, root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    unpack(*(Member(f"{i % 700}/{i}") for i in range(2000)))
    assert sum(1 for _ in root.rglob("*")) == 2700
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_whiteout_becomes_a_device_overlayfs_knows(unpack: Unpack, root: Path) -> None:
    unpack(Member("d/.wh.gone"), Member(".wh.x y"))
    for name in ("d/gone", "x y"):
        status = (root / name).lstat()
        assert stat.S_ISCHR(status.st_mode)
        assert status.st_rdev == 0


def test_what_a_layer_itself_has_wins_over_its_whiteout(unpack: Unpack, root: Path) -> None:
    unpack(Member(".wh.a"), Member("a", b"new"), Member("b", b"new"), Member(".wh.b"))
    assert ((root / "a").read_bytes(), (root / "b").read_bytes()) == (b"new", b"new")


def test_an_opaque_root_is_told(unpack: Unpack, root: Path) -> None:
    assert unpack(Member(".wh..wh..opq"), Member("f")).opaque_root
    assert not unpack(Member("g")).opaque_root


def test_metadata_of_aufs_is_passed_over(unpack: Unpack, root: Path) -> None:
    unpack(directory(".wh..wh.plnk"), Member(".wh..wh.plnk/1.2", b"x" * 600), Member("d/.wh..wh.aufs"), Member("f"))
    assert sorted(path.name for path in root.iterdir()) == ["f"]


def tree_of(root: Path) -> dict[str, str]:
    """Every path and what it is."""
    return {
        str(path.relative_to(root)): f"-> {path.readlink()}"
        if path.is_symlink()
        else "directory"
        if path.is_dir()
        else path.read_text()
        if path.is_file()
        else "special"
        for path in sorted(root.rglob("*"))
    }


def test_what_is_below_a_symlink_goes_where_it_leads(unpack: Unpack, root: Path) -> None:
    extractor = unpack(
        symlink("bin", "usr/bin"),
        symlink("sbin", "./usr//./bin"),
        Member("bin/sh", b"sh"),
        Member("sbin/init", b"init"),
        directory("usr/bin", 0o700, mtime=77),
        directory("opt", mtime=78),
        symlink("opt/up", "../usr/lib/../bin"),
        Member("opt/up/deep/er", b"deep"),
        hard_link("bin/ash", "sbin/sh"),
        symlink("here", "."),
        Member("here/f", b"f"),
    )
    assert tree_of(root) == {
        "bin": "-> usr/bin",
        "f": "f",
        "here": "-> .",
        "opt": "directory",
        "opt/up": "-> ../usr/lib/../bin",
        "sbin": "-> usr/bin",
        "usr": "directory",
        "usr/bin": "directory",
        "usr/bin/ash": "sh",
        "usr/bin/deep": "directory",
        "usr/bin/deep/er": "deep",
        "usr/bin/init": "init",
        "usr/bin/sh": "sh",
    }
    assert (root / "usr/bin").stat().st_mtime == 77
    assert (root / "usr/bin/ash").stat().st_nlink == 2
    assert sorted(extractor.implied) == [b"usr", b"usr/bin/deep"]


def test_an_entry_of_a_directory_replaces_the_symlink(unpack: Unpack, root: Path) -> None:
    unpack(symlink("bin", "usr/bin"), Member("bin/old", b"o"), directory("bin"), Member("bin/new", b"n"))
    assert tree_of(root) == {
        "bin": "directory",
        "bin/new": "n",
        "usr": "directory",
        "usr/bin": "directory",
        "usr/bin/old": "o",
    }


def test_a_symlink_that_changes_leads_later_entries_elsewhere(unpack: Unpack, root: Path) -> None:
    unpack(symlink("a", "x"), Member("a/f", b"1"), symlink("a", "y"), Member("a/f", b"2"), Member("x/g", b"3"))
    assert (root / "x/f").read_text() == "1"
    assert (root / "y/f").read_text() == "2"
    assert (root / "x/g").read_text() == "3"


def test_a_directory_that_became_a_symlink_keeps_no_entries(unpack: Unpack, root: Path) -> None:
    unpack(directory("a/b", mtime=5), directory("c/b", mtime=6), symlink("a", "c"), Member("a/b/f", b"f"))
    assert tree_of(root) == {"a": "-> c", "c": "directory", "c/b": "directory", "c/b/f": "f"}
    assert (root / "c/b").stat().st_mtime == 6


def test_whiteouts_below_a_symlink_are_where_it_leads(unpack: Unpack, root: Path) -> None:
    extractor = unpack(symlink("bin", "usr/bin"), Member("bin/.wh.gone"), symlink("here", "."), Member("here/.wh.x"))
    for name in ("usr/bin/gone", "x"):
        assert stat.S_ISCHR((root / name).lstat().st_mode)
    assert not extractor.opaque_root
    assert unpack(symlink("top", "."), Member("top/.wh..wh..opq")).opaque_root


# Only root may make a directory opaque.
@pytest.mark.root
def test_a_symlink_may_lead_through_what_is_whited_out(unpack: Unpack, root: Path) -> None:
    unpack(Member(".wh.usr"), symlink("bin", "usr/bin"), Member("bin/sh", b"sh"))
    assert (root / "usr/bin/sh").read_text() == "sh"


HOSTILE = {
    "dot dot": [Member("../evil")],
    "dot dot inside": [Member("a/../../evil")],
    "dot dot at the end": [directory("a/..")],
    "absolute": [Member("/evil")],
    "absolute directory": [directory("/a/b")],
    "absolute symlinked parent": [symlink("a", "/tmp"), Member("a/evil")],
    "relative symlinked parent": [symlink("a", ".."), Member("a/evil")],
    "symlinked parent that comes back": [directory("d"), symlink("a", "../root/d"), Member("a/evil")],
    "symlink to an absolute path inside": [directory("d"), symlink("a", "/d"), Member("a/evil")],
    "symlink out of a directory": [directory("d"), symlink("d/a", "../.."), Member("d/a/evil")],
    "symlinks that lead out together": [symlink("a", "b/.."), symlink("b", ".."), Member("a/evil")],
    "symlinks in a circle": [symlink("a", "b"), symlink("b", "a"), Member("a/evil")],
    "symlink to itself": [symlink("a", "a"), Member("a/evil")],
    "symlink to a file": [Member("f"), symlink("a", "f"), Member("a/evil")],
    "symlink past a file": [Member("f"), symlink("a", "f/../d"), Member("a/evil")],
    "symlink to a whiteout's name": [symlink("a", ".wh.x"), Member("a/evil")],
    "too many symlinks": [*(symlink(f"s{i}", f"s{i + 1}") for i in range(50)), Member("s0/evil")],
    "too deep through a symlink": [symlink("a", "/".join("d" * 200)), Member("a/evil")],
    "magic link": [symlink("a", "/proc/self/cwd"), Member("a/evil")],
    "hard link through a symlink out": [symlink("a", ".."), hard_link("evil", "a/outside")],
    "hard link into a symlink out": [Member("f"), symlink("a", ".."), hard_link("a/evil", "f")],
    "whiteout through a symlink up": [symlink("a", ".."), Member("a/.wh.outside")],
    "opaque through a symlink up": [symlink("a", ".."), Member("a/.wh..wh..opq")],
    "symlinked grandparent": [symlink("a", "/"), Member("a/tmp/evil")],
    "directory through a symlink": [symlink("a", "/tmp"), directory("a/evil")],
    "whiteout through a symlink": [symlink("a", "/tmp"), Member("a/.wh.evil")],
    "opaque through a symlink": [symlink("a", "/tmp"), Member("a/.wh..wh..opq")],
    "file for a parent": [Member("a"), Member("a/evil")],
    "fifo for a parent": [Member("a", type=tarfile.FIFOTYPE), Member("a/evil")],
    "hard link out": [hard_link("evil", "../outside")],
    "hard link to an absolute path": [hard_link("evil", "/etc/hostname")],
    "hard link through a symlink": [symlink("a", "/etc"), hard_link("evil", "a/hostname")],
    "hard link to nothing": [hard_link("evil", "nothing")],
    "hard link to a directory": [directory("d"), hard_link("evil", "d")],
    "hard link to the root": [hard_link("evil", "/")],
    "hard link to what is whited out": [Member(".wh.x"), hard_link("evil", "x")],
    "whiteout of nothing": [Member("d/.wh.")],
    "whiteout of dot": [Member("d/.wh..")],
    "whiteout of dot dot": [Member("d/.wh...")],
    "whiteout as a directory": [Member(".wh.x/f")],
    "root that is a file": [Member("./", b"")],
    "root that is a symlink": [symlink(".", "/tmp")],
    "name too long for a file": [Member("x" * 300)],
    "symlink to nothing": [symlink("evil", "")],
    "attributes of overlayfs": [
        Member("f", pax={"SCHILY.xattr.trusted.overlay.redirect": "/etc"}),
    ],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_points_outside_or_makes_no_sense_is_refused(unpack: Unpack, root: Path, case: str) -> None:
    (root.parent / "outside").write_text("secret")
    before = set(root.parent.rglob("*")) | set(Path("/tmp").glob("evil*"))
    with pytest.raises(InvalidInput):
        unpack(*HOSTILE[case])
    after = {path for path in root.parent.rglob("*") if root not in path.parents} | set(Path("/tmp").glob("evil*"))
    assert after == before
    assert (root.parent / "outside").stat().st_nlink == 1


def test_a_full_disk_is_no_fault_of_the_layer(unpack: Unpack, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ForgeError) as caught:
        unpack(Member("f", b"x"))
    assert caught.value.kind == "exhausted"


component = st.sampled_from(["a", "b", "..", ".", "", "/", ".wh.a", ".wh..wh..opq", ".wh...", "x" * 256, "c\n", "é"])
path = st.lists(component, min_size=1, max_size=4).map("/".join)
kind = st.sampled_from([b"0", b"1", b"2", b"3", b"5", b"6", b"7"])


@st.composite
def hostile_archives(draw: st.DrawFn) -> bytes:
    """Entries with names, links and types that have nothing to do with each other."""
    parts = []
    for _ in range(draw(st.integers(1, 8))):
        type_ = draw(kind)
        size = draw(st.integers(0, 600)) if type_ in b"07" else 0
        link = draw(
            st.one_of(path, st.sampled_from(["/etc", "/tmp", "..", "a/b", "/", "../outside", "b/../..", "./b"]))
        )
        parts.append(pax((b"linkpath", link.encode()), (b"path", draw(path).encode())))
        # A device 1:7 (full) where it is a device: only root may make it.
        parts.append(header(b"-", type_, size, at_100=b"0000755\0", at_329=b"0000001\0", at_337=b"0000007\0"))
        parts.append(bytes(size + -size % 512))
    return b"".join(parts) + END


@settings(max_examples=300, deadline=None)
@given(st.one_of(hostile_archives(), mutations()))
def test_nothing_hostile_leaves_the_root_or_crashes(archive: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        for part in ("root", "trash"):
            (base / part).mkdir()
        (base / "outside").write_text("secret")
        try:
            extract(archive, base / "root", base / "trash")
        except ForgeError:
            pass
        else:
            assert not list((base / "trash").iterdir())
        assert sorted(path.name for path in base.iterdir()) == ["outside", "root", "trash"]
        assert (base / "outside").read_text() == "secret"
        assert (base / "outside").stat().st_nlink == 1


few = st.sampled_from(["a", "b", "c"])
short = st.lists(few, min_size=1, max_size=3).map("/".join)
leading = st.lists(st.sampled_from(["a", "b", "c", "..", "..", ".", ""]), min_size=1, max_size=4).map("/".join)


@st.composite
def linked_members(draw: st.DrawFn) -> Member:
    """An entry whose parents may be symlinks by then."""
    name = draw(short)
    return draw(
        st.sampled_from(
            [
                symlink(name, draw(leading.filter(bool))),
                Member(name, b"x"),
                directory(name),
                hard_link(name, draw(short)),
                Member(f"{name}/.wh.a"),
                Member(f"{name}/f", b"x"),
            ]
        )
    )


@settings(max_examples=500, deadline=None)
@given(st.lists(linked_members(), min_size=2, max_size=8))
def test_symlinked_parents_never_lead_out(members: list[Member]) -> None:
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        for part in ("root", "trash", "a", "b", "c"):
            (base / part).mkdir()
        before = {path: path.lstat() for path in base.iterdir() if path.name not in ("root", "trash")}
        archive = tar(members)
        with suppress(InvalidInput):
            extract(archive, base / "root", base / "trash")
        assert {path: path.lstat() for path in base.iterdir() if path.name not in ("root", "trash")} == before


def test_pax_records_of_the_helper_are_well_formed() -> None:
    assert pax_record(b"path", b"abc") == b"12 path=abc\n"
