from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import DeadlineExceeded, InternalError
from forgeone_shim.kernel import procs
from forgeone_shim.kernel.spawn import collect, run, spawn

SH = "/bin/sh"


def shell(line: str) -> list[str]:
    return ["sh", "-c", line]


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_program_s_words_and_code_come_back() -> None:
    done = run(SH, shell("echo out; echo err >&2; exit 3"), NEVER)
    assert (done.code, done.text.split()) == (3, ["out", "err"])


def test_a_death_by_signal_is_128_and_more() -> None:
    assert run(SH, shell("kill -9 $$"), NEVER).code == 137


def test_a_missing_program_is_named() -> None:
    with pytest.raises(InternalError, match="/nonexistent/x"):
        run("/nonexistent/x", ["x"], NEVER)


def test_a_program_that_takes_too_long_is_killed_and_reaped(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        run(SH, shell(f"echo $$ > {tmp_path}/pid; exec sleep 60"), Deadline.after(1))
    assert time.monotonic() - started < 5
    with pytest.raises(ChildProcessError):
        os.waitpid(int((tmp_path / "pid").read_text()), os.WNOHANG)


def test_what_a_left_behind_child_holds_open_is_not_waited_for() -> None:
    started = time.monotonic()
    done = run(SH, shell("sleep 5 & echo $!"), NEVER)
    assert time.monotonic() - started < 3
    os.kill(int(done.text), signal.SIGKILL)


def test_each_stream_is_capped_and_the_rest_dropped() -> None:
    out, out_child = os.pipe2(os.O_CLOEXEC)
    err, err_child = os.pipe2(os.O_CLOEXEC)
    with spawn(SH, shell("head -c 300000 /dev/zero; echo hi >&2"), files={1: out_child, 2: err_child}) as child:
        os.close(out_child)
        os.close(err_child)
        found = collect([out, err], until=child.pidfd, deadline=NEVER, limit=1000)
        assert child.wait() == 0
    assert len(found.data[out]) == 1000
    assert found.data[err] == b"hi\n"
    assert found.truncated
    assert found.finished
    os.close(out)
    os.close(err)


def test_descriptors_may_cross_over() -> None:
    first, second = (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("first", "second"))
    os.write(first, b"1")
    os.write(second, b"2")
    line = f"cat /proc/self/fd/{first} /proc/self/fd/{second} >/proc/self/fd/1; ls /proc/self/fd | wc -l"
    read, write = os.pipe2(os.O_CLOEXEC)
    with spawn(SH, shell(line), files={first: second, second: first, 1: write}) as child:
        os.close(write)
        found = collect([read], until=child.pidfd, deadline=NEVER, limit=100).data[read].split()
    assert found[0].startswith(b"21")
    for fd in (first, second, read):
        os.close(fd)


def test_a_program_starts_in_its_directory_and_we_stay_in_ours(tmp_path: Path) -> None:
    before = Path.cwd()
    read, write = os.pipe2(os.O_CLOEXEC)
    with spawn("/bin/pwd", ["pwd"], files={1: write}, cwd=str(tmp_path)) as child:
        os.close(write)
        assert collect([read], until=child.pidfd, deadline=NEVER, limit=999).data[read].decode().strip() == str(
            tmp_path
        )
    os.close(read)
    assert Path.cwd() == before


def test_a_program_gets_only_the_environment_it_is_given() -> None:
    assert run("/usr/bin/env", ["env"], NEVER, env={"A": "1"}).text == "A=1"


def test_a_stat_line_is_read_past_any_command_name() -> None:
    line = "42 (a) b ( c) S 7 " + " ".join(str(n) for n in range(5, 60))
    assert procs.parse_stat(line) == procs.Stat("S", 7, 22)


def test_a_process_is_trusted_only_with_its_start_time() -> None:
    own = procs.stat(os.getpid())
    assert own is not None
    with procs.open_process(os.getpid(), own.started) as held:  # type: ignore[union-attr]
        assert not held.wait(0)
    assert procs.open_process(os.getpid(), own.started + 1) is None
    assert procs.open_process(0) is None
    assert procs.open_process(2**22 + 1) is None


def test_a_zombie_is_no_process() -> None:
    pid = os.posix_spawn(sys.executable, ["python", "-c", ""], os.environ)
    with procs.Pidfd(pid) as held:
        assert held.wait(10)
        assert procs.open_process(pid) is None
        os.waitpid(pid, 0)
        assert held.send(signal.SIGTERM) is False


def test_a_number_that_is_a_threads_is_no_process() -> None:
    tids: list[int] = []
    leave, told = threading.Event(), threading.Event()

    def body() -> None:
        tids.append(threading.get_native_id())
        told.set()
        leave.wait()

    thread = threading.Thread(target=body)
    thread.start()
    try:
        told.wait()
        assert procs.open_process(tids[0]) is None
    finally:
        leave.set()
        thread.join()
