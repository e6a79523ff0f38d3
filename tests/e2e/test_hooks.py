"""Hooks of the host on this kernel: real programs, run at each stage of real containers' lives."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry
from hack.lab.settings import patient
from tests.e2e.conftest import running_daemon
from tests.e2e.pods import Pod

pytestmark = pytest.mark.root

HOST_STAGES = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
# Notes its name and its state; what else it does comes from a file of its name.
PROGRAM = """#!/bin/sh
cat > {directory}/state.$1.$$
mv {directory}/state.$1.$$ {directory}/state.$1
echo $1 >> {directory}/order
[ ! -e {directory}/does.$1 ] || . {directory}/does.$1
"""


class Bench:
    """A directory of definitions, and one program for all of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.program = directory / "program"
        self.definitions = directory / "hooks.d"
        self.definitions.mkdir()
        self.program.write_text(PROGRAM.format(directory=directory))
        self.program.chmod(0o755)

    def define(self, stage: str, name: str = "", timeout: int = 0, **when: Any) -> Path:
        """A definition that runs the program, with its name as its argument, at one stage."""
        hook: dict[str, Any] = {
            "path": str(self.program),
            "args": ["program", name or stage],
            "env": ["PATH=/usr/bin:/bin"],
        }
        if timeout:
            hook["timeout"] = timeout
        path = self.definitions / f"{name or stage}.json"
        content = {"version": "1.0.0", "hook": hook, "when": when or {"always": True}, "stages": [stage]}
        path.write_text(json.dumps(content))
        return path

    def does(self, name: str, line: str) -> None:
        """What the program does under that name, besides noting it."""
        (self.directory / f"does.{name}").write_text(line)

    @property
    def order(self) -> list[str]:
        """The names under which it was run."""
        path = self.directory / "order"
        return path.read_text().split() if path.exists() else []

    def state(self, name: str) -> dict[str, Any]:
        """The state that it was given under that name."""
        return dict(json.loads((self.directory / f"state.{name}").read_text()))

    def clear(self) -> None:
        """As if nothing had been defined or run."""
        for path in (*self.directory.glob("[ds]*.*"), *self.definitions.iterdir(), self.directory / "order"):
            if path != self.definitions:
                path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def whole_bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("hooks"))


@pytest.fixture(scope="module")
def node(registry: Registry, whole_bench: Bench, busybox: str) -> Iterator[Daemon]:
    directories = (str(whole_bench.directory / "nosuch"), str(whole_bench.definitions))
    settings = {"native.hooks_dirs": directories, "cdi.spec_dirs": (str(whole_bench.directory / "cdi"),)}
    with running_daemon(registry, settings) as daemon:
        daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
        yield daemon


@pytest.fixture
def bench(whole_bench: Bench, node: Daemon) -> Iterator[Bench]:
    yield whole_bench
    whole_bench.clear()


@pytest.fixture
def pod(node: Daemon, bench: Bench) -> Iterator[Pod]:
    found = Pod.plan(node).run()
    yield found
    bench.clear()
    found.remove()


def until(check: Callable[[], bool]) -> None:
    limit = time.monotonic() + 15
    while not check():
        assert time.monotonic() < limit
        time.sleep(0.02)


