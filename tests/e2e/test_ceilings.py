"""A contract's ceiling of processes is the container's limit: there is no other way to ask for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri.api import runtime_pb2 as pb
from hack.lab.daemon import Daemon
from hack.lab.guests import guest, say, sleep
from hack.lab.settings import cgroup_host, patient
from tests.e2e.conftest import Push
from tests.e2e.pods import SLEEP, Pod
from tests.e2e.wasm_pods import WasmPod, image, pull

pytestmark = pytest.mark.root

HOST = cgroup_host()


def limit(pod: Pod, id_: str) -> str:
    directory = HOST.directory("pids", HOST.container(pod.daemon.config.cgroup_root, id_))
    return Path(directory or "", "pids.max").read_text().strip()


def test_a_program_cannot_have_more_processes_than_its_contract_allows(
    forgeoned: Daemon, busybox: str, nothing_left: None
) -> None:
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=patient(60))
    pod = Pod.plan(forgeoned)
    pod.config.annotations["zta.forgeone.dev/pids.web"] = "12"
    pod.run()
    try:
        web, free = pod.container(busybox, *SLEEP), pod.container(busybox, *SLEEP)
        web.metadata.name, free.metadata.name = "web", "free"
        id_ = pod.start(web)
        assert limit(pod, id_) == "12"
        assert limit(pod, pod.start(free)) == "max"
        many = "i=0; while [ $i -lt 30 ]; do sleep 5 & i=$((i+1)); done; wait"
        assert "can't fork" in pod.exec(id_, "sh", "-c", many).stderr.decode()
    finally:
        forgeoned.remove_pods()


def test_a_guest_has_the_limit_too(forgeoned: Daemon, push: Push, nothing_left: None) -> None:
    module = pull(forgeoned, push("sleeper:ceilings", image({"sleep.wasm": guest(say("up\n"), sleep(1000))})))
    pod = WasmPod.plan(forgeoned)
    pod.config.annotations["zta.forgeone.dev/pids"] = "40"
    pod.run()
    try:
        assert limit(pod, pod.start(pod.container(module))) == "40"
    finally:
        forgeoned.remove_pods()
