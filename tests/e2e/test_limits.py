"""Limits that a container has from its beginning, as this kernel keeps them."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from forgeone_shim.kernel import cgroups
from forgeone_shim.kernel.cgroups import Mode
from hack.lab.daemon import Daemon
from hack.lab.settings import cgroup_host
from tests.e2e.pods import Pod

pytestmark = [pytest.mark.root]

MIB = 1 << 20
HOST = cgroup_host()
V2 = HOST.mode is Mode.V2
HUGE = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


@pytest.fixture(scope="module")
def image(forgeoned: Daemon, busybox: str) -> str:
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    return busybox


@pytest.fixture
def pod(forgeoned: Daemon, nothing_left: None) -> Iterator[Pod]:
    pod = Pod.plan(forgeoned).run()
    yield pod
    pod.remove()


def directory(pod: Pod, id_: str, controller: str) -> Path:
    return Path(HOST.directory(controller, HOST.container(pod.daemon.config.cgroup_root, id_)) or "")


def limit(directory: Path, name: str) -> int | None:
    """What a file says, ``None`` for no limit."""
    text = (directory / name).read_text().strip()
    return None if text == "max" or int(text) >= 1 << 62 else int(text)


def refused(pod: Pod, config: pb.ContainerConfig, match: str) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError, match=match) as raised:
        pod.create(config)
    code: grpc.StatusCode = raised.value.code()
    return code


# Memory


@pytest.mark.parametrize(("swap", "extra"), [(0, 0), (96 * MIB, 32 * MIB), (-1, None)])
def test_memory_and_swap(pod: Pod, image: str, swap: int, extra: int | None) -> None:
    config = pod.container(image)
    config.linux.resources.memory_limit_in_bytes = 64 * MIB
    config.linux.resources.memory_swap_limit_in_bytes = swap
    found = directory(pod, pod.start(config), "memory")
    name = "memory.swap.max" if V2 else "memory.memsw.limit_in_bytes"
    if not (found / name).exists():
        pytest.skip("this kernel does not count swap")
    assert limit(found, name) == (extra if V2 or extra is None else 64 * MIB + extra)


def test_swap_below_memory_and_swap_alone_are_refused(pod: Pod, image: str) -> None:
    config = pod.container(image)
    config.linux.resources.memory_swap_limit_in_bytes = 32 * MIB
    assert refused(pod, config, "needs a memory limit") is grpc.StatusCode.INVALID_ARGUMENT
    config.linux.resources.memory_limit_in_bytes = 64 * MIB
    assert refused(pod, config, "is below the memory limit") is grpc.StatusCode.INVALID_ARGUMENT


# Huge pages


@pytest.fixture
def huge_pages() -> Iterator[None]:
    before = (HUGE / "nr_hugepages").read_text()
    (HUGE / "nr_hugepages").write_text("8")
    try:
        if int((HUGE / "free_hugepages").read_text()) < 4:
            pytest.skip("this host cannot reserve huge pages now")
        yield
    finally:
        (HUGE / "nr_hugepages").write_text(before)


@pytest.mark.skipif(not HUGE.exists() or not HOST.has("hugetlb"), reason="no huge pages, or no controller for them")
def test_huge_pages_have_a_limit_that_an_update_moves(pod: Pod, image: str, huge_pages: None) -> None:
    config = pod.container(image)
    config.linux.resources.hugepage_limits.add(page_size="2048KB", limit=4 * MIB)
    id_ = pod.start(config)
    found, name = directory(pod, id_, "hugetlb"), f"hugetlb.2MB.{'max' if V2 else 'limit_in_bytes'}"
    reserved = found / name.replace("2MB.", "2MB.rsvd.")
    assert limit(found, name) == 4 * MIB
    assert not reserved.exists() or limit(found, reserved.name) == 4 * MIB
    limits = pb.LinuxContainerResources(hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=2 * MIB)])
    request = pb.UpdateContainerResourcesRequest(container_id=id_, linux=limits)
    pod.daemon.runtime.UpdateContainerResources(request, timeout=60)
    assert limit(found, name) == 2 * MIB
    assert not reserved.exists() or limit(found, reserved.name) == 2 * MIB


@pytest.mark.skipif(not HOST.has("hugetlb"), reason="no controller for huge pages")
def test_huge_pages_this_host_has_not_are_refused(pod: Pod, image: str) -> None:
    config = pod.container(image)
    config.linux.resources.hugepage_limits.add(page_size="4MB", limit=4 * MIB)
    assert (
        refused(pod, config, r"hugepage_limits\[4MB\]: this host has no pages") is grpc.StatusCode.FAILED_PRECONDITION
    )
    config.linux.resources.hugepage_limits[0].limit = 0
    pod.create(config)


# Unified keys


@pytest.mark.skipif(V2, reason="a cgroup v2 host takes them")
def test_unified_keys_are_refused_on_v1(pod: Pod, image: str) -> None:
    config = pod.container(image)
    config.linux.resources.unified["memory.high"] = str(32 * MIB)
    assert refused(pod, config, "unified resources need cgroup v2") is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.skipif(not V2, reason="unified keys need cgroup v2")
def test_unified_keys_are_the_cgroup_s_and_contradict_nothing(pod: Pod, image: str) -> None:
    config = pod.container(image)
    config.linux.resources.memory_limit_in_bytes = 64 * MIB
    config.linux.resources.unified["memory.high"] = str(32 * MIB)
    config.linux.resources.unified["memory.swap.max"] = str(8 * MIB)
    found = directory(pod, pod.start(config), "memory")
    assert limit(found, "memory.high") == 32 * MIB
    if (found / "memory.swap.max").exists():
        assert limit(found, "memory.swap.max") == 8 * MIB
    config.metadata.attempt += 1
    config.linux.resources.unified["memory.max"] = str(32 * MIB)
    assert refused(pod, config, "contradicts") is grpc.StatusCode.INVALID_ARGUMENT
    del config.linux.resources.unified["memory.max"]
    config.linux.resources.unified["cgroup.kill"] = "1"
    assert refused(pod, config, "is not a limit") is grpc.StatusCode.INVALID_ARGUMENT


# Classes


@pytest.fixture
def disk() -> tuple[str, str]:
    """A whole disk: its node, and its major and minor."""
    for block in sorted(Path("/sys/block").iterdir()):
        node = Path("/dev", block.name)
        if node.is_block_device() and int((block / "size").read_text()) and not block.name.startswith(("loop", "zram")):
            return str(node), (block / "dev").read_text().strip()
    pytest.skip("this host has no disk")


@pytest.mark.skipif(not HOST.has("io" if V2 else "blkio"), reason="no controller of block I/O")
def test_a_class_of_block_io_is_the_cgroup_s(
    daemon_factory: Callable[[], Daemon], busybox: str, disk: tuple[str, str], tmp_path: Path
) -> None:
    daemon, (node, numbers) = daemon_factory(), disk
    file = tmp_path / "blockio.yaml"
    file.write_text(
        f"Classes: {{slow: [{{Devices: ['{node}'], ThrottleReadBps: 1M, ThrottleWriteIOPS: 10}}, {{Weight: 50}}]}}"
    )
    daemon.stop()
    text = daemon.config_file.read_text()
    daemon.config_file.write_text(re.sub(r'blockio_config_file = ".*"', f'blockio_config_file = "{file}"', text))
    daemon.start()
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    pod = Pod.plan(daemon)
    pod.config.annotations["blockio.resources.beta.kubernetes.io/container.main"] = "slow"
    pod.config.annotations["blockio.resources.beta.kubernetes.io/container.lost"] = "gone"
    pod.run()
    found = directory(pod, pod.start(pod.container(busybox)), "io" if V2 else "blkio")
    if V2:
        assert (found / "io.max").read_text().strip() == f"{numbers} rbps=1000000 wbps=max riops=max wiops=10"
    else:
        assert (found / "blkio.throttle.read_bps_device").read_text().strip() == f"{numbers} 1000000"
        assert (found / "blkio.throttle.write_iops_device").read_text().strip() == f"{numbers} 10"
    refused(pod, pod.container(busybox, name="lost"), "no block I/O class 'gone'; it has slow")
    plain = directory(pod, pod.start(pod.container(busybox, name="plain")), "io" if V2 else "blkio")
    assert (plain / ("io.max" if V2 else "blkio.throttle.read_bps_device")).read_text().strip() == ""
    pod.remove()


@pytest.mark.skipif(Path("/sys/fs/resctrl/schemata").exists(), reason="this host has resctrl")
def test_an_rdt_class_is_refused_without_resctrl(forgeoned: Daemon, image: str, nothing_left: None) -> None:
    pod = Pod.plan(forgeoned)
    pod.config.annotations["rdt.resources.beta.kubernetes.io/pod"] = "gold"
    pod.run()
    code = refused(pod, pod.container(image), "'gold' was asked for, but resctrl is not mounted")
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    pod.remove()


@pytest.fixture
def group() -> Iterator[Path]:
    path = Path("/sys/fs/resctrl", f"forgeone-test-{secrets.token_hex(4)}")
    path.mkdir()
    yield path
    path.rmdir()


@pytest.mark.skipif(not Path("/sys/fs/resctrl/schemata").exists(), reason="resctrl is not mounted here")
def test_an_rdt_class_has_the_container_and_what_is_executed_in_it(
    forgeoned: Daemon, image: str, nothing_left: None, group: Path
) -> None:
    pod = Pod.plan(forgeoned)
    pod.config.annotations["rdt.resources.beta.kubernetes.io/pod"] = group.name
    pod.run()
    id_ = pod.start(pod.container(image, "sh", "-c", "sleep 1000 & wait"))
    assert len((group / "tasks").read_text().split()) >= 2
    assert pod.exec(id_, "grep", group.name, "/proc/self/cpu_resctrl_groups").exit_code == 0
    pod.remove()


# The pod's own cgroup


def test_the_limits_of_a_pod_s_cgroup_are_never_touched(forgeoned: Daemon, image: str) -> None:
    if HOST.driver is cgroups.Driver.SYSTEMD:
        pytest.skip("slices are systemd's to make")
    parent = f"{forgeoned.config.cgroup_root}/pod{secrets.token_hex(4)}"
    cgroups.make(HOST, parent)
    memory = Path(HOST.directory("memory", parent) or "", "memory.max" if V2 else "memory.limit_in_bytes")
    try:
        if V2:
            for part in (Path(HOST.unified), Path(HOST.unified + forgeoned.config.cgroup_root)):
                (part / "cgroup.subtree_control").write_text("+memory +pids +cpu")
        memory.write_text(str(256 * MIB))
        pod = Pod.plan(forgeoned, pid=pb.POD, cgroup_parent=parent)
        pod.config.linux.resources.memory_limit_in_bytes = 128 * MIB
        pod.config.linux.overhead.memory_limit_in_bytes = 8 * MIB
        pod.run()
        config = pod.container(image)
        config.linux.resources.memory_limit_in_bytes = 32 * MIB
        pod.start(config)
        resources = pb.LinuxContainerResources(memory_limit_in_bytes=64 * MIB)
        request = pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod.id, resources=resources)
        forgeoned.runtime.UpdatePodSandboxResources(request, timeout=60)
        assert int(memory.read_text()) == 256 * MIB
        pod.remove()
        assert int(memory.read_text()) == 256 * MIB
    finally:
        cgroups.remove(HOST, parent)


def test_a_parent_of_the_other_driver_is_refused(forgeoned: Daemon) -> None:
    wrong = "/kubepods/pod1" if HOST.driver is cgroups.Driver.SYSTEMD else "kubepods-pod1.slice"
    with pytest.raises(grpc.RpcError, match="cgroup driver is") as raised:
        Pod.plan(forgeoned, cgroup_parent=wrong).run()
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


# The score for the OOM killer


def test_an_oom_score_is_the_container_s_or_as_low_as_this_host_allows(pod: Pod, image: str) -> None:
    own = int(Path(f"/proc/{pod.daemon.pid}/oom_score_adj").read_text())
    may_lower = int(re.findall(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[0], 16) >> 24 & 1
    for asked in (500, -900):
        config = pod.container(image, "cat", "/proc/self/oom_score_adj", name=f"c{os.urandom(3).hex()}")
        config.linux.resources.oom_score_adj = asked
        id_ = pod.start(config)
        pod.wait(id_)
        assert int(pod.log(id_)) == (asked if may_lower else max(asked, own))


# Stop signals


@pytest.mark.parametrize(
    ("signal", "name"),
    [(pb.SIGNAL_SIGUSR1, "USR1"), (pb.SIGNAL_SIGRTMINPLUS3, "37"), (pb.SIGNAL_RUNTIME_DEFAULT, "TERM")],
)
def test_a_container_is_asked_to_stop_by_its_own_signal(pod: Pod, image: str, signal: int, name: str) -> None:
    script = f"trap 'echo got {name}; exit 7' {name}; echo ready; while :; do sleep 0.05; done"
    config = pod.container(image, "sh", "-c", script)
    config.stop_signal = signal
    id_ = pod.start(config)
    while "ready" not in pod.log(id_):
        time.sleep(0.02)
    pod.stop_container(id_, grace=20)
    status = pod.status(id_)
    assert status.exit_code == 7
    assert f"got {name}" in pod.log(id_)
    assert status.stop_signal == (signal or pb.SIGNAL_SIGTERM)


def test_a_signal_that_is_none_is_refused(pod: Pod, image: str) -> None:
    config = pod.container(image)
    config.stop_signal = 999
    assert refused(pod, config, "stop_signal") is grpc.StatusCode.INVALID_ARGUMENT
