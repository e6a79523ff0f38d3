"""Pods with a user namespace of their own (KEP-127), with real layers, volumes and processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from forgeone_shim.kernel import idmapped, mounts
from hack.lab import images, leaks
from hack.lab.daemon import Daemon
from hack.lab.images import Entry
from hack.lab.registry import Registry
from tests.e2e.conftest import Push
from tests.e2e.pods import SLEEP, Pod
from tests.e2e.streams import SocketClient, eventually

pytestmark = pytest.mark.root

FIRST, LENGTH = 65536 * 7, 65536


def _map(userns: pb.UserNamespace, first: int = FIRST) -> None:
    userns.mode = pb.POD
    userns.uids.add(host_id=first, container_id=0, length=LENGTH)
    userns.gids.add(host_id=first, container_id=0, length=LENGTH)


def _plan(daemon: Daemon, *, pid: int = pb.CONTAINER, first: int = FIRST, **options: int) -> Pod:
    pod = Pod.plan(daemon, pid=pid)
    namespaces = pod.config.linux.security_context.namespace_options
    for name, value in options.items():
        setattr(namespaces, name, value)
    _map(namespaces.userns_options, first)
    return pod


def _container(pod: Pod, image: str, *command: str, name: str = "main") -> pb.ContainerConfig:
    config = pod.container(image, *command, name=name)
    config.linux.security_context.namespace_options.CopyFrom(pod.config.linux.security_context.namespace_options)
    return config


def _output(pod: Pod, config: pb.ContainerConfig) -> str:
    config.metadata.name = config.log_path = f"c{os.urandom(3).hex()}"
    id_ = pod.start(config)
    status = pod.wait(id_)
    text = pod.log(id_)
    assert status.exit_code == 0, text
    return text


def _volume(
    config: pb.ContainerConfig, destination: str, source: Path, *, mapped: bool = True, ro: bool = False
) -> None:
    mount = config.mounts.add(container_path=destination, host_path=str(source), readonly=ro)
    if mapped:
        mount.uidMappings.add(host_id=FIRST, container_id=0, length=LENGTH)
        mount.gidMappings.add(host_id=FIRST, container_id=0, length=LENGTH)


@pytest.fixture(scope="module")
def pod(forgeoned: Daemon, busybox: str) -> Pod:
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)))
    return _plan(forgeoned).run()


def test_the_kubelet_is_told(forgeoned: Daemon) -> None:
    status = forgeoned.runtime.Status(pb.StatusRequest())
    assert all(handler.features.user_namespaces for handler in status.runtime_handlers if "native" in handler.name)
    assert status.features.user_namespaces_host_network


def test_root_of_the_pod_is_somebody_else_on_the_host(pod: Pod, busybox: str) -> None:
    id_ = pod.start(_container(pod, busybox, name="somebody"))
    out = pod.exec(id_, "cat", "/proc/self/uid_map", "/proc/self/gid_map").stdout.decode().split()
    assert out == ["0", str(FIRST), str(LENGTH)] * 2
    assert pod.exec(id_, "id", "-u").stdout == b"0\n"
    pids = [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if _is(path, "sleep\0" + SLEEP[1])]
    uids = {Path(f"/proc/{pid}").stat().st_uid for pid in pids}
    assert FIRST in uids
    pod.stop_container(id_)


def _is(cmdline: Path, wanted: str) -> bool:
    try:
        return cmdline.read_text().startswith(wanted)
    except OSError:
        return False


def test_its_other_namespaces_are_its_own_to_rule(pod: Pod, busybox: str) -> None:
    script = "ip addr add 10.9.8.7/32 dev lo && ip addr show lo && ip addr del 10.9.8.7/32 dev lo"
    config = _container(pod, busybox, "sh", "-c", script)
    config.linux.security_context.capabilities.add_capabilities.append("NET_ADMIN")
    assert "10.9.8.7" in _output(pod, config)


def test_files_of_the_image_belong_to_whom_the_image_says_and_nothing_is_copied(
    pod: Pod, push: Push, forgeoned: Daemon
) -> None:
    entries = (Entry("owned", b"x", uid=1000, gid=5000), Entry("high", b"x", uid=300000, gid=0))
    image = push("owners:latest", images.busybox(extra=entries))
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=image)))
    text = _output(
        pod, _container(pod, image, "stat", "-c", "%n %u %g", "/", "/root", "/owned", "/bin/busybox", "/high")
    )
    # An id that the namespace lacks is nobody's.
    assert text == "/ 0 0\n/root 0 0\n/owned 1000 5000\n/bin/busybox 0 0\n/high 65534 0\n"
    layers = Path(forgeoned.config.root, "layers")
    assert {path.lstat().st_uid for path in layers.rglob("*")} == {0, 1000, 300000}


def test_what_is_written_belongs_to_the_pods_ids_on_the_host(pod: Pod, busybox: str, forgeoned: Daemon) -> None:
    id_ = pod.start(_container(pod, busybox, name="writes"))
    script = "touch /new /bin/busybox; chown 5:6 /new; chmod u+s /new; rm -r /home; stat -c '%u %g' /new /bin/busybox"
    assert pod.exec(id_, "sh", "-c", script).stdout == b"5 6\n0 0\n"
    home = Path(forgeoned.config.root, "containers", id_)
    new = (home / "upper/new").stat()
    assert (new.st_uid, new.st_gid) == (FIRST + 5, FIRST + 6)
    stats = forgeoned.runtime.ContainerStats(pb.ContainerStatsRequest(container_id=id_)).stats
    assert stats.writable_layer.used_bytes.value > 500_000
    forgeoned.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=id_))
    assert not home.exists()


def test_directories_that_a_layer_only_implies_belong_to_the_pod(pod: Pod, push: Push, forgeoned: Daemon) -> None:
    base = images.layer([*images.busybox_entries(), Entry("srv", type=tarfile.DIRTYPE, uid=7, gid=8, mode=0o750)])
    image = push("implied:latest", images.build([base, images.layer([Entry("srv/inside", b"x")])], {"Cmd": ["sh"]}))
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=image)))
    assert _output(pod, _container(pod, image, "stat", "-c", "%u %g %a", "/srv")) == "7 8 750\n"


def test_files_of_the_pod_are_its_roots(pod: Pod, busybox: str) -> None:
    named = "/etc/hosts /etc/hostname /etc/resolv.conf /dev/shm"
    script = f"echo more >> /etc/hosts; stat -c '%n %u %g' {named}; touch /dev/shm/x"
    text = _output(pod, _container(pod, busybox, "sh", "-c", script))
    assert [line.split()[1:] for line in text.splitlines()] == [["0", "0"]] * 4


def test_a_process_may_open_its_own_output_by_name(pod: Pod, busybox: str) -> None:
    for user in (0, 1000):
        config = _container(pod, busybox, "sh", "-c", "echo out > /dev/stdout; echo err > /dev/stderr")
        config.linux.security_context.run_as_user.value = user
        assert sorted(_output(pod, config).split()) == ["err", "out"]
    id_ = pod.start(_container(pod, busybox, name="execs"))
    assert pod.exec(id_, "sh", "-c", "echo err > /dev/stderr").stderr == b"err\n"
    pod.stop_container(id_)


def test_the_hosts_null_device_stays_the_hosts(pod: Pod, busybox: str, forgeoned: Daemon) -> None:
    """crun before 1.24 gives it, as a container's standard input, to the container's root."""
    before = os.stat("/dev/null")
    plain, tty = _container(pod, busybox, name="null"), _container(pod, busybox, name="tty")
    tty.tty = True
    shared = _plan(forgeoned, pid=pb.POD).run()
    for where, config in ((pod, plain), (pod, tty), (shared, _container(shared, busybox, name="shared"))):
        id_ = where.start(config)
        for command in ("chmod 600 /dev/null", "chown 0 /dev/null", "chmod 600 /proc/1/fd/0"):
            where.exec(id_, "sh", "-c", command)
            found = os.stat("/dev/null")
            assert (found.st_uid, found.st_gid, found.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
        where.stop_container(id_)
    shared.remove()


def test_a_user_that_the_pod_does_not_have_is_refused(pod: Pod, busybox: str) -> None:
    config = _container(pod, busybox, name="stranger")
    config.linux.security_context.run_as_user.value = LENGTH
    with pytest.raises(grpc.RpcError, match="user 65536 is not mapped"):
        pod.create(config)


def test_a_container_has_the_mappings_of_its_pod(pod: Pod, busybox: str) -> None:
    config = _container(pod, busybox, name="others")
    config.linux.security_context.namespace_options.ClearField("userns_options")
    with pytest.raises(grpc.RpcError, match="user namespace config for sandbox is different from container"):
        pod.create(config)


def test_volumes_belong_to_whom_they_do_on_the_host(pod: Pod, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.chown(tmp_path / "file", 33, 34)
    config = _container(pod, busybox, "sh", "-c", "stat -c '%u %g' /v/file; touch /v/new; touch /ro/x || echo refused")
    _volume(config, "/v", tmp_path)
    _volume(config, "/ro", tmp_path, ro=True)
    assert [line for line in _output(pod, config).splitlines() if "touch" not in line] == ["33 34", "refused"]
    assert (tmp_path / "new").stat().st_uid == 0


def test_volumes_come_to_pods_that_share_a_pid_namespace(forgeoned: Daemon, busybox: str, tmp_path: Path) -> None:
    """crun joins such a namespace before the user namespace, and prepares mounts meanwhile."""
    shared = _plan(forgeoned, pid=pb.POD).run()
    for _ in range(5):
        config = _container(shared, busybox, "stat", "-c", "%u", *(f"/v{number}" for number in range(4)))
        for number in range(4):
            _volume(config, f"/v{number}", tmp_path)
        assert _output(shared, config).split() == ["0"] * 4
    shared.remove()


def test_a_volume_without_mappings_is_nobodys(pod: Pod, busybox: str, tmp_path: Path) -> None:
    config = _container(pod, busybox, "sh", "-c", "stat -c %u /v; touch /v/new || echo refused")
    _volume(config, "/v", tmp_path, mapped=False)
    tmp_path.chmod(0o755)
    assert [line for line in _output(pod, config).splitlines() if "touch" not in line] == ["65534", "refused"]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    below = tmp_path / "volume/deep/below"
    below.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", below], check=True)
    (below / "file").write_text("seen")
    yield tmp_path / "volume"
    mounts.unmount(below)


def test_what_is_mounted_in_a_volume_is_seen_with_the_owners_it_has(pod: Pod, busybox: str, mounted: Path) -> None:
    script = (
        "cat /v/deep/below/file; echo; stat -c %u /v/deep /v/deep/below; touch /v/deep/below/x 2>&1 || echo refused"
    )
    config = _container(pod, busybox, "sh", "-c", script)
    _volume(config, "/v", mounted)
    text = _output(pod, config)
    assert text.split()[:3] == ["seen", "0", "65534"]
    assert text.endswith("refused\n")


def test_a_volume_that_cannot_be_mapped_is_named(pod: Pod, busybox: str) -> None:
    config = _container(pod, busybox, name="unmappable")
    _volume(config, "/v", Path("/proc/sys"))
    with pytest.raises(grpc.RpcError, match="file system of /proc/sys") as raised:
        pod.create(config)
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_an_image_volume_belongs_to_the_pod(pod: Pod, busybox: str, push: Push, forgeoned: Daemon) -> None:
    image = push("volume:latest", images.build([images.layer([Entry("file", b"x", uid=3, gid=4)])]))
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=image)))
    config = _container(pod, busybox, "sh", "-c", "stat -c '%u %g' /v /v/file; rm /v/file 2>&1 || true")
    mount = config.mounts.add(container_path="/v", readonly=True, image=pb.ImageSpec(image=image))
    mount.uidMappings.add(host_id=FIRST, container_id=0, length=LENGTH)
    mount.gidMappings.add(host_id=FIRST, container_id=0, length=LENGTH)
    text = _output(pod, config)
    assert text.startswith("0 0\n3 4\n")
    assert "Read-only file system" in text


def test_an_image_volume_has_no_other_owners_than_the_pod(pod: Pod, busybox: str) -> None:
    config = _container(pod, busybox, name="volume-owners")
    mount = config.mounts.add(container_path="/v", readonly=True, image=pb.ImageSpec(image=busybox))
    mount.uidMappings.add(host_id=5, container_id=0, length=5)
    mount.gidMappings.add(host_id=5, container_id=0, length=5)
    with pytest.raises(grpc.RpcError, match="the ids of the pod's user namespace"):
        pod.create(config)


def test_containers_share_the_pods_pid_namespace(forgeoned: Daemon, busybox: str) -> None:
    shared = _plan(forgeoned, pid=pb.POD).run()
    text = _output(shared, _container(shared, busybox, "sh", "-c", "cat /proc/1/cmdline; cat /proc/1/uid_map"))
    assert "init" in text
    assert str(FIRST) in text
    shared.remove()


def test_a_container_may_join_another_ones_pid_namespace(pod: Pod, busybox: str, tmp_path: Path) -> None:
    """As ephemeral containers do."""
    target = pod.start(_container(pod, busybox, name="target"))
    config = _container(pod, busybox, "sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline; stat -c %u /v")
    namespaces = config.linux.security_context.namespace_options
    namespaces.pid, namespaces.target_id = pb.TARGET, target
    _volume(config, "/v", tmp_path)
    assert _output(pod, config).split() == [*SLEEP, "0"]
    pod.stop_container(target)


def test_a_port_of_the_pod_is_forwarded(pod: Pod, busybox: str) -> None:
    server = "while true; do echo served | nc -l -p 8099 127.0.0.1; done"
    id_ = pod.start(_container(pod, busybox, "sh", "-c", server, name="serves"))
    eventually(lambda: b":1FA3" in pod.exec(id_, "cat", "/proc/net/tcp").stdout)
    request = pb.PortForwardRequest(pod_sandbox_id=pod.id, port=[8099])
    with SocketClient(pod.daemon.runtime.PortForward(request).url, "v4.channel.k8s.io") as client:
        client.say(0, b"hi\n")
        client.until(lambda: client.heard[0].endswith(b"served\n"))
    pod.stop_container(id_)


def test_a_pod_on_the_hosts_network(forgeoned: Daemon, busybox: str) -> None:
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)))
    on_host = _plan(forgeoned, network=pb.NODE).run()
    before = _mounted_on("/sys")
    script = "readlink /proc/self/ns/net; cat /proc/self/uid_map; ls /sys/class/net/lo/mtu; touch /sys/x 2>&1 || true"
    config = _container(on_host, busybox, "sh", "-c", script)
    config.linux.security_context.masked_paths.append("/sys/firmware")
    text = _output(on_host, config)
    assert os.readlink("/proc/self/ns/net") in text
    assert str(FIRST) in text
    assert "Read-only file system" in text
    on_host.remove()
    # Nothing of what the container had below /sys was mounted on the host, where mounts are shared.
    assert _mounted_on("/sys") == before


def _mounted_on(path: str) -> list[str]:
    return [one for one in mounts.mounts_below(path) if "forgeone" not in one]


def test_kernel_parameters_are_set_as_root_of_the_pod_sees_them(forgeoned: Daemon, busybox: str) -> None:
    made = _plan(forgeoned)
    made.config.linux.sysctls.update({"net.ipv4.ping_group_range": "5 6", "net.ipv4.ip_default_ttl": "77"})
    made.run()
    script = "cd /proc/sys/net/ipv4; cat ping_group_range ip_default_ttl; ping -c1 127.0.0.1 >/dev/null && echo up"
    config = _container(made, busybox, "sh", "-c", script)
    assert _output(made, config).split() == ["5", "6", "77", "up"]
    made.remove()


def test_any_group_may_ping_by_default(pod: Pod, busybox: str) -> None:
    config = _container(pod, busybox, "cat", "/proc/sys/net/ipv4/ping_group_range")
    assert _output(pod, config).split() == ["0", str(LENGTH - 1)]


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("net.ipv4.ping_group_range", "0 70000", "refuses the value"),
        ("net.ipv4.no_such_thing", "1", "no such parameter"),
    ],
)
def test_a_kernel_parameter_that_cannot_be_set_is_named_and_leaves_nothing(
    forgeoned: Daemon, nothing_left: None, key: str, value: str, why: str
) -> None:
    made = _plan(forgeoned)
    made.config.linux.sysctls[key] = value
    with pytest.raises(grpc.RpcError, match=why) as raised:
        made.run()
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert key in str(raised.value.details())


def test_a_pod_may_have_a_proc_without_masks(pod: Pod, busybox: str) -> None:
    """``procMount: Unmasked`` is for pods in pods."""
    nested = ("unshare", "-Urpf", "--mount-proc", "sh", "-c", "ps | wc -l; cat /proc/self/uid_map")
    config = _container(pod, busybox, *nested)
    # The default profile lets nobody mount, in whichever namespace.
    config.linux.security_context.apparmor.profile_type = pb.SecurityProfile.Unconfined
    assert _output(pod, config).split()[1:] == ["0", "0", "1"]


def test_a_privileged_container_rules_its_namespaces_and_none_of_the_hosts_devices(
    forgeoned: Daemon, busybox: str
) -> None:
    made = _plan(forgeoned)
    made.config.linux.security_context.privileged = True
    made.run()
    script = "mkdir /m && mount -t tmpfs none /m && hostname changed && ls /dev"
    config = _container(made, busybox, "sh", "-c", script)
    config.linux.security_context.privileged = True
    devices = set(_output(made, config).split())
    assert "null" in devices
    assert not {name for name in devices if Path("/dev", name).is_block_device()}
    assert os.uname().nodename != "changed"
    made.remove()


def test_terminals_and_attached_input_work(pod: Pod, busybox: str) -> None:
    config = _container(pod, busybox, "sh", "-c", "stat -c %u /dev/console; tty")
    config.tty = config.stdin = True
    assert _output(pod, config).split() == ["0", "/dev/pts/0"]


def test_a_container_that_is_not_asked_for_input_has_none(pod: Pod, busybox: str) -> None:
    assert _output(pod, _container(pod, busybox, "sh", "-c", "wc -c")).strip() == "0"


def test_no_other_user_of_the_host_has_a_way_into_the_pod(pod: Pod, busybox: str, forgeoned: Daemon) -> None:
    id_ = pod.create(_container(pod, busybox, name="private"))
    for path in (Path(forgeoned.config.state, "sandboxes", pod.id), Path(forgeoned.config.state, "containers", id_)):
        found = path.stat()
        assert (found.st_uid, found.st_gid, oct(found.st_mode & 0o777)) == (0, FIRST, "0o710")
    config = Path(forgeoned.config.state, "containers", id_, "config.json").stat()
    assert (config.st_uid, oct(config.st_mode & 0o777)) == (0, "0o600")


def test_pods_with_other_ids_cannot_touch_each_others_files(pod: Pod, forgeoned: Daemon, busybox: str) -> None:
    other = _plan(forgeoned, first=FIRST + LENGTH).run()
    script = "stat -c %u /etc/hosts; cat /proc/self/uid_map"
    assert _output(other, _container(other, busybox, "sh", "-c", script)).split() == [
        "0",
        "0",
        str(FIRST + LENGTH),
        str(LENGTH),
    ]
    hosts = Path(forgeoned.config.state, "sandboxes", other.id, "hosts").stat()
    assert hosts.st_uid == FIRST + LENGTH
    other.remove()


@pytest.mark.parametrize("by_mount", [False, True])
def test_a_kernel_that_takes_only_mounted_layers(
    forgeoned: Daemon, pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_mount: bool
) -> None:
    """Kernels before 6.15, and before 6.7, are only played here; what is done for them must work on any."""
    monkeypatch.setattr(idmapped, "takes_detached_layers", lambda: False)
    if by_mount:
        monkeypatch.setattr(mounts, "takes_layers_one_by_one", lambda: False)
    for name in ("one", "two", "upper", "work", "target"):
        (tmp_path / name).mkdir()
    (tmp_path / "one/file").write_text("one")
    (tmp_path / "two/file").write_text("two")
    userns = Path(forgeoned.config.state, "sandboxes", pod.id, "ns/user")
    target = tmp_path / "target"
    layers = [tmp_path / "one", tmp_path / "two"]
    idmapped.mount_overlay(target, layers, tmp_path / "upper", tmp_path / "work", userns=userns)
    try:
        assert (target / "file").read_text() == "one"
        assert (target / "file").stat().st_uid == FIRST
        (target / "file").chmod(0o600)
        assert (tmp_path / "upper/file").stat().st_uid == FIRST
        assert [path for path in leaks.mounts() if path.startswith(str(tmp_path))] == [str(target)]
    finally:
        mounts.unmount(target)


def test_a_plain_pod_starts_no_fork_server(fresh_forgeoned: Daemon, busybox: str) -> None:
    fresh_forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)))
    plain = Pod.plan(fresh_forgeoned).run()
    plain.output(busybox, "true")
    assert list(leaks.fork_servers(str(fresh_forgeoned.directory))) == []
    _plan(fresh_forgeoned).run()
    assert len(list(leaks.fork_servers(str(fresh_forgeoned.directory)))) == 1


def test_pods_outlive_forgeoned_and_its_fork_server(fresh_forgeoned: Daemon, busybox: str) -> None:
    daemon = fresh_forgeoned
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)))
    kept = _plan(daemon).run()
    id_ = kept.start(_container(kept, busybox))
    kept.exec(id_, "sh", "-c", "echo written > /root/file")
    server = list(leaks.fork_servers(str(daemon.directory)))
    daemon.kill()
    # A daemon that was killed finds the server again.
    assert list(leaks.fork_servers(str(daemon.directory))) == server
    daemon.start()
    assert kept.exec(id_, "cat", "/root/file").stdout == b"written\n"
    _plan(daemon).run()
    assert list(leaks.fork_servers(str(daemon.directory))) == server
    os.kill(server[0], signal.SIGKILL)
    again = _plan(daemon).run()
    assert _output(again, _container(again, busybox, "cat", "/proc/self/uid_map")).split()[1] == str(FIRST)
    daemon.restart()
    # One that stops takes it along.
    assert list(leaks.fork_servers(str(daemon.directory))) == []
    assert kept.exec(id_, "cat", "/root/file").stdout == b"written\n"
    assert _output(kept, _container(kept, busybox, "id", "-u")) == "0\n"


def test_a_reboot_leaves_nothing_of_the_pod(registry: Registry, busybox: str) -> None:
    daemon = Daemon([registry.address])
    try:
        daemon.start()
        daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)))
        gone = _plan(daemon).run()
        gone.start(_container(gone, busybox))
        daemon.kill()
        leaks.sweep(daemon.marks, daemon.config.network.bridge, daemon.config.network.table)
        shutil.rmtree(daemon.config.state)
        daemon.start()
        listed = daemon.runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items
        assert [one.state for one in listed] == [pb.SANDBOX_NOTREADY]
        daemon.remove_pods()
        assert daemon.left() == []
    finally:
        daemon.close()
