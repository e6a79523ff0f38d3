"""Pods in virtual machines and who reaches them, with the usage that they tell, over the CRI socket."""

from __future__ import annotations

import pytest

from cri.api import runtime_pb2 as pb
from hack.lab.daemon import Daemon
from hack.lab.settings import patient
from tests.e2e.microvm_pods import VmPod
from tests.e2e.streams import SpdyClient, eventually
from tests.e2e.test_contract_network import PREFIX, connects, info, ips, netns
from tests.e2e.test_streaming import forward_url

pytestmark = pytest.mark.root

SERVE = "while true; do echo served | nc -l -p 8099; done"
MIB = 1 << 20


@pytest.fixture(scope="module")
def daemon(machines: Daemon) -> Daemon:
    return machines


def served(pod: VmPod, image: str, *capabilities: str) -> str:
    """A container of the pod that answers on port 8099."""
    config = pod.container(image, "sh", "-c", SERVE)
    config.linux.security_context.capabilities.add_capabilities.extend(capabilities)
    id_ = pod.start(config)
    eventually(lambda: b":1FA3" in pod.exec(id_, "cat", "/proc/net/tcp", "/proc/net/tcp6").stdout)
    return id_


def test_ports_of_a_machine_are_forwarded_and_what_it_uses_is_told(daemon: Daemon, busybox: str) -> None:
    pod = VmPod.plan(daemon)
    pod.config.linux.cgroup_parent = f"{daemon.config.cgroup_root}/reach"
    pod.run()
    id_ = served(pod, busybox)
    with SpdyClient(forward_url(pod), "portforward.k8s.io") as client:
        error, data = (client.open(streamType=kind, port="8099", requestID="1") for kind in ("error", "data"))
        client.say(error, b"", fin=True)
        client.say(data, b"", fin=True)
        client.until(lambda: {error, data} <= client.ended)
        assert (client.heard[data], client.heard[error]) == (b"served\n", b"")
        error, data = (client.open(streamType=kind, port="4", requestID="2") for kind in ("error", "data"))
        client.until(lambda: {error, data} <= client.ended)
        assert b"localhost:4 cannot be reached" in client.heard[error]
    pod.exec(id_, "dd", "if=/dev/zero", "of=/written", "bs=1M", "count=2")
    runtime = daemon.runtime
    request = pb.ContainerStatsRequest(container_id=id_)
    one = runtime.ContainerStats(request, timeout=patient(10)).stats
    assert one.cpu.usage_core_nano_seconds.value > 0
    assert 0 < one.memory.working_set_bytes.value < 64 * MIB
    assert 2 * MIB <= one.writable_layer.used_bytes.value < 4 * MIB
    whole = runtime.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod.id), timeout=patient(10)).stats.linux
    assert [each.attributes.id for each in whole.containers] == [id_]
    assert whole.memory.usage_bytes.value > one.memory.usage_bytes.value
    assert whole.process.process_count.value >= 2
    assert whole.network.default_interface.name == "eth0"
    assert not whole.network.interfaces
    found = runtime.ListPodSandboxMetrics(pb.ListPodSandboxMetricsRequest(), timeout=patient(10)).pod_metrics
    [mine] = [each for each in found if each.pod_sandbox_id == pod.id]
    named = {metric.name for each in mine.container_metrics for metric in each.metrics}
    assert {"container_memory_rss", "container_file_descriptors", "container_fs_limit_bytes"} <= named
    pod.remove()


def test_a_guests_kernel_gets_the_modules_that_it_asks_for(daemon: Daemon, busybox: str) -> None:
    pod = VmPod.plan(daemon)
    pod.run()
    config = pod.container(busybox)
    config.linux.security_context.capabilities.add_capabilities.append("NET_ADMIN")
    id_ = pod.start(config)
    made = pod.exec(id_, "sh", "-c", "brctl addbr br9 && ip link show br9 && grep -c ^bridge /proc/modules")
    assert made.exit_code == 0, made.stderr
    assert pod.exec(id_, "grep", "-c", "^nf_tables", "/proc/modules").stdout == b"0\n"
    pod.remove()


def test_a_machine_is_held_to_its_contract_by_the_host(daemon: Daemon, busybox: str) -> None:
    pod, other = VmPod.plan(daemon), VmPod.plan(daemon)
    pod.config.annotations.update({PREFIX + "egress": "none", PREFIX + "ingress": "none"})
    for each in (pod, other):
        each.run()
    mine, theirs = served(pod, busybox, "ALL"), served(other, busybox)
    target = ips(other)[0]
    assert pod.exec(mine, "nc", "-w", "3", target, "8099").exit_code
    assert pod.exec(mine, "nc", "-w", "3", "127.0.0.1", "8099").stdout == b"served\n"
    # Whatever somebody may do in the guest.
    assert pod.exec(mine, "ip", "address", "add", "192.0.2.77/32", "dev", "eth0").exit_code == 0
    assert pod.exec(mine, "ip", "route", "replace", f"{target}/32", "dev", "eth0").exit_code == 0
    assert pod.exec(mine, "nc", "-w", "1", target, "8099").exit_code
    assert other.exec(theirs, "nc", "-w", "1", ips(pod)[0], "8099").exit_code
    # The node may probe.
    assert connects(None, ips(pod)[0], port=8099, seconds=3)
    assert connects(None, target, port=8099, seconds=3)
    counted = info(pod)["refused"]
    assert min(counted["egress"]["packets"], counted["ingress"]["packets"]) >= 1
    assert netns(pod)
    for each in (pod, other):
        each.remove()
