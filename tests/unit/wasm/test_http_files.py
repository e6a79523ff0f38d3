"""Files of a server's guest: what it can do beneath its directories, and that it cannot leave them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.wasm.guest.http.session import Err, Session, Surroundings
from engines.wasm.guest.http.wasi_cli import Lines
from engines.wasm.guest.http.wasi_filesystem import FUNCTIONS
from engines.wasm.guest.http.wasi_io import StreamEnded, StreamFailed

NONE: frozenset[str] = frozenset()
FOLLOW = frozenset({"symlink-follow"})
Call = Callable[..., Any]


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "file").write_bytes(b"content")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "in" / "absolute").symlink_to(tmp_path / "secret")
    (tmp_path / "in" / "relative").symlink_to("../secret")
    (tmp_path / "in" / "sub" / "up").symlink_to("../file")
    fds = [os.open(tmp_path / "in", os.O_RDONLY) for _ in range(2)]
    made = Session(0, 0, Surroundings(directories=((fds[0], "/", True), (fds[1], "/ro", False))))
    yield made
    made.close()
    for fd in fds:
        os.close(fd)


@pytest.fixture
def call(session: Session) -> Call:
    def act(name: str, *arguments: Any) -> Any:
        return FUNCTIONS[f"wasi:filesystem/types#[method]descriptor.{name}"](session, *arguments)

    return act


@pytest.fixture
def roots(session: Session) -> list[Any]:
    return [each for each, _ in FUNCTIONS["wasi:filesystem/preopens#get-directories"](session)]


def test_files_are_made_written_read_and_removed(call: Call, roots: list[Any]) -> None:
    root = roots[0]
    call("create-directory-at", root, "new")
    file = call("open-at", root, NONE, "new/a", frozenset({"create"}), frozenset({"read", "write"}))
    assert call("write", file, b"hello", 0) == 5
    call("append-via-stream", file).outlet.write(b" world")
    assert call("read", file, 100, 0) == (b"hello world", False)
    assert call("read", file, 100, 11) == (b"", True)
    call("set-size", file, 5)
    reading = call("read-via-stream", file, 1).inlet
    assert reading.read(100) == b"ello"
    with pytest.raises(StreamEnded):
        reading.read(1)
    assert call("stat", file)[:3] == ("regular-file", 1, 5)
    call("rename-at", root, "new/a", root, "new/b")
    call("unlink-file-at", root, "new/b")
    call("remove-directory-at", root, "new")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../secret", "sub/../../secret", "absolute", "relative", "sub/../../in/../secret", "a\0b"]
)
@pytest.mark.parametrize("opening", [NONE, frozenset({"create"}), frozenset({"truncate"})])
def test_no_path_leads_out(call: Call, roots: list[Any], tmp_path: Path, path: str, opening: frozenset[str]) -> None:
    with pytest.raises(Err) as caught:
        call("open-at", roots[0], FOLLOW, path, opening, frozenset({"read"}))
    assert caught.value.value in ("not-permitted", "invalid", "loop")
    for name in ("stat-at", "metadata-hash-at"):
        with pytest.raises(Err):
            call(name, roots[0], FOLLOW, path)
    assert (tmp_path / "secret").read_bytes() == b"secret"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("create-directory-at", ("../x",)),
        ("unlink-file-at", ("../secret",)),
        ("remove-directory-at", ("..",)),
        ("symlink-at", ("/etc/passwd", "x")),
        ("symlink-at", ("file", "../x")),
        ("readlink-at", ("absolute",)),
    ],
)
def test_nothing_outside_is_changed_or_told(
    call: Call, roots: list[Any], name: str, arguments: tuple[str, ...]
) -> None:
    with pytest.raises(Err):
        call(name, roots[0], *arguments)


def test_a_link_within_is_followed(call: Call, roots: list[Any]) -> None:
    file = call("open-at", roots[0], FOLLOW, "sub/up", NONE, frozenset({"read"}))
    assert call("read", file, 10, 0) == (b"content", False)
    with pytest.raises(Err, match="loop"):
        call("open-at", roots[0], NONE, "sub/up", NONE, frozenset({"read"}))


def test_a_read_only_directory_stays_so(call: Call, roots: list[Any]) -> None:
    root = roots[1]
    for opening, flags in (
        (frozenset({"create"}), frozenset({"read"})),
        (NONE, frozenset({"write"})),
        (frozenset({"truncate"}), frozenset({"read"})),
    ):
        with pytest.raises(Err, match="read-only"):
            call("open-at", root, NONE, "file", opening, flags)
    sub = call("open-at", root, NONE, "sub", frozenset({"directory"}), frozenset({"read"}))
    for name, arguments in (
        ("unlink-file-at", ("up",)),
        ("create-directory-at", ("x",)),
        ("set-times", ("now", "now")),
    ):
        with pytest.raises(Err, match="read-only"):
            call(name, sub, *arguments)


def test_what_could_hold_a_thread_for_ever_is_not_opened(call: Call, roots: list[Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in" / "fifo")
    with pytest.raises(Err, match="not-permitted"):
        call("open-at", roots[0], NONE, "fifo", NONE, frozenset({"read"}))


def test_a_directory_is_listed(session: Session, call: Call, roots: list[Any]) -> None:
    stream = call("read-directory", roots[0])
    step = FUNCTIONS["wasi:filesystem/types#[method]directory-entry-stream.read-directory-entry"]
    found = set()
    while (entry := step(session, stream)) is not None:
        found.add(entry)
    assert (
        ("regular-file", "file") in found and ("directory", "sub") in found and ("symbolic-link", "absolute") in found
    )


def test_no_number_is_too_large_to_be_told_so(call: Call, roots: list[Any]) -> None:
    file = call("open-at", roots[0], NONE, "file", NONE, frozenset({"read", "write"}))
    for name, arguments in (
        ("read", (10, 1 << 63)),
        ("write", (b"x", 1 << 63)),
        ("set-size", ((1 << 64) - 1,)),
        ("set-times", (("timestamp", ((1 << 64) - 1, 0)), "no-change")),
    ):
        with pytest.raises(Err, match="invalid"):
            call(name, file, *arguments)
    with pytest.raises(StreamFailed) as caught:
        call("read-via-stream", file, 1 << 63).inlet.read(1)
    assert caught.value.file == "invalid"
    with pytest.raises(StreamFailed):
        call("write-via-stream", file, 1 << 63).outlet.write(b"x")


def test_a_session_ends_although_nobody_reads_what_its_guest_wrote(session: Session, roots: list[Any]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb"):
        session.output[1] = Lines(writer)
        session.output[1].write(b"half a line")
        session.close()
    assert not any(root.open for root in roots)


def test_a_session_closes_what_its_guest_left_open(session: Session, call: Call, roots: list[Any]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        call("open-at", roots[0], NONE, "file", NONE, frozenset({"read"}))
    session.close()
    assert len(os.listdir("/proc/self/fd")) == before - len(roots)
