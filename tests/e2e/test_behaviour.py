"""What containers do: learned, pinned, compared and answered, over CRI and forge; on both engines, across a kill -9."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from wasmtime import wat2wasm

from cri.api import runtime_pb2 as pb
from forgeone_shim.cli import main
from forgeone_shim.dna.behaviour import recorder
from forgeone_shim.kernel import cgroups, mounts
from forgeone_shim.rpc import node_pb2, node_pb2_grpc
from hack.lab.daemon import Daemon
from hack.lab.settings import patient
from tests.e2e.conftest import Push
from tests.e2e.pods import Pod
from tests.e2e.test_wasm_insight import KNOW
from tests.e2e.wasm_pods import WasmPod, image, pull

pytestmark = pytest.mark.root

PREFIX = "zta.forgeone.dev/"
# What it does does not depend on when it is looked at: it ends.
QUIET = ("sh", "-c", "test -e /tmp; /bin/echo quiet; /bin/echo quiet")
# A call more: uname.
LOUD = ("sh", "-c", "/bin/echo loud; /bin/uname")
# The same once somebody has made the file.
LATER = ("sh", "-c", "while ! test -e /tmp/go; do /bin/sleep 0.1; done; /bin/uname; /bin/sleep 1000")

STAYS = ("sh", "-c", "/bin/echo; /bin/sleep 1000")

# One that writes, and one that also asks for the time.
WRITES = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\08\\00\\00\\00\\03\\00\\00\\00up\\0a")
  (func (export "_start")
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)))
    (drop (call $sizes (i32.const 64) (i32.const 68)))
    (if (i32.gt_u (i32.load (i32.const 64)) (i32.const 1))
      (then (drop (call $random (i32.const 128) (i32.const 8)))))))"""


@pytest.fixture(scope="module", autouse=True)
def able() -> None:
    """Skips where system calls cannot be counted, as ``tests/e2e/test_recorder.py`` does, with the reason."""
    if not cgroups.detect().unified:
        pytest.skip("this host has no unified control group hierarchy")
    if reason := recorder.problem():
        pytest.skip(f"nothing can be counted here: {reason}")


@pytest.fixture(scope="module")
def node(forgeoned: Daemon, busybox: str) -> Daemon:
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=patient(120))
    return forgeoned


@pytest.fixture(scope="module")
def guest(forgeoned: Daemon, push: Push) -> str:
    return pull(forgeoned, push("behaves:1", image({"writes.wasm": wat2wasm(WRITES)})))


@pytest.fixture(scope="module")
def stays(forgeoned: Daemon, push: Push) -> str:
    return pull(forgeoned, push("stays:1", image({"stays.wasm": wat2wasm(KNOW)})))


MakePod = Callable[..., Pod]


@pytest.fixture
def make_pod(node: Daemon, nothing_left: None) -> Iterator[MakePod]:
    made: list[Pod] = []

    def make(kind: type[Pod] = Pod, **contract: str) -> Pod:
        pod = kind.plan(node)
        pod.config.annotations.update({PREFIX + key: value for key, value in {"behaviour": "true", **contract}.items()})
        pod.config.annotations["wasm.forgeone.dev/exec"] = "know"
        made.append(pod)
        return pod.run()

    yield make
    for pod in made:
        pod.remove()
    assert not mounts.mounts_below(node.directory / "state" / "bpf"), "counted on although nobody is watched"


def stub(daemon: Daemon) -> Any:
    return node_pb2_grpc.NodeStub(daemon.channel)


def ran(pod: Pod, image: str, *command: str, **changes: Any) -> str:
    """A container that has ended."""
    config = pod.container(image, *command, name=f"c{os.urandom(3).hex()}")
    for key, value in changes.items():
        setattr(config.linux.security_context, key, value)
    id_ = pod.start(config)
    status = pod.wait(id_)
    assert status.exit_code == 0, pod.log(id_)
    return id_


def behaviour(daemon: Daemon, id_: str) -> dict[str, Any]:
    request = node_pb2.GetBehaviourRequest(container_id=id_)
    found: dict[str, Any] = json.loads(stub(daemon).GetBehaviour(request, timeout=patient(30)).document)
    return found


def learned(pod: Pod, image: str, *commands: tuple[str, ...]) -> Any:
    """The baseline of what containers did with these commands."""
    for number, command in enumerate(commands):
        request = node_pb2.LearnBehaviourRequest(container_id=ran(pod, image, *command), anew=number == 0)
        made = stub(pod.daemon).LearnBehaviour(request, timeout=patient(30)).baseline
    return made


