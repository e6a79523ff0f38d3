"""Pods whose engine is not installed any more.

No engine that comes with ForgeOne can be taken away: the records of native pods are made to name one that is not there.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from forgeone_shim.rpc import node_pb2, node_pb2_grpc
from hack.lab.daemon import Daemon
from tests.e2e.pods import Pod

pytestmark = pytest.mark.root


def rewrite(daemon: Daemon, change: Callable[[dict[str, Any]], None]) -> None:
    """Change every record of a pod or container."""
    with sqlite3.connect(Path(daemon.config.root) / "forgeone.db") as db:
        rows = db.execute("SELECT kind, key, doc FROM docs WHERE kind IN ('sandbox', 'container')").fetchall()
        for kind, key, doc in rows:
            record = json.loads(doc)
            change(record)
            db.execute("UPDATE docs SET doc=? WHERE kind=? AND key=?", (json.dumps(record), kind, key))
    db.close()


def started(daemon: Daemon, busybox: str) -> tuple[Pod, str]:
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    pod = Pod.plan(daemon).run()
    return pod, pod.start(pod.container(busybox))


def test_they_are_shown_as_unknown_with_the_reason_and_can_be_removed(fresh_forgeoned: Daemon, busybox: str) -> None:
    daemon = fresh_forgeoned
    pod, id_ = started(daemon, busybox)
    daemon.kill()
    rewrite(daemon, lambda record: record.update(engine="lost"))
    daemon.start()
    status = pod.status(id_)
    assert (status.state, status.reason) == (pb.CONTAINER_UNKNOWN, "EngineMissing")
    assert "the lost engine, which runs this, is not installed" in status.message
    listed = daemon.runtime.ListPodSandbox(pb.ListPodSandboxRequest(), timeout=30).items
    assert [one.state for one in listed] == [pb.SANDBOX_NOTREADY]
    wanted = pb.ContainerFilter(state=pb.ContainerStateValue(state=pb.CONTAINER_UNKNOWN))
    assert len(daemon.runtime.ListContainers(pb.ListContainersRequest(filter=wanted), timeout=30).containers) == 1
    with pytest.raises(grpc.RpcError, match="the lost engine is not installed"):
        pod.start(pod.container(busybox, name="another"))
    with pytest.raises(grpc.RpcError, match="FAILED_PRECONDITION"):
        pod.exec(id_, "true")
    assert "will be retried" not in daemon.log.read_text()
    pod.remove()
    assert daemon.left() == []


def test_one_that_was_paused_heeds_a_stop_without_its_engine(fresh_forgeoned: Daemon, busybox: str) -> None:
    daemon = fresh_forgeoned
    pod, _ = started(daemon, busybox)
    id_ = pod.start(pod.container(busybox, "sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.02; done", name="it"))
    node = node_pb2_grpc.NodeStub(daemon.channel)
    node.PauseContainer(node_pb2.PauseContainerRequest(container_id=id_), timeout=30)
    daemon.kill()
    rewrite(daemon, lambda record: record.update(engine="lost"))
    daemon.start()
    pod.stop_container(id_, grace=20)
    assert pod.status(id_).exit_code == 9


def test_they_go_on_when_the_engine_is_back(fresh_forgeoned: Daemon, busybox: str) -> None:
    daemon = fresh_forgeoned
    pod, id_ = started(daemon, busybox)
    for engine, state in (("lost", pb.CONTAINER_UNKNOWN), ("native", pb.CONTAINER_RUNNING)):
        daemon.kill()
        rewrite(daemon, lambda record, engine=engine: record.update(engine=engine))
        daemon.start()
        assert pod.status(id_).state == state
    assert pod.exec(id_, "echo", "here").stdout == b"here\n"
    # What ended meanwhile is told by what its supervisor left.
    daemon.kill()
    rewrite(daemon, lambda record: record.update(engine="lost"))
    daemon.start()
    pod.stop_container(id_)
    assert pod.status(id_).state == pb.CONTAINER_EXITED
