"""The jail of a WebAssembly container as its processes on the host show it, over CRI."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from hack.lab import images
from hack.lab.daemon import Daemon
from hack.lab.guests import cat, exit_with, guest, put, say, sleep
from tests.e2e.conftest import Push
from tests.e2e.streams import eventually
from tests.e2e.wasm_pods import WasmPod, image, processes, pull, zygote

pytestmark = pytest.mark.root

FIRST, LENGTH = 65536 * 9, 65536
GUESTS = {
    "sleep.wasm": guest(say("sleeping\n"), sleep(1000), more='(func (export "ready") (result i32) (i32.const 1))'),
    "write.wasm": guest(put("/data/out", "written"), cat("/data/out")),
    "own.wasm": guest(put("/tmp/own", "x"), exit_with(3)),
}


@pytest.fixture(scope="module")
def guests(forgeoned: Daemon, push: Push) -> str:
    place = images.Entry("tmp", type=b"5", mode=0o1777)
    return pull(forgeoned, push("jailed:latest", image(GUESTS, extra=(place,))))


@pytest.fixture
def made(forgeoned: Daemon) -> Iterator[Callable[[WasmPod], WasmPod]]:
    with ExitStack() as stack:

        def start(pod: WasmPod) -> WasmPod:
            stack.callback(pod.run().remove)
            return pod

        yield start


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def first(container_id: str) -> int:
    (pid,) = processes(container_id, "forgeone-wasm")
    return pid


def test_a_guest_s_process_has_nothing_but_its_jail(
    forgeoned: Daemon, guests: str, made: Callable[[WasmPod], WasmPod]
) -> None:
    pod = made(WasmPod.plan(forgeoned))
    config = pod.container(guests, "/sleep.wasm")
    security = config.linux.security_context
    security.run_as_user.value, security.run_as_group.value = 1234, 1235
    security.supplemental_groups.append(77)
    security.readonly_rootfs = True
    id_ = pod.start(config)
    eventually(lambda: "sleeping" in pod.log(id_))
    pid = first(id_)
    seen = status(pid)
    assert {seen[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (seen["NoNewPrivs"], seen["Seccomp"], seen["NSpid"].split()[-1]) == ("1", "2", "1")
    assert (seen["Uid"].split(), seen["Gid"].split()) == (["1234"] * 4, ["1235"] * 4)
    assert "77" in seen["Groups"].split()
    points = [line.split()[4:6] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    assert {"/", "/dev", "/dev/shm", "/etc/hosts", "/etc/resolv.conf"} <= {where for where, _ in points}
    assert not [where for where, _ in points if where.startswith(("/proc", "/sys"))]
    for where, options in points:
        wanted = {"nosuid", "noexec"} | ({"nodev"} if where != "/dev" else set())
        assert wanted <= set(options.split(",")), (where, options)
    assert all("ro" in options.split(",") for where, options in points if where in ("/", "/dev"))
    names = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    mine = ("pipe:", "socket:", "anon_inode:")
    # Its directories, what it reads where it has no input, and its own code.
    foreign = [name for name in names if not name.startswith(mine) and name not in ("/", "/dev/null")]
    assert [name.rpartition("/")[2] for name in foreign] == ["code"]
    assert id_ in Path(f"/proc/{pid}/cgroup").read_text()


def test_a_guest_s_process_has_no_code_of_others(
    forgeoned: Daemon, guests: str, made: Callable[[WasmPod], WasmPod]
) -> None:
    pod = made(WasmPod.plan(forgeoned))
    assert pod.wait(pod.start(pod.container(guests, "/own.wasm", name="other"))).exit_code == 3
    id_ = pod.start(pod.container(guests, "/sleep.wasm"))
    eventually(lambda: "sleeping" in pod.log(id_))
    of_zygote, of_guest = (_code(pid) for pid in (zygote(forgeoned), first(id_)))
    assert len(of_zygote) > 1
    assert len(of_guest) == 1
    assert of_guest < of_zygote


def _code(pid: int) -> set[str]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if line.endswith("/code")}


def test_in_a_user_namespace_files_are_its_root_s(
    forgeoned: Daemon, guests: str, made: Callable[[WasmPod], WasmPod], tmp_path: Path
) -> None:
    pod = WasmPod.plan(forgeoned)
    namespaces = pod.config.linux.security_context.namespace_options
    namespaces.userns_options.mode = pb.POD
    namespaces.userns_options.uids.add(host_id=FIRST, container_id=0, length=LENGTH)
    namespaces.userns_options.gids.add(host_id=FIRST, container_id=0, length=LENGTH)
    made(pod)
    for mapped in (True, False):
        volume = tmp_path / str(mapped)
        volume.mkdir()
        volume.chmod(0o777)
        config = pod.container(guests, "/write.wasm", name=f"mapped-{mapped}".lower())
        config.linux.security_context.namespace_options.CopyFrom(namespaces)
        mount = config.mounts.add(container_path="/data", host_path=str(volume))
        if mapped:
            mount.uidMappings.add(host_id=FIRST, container_id=0, length=LENGTH)
            mount.gidMappings.add(host_id=FIRST, container_id=0, length=LENGTH)
        id_ = pod.start(config)
        assert pod.wait(id_).exit_code == 0, pod.log(id_)
        assert pod.log(id_) == "written\n"
        # On disk: the ids that the pod sees where the volume is mapped as the pod is, else those of the host.
        assert (volume / "out").stat().st_uid == (0 if mapped else FIRST)
    config = pod.container(guests, "/sleep.wasm", name="sleep")
    config.linux.security_context.namespace_options.CopyFrom(namespaces)
    id_ = pod.start(config)
    assert status(first(id_))["Uid"].split() == [str(FIRST)] * 4
    assert os.readlink(f"/proc/{first(id_)}/ns/user") != os.readlink("/proc/self/ns/user")


def test_containers_that_share_their_processes_have_an_init_that_outlives_them(
    forgeoned: Daemon, guests: str, made: Callable[[WasmPod], WasmPod]
) -> None:
    pod = made(WasmPod.plan(forgeoned, pid=pb.POD))
    # Who forked it ends after it has answered.
    eventually(lambda: len(processes(pod.id)) == 1)
    (init,) = processes(pod.id)
    one, two = (pod.start(pod.container(guests, "/sleep.wasm", name=name)) for name in ("one", "two"))
    spaces = {os.readlink(f"/proc/{pid}/ns/pid") for pid in (init, first(one), first(two))}
    assert len(spaces) == 1
    assert status(init)["NSpid"].split()[-1] == "1"
    pod.stop_container(one)
    assert pod.wait(two, pb.CONTAINER_RUNNING).state == pb.CONTAINER_RUNNING
    os.kill(init, signal.SIGKILL)
    assert pod.wait(two).exit_code == 137


def test_a_local_seccomp_profile_is_on_top(
    forgeoned: Daemon, guests: str, made: Callable[[WasmPod], WasmPod], tmp_path: Path
) -> None:
    profile = tmp_path / "profile.json"
    rule = '{"names": ["openat", "openat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}'
    profile.write_text(f'{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}]}}')
    pod = made(WasmPod.plan(forgeoned))
    config = pod.container(guests, "/own.wasm")
    assert pod.wait(pod.start(config)).exit_code == 3
    config = pod.container(guests, "/own.wasm", attempt=1)
    config.linux.security_context.seccomp.profile_type = pb.SecurityProfile.Localhost
    config.linux.security_context.seccomp.localhost_ref = str(profile)
    assert pod.wait(pod.start(config)).exit_code != 3
    profile.write_text("{}")
    config = pod.container(guests, "/own.wasm", attempt=2)
    config.linux.security_context.seccomp.profile_type = pb.SecurityProfile.Localhost
    config.linux.security_context.seccomp.localhost_ref = str(profile)
    with pytest.raises(grpc.RpcError, match="localhost_ref"):
        pod.create(config)


def test_what_cannot_be_mounted_is_told_and_leaves_nothing(
    forgeoned: Daemon, guests: str, made: Callable[[WasmPod], WasmPod], tmp_path: Path
) -> None:
    pod = made(WasmPod.plan(forgeoned))
    before = forgeoned.left()
    config = pod.container(guests, "/own.wasm")
    config.mounts.add(container_path="/sleep.wasm", host_path=str(tmp_path))
    with pytest.raises(grpc.RpcError, match="a directory cannot be mounted on a file"):
        pod.create(config)
    assert forgeoned.left(expected=before) == before