@pytest.fixture
def usual(make_pod: MakePod, node: Daemon, busybox: str) -> Iterator[str]:
    """What is quiet is usual for busybox; the baseline's digest."""
    learned(make_pod(), busybox, QUIET, ("sh", "-c", "/bin/echo; /bin/sleep 0.01"))
    pinned = stub(node).PinBaseline(node_pb2.PinBaselineRequest(image=busybox), timeout=patient(30)).baseline
    yield pinned.digest
    stub(node).UnpinBaseline(node_pb2.UnpinBaselineRequest(image=busybox), timeout=patient(30))


def names(found: dict[str, Any], kind: str = "system") -> list[str]:
    return [one["name"] for one in found[kind]]


def until(holds: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + patient(seconds)
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.02)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(grpc.RpcError) as failed:
        call()
    return f"{failed.value.code().name} {failed.value.details()}"


def entries(daemon: Daemon, type_: str) -> list[dict[str, Any]]:
    """Of the audit log, as they lie on disk."""
    found: dict[str, dict[str, Any]] = {}
    for path in Path(daemon.config.root, "audit").rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        for piece in data.split(b'{"specversion"')[1:]:
            one, _ = json.JSONDecoder().raw_decode('{"specversion"' + piece.decode(errors="replace"))
            found[one["id"]] = one
    return [one for one in found.values() if one["type"] == f"dev.forgeone.{type_}"]


@dataclass
class Said:
    """What forge wrote."""

    out: str
    errors: str


def forge(daemon: Daemon, *words: str, text: str = "", code: int = 0) -> Said:
    """In this process: ten of its own would take longer than all the rest."""
    out, errors, before = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            done = main.main(["--socket", daemon.socket, *words])
    finally:
        sys.stdin = before
    assert done == code, errors.getvalue()
    return Said(out.getvalue(), errors.getvalue())


def test_a_container_is_seen_from_its_first_instruction_on(make_pod: MakePod, node: Daemon, busybox: str) -> None:
    found = behaviour(node, ran(make_pod(), busybox, *QUIET))
    assert (found["whole"], found["ended"], found["executed"]) == (True, True, False)
    assert "execve" in names(found)
    assert names(found).index("execve") < names(found).index("exit_group")
    assert (found["baseline"], found["drift"]) == (None, None)


def test_what_was_not_asked_for_is_not_watched(node: Daemon, busybox: str, nothing_left: None) -> None:
    pod = Pod.plan(node).run()
    try:
        id_ = ran(pod, busybox, *QUIET)
        assert "FAILED_PRECONDITION" in (said := refused(lambda: behaviour(node, id_)))
        assert "is not watched" in said
        assert not (node.directory / "state" / "bpf").exists()
    finally:
        pod.remove()


def test_what_is_usual_is_no_drift_and_what_is_new_is(
    make_pod: MakePod, node: Daemon, busybox: str, usual: str
) -> None:
    pod = make_pod()
    quiet, loud = (ran(pod, busybox, *command) for command in (QUIET, LOUD))
    found = behaviour(node, quiet)
    assert found["baseline"] == {"digest": usual, "containers": 2}
    assert (found["drift"]["system"], found["drift"]["amount"]) == ([], 0)
    found = behaviour(node, loud)
    assert (found["drift"]["system"], found["drift"]["amount"]) == (["uname"], 0.1)


def test_drift_takes_trust_and_is_in_the_audit_log(make_pod: MakePod, node: Daemon, busybox: str, usual: str) -> None:
    pod = make_pod()
    scores = []
    for command in (QUIET, LOUD):
        id_ = ran(pod, busybox, *command)
        behaviour(node, id_)
        asked = node_pb2.InspectRequest(id=id_)
        document = json.loads(stub(node).Inspect(asked, timeout=patient(30)).document)
        scores.append(document["score"]["total"])
    assert scores[1] == int(scores[0] * 0.9)
    assert (document["behaviour"]["new"], document["behaviour"]["baseline"]) == (["uname"], usual)

    def drifted() -> list[dict[str, Any]]:
        return [one for one in entries(node, "container.drifted") if one["subject"] == f"container/{id_}"]

    # It is written beside whatever found it.
    until(drifted)
    (told,) = drifted()
    assert (told["data"]["calls"], told["data"]["baseline"], told["data"]["on_drift"]) == (["uname"], usual, "report")


