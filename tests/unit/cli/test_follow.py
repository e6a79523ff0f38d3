from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cri.api import runtime_pb2 as cri
from forgeone_shim.cli.client import Client
from forgeone_shim.cli.logs import Printer, follow
from tests.unit.cli.node_double import NodeDouble

T = b"2016-10-06T00:17:09Z"


class Seen(Printer):
    """Keeps what it is given, and wakes who waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.output = b""
        self._changed = threading.Condition()

    def write(self, records: object) -> None:
        with self._changed:
            self.output += b"".join(record.output for record in records)  # type: ignore[attr-defined]
            self._changed.notify_all()

    def wait(self, output: bytes) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.output == output, 10), self.output


@pytest.fixture
def following(node: NodeDouble, tmp_path: Path) -> Iterator[tuple[NodeDouble, str, Path, Seen, threading.Thread]]:
    log = tmp_path / "0.log"
    node.pods.RunPodSandbox(cri.RunPodSandboxRequest(), None)
    request = cri.CreateContainerRequest(
        pod_sandbox_id=next(iter(node.pods.pods)),
        config=cri.ContainerConfig(log_path=log.name),
        sandbox_config=cri.PodSandboxConfig(log_directory=str(tmp_path)),
    )
    id_ = node.pods.CreateContainer(request, None).container_id
    node.pods.StartContainer(cri.StartContainerRequest(container_id=id_), None)
    seen = Seen()
    with Client(node.socket) as client:
        thread = threading.Thread(target=follow, args=(client, id_, log, seen))
        thread.start()
        yield node, id_, log, seen, thread
        if node.pods.containers[id_].state != cri.CONTAINER_EXITED:
            node.pods.exit(id_, 0)
        thread.join(10)
    assert not thread.is_alive()


Following = tuple[NodeDouble, str, Path, Seen, threading.Thread]


def test_lines_are_shown_as_they_come_until_the_container_ends(following: Following) -> None:
    node, id_, log, seen, thread = following
    with log.open("ab", buffering=0) as file:
        file.write(T + b" stdout F one\n")
        seen.wait(b"one\n")
        file.write(T + b" stdout P tw")
        file.write(b"o\n" + T + b" stdout F !\n")
        seen.wait(b"one\ntwo!\n")
        file.write(T + b" stdout F last\n")
        node.pods.exit(id_, 0)
    thread.join(10)
    assert seen.output == b"one\ntwo!\nlast\n"


def test_a_rotated_log_is_read_to_its_end_and_the_new_one_from_its_start(following: Following) -> None:
    _, _, log, seen, _ = following
    with log.open("ab", buffering=0) as old:
        old.write(T + b" stdout F 1\n")
        seen.wait(b"1\n")
        log.rename(log.with_suffix(".log.1"))
        old.write(T + b" stdout F 2\n")
        seen.wait(b"1\n2\n")
        old.write(T + b" stdout F 3\n")
        with log.open("ab", buffering=0) as new:
            new.write(T + b" stdout F 4\n")
            seen.wait(b"1\n2\n3\n4\n")
