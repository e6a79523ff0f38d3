"""Devices of containers on this kernel: vendors' by CDI files, a node's own, those pods ask for; and other defaults."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from forgeone_shim.cli import main as cli
from forgeone_shim.config.loader import to_toml
from forgeone_shim.kernel import cgroups
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry
from tests.e2e.conftest import running_daemon
from tests.e2e.pods import Pod

pytestmark = pytest.mark.root

# /dev/fuse: a device that no container may use unless it is given, and that every kernel of a distribution has.
FUSE = os.makedev(10, 229)
OPENS = "(: <>%s) 2>/dev/null && echo yes || echo no"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Device nodes of the tests' own, and their CDI files in ``etc`` and ``run``."""
    found = tmp_path_factory.mktemp("devices")
    os.mknod(found / "fuse", stat.S_IFCHR | 0o640, FUSE)
    try:
        os.close(os.open(found / "fuse", os.O_RDWR))
    except OSError as error:
        pytest.skip(f"this kernel has no /dev/fuse: {error}")
    os.mknod(found / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (found / "shared").mkdir()
    (found / "shared/file").write_text("of the node\n")
    return found


@pytest.fixture(scope="module")
def node(registry: Registry, directory: Path) -> Iterator[Daemon]:
    settings = {
        "cdi.spec_dirs": (str(directory / "etc"), str(directory / "run")),
        "default_sysctls": ("net.ipv4.ip_unprivileged_port_start=77", "kernel.shmmni=1234"),
        "native.default_env": ("NODE=here", "PATH=/bin:/node"),
        "native.default_mounts": (f"{directory}/shared:/node:ro",),
        "native.default_capabilities": ("CHOWN", "SETUID", "SETGID"),
        "native.default_ulimits": ("nofile=123:456", "core=0", "fsize=-1"),
        "native.additional_devices": (f"{directory}/null:/dev/of-the-node:rw",),
        "native.allowed_devices": (f"{directory}/fuse",),
        "native.device_ownership_from_security_context": True,
    }
    with running_daemon(registry, settings) as daemon:
        yield daemon


@pytest.fixture
def pod(node: Daemon, busybox: str) -> Iterator[Pod]:
    node.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    found = Pod.plan(node).run()
    yield found
    found.remove()


Write = Callable[..., Path]


@pytest.fixture
def write(directory: Path) -> Iterator[Write]:
    """``write("etc/a.json", one={"env": [...]})``: a CDI file of devices ``vendor.test/thing=one``, for this test."""
    written: list[Path] = []

    def put(name: str, everything: dict[str, Any] | None = None, **devices: dict[str, Any]) -> Path:
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            json.dumps(
                {
                    "cdiVersion": "0.7.0",
                    "kind": "vendor.test/thing",
                    "containerEdits": everything or {},
                    "devices": [{"name": key, "containerEdits": edits} for key, edits in devices.items()],
                }
            )
        )
        written.append(path)
        return path

    yield put
    for path in written:
        path.unlink(missing_ok=True)


def asking(
    pod: Pod, busybox: str, *devices: str, command: str = "sleep 1000", name: str = "main"
) -> pb.ContainerConfig:
    config = pod.container(busybox, "sh", "-c", command, name=name)
    config.CDI_devices.extend(pb.CDIDevice(name=f"vendor.test/thing={device}") for device in devices)
    return config


def sh(pod: Pod, container: str, line: str) -> str:
    done = pod.exec(container, "sh", "-c", line)
    assert done.exit_code == 0, done.stderr
    return done.stdout.decode().strip()


# CDI


def test_a_device_brings_its_node_mounts_variables_and_groups(
    pod: Pod, busybox: str, directory: Path, write: Write
) -> None:
    share = {"hostPath": str(directory / "shared"), "containerPath": "/share", "options": ["ro", "rbind"]}
    nodes = [{"path": "/dev/thing", "hostPath": str(directory / "fuse"), "uid": 7, "fileMode": 0o666}]
    write(
        "etc/a.json",
        {"env": ["ALL=1"]},
        one={"env": ["ONE=1", "PATH=/bin:/vendor"], "deviceNodes": nodes, "mounts": [share], "additionalGids": [4321]},
    )
    id_ = pod.start(asking(pod, busybox, "one"))
    assert sh(pod, id_, "stat -c '%F %t %T %u %a' /dev/thing") == "character special file a e5 7 666"
    assert sh(pod, id_, OPENS % "/dev/thing") == "yes"
    assert sh(pod, id_, "cat /share/file; touch /share/x 2>/dev/null || echo read-only") == "of the node\nread-only"
    assert sh(pod, id_, "echo $ALL $ONE $PATH") == "1 1 /bin:/vendor"
    assert "4321" in sh(pod, id_, "id -G").split()


def test_without_the_device_the_container_has_nothing_of_it(pod: Pod, busybox: str, write: Write) -> None:
    write("etc/a.json", {"env": ["ALL=1"]}, one={"env": ["ONE=1"]})
    id_ = pod.start(pod.container(busybox))
    assert sh(pod, id_, "echo $ALL$ONE-; ls /dev/thing 2>/dev/null || echo none") == "-\nnone"