@pytest.mark.parametrize("answer", ["pause", "stop"])
def test_a_contract_says_what_drift_leads_to(make_pod: MakePod, node: Daemon, busybox: str, answer: str) -> None:
    learned(make_pod(), busybox, ("sh", "-c", "test -e /tmp/go; /bin/sleep 0.01"), QUIET)
    stub(node).PinBaseline(node_pb2.PinBaselineRequest(image=busybox), timeout=patient(30))
    try:
        pod = make_pod(on_drift=answer)
        id_ = pod.start(pod.container(busybox, *LATER))
        time.sleep(0.3)
        assert names(behaviour(node, id_))
        _let_go(pod, id_)
        if answer == "stop":
            status = pod.wait(id_)
            assert (status.reason, "uname" in status.message) == ("Denied", True)
        else:
            asked = node_pb2.ListPausedContainersRequest()
            until(lambda: id_ in stub(node).ListPausedContainers(asked, timeout=patient(30)).container_ids)
        until(lambda: "uname" in behaviour(node, id_)["answered"])
    finally:
        stub(node).UnpinBaseline(node_pb2.UnpinBaselineRequest(image=busybox), timeout=patient(30))


def _let_go(pod: Pod, id_: str) -> None:
    _touch(_pid(pod, id_))


def _pid(pod: Pod, id_: str) -> int:
    request = pb.ContainerStatusRequest(container_id=id_, verbose=True)
    found = json.loads(pod.daemon.runtime.ContainerStatus(request, timeout=patient(30)).info["info"])["pid"]
    return int(found)


def _touch(pid: int) -> None:
    """The file that a container waits for, made from the host: nothing is executed in it."""
    Path(f"/proc/{pid}/root/tmp").mkdir(exist_ok=True)
    Path(f"/proc/{pid}/root/tmp/go").touch()


def test_a_command_that_is_executed_is_not_taken_for_the_containers_doing(
    make_pod: MakePod, node: Daemon, busybox: str, usual: str
) -> None:
    pod = make_pod()
    id_ = pod.start(pod.container(busybox, *STAYS))
    assert pod.exec(id_, "/bin/echo", "hello").stdout == b"hello\n"
    found = behaviour(node, id_)
    assert found["executed"]
    assert {"setgroups", "capset"} <= set(names(found)), "what the runtime does on the way in is counted"
    assert found["drift"]["system"] == []
    assert pod.exec(id_, "/bin/uname").stdout
    until(lambda: behaviour(node, id_)["answered"] == ["uname"])


def test_what_happens_while_forgeoned_is_dead_is_found_when_it_is_back(
    daemon_factory: Callable[..., Daemon], busybox: str
) -> None:
    node = daemon_factory()
    node.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=patient(120))
    pod = Pod.plan(node)
    pod.config.annotations.update({PREFIX + "behaviour": "true", PREFIX + "on_drift": "stop"})
    pod.run()
    learned(pod, busybox, ("sh", "-c", "test -e /tmp/go; /bin/sleep 0.01"), QUIET)
    stub(node).PinBaseline(node_pb2.PinBaselineRequest(image=busybox), timeout=patient(30))
    id_ = pod.start(pod.container(busybox, *LATER))
    pid = _pid(pod, id_)
    node.kill()
    _touch(pid)
    time.sleep(0.5)
    node.start()
    status = pod.wait(id_)
    assert (status.reason, "uname" in status.message) == ("Denied", True)
    found = behaviour(node, id_)
    assert (found["whole"], "execve" in names(found)) == (True, True)


def test_a_contract_that_names_a_baseline_is_held_to_it(
    make_pod: MakePod, node: Daemon, busybox: str, usual: str, guest: str
) -> None:
    stranger = make_pod(baseline=f"sha256:{'0' * 64}")
    said = refused(lambda: stranger.create(stranger.container(busybox, *QUIET)))
    assert said.startswith("FAILED_PRECONDITION")
    assert "which is not on this node" in said
    wrong = make_pod(WasmPod, baseline=usual)
    assert f"names the baseline {usual}, which is of image" in refused(lambda: wrong.create(wrong.container(guest)))
    learned(make_pod(), busybox, LOUD)
    stub(node).PinBaseline(node_pb2.PinBaselineRequest(image=busybox), timeout=patient(30))
    found = behaviour(node, ran(make_pod(baseline=usual), busybox, *LOUD))
    assert (found["baseline"]["digest"], found["drift"]["system"]) == (usual, ["uname"]), "another is pinned by now"