def sleepers(word: str) -> list[str]:
    """Processes that have ``word`` on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if word.encode() in words:
                found.append(entry.name)
    return found


def refused(pod: Pod, config: pb.ContainerConfig, timeout: float = 60) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        pod.create(config, timeout=timeout)
    return caught.value


def test_each_stage_has_its_moment_and_is_told_the_containers_state(pod: Pod, bench: Bench, busybox: str) -> None:
    for stage in HOST_STAGES:
        bench.define(stage)
    config = pod.container(busybox)
    id_ = pod.create(config)
    assert bench.order == ["prestart", "createRuntime", "createContainer"]
    pod.daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=id_), timeout=60)
    assert bench.order[3:] == ["poststart"]
    for stage, status in (("prestart", "created"), ("createRuntime", "created"), ("poststart", "running")):
        state = bench.state(stage)
        assert (state["id"], state["status"]) == (id_, status)
        assert id_ in Path(f"/proc/{state['pid']}/cgroup").read_text()
        assert json.loads(Path(state["bundle"], "config.json").read_text())["process"]["args"] == ["sleep", "1000"]
    assert bench.state("createContainer")["id"] == id_
    pod.stop_container(id_)
    until(lambda: bench.order[4:] == ["poststop"])
    assert bench.state("poststop")["status"] == "stopped"
    pod.daemon.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=id_), timeout=60)
    assert bench.order[4:] == ["poststop"], "it is run once"


def test_a_hook_inside_the_container_is_the_containers_own_program(pod: Pod, bench: Bench, busybox: str) -> None:
    hook = {"path": "/bin/touch", "args": ["touch", "/tmp/before"], "env": ["PATH=/bin"]}
    content = {"version": "1.0.0", "hook": hook, "when": {"always": True}, "stages": ["startContainer"]}
    (bench.definitions / "start.json").write_text(json.dumps(content))
    assert pod.output(busybox, "ls", "/tmp/before") == "/tmp/before\n"


def test_a_hook_inside_the_container_that_fails_ends_it(pod: Pod, bench: Bench, busybox: str) -> None:
    hook = {"path": "/bin/false", "args": ["false"]}
    content = {"version": "1.0.0", "hook": hook, "when": {"always": True}, "stages": ["startContainer"]}
    (bench.definitions / "start.json").write_text(json.dumps(content))
    status = pod.wait(pod.start(pod.container(busybox)))
    assert status.exit_code != 0


def test_hooks_are_chosen_by_annotations_command_and_mounts_and_see_what_they_were_chosen_by(
    node: Daemon, bench: Bench, busybox: str, tmp_path: Path
) -> None:
    bench.define("createRuntime", "by-pod", annotations={"^test/pod$": "^yes$"})
    bench.define("poststart", "by-container", annotations={"^test/container$": "."})
    bench.define("createRuntime", "by-command", commands=["sleep$"])
    bench.define("createRuntime", "by-other-command", commands=["^/bin/true$"])
    bench.define("createRuntime", "by-mounts", hasBindMounts=True)
    pod = Pod.plan(node)
    pod.config.annotations.update({"test/pod": "yes", "test/other": "no", "run.oci.handler": "nosuch"})
    pod.run()
    config = pod.container(busybox)
    config.annotations["test/container"] = "c"
    id_ = pod.start(config)
    assert sorted(bench.order) == ["by-command", "by-container", "by-pod"]
    assert bench.state("by-pod")["annotations"]["test/pod"] == "yes"
    assert bench.state("by-container")["annotations"] == {"test/pod": "yes", "test/container": "c"}
    pod.stop_container(id_)
    bench.clear()
    bench.define("createRuntime", "by-mounts", hasBindMounts=True)
    config = pod.container(busybox, name="other")
    config.mounts.add(host_path=str(tmp_path), container_path="/data")
    pod.create(config)
    assert bench.order == ["by-mounts"]
    pod.remove()


def test_definitions_count_as_they_are_when_the_container_is_created(pod: Pod, bench: Bench, busybox: str) -> None:
    pod.create(pod.container(busybox, name="a"))
    path = bench.define("createRuntime")
    pod.create(pod.container(busybox, name="b"))
    assert bench.order == ["createRuntime"]
    path.unlink()
    pod.create(pod.container(busybox, name="c"))
    assert bench.order == ["createRuntime"]


def test_what_cannot_be_used_refuses_containers_with_its_name(pod: Pod, bench: Bench, busybox: str) -> None:
    path = bench.define("createRuntime")
    path.write_text("{")
    error = refused(pod, pod.container(busybox))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert str(path) in str(error.details())
    bench.define("createRuntime")
    bench.program.chmod(0o777)
    error = refused(pod, pod.container(busybox))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"{bench.program}: can be written by everybody" in str(error.details())
    bench.program.chmod(0o755)
    assert bench.order == []
    pod.create(pod.container(busybox))


@pytest.mark.parametrize("stage", ["prestart", "createRuntime", "createContainer"])
def test_a_hook_that_fails_before_the_start_leaves_no_container(
    node: Daemon, pod: Pod, bench: Bench, busybox: str, stage: str
) -> None:
    bench.define(stage)
    bench.define("poststop")
    bench.does(stage, "echo it is broken >&2; exit 3")
    before = node.left()
    error = refused(pod, pod.container(busybox))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert bench.order == [stage, "poststop"]
    assert node.left(expected=before) == before
    assert not node.runtime.ListContainers(pb.ListContainersRequest(filter=None), timeout=30).containers
    bench.clear()
    pod.start(pod.container(busybox))


@pytest.mark.parametrize(("seconds", "hooks"), [("7.7654321", 1), ("1.3654321", 3)])
def test_hooks_that_take_longer_than_the_caller_waits_leave_nothing(
    node: Daemon, pod: Pod, bench: Bench, busybox: str, seconds: str, hooks: int
) -> None:
    # The caller has as much patience.
    seconds = f"{patient(float(seconds)):.7f}"
    names = [f"h{number}" for number in range(hooks)]
    for name in names:
        bench.define("createRuntime", name)
        bench.does(name, f"exec sleep {seconds}")
    before = node.left()
    error = refused(pod, pod.container(busybox), timeout=3)
    if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
        # crun counts whole seconds, and may be the first.
        assert "timeout expired" in str(error.details())
    until(lambda: sleepers(seconds) == [])
    assert node.left(expected=before) == before
    time.sleep(0.5)
    assert bench.order == names[: len(bench.order)], "none is run twice"
    assert node.left(expected=before) == before
    bench.clear()
    pod.start(pod.container(busybox))


def test_a_hook_that_fails_after_the_start_ends_the_container(pod: Pod, bench: Bench, busybox: str) -> None:
    bench.define("poststart")
    bench.does("poststart", "echo it is broken >&2; exit 3")
    id_ = pod.create(pod.container(busybox))
    with pytest.raises(grpc.RpcError) as caught:
        pod.daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=id_), timeout=60)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "failed with exit code 3: it is broken" in str(caught.value.details())
    assert pod.wait(id_).exit_code == 137


def test_a_hook_that_does_not_end_is_killed_with_all_it_started(pod: Pod, bench: Bench, busybox: str) -> None:
    bench.define("poststart", timeout=1)
    bench.does("poststart", "sleep 98.7654321 & sleep 98.7654321")
    id_ = pod.create(pod.container(busybox))
    began = time.monotonic()
    with pytest.raises(grpc.RpcError, match="was killed after 1 s"):
        pod.daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=id_), timeout=60)
    assert time.monotonic() - began < 10
    until(lambda: sleepers("98.7654321") == [])


def test_failures_after_the_end_are_logged_and_the_others_run(pod: Pod, bench: Bench, busybox: str) -> None:
    bench.define("poststop", "a")
    bench.define("poststop", "b")
    bench.does("a", "exit 9")
    id_ = pod.start(pod.container(busybox))
    pod.stop_container(id_)
    pod.daemon.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=id_), timeout=60)
    assert bench.order == ["a", "b"]
    assert "poststop hook" in pod.daemon.log.read_text()


def test_hooks_of_containers_outlive_forgeoned_and_their_definitions(
    node: Daemon, pod: Pod, bench: Bench, busybox: str
) -> None:
    bench.define("poststart")
    bench.define("poststop")
    created, running = (pod.container(busybox, name=name) for name in ("created", "running"))
    created_id, running_id = pod.create(created), pod.start(running)
    assert bench.order == ["poststart"]
    for path in bench.definitions.iterdir():
        path.unlink()
    node.kill()
    pod.daemon.start()
    node.runtime.StartContainer(pb.StartContainerRequest(container_id=created_id), timeout=60)
    assert bench.order == ["poststart", "poststart"]
    node.kill()
    node.start()
    for id_ in (created_id, running_id):
        pod.stop_container(id_)
        node.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=id_), timeout=60)
    assert bench.order[2:] == ["poststop", "poststop"]


def test_a_container_that_died_with_forgeoned_has_its_hooks_run_at_the_recovery(
    node: Daemon, pod: Pod, bench: Bench, busybox: str
) -> None:
    bench.define("poststop")
    id_ = pod.start(pod.container(busybox, "sleep", "1"))
    node.kill()
    time.sleep(1.5)
    assert bench.order == []
    node.start()
    pod.wait(id_)
    until(lambda: bench.order == ["poststop"])


def test_a_devices_hook_is_run_without_any_directory_of_definitions(pod: Pod, bench: Bench, busybox: str) -> None:
    hooks = [
        {"hookName": stage, "path": str(bench.program), "args": ["program", stage], "env": ["PATH=/usr/bin:/bin"]}
        for stage in ("createContainer", "poststop")
    ]
    content = {
        "cdiVersion": "0.5.0",
        "kind": "vendor.test/thing",
        "devices": [{"name": "one", "containerEdits": {"hooks": hooks}}],
    }
    (bench.directory / "cdi").mkdir()
    (bench.directory / "cdi/a.json").write_text(json.dumps(content))
    config = pod.container(busybox)
    config.CDI_devices.add(name="vendor.test/thing=one")
    id_ = pod.start(config)
    assert bench.order == ["createContainer"]
    pod.stop_container(id_)
    until(lambda: bench.order == ["createContainer", "poststop"])
