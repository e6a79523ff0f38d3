"""The life of pods in virtual machines, over the CRI socket."""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from hack.lab.daemon import Daemon
from hack.lab.settings import patient
from tests.e2e import microvm_pods
from tests.e2e.microvm_pods import VmPod, keepers, monitors
from tests.e2e.streams import SocketClient, eventually, exit_code

pytestmark = pytest.mark.root

HOST_PORT = 18093


@pytest.fixture(scope="module")
def daemon(machines: Daemon) -> Daemon:
    return machines


@pytest.fixture(scope="module")
def pod(daemon: Daemon) -> Iterator[VmPod]:
    """One machine for all tests that do not end it."""
    found = VmPod.plan(daemon)
    found.config.port_mappings.add(protocol=pb.TCP, container_port=8080, host_port=HOST_PORT, host_ip="127.0.0.1")
    found.config.linux.security_context.privileged = True
    found.run()
    yield found
    found.remove()


def test_an_image_that_is_pulled_for_machines_is_a_disk_by_then(daemon: Daemon) -> None:
    disks = Path(daemon.config.root, "microvm/images")
    assert [path.suffix for path in disks.iterdir() if path.is_file()] == [".erofs"]
    assert not list(Path(daemon.config.state, "containers").iterdir())


def test_a_container_has_a_kernel_and_a_root_of_its_own(pod: VmPod, busybox: str) -> None:
    said = pod.output(
        busybox,
        *("sh", "-c"),
        "uname -r; hostname; id -u; cat /proc/1/comm; echo x > /new && cat /new; cd /proc/sys/net/ipv4;"
        " cat ip_unprivileged_port_start ping_group_range; echo err >&2",
    ).splitlines()
    assert said[0] != os.uname().release
    assert said[1:] == ["tester", "0", "sh", "x", "0", "0\t2147483647", "err"]


def test_exit_codes_signals_and_the_reason_are_told(pod: VmPod, busybox: str) -> None:
    for attempt in range(2):
        # As a kubelet restarts it: another one of the same name, in the same machine.
        config = pod.container(busybox, "sh", "-c", "exit 7", name="seven", attempt=attempt)
        assert pod.wait(pod.start(config)).exit_code == 7
    config = pod.container(busybox, "sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done")
    config.metadata.name = "graceful"
    id_ = pod.start(config)
    eventually(lambda: "up" in pod.log(id_))
    pod.stop_container(id_, grace=20)
    assert pod.status(id_).exit_code == 3
    assert pod.log(id_) == "up\nbye\n"


def test_a_command_that_is_not_there_ends_its_container_when_it_is_started(pod: VmPod, busybox: str) -> None:
    id_ = pod.create(pod.container(busybox, "/nowhere", name="nowhere"))
    with pytest.raises(grpc.RpcError, match="no such file"):
        pod.daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=id_), timeout=patient(30))
    status = pod.status(id_)
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 128, "StartError")


def test_init_containers_two_containers_and_volumes_that_are_live(pod: VmPod, busybox: str, tmp_path: Path) -> None:
    config, data, memory = tmp_path / "config", tmp_path / "data", tmp_path / "pods/1/volumes/kubernetes.io~empty-dir"
    (config / "..v1").mkdir(parents=True)
    (config / "..v1/key").write_text("one\n")
    (config / "..data").symlink_to("..v1")
    (config / "key").symlink_to("..data/key")
    data.mkdir()
    scratch = memory / "scratch"
    scratch.mkdir(parents=True)

    def mounted(name: str, *command: str) -> pb.ContainerConfig:
        found = pod.container(busybox, *command, name=name)
        found.mounts.add(container_path="/config", host_path=str(config), readonly=True)
        found.mounts.add(container_path="/data", host_path=str(data))
        found.mounts.add(container_path="/scratch", host_path=str(scratch))
        return found

    init = mounted("init", "sh", "-c", "echo ready > /data/init; echo shared > /scratch/x; cat /config/key")
    init_id = pod.start(init)
    assert pod.wait(init_id).exit_code == 0
    assert pod.log(init_id) == "one\n"
    assert (data / "init").read_text() == "ready\n"
    first = pod.start(mounted("first", "sleep", "1000"))
    second = pod.start(mounted("second", "sleep", "1000"))
    assert pod.exec(first, "cat", "/scratch/x").stdout == b"shared\n"
    refused = pod.exec(second, "sh", "-c", "echo no > /config/key")
    assert refused.exit_code != 0 and b"Read-only" in refused.stderr
    (config / "..v2").mkdir()
    (config / "..v2/key").write_text("two\n")
    (config / "..new").symlink_to("..v2")
    (config / "..new").rename(config / "..data")
    eventually(lambda: pod.exec(second, "cat", "/config/key").stdout == b"two\n")
    (data / "host").write_text("from the host\n")
    eventually(lambda: pod.exec(first, "cat", "/data/host").stdout == b"from the host\n")
    for id_ in (first, second):
        pod.stop_container(id_)