def test_a_device_whose_use_is_not_allowed_is_there_and_cannot_be_opened(
    pod: Pod, busybox: str, directory: Path, write: Write
) -> None:
    write("etc/a.json", one={"deviceNodes": [{"path": f"{directory}/fuse", "permissions": "none"}]})
    id_ = pod.start(asking(pod, busybox, "one"))
    assert sh(pod, id_, OPENS % f"{directory}/fuse") == "no"


def test_devices_of_the_field_and_of_annotations_count_once(pod: Pod, busybox: str, write: Write) -> None:
    write("etc/a.json", {"env": ["X=a"]}, one={"env": ["ONE=1"]}, two={"env": ["TWO=1"]})
    config = asking(pod, busybox, "one")
    config.annotations["cdi.k8s.io/plugin"] = "vendor.test/thing=one,vendor.test/thing=two"
    id_ = pod.start(config)
    assert sh(pod, id_, "tr '\\0' '\\n' < /proc/1/environ | grep -E '^(ONE|TWO|X)=' | sort") == "ONE=1\nTWO=1\nX=a"


def test_files_count_as_they_are_when_the_container_is_created(
    pod: Pod, busybox: str, directory: Path, write: Write
) -> None:
    def value(name: str) -> str:
        return sh(pod, pod.start(asking(pod, busybox, "one", name=name)), "echo $V")

    with pytest.raises(grpc.RpcError) as caught:
        pod.create(asking(pod, busybox, "one"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "CDI device 'vendor.test/thing=one' not found" in str(caught.value.details())
    write("etc/a.json", one={"env": ["V=1"]})
    assert value("a") == "1"
    write("etc/a.json", one={"env": ["V=2"]})
    assert value("b") == "2"
    later = write("run/z.json", one={"env": ["V=3"]})
    assert value("c") == "3"
    later.write_text("{")
    assert value("d") == "2"
    later.unlink()
    text = "cdiVersion: 0.5.0\nkind: vendor.test/thing\ndevices:\n- name: one\n  containerEdits:\n    env: [V=4]\n"
    (directory / "run/new.yaml").write_text(text)
    assert value("e") == "4"
    (directory / "run/new.yaml").unlink()


def test_the_reason_for_a_missing_device_may_be_a_file_that_cannot_be_used(
    pod: Pod, busybox: str, write: Write
) -> None:
    write("etc/a.json", one={"env": ["V=1"]}).chmod(0o666)
    with pytest.raises(grpc.RpcError) as caught:
        pod.create(asking(pod, busybox, "one"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "a.json: can be written by everybody" in str(caught.value.details())


def test_a_device_node_that_the_host_lacks_fails_the_container_and_leaves_nothing(
    node: Daemon, pod: Pod, busybox: str, write: Write
) -> None:
    write("etc/a.json", one={"deviceNodes": [{"path": "/dev/no-such-thing"}]})
    before = node.left()
    with pytest.raises(grpc.RpcError) as caught:
        pod.create(asking(pod, busybox, "one"))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "/dev/no-such-thing" in str(caught.value.details())
    assert node.left(expected=before) == before


def test_a_container_keeps_its_device_when_the_file_and_forgeoned_have_gone(
    node: Daemon, pod: Pod, busybox: str, directory: Path, write: Write
) -> None:
    path = write("etc/a.json", one={"deviceNodes": [{"path": "/dev/thing", "hostPath": str(directory / "fuse")}]})
    running = pod.start(asking(pod, busybox, "one"))
    created = pod.create(asking(pod, busybox, "one", name="created"))
    path.unlink()
    node.kill()
    node.start()
    node.runtime.StartContainer(pb.StartContainerRequest(container_id=created), timeout=60)
    for id_ in (running, created):
        assert sh(pod, id_, OPENS % "/dev/thing") == "yes"
    # A kubelet's retry of what is there already needs no file.
    assert pod.create(asking(pod, busybox, "one")) == running


# A node's own


def test_a_container_has_the_nodes_defaults(pod: Pod, busybox: str) -> None:
    id_ = pod.start(pod.container(busybox))
    assert sh(pod, id_, "echo $NODE; cat /node/file; touch /node/x 2>/dev/null || echo ro") == "here\nof the node\nro"
    assert sh(pod, id_, "ulimit -Sn; ulimit -Hn; ulimit -c; ulimit -f") == "123\n456\n0\nunlimited"
    assert sh(pod, id_, "stat -c '%t %T' /dev/of-the-node; echo x > /dev/of-the-node") == "1 3"
    assert sh(pod, id_, "grep CapBnd /proc/self/status").split()[1] == f"{1 << 0 | 1 << 6 | 1 << 7:016x}"
    assert sh(pod, id_, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmni") == "77\n1234"


def test_what_the_pod_and_its_container_say_wins_over_the_nodes_defaults(
    node: Daemon, busybox: str, directory: Path
) -> None:
    other = Pod.plan(node)
    other.config.linux.sysctls["net.ipv4.ip_unprivileged_port_start"] = "99"
    other.run()
    config = other.container(busybox)
    config.envs.add(key="NODE", value=b"mine")
    config.mounts.add(host_path=str(directory / "shared"), container_path="/node")
    config.linux.security_context.capabilities.add_capabilities.append("NET_RAW")
    id_ = other.start(config)
    assert sh(other, id_, "echo $NODE; touch /node/file && echo rw") == "mine\nrw"
    assert sh(other, id_, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start") == "99"
    mask = int(sh(other, id_, "grep CapBnd /proc/self/status").split()[1], 16)
    assert mask == 1 << 0 | 1 << 6 | 1 << 7 | 1 << 13
    other.remove()


def test_a_pod_of_the_hosts_network_leaves_the_hosts_parameters_alone(node: Daemon, busybox: str) -> None:
    before = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()
    other = Pod.plan(node)
    other.config.linux.security_context.namespace_options.network = pb.NODE
    other.run()
    id_ = other.start(other.container(busybox))
    assert sh(other, id_, "cat /proc/sys/kernel/shmmni") == "1234"
    assert Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text() == before
    other.remove()


def test_devices_belong_to_the_user_the_container_runs_as(pod: Pod, busybox: str, directory: Path) -> None:
    config = pod.container(busybox)
    config.devices.add(container_path="/dev/mine", host_path=str(directory / "fuse"), permissions="rw")
    config.linux.security_context.run_as_user.value = 1000
    config.linux.security_context.run_as_group.value = 2000
    id_ = pod.start(config)
    assert sh(pod, id_, "stat -c '%u %g %a' /dev/mine") == "1000 2000 640"
    assert sh(pod, id_, OPENS % "/dev/mine") == "yes"
    assert sh(pod, id_, "stat -c '%u %g' /dev/of-the-node") == "1000 2000"
    assert (directory / "fuse").stat().st_uid == 0


def test_a_pod_gets_the_devices_the_node_offers_and_no_others(node: Daemon, busybox: str, directory: Path) -> None:
    offered, other = Pod.plan(node), Pod.plan(node)
    offered.config.annotations["forgeone.dev/devices"] = f"{directory}/fuse:/dev/fuse:rw"
    other.config.annotations["forgeone.dev/devices"] = f"{directory}/null"
    id_ = offered.run().start(offered.container(busybox))
    assert sh(offered, id_, OPENS % "/dev/fuse") == "yes"
    with pytest.raises(grpc.RpcError) as caught:
        other.run().create(other.container(busybox))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert f"{directory}/null" in str(caught.value.details())
    offered.remove()
    other.remove()


def test_a_pod_does_not_get_its_cgroup_to_write_to_unless_the_node_says_so(node: Daemon, busybox: str) -> None:
    pod = Pod.plan(node)
    pod.config.annotations["forgeone.dev/cgroup-writable"] = "true"
    pod.run()
    with pytest.raises(grpc.RpcError) as caught:
        pod.create(pod.container(busybox))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    pod.remove()


def test_a_pod_makes_cgroups_in_its_own_where_the_node_says_so(registry: Registry, busybox: str) -> None:
    with running_daemon(registry, {"native.cgroup_writable": "annotation"}) as daemon:
        daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
        pod, plain = Pod.plan(daemon), Pod.plan(daemon).run()
        pod.config.annotations["forgeone.dev/cgroup-writable"] = "true"
        pod.run()
        if cgroups.detect("auto").mode is not cgroups.Mode.V2:
            with pytest.raises(grpc.RpcError) as caught:
                pod.create(pod.container(busybox))
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "cgroup v2" in str(caught.value.details())
            return
        id_ = pod.start(pod.container(busybox))
        assert sh(pod, id_, "mkdir /sys/fs/cgroup/own && rmdir /sys/fs/cgroup/own && echo made") == "made"
        id_ = plain.start(plain.container(busybox))
        assert sh(plain, id_, "mkdir /sys/fs/cgroup/own 2>/dev/null || echo refused") == "refused"


def test_the_defaults_change_with_a_reload_for_containers_to_come(
    registry: Registry, busybox: str, tmp_path: Path
) -> None:
    with running_daemon(registry, {"native.default_ulimits": ("nofile=100",)}) as daemon:
        daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
        pod = Pod.plan(daemon).run()
        first = pod.start(pod.container(busybox, name="first"))
        native = replace(daemon.config.native, default_ulimits=("nofile=200",))
        daemon.config_file.write_text(to_toml(replace(daemon.config, native=native)))
        assert cli.main(["--socket", daemon.socket, "reload"]) == 0
        second = pod.start(pod.container(busybox, name="second"))
        assert sh(pod, first, "ulimit -n") == "100"
        assert sh(pod, second, "ulimit -n") == "200"
