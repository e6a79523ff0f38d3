"""A configuration changed under a running forgeoned."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from forgeone_shim.cli import main as cli
from forgeone_shim.config.loader import to_toml
from forgeone_shim.config.model import LogConfig
from hack.lab.daemon import Daemon
from hack.lab.settings import patient
from tests.e2e.pods import Pod
from tests.e2e.streams import SocketClient, eventually

pytestmark = pytest.mark.root

BUILT_IN = ["", "forgeone-auto", "forgeone-microvm", "forgeone-native", "forgeone-wasm"]


def configured(daemon: Daemon) -> dict[str, object]:
    info = daemon.runtime.Status(pb.StatusRequest(verbose=True), timeout=30).info
    return dict(json.loads(info["config"]))


def until(check: Callable[[], bool]) -> None:
    limit = time.monotonic() + patient(10)
    while not check():
        assert time.monotonic() < limit
        time.sleep(0.02)


def hung_up(daemon: Daemon, event: str) -> None:
    """Send SIGHUP and wait until the log tells of ``event``."""
    before = daemon.log.read_text().count(event)
    os.kill(daemon.pid, signal.SIGHUP)
    until(lambda: daemon.log.read_text().count(event) > before)


def test_a_reload_applies_what_it_can_and_names_the_rest(
    fresh_forgeoned: Daemon, busybox: str, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = fresh_forgeoned
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    changed = replace(daemon.config, pinned_images=("*busybox*",), log=LogConfig(level="info"), cgroup_root="/other")
    daemon.config_file.write_text(to_toml(changed))
    assert cli.main(["--socket", daemon.socket, "reload"]) == 0
    assert capsys.readouterr().out == "pinned_images: changed\nlog.level: changed\ncgroup_root: needs a restart\n"
    assert [image.pinned for image in daemon.images.ListImages(pb.ListImagesRequest()).images] == [True]
    written = daemon.log.read_text()
    daemon.runtime.Version(pb.VersionRequest())
    assert daemon.log.read_text() == written, "that call is logged at the level debug alone"
    shown = configured(daemon)
    assert (shown["pinned_images"], shown["cgroup_root"]) == (["*busybox*"], daemon.config.cgroup_root)
    daemon.config_file.write_text(to_toml(daemon.config))
    hung_up(daemon, "configuration reloaded")
    assert configured(daemon)["pinned_images"] == []


def test_a_bad_file_is_refused_whole_and_pods_go_on(
    fresh_forgeoned: Daemon, busybox: str, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = fresh_forgeoned
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    pod = Pod.plan(daemon).run()
    id_ = pod.start(pod.container(busybox))
    before = configured(daemon)
    daemon.config_file.write_text('pinned_images = ["*"]\n[network]\nmtu = 5\n')
    assert cli.main(["--socket", daemon.socket, "reload"]) == 1
    assert "INVALID_ARGUMENT: network.mtu: 5 is outside" in capsys.readouterr().err
    hung_up(daemon, "configuration refused")
    assert configured(daemon) == before
    assert pod.status(id_).state == pb.CONTAINER_RUNNING
    status = Path(f"/proc/{first_process(pod, id_)}/status").read_text()
    ignored = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn")), 16)
    assert not ignored & 1 << (signal.SIGHUP - 1), "containers inherit no ignored hang-up"


def first_process(pod: Pod, id_: str) -> int:
    request = pb.ContainerStatusRequest(container_id=id_, verbose=True)
    answer = pod.daemon.runtime.ContainerStatus(request, timeout=30)
    return int(json.loads(answer.info["info"])["pid"])


def handlers(daemon: Daemon) -> list[str]:
    return [one.name for one in daemon.runtime.Status(pb.StatusRequest(), timeout=30).runtime_handlers]


def test_a_handler_is_a_file_and_its_pods_outlive_it(fresh_forgeoned: Daemon, busybox: str) -> None:
    daemon = fresh_forgeoned
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    assert handlers(daemon) == BUILT_IN
    directory = Path(daemon.config.handlers_dir)
    directory.mkdir()
    (directory / "plain.toml").write_text("")
    hung_up(daemon, "configuration reloaded")
    assert handlers(daemon) == [*BUILT_IN, "plain"]
    pod = Pod.plan(daemon)
    request = pb.RunPodSandboxRequest(config=pod.config, runtime_handler="plain")
    pod.id = daemon.runtime.RunPodSandbox(request, timeout=60).pod_sandbox_id

    (directory / "plain.toml").unlink()
    hung_up(daemon, "configuration reloaded")
    assert handlers(daemon) == BUILT_IN
    again = pb.RunPodSandboxRequest(config=Pod.plan(daemon).config, runtime_handler="plain")
    with pytest.raises(grpc.RpcError, match="there is no handler 'plain'"):
        daemon.runtime.RunPodSandbox(again, timeout=60)
    daemon.kill()
    daemon.start()
    id_ = pod.start(pod.container(busybox))
    assert pod.status(id_).state == pb.CONTAINER_RUNNING
    listed = daemon.runtime.ListPodSandbox(pb.ListPodSandboxRequest(), timeout=30).items
    assert [one.runtime_handler for one in listed] == ["plain"]


def test_a_bad_handler_file_refuses_the_whole_reload(
    fresh_forgeoned: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = fresh_forgeoned
    directory = Path(daemon.config.handlers_dir)
    directory.mkdir()
    (directory / "good.toml").write_text("")
    (directory / "bad.toml").write_text('engine = "nativ"\n')
    daemon.config_file.write_text(to_toml(replace(daemon.config, pinned_images=("*",))))
    assert cli.main(["--socket", daemon.socket, "reload"]) == 1
    assert "handler bad: engine: no engine 'nativ' is installed" in capsys.readouterr().err
    (directory / "bad.toml").write_text("engin = 1\n")
    refused = conditions(daemon)["ConfigurationLoaded"]
    assert (refused.status, refused.reason) == (False, "Refused")
    assert "no engine 'nativ' is installed" in refused.message
    assert cli.main(["--socket", daemon.socket, "reload"]) == 1
    assert f"{directory}/bad.toml: engin: is not a key of a handler (did you mean 'engine'?)" in capsys.readouterr().err
    assert handlers(daemon) == BUILT_IN
    assert configured(daemon)["pinned_images"] == []
    (directory / "bad.toml").unlink()
    assert cli.main(["--socket", daemon.socket, "reload"]) == 0
    assert capsys.readouterr().out == "pinned_images: changed\nhandler good: changed\n"
    assert conditions(daemon)["ConfigurationLoaded"].status


def conditions(daemon: Daemon) -> dict[str, pb.RuntimeCondition]:
    status = daemon.runtime.Status(pb.StatusRequest(), timeout=30).status
    return {one.type: one for one in status.conditions}


def forbidding(*calls: str) -> str:
    rules = [{"names": list(calls), "action": "SCMP_ACT_ERRNO", "errno": "ENOTTY"}]
    return json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules if calls else []})


def chmod(pod: Pod, image: str) -> str:
    """What chmod(2) says to a new container of the pod."""
    config = pod.container(image, "sh", "-c", "chmod 700 /tmp 2>&1 || true", name=f"c{os.urandom(3).hex()}")
    config.linux.security_context.seccomp.profile_type = pb.SecurityProfile.RuntimeDefault
    id_ = pod.start(config)
    pod.wait(id_)
    return pod.log(id_).strip()


def test_the_default_seccomp_profile_changes_for_new_containers(
    fresh_forgeoned: Daemon, busybox: str, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = fresh_forgeoned
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    pod = Pod.plan(daemon).run()
    assert chmod(pod, busybox) == ""
    profile = daemon.directory / "default.json"
    profile.write_text(forbidding("chmod", "fchmodat"))
    native = replace(daemon.config.native, seccomp_default_profile=str(profile))
    daemon.config_file.write_text(to_toml(replace(daemon.config, native=native)))
    assert cli.main(["--socket", daemon.socket, "reload"]) == 0
    assert capsys.readouterr().out == "native.seccomp_default_profile: changed\n"
    assert "Inappropriate ioctl" in chmod(pod, busybox)

    profile.write_text(forbidding("chmod").replace("ENOTTY", "ENOTHING"))
    assert cli.main(["--socket", daemon.socket, "reload"]) == 1
    assert "native.seccomp_default_profile: is not a seccomp profile: syscalls[0]: errno" in capsys.readouterr().err
    assert "Inappropriate ioctl" in chmod(pod, busybox)

    profile.write_text(forbidding())
    assert cli.main(["--socket", daemon.socket, "reload"]) == 0
    assert capsys.readouterr().out == "native.seccomp_default_profile: changed\n", "the file, not the key, has changed"
    assert chmod(pod, busybox) == ""


def test_a_pod_keeps_the_seccomp_profile_of_its_handler(fresh_forgeoned: Daemon, busybox: str) -> None:
    daemon = fresh_forgeoned
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    directory, profile = Path(daemon.config.handlers_dir), daemon.directory / "strict.json"
    directory.mkdir()
    profile.write_text(forbidding("chmod", "fchmodat"))
    (directory / "strict.toml").write_text(f'seccomp_profile = "{profile}"\n')
    hung_up(daemon, "configuration reloaded")
    pod = Pod.plan(daemon)
    request = pb.RunPodSandboxRequest(config=pod.config, runtime_handler="strict")
    pod.id = daemon.runtime.RunPodSandbox(request, timeout=60).pod_sandbox_id
    assert "Inappropriate ioctl" in chmod(pod, busybox)
    assert chmod(Pod.plan(daemon).run(), busybox) == ""
    profile.unlink()
    (directory / "strict.toml").unlink()
    daemon.restart()
    assert "Inappropriate ioctl" in chmod(pod, busybox)


def test_a_handler_may_keep_the_hosts_devices_from_privileged_containers(fresh_forgeoned: Daemon, busybox: str) -> None:
    daemon = fresh_forgeoned
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    directory = Path(daemon.config.handlers_dir)
    directory.mkdir()
    (directory / "bare.toml").write_text("privileged_without_host_devices = true\n")
    hung_up(daemon, "configuration reloaded")
    seen = {}
    for handler in ("", "bare"):
        pod = Pod.plan(daemon)
        pod.config.linux.security_context.privileged = True
        request = pb.RunPodSandboxRequest(config=pod.config, runtime_handler=handler)
        pod.id = daemon.runtime.RunPodSandbox(request, timeout=60).pod_sandbox_id
        config = pod.container(
            busybox, "sh", "-c", "ls /dev; mknod /dev/k c 1 11 && head -c1 /dev/k >/dev/null && echo read"
        )
        config.linux.security_context.privileged = True
        id_ = pod.start(config)
        pod.wait(id_)
        seen[handler] = pod.log(id_).split()
    assert "kmsg" in seen[""]
    assert "read" in seen[""]
    assert not {"kmsg", "read"} & set(seen["bare"])


def test_limits_of_streaming_change_for_sessions_to_come(fresh_forgeoned: Daemon, busybox: str) -> None:
    daemon = fresh_forgeoned
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    pod = Pod.plan(daemon).run()
    id_ = pod.start(pod.container(busybox))
    request = pb.ExecRequest(container_id=id_, cmd=["sleep", "100"], stdout=True)

    def session() -> SocketClient:
        return SocketClient(daemon.runtime.Exec(request, timeout=30).url, "v5.channel.k8s.io")

    with session() as first:
        assert first.status == 101
        streaming = replace(daemon.config.streaming, max_sessions=1, idle_timeout=1.0)
        daemon.config_file.write_text(to_toml(replace(daemon.config, streaming=streaming)))
        hung_up(daemon, "configuration reloaded")
        with session() as second:
            assert second.status == 503
    eventually(lambda: "session ended" in daemon.log.read_text())
    with session() as third:
        assert third.status == 101
        third.rest()
        assert b"nothing was sent for 1 s" in third.heard[3]
