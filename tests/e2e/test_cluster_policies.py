"""Policies of a cluster on a node: what they deny and end, and what is left of them when anybody is killed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from forgeone_shim.cluster.policies import SOURCE
from hack.lab import leaks
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry
from hack.lab.settings import patient
from tests.e2e.conftest import running_daemon
from tests.e2e.pods import Pod
from tests.unit.cluster.server import ApiServer

pytestmark = pytest.mark.root

NO = {
    "floor": True,
    "rules": [
        {
            "name": "no",
            "at": ["sandbox", "create", "recover"],
            "expression": "!('app' in pod.labels)",
            "message": "no apps here",
        }
    ],
}
YES = {"floor": True, "rules": [{"name": "no", "at": ["sandbox"], "expression": "true"}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture(scope="module")
def forgeoned(server: ApiServer, registry: Registry, busybox: str) -> Iterator[Daemon]:
    settings = {"cluster.kubeconfig": str(server.kubeconfig), "cluster.required": True}
    with running_daemon(registry, settings) as daemon:
        daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=patient(60))
        yield daemon


@pytest.fixture
def daemon(forgeoned: Daemon, nothing_left: None) -> Iterator[Daemon]:
    yield forgeoned
    if not forgeoned.running:
        forgeoned.start()
    forgeoned.remove_pods()


def until(holds: Callable[[], object], what: str) -> None:
    end = time.monotonic() + patient(30)
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def app(daemon: Daemon) -> Pod:
    pod = Pod.plan(daemon)
    pod.config.labels["app"] = "web"
    return pod


def refusal(daemon: Daemon) -> str:
    """Why an app may not run; empty: it may, and did."""
    try:
        app(daemon).run()
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        return str(error.details())
    daemon.remove_pods()
    return ""


def watches(daemon: Daemon) -> list[int]:
    """The watch's process, by its pid."""
    return list(leaks.watches(daemon.pid))


def condition(daemon: Daemon) -> tuple[bool, str, str]:
    told = daemon.runtime.Status(pb.StatusRequest(), timeout=patient(10)).status.conditions
    return next((one.status, one.reason, one.message) for one in told if one.type == "ClusterPoliciesSynced")


def test_pods_wait_for_the_cluster_and_then_for_what_it_demands(
    server: ApiServer, daemon: Daemon, busybox: str
) -> None:
    daemon.stop()
    for path in (Path(daemon.config.root, "cluster/listed"), *Path(daemon.config.root, "cluster/policies").iterdir()):
        path.unlink(missing_ok=True)
    server.put("no-apps", NO)
    with server.silent():
        daemon.start()
        denied = refusal(daemon)
        assert denied.startswith("denied by cluster.required: the policies of the cluster have not come yet")
        assert condition(daemon)[:2] == (False, "NeverListed")
        static = Pod.plan(daemon)
        static.config.annotations[SOURCE] = "file"
        static.run().remove()
    until(lambda: condition(daemon)[0], "the node heard of the cluster")
    assert "denied by no-apps/no: no apps here [audit:" in refusal(daemon)
    other = Pod.plan(daemon).run()
    assert other.start(other.container(busybox))


def test_what_runs_ends_when_the_cluster_says_so_and_may_again_when_it_takes_it_back(
    server: ApiServer, daemon: Daemon, busybox: str
) -> None:
    server.put("no-apps", YES)
    until(lambda: not refusal(daemon), "it may run")
    pod = app(daemon).run()
    running = pod.start(pod.container(busybox))
    server.put("no-apps", NO)
    until(lambda: pod.status(running).state == pb.CONTAINER_EXITED, "it was stopped")
    assert pod.status(running).reason == "Denied"
    server.delete("no-apps")
    until(lambda: not refusal(daemon), "it may run again")


def test_policies_outlive_the_server_forgeoned_and_the_watch(server: ApiServer, daemon: Daemon) -> None:
    server.put("no-apps", NO)
    until(lambda: refusal(daemon), "it may not run")
    (watch,) = watches(daemon)
    with server.silent():
        daemon.kill()
        until(lambda: not Path(f"/proc/{watch}").exists(), "the watch ended with forgeoned")
        daemon.start()
        assert "no-apps" in refusal(daemon), "before anybody was asked"
    server.put("no-apps", YES)
    until(lambda: not refusal(daemon), "the cluster is heard again")


def test_whoever_is_killed_whenever_the_node_comes_to_what_the_cluster_says(server: ApiServer, daemon: Daemon) -> None:
    for victim, wanted in (("forgeoned", NO), ("watch", YES)):
        server.put("no-apps", wanted)
        time.sleep(random.uniform(0, 0.1))
        if victim == "forgeoned":
            daemon.kill()
            daemon.start()
        else:
            for pid in watches(daemon):
                os.kill(pid, signal.SIGKILL)
        until(lambda wanted=wanted: bool(refusal(daemon)) is (wanted is NO), "it holds what the cluster says")
    until(lambda: len(watches(daemon)) == 1, "one watch, of this forgeoned")
    kept = sorted(path.name for path in Path(daemon.config.root, "cluster/policies").iterdir())
    assert kept == ["no-apps.json"]


def test_the_watch_is_confined_before_it_does_anything(daemon: Daemon) -> None:
    def status() -> dict[str, str]:
        (pid,) = watches(daemon)
        return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())

    until(lambda: len(watches(daemon)) == 1 and status()["Seccomp"] == "2", "it is confined")
    assert status()["NoNewPrivs"] == "1"
    assert {status()[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
