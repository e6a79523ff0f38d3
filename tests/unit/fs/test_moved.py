from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from forgeone_shim.errors import InvalidInput
from forgeone_shim.fs.layers import Lower
from forgeone_shim.fs.moved import follow
from tests.unit.fs.archives import Member, directory, extract, symlink, tar
from tests.unit.fs.test_extract import linked_members, tree_of


def layer(base: Path, name: str, *members: Member) -> Lower:
    (base / name).mkdir()
    (base / "trash").mkdir(exist_ok=True)
    extractor = extract(tar(members), base / name, base / "trash")
    return Lower(base / name, frozenset(extractor.implied), extractor.opaque_root)


def test_nothing_comes_between_layers_that_need_nothing(tmp_path: Path) -> None:
    layers = [
        layer(tmp_path, "top", Member("bin/tool"), Member("usr/lib/x")),
        layer(tmp_path, "base", directory("bin"), symlink("lib", "usr/lib")),
    ]
    assert follow(layers, tmp_path / "moved") == layers
    assert not (tmp_path / "moved").exists()


def test_a_symlink_of_a_lower_layer_stays_and_is_followed(tmp_path: Path) -> None:
    layers = [
        layer(tmp_path, "top", Member("bin/tool", b"tool"), Member("bin/a/b", b"b")),
        layer(tmp_path, "middle", symlink("usr/bin", "../sys")),
        layer(tmp_path, "base", symlink("bin", "/usr/bin")),
    ]
    above, *rest = follow(layers, tmp_path / "moved")
    assert rest == layers
    assert tree_of(above.tree) == {
        "bin": "-> /usr/bin",
        "sys": "directory",
        "sys/a": "directory",
        "sys/a/b": "b",
        "sys/tool": "tool",
    }
    assert above.implied == {b"sys", b"sys/a"}
    assert (above.tree / "sys/tool").stat().st_ino == (tmp_path / "top/bin/tool").stat().st_ino


def test_a_symlink_hidden_by_a_layer_between_is_not_followed(tmp_path: Path) -> None:
    layers = [
        layer(tmp_path, "top", Member("bin/tool", b"tool")),
        layer(tmp_path, "middle", directory("bin")),
        layer(tmp_path, "base", symlink("bin", "usr/bin")),
    ]
    assert follow(layers, tmp_path / "moved") == layers


def test_symlinks_that_lead_nowhere_are_replaced_by_the_directory(tmp_path: Path) -> None:
    layers = [
        layer(tmp_path, "top", *(Member(f"{name}/f") for name in ("circle", "file", "past"))),
        layer(
            tmp_path,
            "base",
            Member("plain"),
            symlink("circle", "circle"),
            symlink("file", "plain"),
            symlink("past", "plain/x"),
        ),
    ]
    assert follow(layers, tmp_path / "moved") == layers


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(linked_members(), min_size=1, max_size=4), min_size=2, max_size=4))
def test_no_symlink_of_any_layer_leads_out(archives: list[list[Member]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        outside = Path(name)
        for part in ("a", "b", "c", "in", "in/a", "in/b", "in/c"):
            (outside / part).mkdir()
        layers = []
        for number, members in enumerate(archives):
            with suppress(InvalidInput):
                layers.append(layer(outside / "in", f"l{number}", *members))
        before = [tree_of(one.tree) for one in layers]
        # Names in each other's way refuse the image.
        with suppress(OSError):
            found = follow(layers, outside / "in/moved")
            assert [one for one in found if one in layers] == layers
        assert [tree_of(one.tree) for one in layers] == before
        assert {path.name for path in outside.iterdir()} == {"a", "b", "c", "in"}
        for part in ("a", "b", "c", "in/a", "in/b", "in/c"):
            assert not os.listdir(outside / part)
