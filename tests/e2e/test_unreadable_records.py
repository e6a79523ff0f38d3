"""Records that cannot be read hold up nothing and leave nothing behind."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from cri.api import runtime_pb2 as pb
from hack.lab.daemon import Daemon
from tests.e2e.pods import Pod
from tests.e2e.streams import eventually

pytestmark = pytest.mark.root


def database(daemon: Daemon, query: str, *values: object) -> list[tuple[object, ...]]:
    db = sqlite3.connect(Path(daemon.config.root) / "forgeone.db")
    try:
        with db:
            return db.execute(query, values).fetchall()
    finally:
        db.close()


def addresses(daemon: Daemon) -> int:
    return len(database(daemon, "SELECT key FROM docs WHERE kind='network.lease'"))


def test_the_containers_of_a_pod_that_cannot_be_read_go_with_it(fresh_forgeoned: Daemon, busybox: str) -> None:
    daemon = fresh_forgeoned
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    lost, kept = Pod.plan(daemon).run(), Pod.plan(daemon).run()
    lost.start(lost.container(busybox))
    id_ = kept.start(kept.container(busybox))
    both = addresses(daemon)
    daemon.kill()
    for kind in ("sandbox", "network.intent"):
        database(daemon, "UPDATE docs SET doc='{}' WHERE kind=? AND key=?", kind, lost.id)
    daemon.start()

    def listed() -> list[str]:
        return [one.id for one in daemon.runtime.ListContainers(pb.ListContainersRequest(), timeout=30).containers]

    eventually(lambda: listed() == [id_])
    assert kept.status(id_).state == pb.CONTAINER_RUNNING
    eventually(lambda: addresses(daemon) == both / 2)
    kept.remove()
    assert daemon.left() == []
    eventually(lambda: addresses(daemon) == 0)