def test_a_host_port_leads_into_the_machine(pod: VmPod, busybox: str) -> None:
    # No `httpd` of every busybox daemonises the same way.
    script = 'while :; do printf "HTTP/1.0 200 OK\\r\\n\\r\\nguest\\n" | nc -l -p 8080; done'
    id_ = pod.start(pod.container(busybox, "sh", "-c", script, name="web"))

    def answer() -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", HOST_PORT, timeout=5)
        try:
            connection.request("GET", "/")
            return connection.getresponse().read()
        except OSError:
            return b""
        finally:
            connection.close()

    eventually(lambda: answer() == b"guest\n")
    pod.stop_container(id_)


def test_exec_has_a_terminal_of_its_own_that_can_be_resized(pod: VmPod, busybox: str) -> None:
    id_ = pod.start(pod.container(busybox, name="terminal"))
    result = pod.exec(id_, "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (result.exit_code, result.stdout, result.stderr) == (5, b"out\n", b"err\n")
    request = pb.ExecRequest(container_id=id_, cmd=["sh"], tty=True, stdin=True, stdout=True)
    with SocketClient(pod.daemon.runtime.Exec(request, timeout=patient(30)).url, "v5.channel.k8s.io") as client:
        client.say(4, b'{"Width":101,"Height":41}')
        client.say(0, b"tty; stty size\n")
        client.until(lambda: b"41 101" in client.heard[1] and b"/dev/pts/" in client.heard[1])
        client.say(4, b'{"Width":77,"Height":33}')
        client.say(0, b"stty size; exit 4\n")
        client.rest()
    assert b"33 77" in client.heard[1]
    assert exit_code(client.heard[3]) == 4
    pod.stop_container(id_)


def test_a_container_that_takes_too_much_memory_is_killed_and_its_machine_goes_on(pod: VmPod, busybox: str) -> None:
    config = pod.container(
        busybox, "sh", "-c", "head -c 200000000 /dev/zero | tail -c 199999999 > /dev/null", name="fat"
    )
    config.linux.resources.memory_limit_in_bytes = 16 << 20
    status = pod.wait(pod.start(config), seconds=60)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
    assert pod.ready()


def test_a_privileged_container_has_the_devices_of_its_machine(pod: VmPod, busybox: str) -> None:
    config = pod.container(
        busybox, "sh", "-c", ": <> /dev/net/tun; : <> /dev/fuse; echo said > /dev/kmsg; echo all", name="privileged"
    )
    config.linux.security_context.privileged = True
    id_ = pod.start(config)
    assert pod.wait(id_).exit_code == 0
    assert pod.log(id_) == "all\n"


def test_a_machine_runs_on_the_processors_that_a_kubelet_gives_to_its_containers(pod: VmPod, busybox: str) -> None:
    processes = [*keepers(pod.daemon), *monitors(pod.daemon)]

    def allowed() -> set[str]:
        lines = [line for pid in processes for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
        return {line.split()[1] for line in lines if line.startswith("Cpus_allowed_list:")}

    first = min(os.sched_getaffinity(0))
    config = pod.container(busybox, name="pinned")
    config.linux.resources.cpuset_cpus = str(first)
    id_ = pod.start(config)
    assert allowed() == {str(first)}
    every = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    request = pb.UpdateContainerResourcesRequest(container_id=id_)
    request.linux.cpuset_cpus = every
    pod.daemon.runtime.UpdateContainerResources(request, timeout=patient(30))
    assert pod.exec(id_, "true").exit_code == 0
    if every != str(first):
        assert allowed() != {str(first)}
    if len(os.sched_getaffinity(0)) > 1:
        more = pb.LinuxContainerResources(cpu_period=100_000, cpu_quota=200_000)
        with pytest.raises(grpc.RpcError, match="machine has 1 processors"):
            pod.daemon.runtime.UpdateContainerResources(
                pb.UpdateContainerResourcesRequest(container_id=id_, linux=more), timeout=patient(30)
            )
    request.linux.cpuset_cpus = "9999"
    with pytest.raises(grpc.RpcError, match="not within its pod's"):
        pod.daemon.runtime.UpdateContainerResources(request, timeout=patient(30))
    pod.stop_container(id_)


def test_a_machine_begins_from_a_template_and_no_two_are_alike(daemon: Daemon, busybox: str) -> None:
    microvm_pods.await_template(daemon)
    said = []
    for _ in range(2):
        begun = time.monotonic()
        pod = VmPod.plan(daemon).run()
        took = time.monotonic() - begun
        said.append(
            pod.output(busybox, "sh", "-c", "cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | md5sum")
        )
        assert took < patient(20)
        pod.remove()
    assert not set(said[0].splitlines()) & set(said[1].splitlines())


def test_a_clone_gives_back_what_its_guest_has_freed(daemon: Daemon, pod: VmPod, busybox: str) -> None:
    microvm_pods.await_template(daemon)
    others = set(monitors(daemon))
    clone = VmPod.plan(daemon).run()
    (monitor,) = set(monitors(daemon)) - others
    assert "-incoming" in Path(f"/proc/{monitor}/cmdline").read_text().split("\0")
    clone.output(busybox, "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=60 && rm /big")

    def memory(name: str) -> int:
        """In MiB; ``VmHWM`` is the most there was (proc(5))."""
        lines = Path(f"/proc/{monitor}/status").read_text().splitlines()
        return next(int(line.split()[1]) >> 10 for line in lines if line.startswith(f"{name}:"))

    eventually(lambda: memory("VmRSS") < memory("VmHWM") - 40)
    clone.remove()
