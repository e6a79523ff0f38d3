"""The program between conmon and a log file: its rate, its files, its end."""

from __future__ import annotations

import os
import select
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.shim import logfile
from forgeone_shim.shim.logfile import Bucket, Log
from forgeone_shim.shim.programs import Program

LINES = st.lists(st.binary(max_size=60).map(lambda text: text.replace(b"\n", b"") + b"\n"), max_size=30)


def test_a_bucket_gives_a_second_s_worth_at_once_and_then_the_rate() -> None:
    bucket = Bucket(1000, now=0.0)
    assert bucket.available(0.0) == 1000
    bucket.take(1000)
    assert bucket.wait() == pytest.approx(1.0)
    assert bucket.available(0.5) == 500
    assert bucket.available(100.0) == 1000


def test_a_bucket_without_a_rate_never_waits() -> None:
    bucket = Bucket(0, now=0.0)
    bucket.take(1 << 30)
    assert bucket.available(0.0) > 0
    assert bucket.wait() == 0


@given(lines=LINES, cuts=st.lists(st.integers(1, 40), max_size=60), rotate=st.sets(st.integers(0, 60)))
def test_no_rotation_loses_or_cuts_a_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], cuts: list[int], rotate: set[int]
) -> None:
    path = tmp_path_factory.mktemp("log") / "0.log"
    log = Log(str(path), 0)
    data, files = b"".join(lines), []
    for number, cut in enumerate([*cuts, len(data)]):
        if number in rotate and path.exists():
            files.append(path.rename(path.with_suffix(f".{number}")))
            log.reopen()
        piece, data = data[:cut], data[cut:]
        log.write(piece)
    parts = [file.read_bytes() for file in files] + ([path.read_bytes()] if path.exists() else [])
    assert b"".join(parts) == b"".join(lines)
    assert all(part.endswith(b"\n") for part in parts if part)


def test_a_file_at_its_limit_is_begun_anew_between_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    log = Log(str(path), 10)
    for piece in (b"one\ntwo\nthr", b"ee\nfour\n"):
        log.write(piece)
    assert path.read_bytes() == b"four\n"
    assert [file.name for file in tmp_path.iterdir()] == ["0.log"]


def test_a_line_without_room_on_the_disk_is_dropped_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "0.log"
    log, write = Log(str(path), 0), os.write

    def full(fd: int, data: memoryview) -> int:
        if b"two" in bytes(data):
            write(fd, data[:2])
            raise OSError(28, "No space left on device")
        return write(fd, data)

    log.write(b"one\n")
    monkeypatch.setattr(logfile.os, "write", full)
    log.write(b"two, begun")
    monkeypatch.setattr(logfile.os, "write", write)
    log.write(b" and ended\nthree\n")
    assert path.read_bytes() in {b"one\nthree\n", b"one\n\nthree\n", b"one\ntw\nthree\n"}
    assert path.read_bytes().endswith(b"\nthree\n")


def test_a_log_whose_directory_has_gone_stops_nothing(tmp_path: Path) -> None:
    home = tmp_path / "logs"
    home.mkdir()
    log = Log(str(home / "0.log"), 10)
    log.write(b"one\n")
    (home / "0.log").unlink()
    home.rmdir()
    log.reopen()
    log.write(b"two, which is too much\n")
    home.mkdir()
    log.write(b"three\n")
    assert (home / "0.log").read_bytes() == b"three\n"


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    os.mkfifo(tmp_path / "fifo")
    names = [str(tmp_path / name) for name in ("fifo", "0.log")]
    pump = Program("forgeone_shim.shim.log_pump", ("forgeone_shim",))
    return pump.command(*names, "65536", "0", str(tmp_path / "pid"), str(tmp_path / "first"))


def test_the_program_passes_on_everything_at_its_rate_and_ends_with_its_writer(
    tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "first").write_text(str(os.getpid()))
    life, lifeline = os.pipe()
    began = time.monotonic()
    subprocess.run(arguments, stdin=life, check=True)
    pidfd = os.pidfd_open(int((tmp_path / "pid").read_text()))
    data = b"".join(b"line %d\n" % number for number in range(20_000))
    with open(tmp_path / "fifo", "wb") as fifo:
        os.close(lifeline)
        fifo.write(data)
    _wait(pidfd)
    assert (tmp_path / "0.log").read_bytes() == data
    # What goes beyond the first second's worth takes its time.
    assert time.monotonic() - began > (len(data) - 65536) / 65536 * 0.9


def test_the_rest_of_an_ended_container_s_log_does_not_wait(tmp_path: Path, arguments: list[str]) -> None:
    ended = subprocess.Popen(["true"])
    (tmp_path / "first").write_text(str(ended.pid))
    ended.wait()
    life, lifeline = os.pipe()
    began = time.monotonic()
    subprocess.run(arguments, stdin=life, check=True)
    pidfd = os.pidfd_open(int((tmp_path / "pid").read_text()))
    with open(tmp_path / "fifo", "wb") as fifo:
        os.close(lifeline)
        fifo.write(b"line\n" * 400_000)
    _wait(pidfd)
    assert (tmp_path / "0.log").stat().st_size == 2_000_000
    assert time.monotonic() - began < 15


def test_a_writer_that_comes_after_its_starter_was_killed_is_read(tmp_path: Path, arguments: list[str]) -> None:
    life, lifeline = os.pipe()
    subprocess.run(arguments, stdin=life, check=True)
    pidfd = os.pidfd_open(int((tmp_path / "pid").read_text()))
    os.close(lifeline)
    time.sleep(0.5)
    # Without a reader this is an error.
    fifo = os.open(tmp_path / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    os.write(fifo, b"line\n")
    os.close(fifo)
    _wait(pidfd)
    assert (tmp_path / "0.log").read_bytes() == b"line\n"


def test_the_program_ends_when_nobody_comes_to_write(tmp_path: Path, arguments: list[str]) -> None:
    life, lifeline = os.pipe()
    subprocess.run(arguments, stdin=life, check=True)
    pidfd = os.pidfd_open(int((tmp_path / "pid").read_text()))
    os.close(lifeline)
    _wait(pidfd)


def _wait(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(30_000), "the program goes on"
    os.close(pidfd)
