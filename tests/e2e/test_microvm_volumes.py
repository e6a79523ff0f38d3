"""Volumes of pods in virtual machines, over the CRI socket."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from pathlib import Path

import pytest

from cri.api import runtime_pb2 as pb
from engines.microvm.shares.launch import TITLE
from hack.lab.daemon import Daemon
from hack.lab.settings import patient
from tests.e2e.microvm_pods import VmPod
from tests.e2e.pods import Pod
from tests.e2e.streams import eventually

pytestmark = pytest.mark.root

_USER, _GROUP, _VOLUME_GROUP = 1000, 1001, 2000


@pytest.fixture(scope="module")
def daemon(machines: Daemon) -> Daemon:
    return machines


def _file_server(pod: Pod) -> int:
    words = f"{TITLE}\0{pod.id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        # Others come and go meanwhile.
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(words):
                found.append(int(entry.name))
    assert len(found) == 1
    return found[0]


def test_a_pods_users_share_volumes_as_they_would_on_the_host(daemon: Daemon, busybox: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    # An emptyDir is the same directory for both; a part of it is not.
    data, tree = tmp_path / "pods/1/volumes/kubernetes.io~empty-dir/data", tmp_path / "tree"
    data.mkdir(parents=True)
    # As a kubelet leaves a volume of a pod with an fsGroup.
    os.chown(data, 0, _VOLUME_GROUP)
    data.chmod(0o2775)
    (data / "part").mkdir()
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/large").write_bytes(os.urandom(3_000_000))
    (tree / "a/link").symlink_to("b/../large")
    (tree / "a/b/same").hardlink_to(tree / "a/large")
    (tree / "a/script").write_text("#!/bin/sh\nexit 9\n")
    (tree / "a/script").chmod(0o755)
    (tmp_path / "log").touch()

    pod = VmPod.plan(daemon).run()
    user = pod.container(busybox, name="user")
    security = user.linux.security_context
    security.run_as_user.value, security.run_as_group.value = _USER, _GROUP
    security.supplemental_groups.append(_VOLUME_GROUP)
    root = pod.container(busybox, name="root")
    for config in (user, root):
        config.mounts.add(container_path="/data", host_path=str(data))
        config.mounts.add(container_path="/tree", host_path=str(tree), readonly=True)
        config.mounts.add(container_path="/log", host_path=str(tmp_path / "log"))
        config.mounts.add(container_path="/part", host_path=str(data / "part"))
    first, second = pod.start(user), pod.start(root)

    def done(container: str, script: str) -> bytes:
        answer = pod.exec(container, "sh", "-c", script)
        assert answer.exit_code == 0, (script, answer)
        return answer.stdout

    done(first, "umask 007; echo mine > /data/file; mkdir /data/sub; mkfifo /data/fifo; chmod 6755 /data/file")
    for name in ("file", "sub", "fifo"):
        found = (data / name).stat()
        assert (found.st_uid, found.st_gid) == (_USER, _VOLUME_GROUP), name
    assert stat.S_IMODE((data / "file").stat().st_mode) == 0o6755
    assert pod.exec(first, "sh", "-c", "echo x > /log").exit_code != 0
    done(second, "echo last words > /log")
    assert (tmp_path / "log").read_text() == "last words\n"
    # What either writes is there for the other at once, also in a file that it has had before.
    for number in range(3):
        done(second, f"echo {number} >> /part/file")
        assert done(first, "cat /data/part/file").split()[-1] == b"%d" % number
        for there, here in (("/data", "/data"), ("/part", "/data/part")):
            done(second, f"echo {number} > {there}/new; mv {there}/new {there}/renamed")
            assert done(first, f"cat {here}/renamed") == b"%d\n" % number
    # A tree, as it is.
    done(
        second,
        "cp -a /tree/a /data/copy && cd /data && tar cf - copy | (mkdir again && cd again && tar xf -)",
    )
    for copy in (data / "copy", data / "again/copy"):
        assert (copy / "large").read_bytes() == (tree / "a/large").read_bytes()
        assert (copy / "large").stat().st_ino == (copy / "b/same").stat().st_ino
        assert (copy / "link").readlink() == Path("b/../large")
        assert int((copy / "script").stat().st_mtime) == int((tree / "a/script").stat().st_mtime)
    assert pod.exec(second, "/data/copy/script").exit_code == 9
    assert pod.exec(second, "sh", "-c", "rm -r /tree/a").exit_code != 0
    assert (tree / "a/b/same").exists()
    done(second, "rm -r /data/copy /data/again")
    assert not (data / "copy").exists()
    # A volume's files are let go of with the last container that has it.
    held = Path(f"/proc/{_file_server(pod)}/fd")
    pod.stop_container(first)
    pod.stop_container(second)
    for container in (first, second):
        daemon.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container), timeout=patient(60))
    eventually(lambda: not any(str(tmp_path) in os.readlink(fd) for fd in held.iterdir() if fd.is_symlink()))
    pod.remove()


def test_a_machine_ends_with_its_file_server(daemon: Daemon, busybox: str, tmp_path: Path) -> None:
    pod = VmPod.plan(daemon).run()
    config = pod.container(busybox)
    config.mounts.add(container_path="/data", host_path=str(tmp_path))
    container = pod.start(config)
    os.kill(_file_server(pod), signal.SIGKILL)
    status = pod.wait(container)
    assert (status.exit_code, status.reason) == (137, "VMDied")
    assert "file server" in status.message
    eventually(lambda: not pod.ready())
    pod.remove()
