"""What a container writes, at any speed and across rotations, is in its log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cri.api import runtime_pb2 as pb
from hack.lab.daemon import Daemon
from hack.lab.settings import patient
from tests.e2e.pods import Pod

pytestmark = pytest.mark.root

# A line of 100 bytes with its number, over and over.
_COUNT = "awk 'BEGIN{for(i=0;i<%d;i++)printf \"%%012d%%086d\\n\",i,0}'"


@pytest.fixture(scope="module")
def image(forgeoned: Daemon, busybox: str) -> str:
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)))
    return busybox


@pytest.fixture
def pod(forgeoned: Daemon) -> Iterator[Pod]:
    running = Pod.plan(forgeoned).run()
    yield running
    running.remove()


def _rotate(pod: Pod, container_id: str, log: Path, number: int) -> Path:
    rotated = log.rename(f"{log}.{number}")
    pod.daemon.runtime.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=container_id), timeout=30)
    return rotated


def _content(files: list[Path]) -> Iterator[bytes]:
    """The container's bytes, partial lines put together again (CRI's log format: time, stream, F or P, text)."""
    for file in files:
        with file.open("rb") as lines:
            for line in lines:
                head, stream, tag, text = line.split(b" ", 3)
                assert (stream, len(head) > 20) == (b"stdout", True), line
                yield text if tag == b"F" else text[:-1]


def _numbers(files: list[Path], *, torn: bool = False) -> Iterator[int]:
    """The lines' numbers; ``torn``: the first line may lack its beginning."""
    rest, pieces = b"", _content(files)
    if torn:
        next(piece for piece in pieces if piece.endswith(b"\n"))
    for piece in pieces:
        rest += piece
        if rest.endswith(b"\n"):
            assert len(rest) == 99, rest
            yield int(rest[:12])
            rest = b""
    assert not rest


def test_a_flood_of_lines_rotated_all_the_while_is_there_to_the_last(pod: Pod, image: str) -> None:
    lines = 2_000_000
    began = time.monotonic()
    config = pod.container(image, "sh", "-c", _COUNT % lines)
    id_ = pod.start(config)
    log, files = Path(pod.status(id_).log_path), []
    while pod.status(id_).state == pb.CONTAINER_RUNNING:
        time.sleep(0.2)
        if log.stat().st_size > 20_000_000 and pod.status(id_).state == pb.CONTAINER_RUNNING:
            try:
                files.append(_rotate(pod, id_, log, len(files)))
            except Exception:
                # It ended meanwhile.
                pod.wait(id_)
        assert time.monotonic() - began < 240
    assert pod.status(id_).exit_code == 0
    assert files, "nothing was rotated"
    # A rename that the reopening no longer followed leaves no file of the log's own name.
    renamed = sorted(log.parent.glob(f"{log.name}.*"), key=lambda path: int(path.suffix[1:]))
    assert list(_numbers([*renamed, *([log] if log.exists() else [])])) == list(range(lines))


def test_a_line_without_an_end_arrives_in_pieces(pod: Pod, image: str) -> None:
    id_ = pod.start(pod.container(image, "sh", "-c", "head -c 50000000 /dev/zero | tr '\\0' x; echo; printf end"))
    assert pod.wait(id_).exit_code == 0
    pieces = b"".join(_content([Path(pod.status(id_).log_path)]))
    assert (len(pieces), set(pieces[:-4]), pieces[-4:]) == (50_000_000 + 4, set(b"x"), b"\nend")


# The writer is to be at it still when forgeoned is back.
_RATE = int(65536 / patient(1))


@pytest.fixture
def slow(daemon_factory: Callable[..., Daemon], busybox: str) -> Pod:
    daemon = daemon_factory({"native.log_rate": _RATE, "native.log_size_max": 1_000_000})
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)))
    return Pod.plan(daemon).run()


def test_a_rate_slows_the_writer_and_loses_nothing(slow: Pod, busybox: str) -> None:
    lines, began = 5_000, time.monotonic()
    id_ = slow.start(slow.container(busybox, "sh", "-c", _COUNT % lines))
    log = Path(slow.status(id_).log_path)
    time.sleep(1)
    rotated = _rotate(slow, id_, log, 1)
    slow.daemon.kill()
    slow.daemon.start()
    files = [rotated, _rotate(slow, id_, log, 2)]
    assert slow.wait(id_, seconds=60).exit_code == 0
    assert list(_numbers([*files, log])) == list(range(lines))
    # With its time and stream a line is 145 bytes; the first second's worth and what pipes hold comes at once.
    assert time.monotonic() - began > (lines * 140 - 65536 * 4) / _RATE


def test_a_rate_does_not_keep_a_container_from_being_stopped(slow: Pod, busybox: str) -> None:
    id_ = slow.start(slow.container(busybox, "yes"))
    time.sleep(0.5)
    began = time.monotonic()
    slow.stop_container(id_)
    assert slow.status(id_).state == pb.CONTAINER_EXITED
    assert time.monotonic() - began < 10


def test_a_command_that_is_not_there_leaves_no_pump(slow: Pod, busybox: str) -> None:
    with pytest.raises(Exception, match="executable file"):
        slow.start(slow.container(busybox, "/no/such/command"))
    assert not any("log_pump" in one for one in slow.daemon.left())


@pytest.mark.parametrize("rate", [0, 1 << 30], ids=["conmon", "pump"])
def test_a_log_file_stays_below_its_limit(daemon_factory: Callable[..., Daemon], busybox: str, rate: int) -> None:
    daemon = daemon_factory({"native.log_rate": rate, "native.log_size_max": 1_000_000})
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)))
    pod = Pod.plan(daemon).run()
    id_ = pod.start(pod.container(busybox, "sh", "-c", _COUNT % 30_000))
    log, largest = Path(pod.status(id_).log_path), 0
    while pod.status(id_).state == pb.CONTAINER_RUNNING:
        largest = max(largest, log.stat().st_size if log.exists() else 0)
    assert largest <= 1_000_000
    found = list(_numbers([log], torn=True))
    assert found == list(range(found[0], 30_000)), "what is there is the end, without a gap"
