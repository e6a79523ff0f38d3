"""Where in a jail something is mounted, whatever the image's symlinks say."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.wasm.jail.places import place
from forgeone_shim.errors import InvalidInput


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def where(root: Path, path: str, *, directory: bool = True) -> str:
    at = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        fd = place(at, path, (0, 0), directory=directory)
    finally:
        os.close(at)
    try:
        return os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), root)
    finally:
        os.close(fd)


def test_what_is_missing_is_made(root: Path) -> None:
    assert where(root, "/a/b/c") == "a/b/c"
    assert (root / "a/b/c").is_dir()
    assert where(root, "/a/b/f", directory=False) == "a/b/f"
    assert (root / "a/b/f").read_bytes() == b""


def test_what_is_there_is_left(root: Path) -> None:
    (root / "f").write_text("kept")
    assert where(root, "/f", directory=False) == "f"
    assert (root / "f").read_text() == "kept"


def test_a_symlink_leads_where_it_does_for_a_process_inside(root: Path) -> None:
    (root / "run").mkdir()
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run")
    (root / "out").symlink_to("../../../..")
    assert where(root, "/var/run/x") == "run/x"
    assert where(root, "/out/y") == "y"


def test_a_symlink_to_nothing_has_its_end_made(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/resolv.conf").symlink_to("../run/systemd/resolv.conf")
    (root / "abs").symlink_to("/deep/er")
    assert where(root, "/etc/resolv.conf", directory=False) == "run/systemd/resolv.conf"
    assert where(root, "/abs/x") == "deep/er/x"


@pytest.mark.parametrize("loop", [("a", "b", "b", "a"), ("a", "a", "c", "c")])
def test_symlinks_in_a_circle_are_refused(root: Path, loop: tuple[str, str, str, str]) -> None:
    (root / loop[0]).symlink_to(loop[1])
    (root / loop[2]).symlink_to(loop[3])
    with pytest.raises((InvalidInput, OSError)):
        where(root, "/a/x")


def test_below_a_file_nothing_is_made(root: Path) -> None:
    (root / "f").touch()
    with pytest.raises(NotADirectoryError):
        where(root, "/f/x")


NAMES = st.sampled_from(["a", "b", "c", ".."])
PATHS = st.lists(NAMES, min_size=1, max_size=5).map("/".join)
LINKS = st.dictionaries(
    st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map("/".join),
    st.tuples(st.booleans(), PATHS).map(lambda pair: ("/" if pair[0] else "") + pair[1]),
    max_size=4,
)


@settings(max_examples=150)
@given(LINKS, PATHS, st.booleans())
def test_nothing_is_ever_found_or_made_outside(links: dict[str, str], path: str, directory: bool) -> None:
    with tempfile.TemporaryDirectory() as outer:
        root = Path(outer, "x/root")
        root.mkdir(parents=True)
        for name, target in links.items():
            link = root / name
            # Through one that is there already it would not be made inside.
            if not any(above.is_symlink() for above in link.parents) and not os.path.lexists(link):
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target)
        try:
            found = where(root, "/" + path, directory=directory)
        except (OSError, InvalidInput):
            found = "."
        assert not found.startswith("..")
        assert os.listdir(outer) == ["x"]
        assert os.listdir(Path(outer, "x")) == ["root"]
