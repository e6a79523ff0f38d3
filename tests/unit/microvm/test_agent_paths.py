"""Paths in a container's root: found and made where they are, and never out of it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.microvm.boot.agent import SOURCES
from engines.microvm.shares import calls

_FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Werror")
_RENAME_EXCHANGE = 2
_SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


class Kind(IntEnum):
    """``enum path_kind``."""

    ANY = 0
    DIRECTORY = 1
    FILE = 2


class Walker:
    """The agent's walk below ``root``."""

    def __init__(self, program: Path, root: Path) -> None:
        self.root = root
        self.process = subprocess.Popen(
            [program, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def __call__(self, path: str, kind: Kind = Kind.ANY) -> str | int:
        """Where it leads, seen from the root, or why it does not."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{kind:d} {path}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().rstrip("\n")
        if answer.isdecimal():
            return int(answer)
        assert (answer + "/").startswith(f"{self.root}/"), answer
        return answer.removeprefix(str(self.root)) or "/"

    def close(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no gcc for the guest's agent")
    target = tmp_path_factory.mktemp("paths") / "paths"
    sources = [str(SOURCES / "paths.c"), str(Path(__file__).parent / "agent" / "paths.c")]
    argv = [compiler, *_FLAGS, *_SANITIZE, f"-I{SOURCES}", "-o", str(target), *sources]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def walk(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walker]:
    """Below a root with an outside beside it that its symlinks ask for in every way."""
    parent = tmp_path_factory.mktemp("roots").resolve()
    root = parent / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "file").write_text("inside")
    (parent / "outside").mkdir()
    for name, target in (
        ("abs", "/a/b"),
        ("up", "../../../../outside"),
        ("a/up", "../../outside/deep"),
        ("host", str(parent / "outside")),
        ("loop", "loop"),
        ("far", "/made/by/link"),
        ("dot", "."),
        ("chain", "abs/../up"),
        ("proc", f"/proc/{os.getpid()}/root"),
        ("tofile", "file"),
    ):
        (root / name).symlink_to(target)
    one = Walker(program, root)
    yield one
    one.close()
    assert list((parent / "outside").iterdir()) == []
    assert {path.name for path in parent.iterdir()} == {"root", "outside"}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/", "/"),
        ("/../..", "/"),
        ("abs", "/a/b"),
        ("/abs/../b", "/a/b"),
        ("dot/dot/etc", "/etc"),
        ("a//b/.", "/a/b"),
        ("tofile", "/file"),
        ("up", errno.ENOENT),
        ("loop", errno.ELOOP),
        ("file/x", errno.ENOTDIR),
        ("tofile/..", "/"),
        ("x" * 256, errno.ENAMETOOLONG),
        ("a/" * 2048, errno.ENAMETOOLONG),
    ],
)
def test_symlinks_are_read_as_from_the_root(walk: Walker, path: str, found: str | int) -> None:
    assert walk(path) == found


@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("/new/deep/one", "/new/deep/one"),
        ("up/one", "/outside/one"),
        ("a/up/one", "/outside/deep/one"),
        ("far/one", "/made/by/link/one"),
        ("chain/two", "/outside/deep/two"),
    ],
)
@pytest.mark.parametrize("kind", [Kind.DIRECTORY, Kind.FILE])
def test_what_is_missing_is_made_inside(walk: Walker, path: str, made: str, kind: Kind) -> None:
    made, path = f"{made}-{kind}", f"{path}-{kind}"
    assert walk(path, kind) == made
    place = Path(f"{walk.root}{made}")
    assert place.is_dir() if kind is Kind.DIRECTORY else place.is_file()
    assert walk(path, kind) == made, "and is there the next time"


_PARTS = st.sampled_from(
    ["..", ".", "", "a", "b", "abs", "up", "host", "loop", "far", "dot", "chain", "proc", "n", "file"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_PARTS, max_size=9), st.sampled_from(Kind))
def test_no_path_leads_out(walk: Walker, parts: list[str], kind: Kind) -> None:
    # Walker itself wants what is found below the root, and the fixture nothing new beside it.
    walk("/".join(parts), kind)


def test_what_is_exchanged_for_a_symlink_meanwhile_leads_nowhere(program: Path, tmp_path: Path) -> None:
    parent = tmp_path.resolve()
    root, outside = parent / "root", parent / "outside"
    (root / "door").mkdir(parents=True)
    (root / "link").symlink_to("../outside")
    outside.mkdir()
    over = threading.Event()

    def exchange() -> None:
        fd = os.open(root, os.O_PATH)
        while not over.is_set():
            calls.rename(fd, b"door", fd, b"link", _RENAME_EXCHANGE)
        os.close(fd)

    thread = threading.Thread(target=exchange)
    thread.start()
    walk = Walker(program, root)
    try:
        end, number = time.monotonic() + 1.0, 0
        while time.monotonic() < end:
            number += 1
            walk(f"door/{number}/x", Kind.FILE if number % 2 else Kind.DIRECTORY)
    finally:
        over.set()
        thread.join()
        walk.close()
    assert list(outside.iterdir()) == []
    assert number > 100
