"""Ends are learned from exit files, and from pidfds where no file comes."""

import os
import queue
import subprocess
from pathlib import Path

import pytest

from forgeone_shim.shim import exits
from forgeone_shim.shim.exits import LOST_CODE, Exit, ExitWatch, read_exit

Found = queue.Queue[tuple[str, Exit]]


@pytest.fixture
def found(tmp_path: Path) -> "tuple[Found, ExitWatch]":
    seen: Found = queue.Queue()
    watch = ExitWatch(tmp_path, lambda id_, end: seen.put((id_, end)))
    yield seen, watch
    watch.close()


def test_an_exit_file_renamed_into_place_is_seen_with_its_time(
    tmp_path: Path, found: "tuple[Found, ExitWatch]"
) -> None:
    (tmp_path.parent / "part").write_text("137")
    (tmp_path.parent / "part").rename(tmp_path / "c1")
    id_, end = found[0].get(timeout=5)
    assert (id_, end.code, end.lost) == ("c1", 137, False)
    assert end.at == (tmp_path / "c1").stat().st_mtime_ns


def test_a_process_that_ends_without_an_exit_file_is_reported_lost(
    found: "tuple[Found, ExitWatch]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exits, "GRACE", 0.05)
    child = subprocess.Popen(["sleep", "60"])
    found[1].follow("c2", child.pid)
    child.kill()
    id_, end = found[0].get(timeout=5)
    child.wait()
    assert (id_, end.code, end.lost) == ("c2", LOST_CODE, True)


def test_an_exit_file_that_comes_within_the_grace_period_wins(tmp_path: Path, found: "tuple[Found, ExitWatch]") -> None:
    child = subprocess.Popen(["true"])
    found[1].follow("c3", child.pid)
    child.wait()
    (tmp_path / "c3").write_text("7")
    id_, end = found[0].get(timeout=5)
    assert (id_, end.code, end.lost) == ("c3", 7, False)
    assert found[0].empty()


def test_what_is_forgotten_is_not_reported(found: "tuple[Found, ExitWatch]", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exits, "GRACE", 0.01)
    child = subprocess.Popen(["sleep", "60"])
    found[1].follow("c4", child.pid)
    found[1].forget("c4")
    found[1].forget("c4")
    child.kill()
    child.wait()
    with pytest.raises(queue.Empty):
        found[0].get(timeout=0.2)


def test_a_damaged_exit_file_is_an_unknown_end(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("banana")
    end = read_exit(tmp_path, "c")
    assert end is not None
    assert (end.code, end.lost) == (LOST_CODE, True)
    assert read_exit(tmp_path, "missing") is None


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    watch = ExitWatch(tmp_path, lambda *_: None)
    watch.follow("a", os.getpid())
    watch.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_supervisor_that_lives_is_given_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exits, "GRACE", 0.05)
    seen: Found = queue.Queue()
    alive = [True]
    watch = ExitWatch(tmp_path, lambda id_, end: seen.put((id_, end)), lambda _: alive[0])
    child = subprocess.Popen(["true"])
    child.wait()
    watch.follow("c5", child.pid)
    with pytest.raises(queue.Empty):
        seen.get(timeout=0.3)
    alive[0] = False
    assert seen.get(timeout=5)[1].lost
    watch.close()


def test_a_supervisor_is_known_by_its_pid_file_and_command_line(tmp_path: Path) -> None:
    assert not exits.supervisor_lives(tmp_path, "c6")
    child = subprocess.Popen(["sleep", "60"])
    (tmp_path / "conmon.pid").write_text(str(child.pid))
    assert exits.supervisor_lives(tmp_path, "60")
    assert not exits.supervisor_lives(tmp_path, "c6")
    child.kill()
    child.wait()
    assert not exits.supervisor_lives(tmp_path, "60")


def test_what_goes_wrong_for_one_end_loses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exits, "_AGAIN", 0.01)
    seen: Found = queue.Queue()
    failures = [OSError(24, "Too many open files"), RuntimeError("no thread")]

    def note(id_: str, end: Exit) -> None:
        if failures:
            raise failures.pop()
        seen.put((id_, end))

    watch = ExitWatch(tmp_path, note)
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    found = {seen.get(timeout=5)[0], seen.get(timeout=5)[0]}
    assert found <= {"a", "b"}
    while found != {"a", "b"}:
        found.add(seen.get(timeout=5)[0])
    watch.close()
