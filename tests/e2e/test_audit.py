"""The audit log of a real forgeoned: what a client was told of is in it, whatever happens next."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from forgeone_shim.audit import keys, snapshot
from forgeone_shim.audit import verify as audit
from forgeone_shim.audit.entry import TYPE_PREFIX, Event, decode
from forgeone_shim.audit.snapshot import Snapshot
from hack.lab.daemon import Daemon
from hack.lab.settings import patient
from tests.e2e.pods import Pod
from tests.e2e.streams import SpdyClient, eventually, exit_code
from tests.unit.audit.logs import flip

pytestmark = pytest.mark.root


def log(daemon: Daemon) -> Snapshot:
    root = Path(daemon.config.root)
    found = snapshot.read(root / "audit", lambda origin: keys.read_verifiers(root / "keys", origin))
    assert found is not None
    return found


def events(daemon: Daemon, subject: str = "") -> list[Event]:
    found = log(daemon)
    made = (decode(data) for data in found.entries(found.first))
    return [one for one in made if one.subject.partition("/")[2].startswith(subject)]


def types(daemon: Daemon, subject: str = "") -> list[str]:
    return [one.type.removeprefix(TYPE_PREFIX) for one in events(daemon, subject)]


def forge(daemon: Daemon, *words: str, code: int = 0) -> str:
    argv = [sys.executable, "-m", "forgeone_shim.cli.main", "--socket", daemon.socket, "audit", *words]
    if words[0] not in ("key", "accept"):
        argv += ["--config", str(daemon.config_file)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=patient(60))
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def image(forgeoned: Daemon, busybox: str) -> str:
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=patient(60))
    return busybox


@pytest.fixture
def pod(forgeoned: Daemon, image: str, nothing_left: None) -> Iterator[Pod]:
    made = Pod.plan(forgeoned).run()
    yield made
    made.remove()


def test_each_step_is_in_the_log_when_its_call_returns(forgeoned: Daemon, pod: Pod, image: str) -> None:
    assert types(forgeoned, pod.id) == ["sandbox.booted"]
    id_ = pod.create(pod.container(image))
    assert types(forgeoned, id_) == ["container.booted"]
    forgeoned.runtime.StartContainer(pb.StartContainerRequest(container_id=id_), timeout=patient(30))
    assert types(forgeoned, id_) == ["container.booted", "container.started"]
    pod.stop_container(id_)
    assert types(forgeoned, id_)[2:] == ["container.stopping", "container.exited"]
    forgeoned.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=id_), timeout=patient(30))
    assert types(forgeoned, id_)[4:] == ["container.removed"]
    started = events(forgeoned, id_)[1]
    assert started.data["pod"]["name"] == pod.config.metadata.name
    assert (started.data["from"], started.data["to"]) == ("booted", "running")
    assert events(forgeoned, id_)[3].data["exit_code"] == 137
    found = log(forgeoned)
    assert audit.verify(found).entries == found.size


def test_an_end_that_nobody_asked_for_is_in_the_log(forgeoned: Daemon, pod: Pod, image: str) -> None:
    id_ = pod.start(pod.container(image, "sh", "-c", "exit 3"))
    pod.wait(id_)
    eventually(lambda: types(forgeoned, id_)[-1] == "container.exited")
    assert events(forgeoned, id_)[-1].data["exit_code"] == 3


def test_what_is_run_inside_is_told_without_its_arguments(forgeoned: Daemon, pod: Pod, image: str) -> None:
    id_ = pod.start(pod.container(image))
    pod.exec(id_, "sh", "-c", "exit 4; # secret")
    eventually(lambda: types(forgeoned, id_)[2:] == ["container.exec.began", "container.exec.ended"])
    began, ended = events(forgeoned, id_)[2:]
    assert (began.data["program"], began.data["arguments"]) == ("sh", 3)
    assert (ended.data["began"], ended.data["exit_code"]) == (f"audit:{began.id}", 4)
    assert "secret" not in str(events(forgeoned))


def test_streams_are_told_when_they_begin_and_when_they_end(forgeoned: Daemon, pod: Pod, image: str) -> None:
    id_ = pod.start(pod.container(image))
    request = pb.ExecRequest(container_id=id_, cmd=("sh", "-c", "exit 5"), stdout=True)
    url = forgeoned.runtime.Exec(request, timeout=patient(30)).url
    with SpdyClient(url, "v4.channel.k8s.io") as client:
        error, _ = (client.open(streamType=kind) for kind in ("error", "stdout"))
        client.rest()
    assert exit_code(client.heard[error]) == 5
    eventually(lambda: types(forgeoned, id_)[2:] == ["container.exec.began", "container.exec.ended"])
    assert events(forgeoned, id_)[-1].data["exit_code"] == 5
    request = pb.PortForwardRequest(pod_sandbox_id=pod.id, port=[8099])
    url = forgeoned.runtime.PortForward(request, timeout=patient(30)).url
    with SpdyClient(url, "portforward.k8s.io"):
        eventually(lambda: types(forgeoned, pod.id)[1:] == ["sandbox.portforward.began"])
    eventually(lambda: types(forgeoned, pod.id)[1:] == ["sandbox.portforward.began", "sandbox.portforward.ended"])


def test_what_was_answered_outlives_kill_9(fresh_forgeoned: Daemon, busybox: str) -> None:
    daemon = fresh_forgeoned
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=patient(60))
    told: list[tuple[str, str]] = []
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            try:
                pod = Pod.plan(daemon).run()
                told.append(("sandbox.booted", pod.id))
                id_ = pod.start(pod.container(busybox))
                told.append(("container.started", id_))
                pod.stop_container(id_)
                told.append(("container.stopping", id_))
                pod.remove()
                told.append(("sandbox.removed", pod.id))
            except grpc.RpcError:
                over.wait(0.05)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for one in workers:
        one.start()
    try:
        for _ in range(2):
            over.wait(0.7)
            daemon.kill()
            seen = list(told)
            written = {(one.type.removeprefix(TYPE_PREFIX), one.subject.partition("/")[2]) for one in events(daemon)}
            assert [one for one in seen if one not in written] == []
            daemon.start()
    finally:
        over.set()
        for one in workers:
            one.join()
    status = daemon.runtime.Status(pb.StatusRequest(), timeout=patient(30)).status
    assert {one.type: one.status for one in status.conditions}["AuditLogSound"]
    assert types(daemon).count("node.started") == 3
    found = log(daemon)
    assert audit.verify(found).entries == found.size


def test_nothing_starts_on_a_damaged_log_until_somebody_accepts_it(fresh_forgeoned: Daemon, busybox: str) -> None:
    daemon = fresh_forgeoned
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=patient(60))
    pod = Pod.plan(daemon).run()
    id_ = pod.start(pod.container(busybox))
    daemon.stop()
    directory = Path(daemon.config.root) / "audit"
    flip(next((directory / "tile/entries/000.p").iterdir()), 300)
    daemon.start()
    with pytest.raises(grpc.RpcError) as caught:
        Pod.plan(daemon).run()
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "is not the one that was logged" in caught.value.details()
    assert "forge audit accept" in caught.value.details()
    conditions = {one.type: one for one in daemon.runtime.Status(pb.StatusRequest()).status.conditions}
    assert conditions["RuntimeReady"].status
    assert not conditions["AuditLogSound"].status
    # What there is can be looked into and stopped, and that is told.
    pod.stop_container(id_)
    assert types(daemon, id_)[-1] == "container.exited"
    forge(daemon, "accept")
    Pod.plan(daemon).run().remove()
    pod.remove()
    assert "audit.accepted" in types(daemon)
    kept = next(path for path in directory.parent.iterdir() if path.name.startswith("audit.damaged-"))
    shutil.rmtree(kept)


def test_the_operators_tools_work_beside_forgeoned(forgeoned: Daemon, pod: Pod, image: str) -> None:
    id_ = pod.start(pod.container(image))
    assert "container.started" in forge(forgeoned, "tail", "-n", "5")
    assert "all as they were signed" in forge(forgeoned, "verify")
    files = forgeoned.directory / "receipts"
    files.mkdir()
    old = forge(forgeoned, "receipt", "-o", f"{files}/%", id_[:13]).split()
    key = forge(forgeoned, "key", "rotate").strip()
    assert len(old) == 2
    assert "container.booted" in forge_check(old[0], str(log_key(forgeoned)))
    assert "audit.key.rotated" in types(forgeoned)
    assert key in forge(forgeoned, "verify", "--key", str(log_key(forgeoned)))
    assert "is not over" not in forge(forgeoned, "tail")


def log_key(daemon: Daemon) -> str:
    """The key that the log was begun with."""
    return str(events(daemon)[0].data["key"])


def forge_check(receipt: str, key: str) -> str:
    argv = [sys.executable, "-m", "forgeone_shim.cli.main", "audit", "check", "--key", key, receipt]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=patient(60)).stdout