def test_a_baseline_counts_at_once_for_containers_that_run(make_pod: MakePod, node: Daemon, busybox: str) -> None:
    pod = make_pod()
    id_ = pod.start(pod.container(busybox, "sh", "-c", "/bin/uname; /bin/sleep 1000"))
    until(lambda: "uname" in names(behaviour(node, id_)))
    learned(make_pod(), busybox, QUIET)
    stub(node).PinBaseline(node_pb2.PinBaselineRequest(image=busybox), timeout=patient(30))
    try:
        until(lambda: "uname" in behaviour(node, id_)["answered"])
    finally:
        stub(node).UnpinBaseline(node_pb2.UnpinBaselineRequest(image=busybox), timeout=patient(30))
    assert behaviour(node, id_)["drift"] is None


@pytest.mark.parametrize("no_new_privs", [False, True])
def test_the_same_image_runs_under_the_filter_of_what_is_usual_for_it(
    make_pod: MakePod, node: Daemon, busybox: str, usual: str, tmp_path: Path, *, no_new_privs: bool
) -> None:
    profile = tmp_path / "usual.json"
    profile.write_text(forge(node, "dna", "seccomp", busybox).out)
    local = pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref=str(profile))
    pod = make_pod()

    def start(*command: str) -> str:
        config = pod.container(busybox, *command, name=f"c{os.urandom(3).hex()}")
        config.linux.security_context.no_new_privs = no_new_privs
        config.linux.security_context.seccomp.CopyFrom(local)
        return pod.start(config)

    quiet, loud = start(*QUIET), start(*LOUD)
    assert (pod.wait(quiet).exit_code, pod.log(quiet)) == (0, "quiet\nquiet\n")
    pod.wait(loud)
    assert "Linux" not in pod.log(loud)
    waits = start(*STAYS)
    assert pod.exec(waits, "/bin/echo", "in").stdout == b"in\n"


def test_a_guests_calls_to_its_host_are_learned_and_drift(make_pod: MakePod, node: Daemon, guest: str) -> None:
    pod = make_pod(WasmPod)
    id_ = ran(pod, guest)
    found = behaviour(node, id_)
    wasi = "wasi_snapshot_preview1"
    assert names(found, "host") == [f"{wasi} fd_write", f"{wasi} args_sizes_get"]
    assert "write" in names(found), "what its process asks of the kernel is seen too"
    forge(node, "dna", "learn", id_)
    forge(node, "dna", "pin", guest)
    try:
        config = pod.container(guest, name="more")
        config.args.append("more")
        more = pod.start(config)
        pod.wait(more)
        found = behaviour(node, more)
        assert found["drift"]["host"] == [f"{wasi} random_get"]
        assert "filter of its own" in forge(node, "dna", "seccomp", guest, code=1).errors
    finally:
        forge(node, "dna", "pin", "--remove", guest)


def test_a_guest_that_is_executed_in_a_container_is_not_taken_for_its_doing(
    make_pod: MakePod, node: Daemon, stays: str
) -> None:
    pod = make_pod(WasmPod)
    first = pod.start(pod.container(stays, name="first"))
    until(lambda: "fd_write" in " ".join(names(behaviour(node, first), "host")))
    time.sleep(0.2)
    forge(node, "dna", "learn", "--anew", first)
    forge(node, "dna", "pin", stays)
    try:
        id_ = pod.start(pod.container(stays))
        assert pod.exec(id_, "know").exit_code == 0
        found = behaviour(node, id_)
        assert "setns" in names(found), "what the runtime does on the way in is counted"
        assert not {"setns", "seccomp", "landlock_restrict_self"} & {*found["drift"]["system"]}
    finally:
        forge(node, "dna", "pin", "--remove", stays)


def test_forge_learns_pins_and_tells(make_pod: MakePod, node: Daemon, busybox: str, tmp_path: Path) -> None:
    pod = make_pod()
    quiet, loud = (ran(pod, busybox, *command) for command in (QUIET, LOUD))
    document = forge(node, "dna", "learn", "--anew", quiet, "-o", "json").out
    assert "1" in forge(node, "dna", "pin", busybox).out
    table = forge(node, "dna", "drift", ran(pod, busybox, *LOUD), code=1).out
    assert "uname" in table
    assert "10%" in table
    forge(node, "dna", "pin", "--remove", busybox)
    assert "none is pinned" in forge(node, "dna", "drift", loud).out, "it was never compared with one"
    file = tmp_path / "baseline.json"
    file.write_text(document)
    forge(node, "dna", "pin", "--file", str(file))
    forge(node, "dna", "pin", "--file", "-", text=document)
    assert "canonical" in forge(node, "dna", "pin", "--file", "-", text=document.replace(":", ": "), code=1).errors
    forge(node, "dna", "pin", "--remove", busybox)
    assert "not found" in forge(node, "dna", "pin", "--remove", busybox, code=1).errors
