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
from tests.e2e.pods import Pod

pytestmark = pytest.mark.root


def configured(daemon: Daemon) -> dict[str, object]:
    info = daemon.runtime.Status(pb.StatusRequest(verbose=True), timeout=30).info
    return dict(json.loads(info["config"]))


def until(check: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10
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
    assert handlers(daemon) == ["", "forgeone-native"]
    directory = Path(daemon.config.handlers_dir)
    directory.mkdir()
    (directory / "plain.toml").write_text("")
    hung_up(daemon, "configuration reloaded")
    assert handlers(daemon) == ["", "forgeone-native", "plain"]
    pod = Pod.plan(daemon)
    request = pb.RunPodSandboxRequest(config=pod.config, runtime_handler="plain")
    pod.id = daemon.runtime.RunPodSandbox(request, timeout=60).pod_sandbox_id

    (directory / "plain.toml").unlink()
    hung_up(daemon, "configuration reloaded")
    assert handlers(daemon) == ["", "forgeone-native"]
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
    assert cli.main(["--socket", daemon.socket, "reload"]) == 1
    assert f"{directory}/bad.toml: engin: is not a key of a handler (did you mean 'engine'?)" in capsys.readouterr().err
    assert handlers(daemon) == ["", "forgeone-native"]
    assert configured(daemon)["pinned_images"] == []
