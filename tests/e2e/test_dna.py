"""Who containers are: fingerprints of what runs, fresh seed, scores, and what is refused because of them."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from wasmtime import wat2wasm

from cri.api import runtime_pb2 as pb
from forgeone_shim import abi
from forgeone_shim.dna.fingerprint import FORMAT
from forgeone_shim.rpc import node_pb2, node_pb2_grpc
from hack.lab.daemon import Daemon
from hack.lab.guests import guest as guest_that
from hack.lab.guests import sleep
from hack.lab.settings import patient
from tests.e2e.conftest import Push
from tests.e2e.pods import Pod
from tests.e2e.test_audit import events
from tests.e2e.test_checkpoints import _crun, with_criu
from tests.e2e.wasm_pods import WasmPod, image, pull

pytestmark = pytest.mark.root

LABEL = "zta.forgeone.dev/trust_label"
ENTROPY = "zta.forgeone.dev/minimum_entropy"


def printing(imported: str, name: str, size: int) -> bytes:
    """A module that calls an import with an address and a size, and prints what is there then, in letters."""
    return bytes(
        wat2wasm(f"""(module
  (import "{imported}" "{name}" (func $get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func $put (param $at i32) (param $half i32)
    (i32.store8 (i32.add (i32.const 64) (local.get $at)) (i32.add (i32.const 97) (local.get $half))))
  (func (export "_start") (local $at i32) (local $byte i32)
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const {2 * size + 1}))
    (drop (call $get (i32.const 1024) (i32.const {size})))
    (loop $each
      (local.set $byte (i32.load8_u (i32.add (i32.const 1024) (local.get $at))))
      (call $put (i32.mul (local.get $at) (i32.const 2)) (i32.shr_u (local.get $byte) (i32.const 4)))
      (call $put (i32.add (i32.mul (local.get $at) (i32.const 2)) (i32.const 1))
        (i32.and (local.get $byte) (i32.const 15)))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $each (i32.lt_u (local.get $at) (i32.const {size}))))
    (i32.store8 (i32.const {64 + 2 * size}) (i32.const 10))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))))""")
    )


def printed(text: str) -> bytes:
    """What the letters stand for."""
    return bytes.fromhex("".join("0123456789abcdef"[ord(letter) - 97] for letter in text.strip()))


MODULES = {
    "random.wasm": printing("wasi_snapshot_preview1", "random_get", 32),
    "trust.wasm": printing(abi.INTROSPECT, "trust", abi.TRUST.size),
    "sleep.wasm": guest_that(sleep(1000)),
}


@pytest.fixture(scope="module")
def node(forgeoned: Daemon, busybox: str) -> Daemon:
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=patient(120))
    return forgeoned


@pytest.fixture(scope="module")
def guest(forgeoned: Daemon, push: Push) -> str:
    return pull(forgeoned, push("random:1", image(MODULES)))


@pytest.fixture
def pod(node: Daemon, nothing_left: None) -> Iterator[Pod]:
    running = Pod.plan(node).run()
    yield running
    running.remove()


@pytest.fixture
def bound(node: Daemon, nothing_left: None) -> Iterator[Pod]:
    """A pod with a contract."""
    planned = Pod.plan(node)
    planned.config.annotations.update({LABEL: "tests", ENTROPY: "256"})
    yield planned.run()
    planned.remove()


def inspect(daemon: Daemon, id_: str) -> dict[str, Any]:
    stub = node_pb2_grpc.NodeStub(daemon.channel)
    found: dict[str, Any] = json.loads(stub.Inspect(node_pb2.InspectRequest(id=id_), timeout=patient(30)).document)
    return found


def start(pod: Pod, container_id: str) -> None:
    pod.daemon.runtime.StartContainer(pb.StartContainerRequest(container_id=container_id), timeout=patient(60))


def test_a_container_is_fingerprinted_before_it_runs(pod: Pod, busybox: str) -> None:
    config = pod.container(busybox, "sleep", "1000")
    config.envs.add(key="SECRET", value=b"hunter2")
    config.linux.resources.memory_limit_in_bytes = 64 << 20
    # As kubelets ask for it; what is not asked for is not confined.
    config.linux.security_context.seccomp.profile_type = pb.SecurityProfile.RuntimeDefault
    id_ = pod.create(config)
    found = inspect(pod.daemon, id_[:12])
    genome = found["dna"]["genome"]
    assert found["kind"] == "container" and found["id"] == id_ and found["pod"]["id"] == pod.id
    assert found["lifecycle"]["state"] == "booted" and found["lifecycle"]["started_at"] is None
    assert found["dna"]["hash"].startswith("sha256:") and found["dna"]["seal"].startswith("sha256:")
    assert found["dna"]["runtime_entropy"] == found["entropy"]["bits"] == 256
    assert [event["cause"] for event in found["entropy"]["events"]] == ["create"]
    assert found["entropy"]["source"]["ready"] is True
    assert (genome["format"], genome["engine"], genome["argv"]) == (FORMAT, "native", ["sleep", "1000"])
    assert genome["engine_version"].startswith("crun ") and genome["image"] == found["image"]["id"]
    assert genome["seccomp"].startswith("sha256:") and "CAP_CHOWN" in genome["capabilities"]
    assert genome["namespaces"]["network"] == "pod" and genome["layers"] and "SECRET" in genome["env"]
    assert "hunter2" not in json.dumps(found)
    assert found["dna"]["resource_limits"]["memory_limit"] == 64 << 20
    assert found["score"]["total"] == sum(part["points"] for part in found["score"]["parts"].values()) > 0
    start(pod, id_)
    running = inspect(pod.daemon, id_)
    assert running["lifecycle"]["state"] == "running" and running["lifecycle"]["pid"] > 0
    assert running["dna"] == found["dna"]


def test_replicas_are_alike_and_whatever_decides_what_runs_tells_them_apart(pod: Pod, busybox: str) -> None:
    def hash_of(name: str, *command: str, **security: Any) -> str:
        config = pod.container(busybox, *command, name=name)
        for key, value in security.items():
            setattr(config.linux.security_context, key, value)
        return str(inspect(pod.daemon, pod.create(config))["dna"]["hash"])

    one = hash_of("a", "sleep", "1")
    assert hash_of("b", "sleep", "1") == one
    others = {hash_of("c", "sleep", "2"), hash_of("d", "sleep", "1", readonly_rootfs=True), hash_of("e", "sh")}
    ambient = pb.Capability(add_ambient_capabilities=["CHOWN"])
    config = pod.container(busybox, "sleep", "1", name="f")
    config.linux.security_context.capabilities.CopyFrom(ambient)
    others.add(str(inspect(pod.daemon, pod.create(config))["dna"]["hash"]))
    assert len(others | {one}) == 5


def test_a_guest_has_one_too(node: Daemon, guest: str, nothing_left: None) -> None:
    pod = WasmPod.plan(node).run()
    first, second = (pod.create(pod.container(guest, name=name)) for name in ("a", "b"))
    found = inspect(node, first)
    genome = found["dna"]["genome"]
    assert genome["engine_version"].startswith("wasmtime ") and genome["seccomp"].startswith("sha256:")
    assert genome["engine_facts"]["module"] == "/random.wasm" and genome["capabilities"] == []
    assert found["entropy"]["bits"] == 256 and found["score"]["parts"]["isolation"]["points"] == 26
    assert inspect(node, second)["dna"]["hash"] == found["dna"]["hash"]
    pod.remove()


def test_no_two_guests_forked_from_one_process_draw_the_same(node: Daemon, guest: str, nothing_left: None) -> None:
    pod = WasmPod.plan(node).run()
    drawn = []
    for number in range(4):
        id_ = pod.start(pod.container(guest, name=f"n{number}"))
        pod.wait(id_)
        drawn.append(printed(pod.log(id_)))
    # One more guest in a container is forked from the same process.
    id_ = pod.start(pod.container(guest, "/sleep.wasm", name="sleep"))
    drawn += [printed(pod.exec(id_, "/random.wasm").stdout.decode()) for _ in range(3)]
    assert all(len(set(one)) > 16 for one in drawn) and len(set(drawn)) == len(drawn), drawn
    pod.remove()


def test_a_guest_knows_how_it_is_known(node: Daemon, guest: str, nothing_left: None) -> None:
    pod = WasmPod.plan(node)
    pod.config.annotations[LABEL] = "tests"
    id_ = pod.run().start(pod.container(guest, "/trust.wasm"))
    pod.wait(id_)
    fingerprint, contract, entropy, score = abi.TRUST.unpack(printed(pod.log(id_)))
    found = inspect(node, id_)
    assert (f"sha256:{fingerprint.hex()}", entropy, score) == (found["dna"]["hash"], 256, found["score"]["total"])
    assert f"sha256:{contract.hex()}" == found["contract"]["digest"]
    pod.remove()


def test_a_command_that_cannot_be_executed_has_none(pod: Pod, busybox: str) -> None:
    id_ = pod.create(pod.container(busybox, "/no/such/thing"))
    found = inspect(pod.daemon, id_)
    assert found["dna"]["hash"] == "" and found["dna"]["genome"] is None


def test_a_pod_is_shown_with_its_containers_also_those_that_have_ended(pod: Pod, busybox: str) -> None:
    id_ = pod.start(pod.container(busybox, "true"))
    pod.wait(id_)
    found = inspect(pod.daemon, pod.id)
    assert (found["kind"], found["contract"]["given"]) == ("pod", False) and found["addresses"]
    (container,) = found["containers"]
    assert container["id"] == id_ and container["lifecycle"]["exit_code"] == 0 and container["dna"]["hash"]
    with pytest.raises(grpc.RpcError) as refused:
        inspect(pod.daemon, "f" * 64)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_the_contract_is_in_it(bound: Pod, busybox: str) -> None:
    plain = Pod.plan(bound.daemon).run()
    mine, other = (inspect(bound.daemon, one.start(one.container(busybox))) for one in (bound, plain))
    assert mine["contract"]["given"] and mine["dna"]["trust_label"] == "tests"
    assert mine["contract"]["effective"]["minimum_entropy"] == 256
    assert mine["dna"]["genome"]["contract"] == mine["contract"]["digest"] != ""
    entries = [one.data for one in events(bound.daemon, mine["id"]) if "to" in one.data]
    assert [one["to"] for one in entries] == ["booted", "running"]
    assert {(one["dna"], one["contract"]["digest"]) for one in entries} == {
        (mine["dna"]["hash"], mine["contract"]["digest"])
    }
    assert other["dna"]["genome"]["contract"] == other["contract"]["digest"] == ""
    assert mine["dna"]["hash"] != other["dna"]["hash"] and mine["score"]["total"] == other["score"]["total"] + 10
    plain.remove()


def config_of(pod: Pod, container_id: str) -> Path:
    request = pb.ContainerStatusRequest(container_id=container_id, verbose=True)
    answer = pod.daemon.runtime.ContainerStatus(request, timeout=patient(30))
    return Path(json.loads(answer.info["info"])["runtimeSpec"])


def test_what_was_changed_on_disk_does_not_start_where_there_is_a_contract(bound: Pod, busybox: str) -> None:
    id_ = bound.create(bound.container(busybox))
    path = config_of(bound, id_)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"1000"', b'"1001"'))
    with pytest.raises(grpc.RpcError) as refused:
        start(bound, id_)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "denied by dna: what its engine keeps of it" in refused.value.details()
    path.write_bytes(whole)
    start(bound, id_)
    path.write_bytes(whole.replace(b'"uid":0', b'"uid":1'))
    with pytest.raises(grpc.RpcError) as refused:
        bound.exec(id_, "id")
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    path.write_bytes(whole)
    assert bound.exec(id_, "true").exit_code == 0


def test_what_was_changed_on_disk_while_it_ran_is_stopped_by_the_next_forgeoned(
    daemon_factory: Callable[..., Daemon], busybox: str, push: Push, nothing_left: None
) -> None:
    daemon = daemon_factory({})
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=patient(120))
    guest = pull(daemon, push("random:1", image(MODULES)))
    pods = [Pod.plan(daemon), WasmPod.plan(daemon)]
    for pod in pods:
        pod.config.annotations[LABEL] = "tests"
        pod.run()
    native, wasm = pods
    programs = [native.start(native.container(busybox, name=name)) for name in ("whole", "changed")]
    guests = [wasm.start(wasm.container(guest, "/sleep.wasm", name=name)) for name in ("whole", "changed")]
    kept = Path(daemon.config.state) / "containers"
    daemon.kill()
    for path, before, after in (
        (kept / programs[1] / "config.json", b'"1000"', b'"1001"'),
        (kept / guests[1] / "wasm.json", b"/sleep.wasm", b"/trust.wasm"),
    ):
        assert before in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(before, after))
    daemon.start()
    for pod, (whole, changed) in ((native, programs), (wasm, guests)):
        stopped = pod.wait(changed)
        assert stopped.reason == "Denied" and "denied by dna: what its engine keeps of it" in stopped.message
        assert pod.status(whole).state == pb.CONTAINER_RUNNING
        pod.remove()


def test_a_fingerprint_outlives_forgeoned(
    daemon_factory: Callable[..., Daemon], busybox: str, nothing_left: None
) -> None:
    daemon = daemon_factory({})
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=patient(120))
    pod = Pod.plan(daemon)
    pod.config.annotations[LABEL] = "tests"
    id_ = pod.run().start(pod.container(busybox))
    before = inspect(daemon, id_)
    daemon.kill()
    daemon.start()
    after = inspect(daemon, id_)
    assert (after["dna"], after["entropy"]["events"]) == (before["dna"], before["entropy"]["events"])
    assert after["lifecycle"]["state"] == "running"
    pod.remove()


def test_one_that_has_none_is_fingerprinted_when_forgeoned_starts(
    daemon_factory: Callable[..., Daemon], busybox: str, nothing_left: None
) -> None:
    daemon = daemon_factory({})
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=patient(120))
    pod = Pod.plan(daemon)
    pod.config.annotations[LABEL] = "tests"
    id_ = pod.run().start(pod.container(busybox))
    before = inspect(daemon, id_)
    daemon.kill()
    with closing(sqlite3.connect(Path(daemon.config.root) / "forgeone.db")) as database, database:
        (document,) = database.execute("SELECT doc FROM docs WHERE kind='container' AND key=?", (id_,)).fetchone()
        record = {**json.loads(document), "genome": None, "dna": "", "seal": ""}
        database.execute("UPDATE docs SET doc=? WHERE key=?", (json.dumps(record).encode(), id_))
    daemon.start()
    after = inspect(daemon, id_)
    assert (after["dna"], after["lifecycle"]["state"]) == (before["dna"], "running")
    assert pod.exec(id_, "true").exit_code == 0
    pod.remove()


@with_criu
def test_what_was_restored_has_no_seed_of_its_own(
    daemon_factory: Callable[..., Daemon], busybox: str, tmp_path: Path
) -> None:
    daemon = daemon_factory({"native.crun": shutil.which(_crun()) or _crun()})
    daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=patient(120))
    pod = Pod.plan(daemon).run()
    config = pod.container(busybox)
    config.envs.add(key="FORGEONE_GENERATION", value=b"/run/generation")
    id_ = pod.start(config)
    generation = pod.exec(id_, "cat", "/run/generation").stdout
    assert len(generation) == 33 and pod.exec(id_, "cat", "/run/generation").stdout == generation
    saved = tmp_path / "saved"
    saved.mkdir()
    request = pb.CheckpointPodRequest(pod_sandbox_id=pod.id, container_ids=[id_], output_path=str(saved))
    daemon.runtime.CheckpointPod(request, timeout=patient(120))
    assert inspect(daemon, id_)["entropy"]["bits"] == 256
    forks = []
    for demanded in ("", "1"):
        fork = Pod.plan(daemon)
        if demanded:
            fork.config.annotations[ENTROPY] = demanded
        wanted = pb.RestorePodRequest(checkpoint_path=str(saved), config=fork.config, container_configs=[config])
        if demanded:
            with pytest.raises(grpc.RpcError) as refused:
                made = daemon.runtime.RestorePod(wanted, timeout=patient(120))
                start(fork, made.restored_containers[0].container_id)
            assert "minimum_entropy" in refused.value.details()
            continue
        made = daemon.runtime.RestorePod(wanted, timeout=patient(120))
        fork.id, restored = made.pod_sandbox_id, made.restored_containers[0].container_id
        start(fork, restored)
        found = inspect(daemon, restored)
        assert (found["entropy"]["bits"], found["entropy"]["events"][0]["cause"]) == (0, "restore")
        assert fork.exec(restored, "cat", "/run/generation").stdout not in (generation, b"")
        assert found["lifecycle"]["restored"] and found["dna"]["genome"]["engine_facts"]["restored"] == "true"
        assert found["dna"]["hash"] not in ("", inspect(daemon, id_)["dna"]["hash"])
        forks.append(fork)
    for one in (pod, *forks):
        one.remove()


def test_the_command_line_shows_and_compares(pod: Pod, busybox: str) -> None:
    def forge(*words: str, code: int = 0) -> str:
        argv = [sys.executable, "-m", "forgeone_shim.cli.main", "--socket", pod.daemon.socket, *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=patient(60), check=False, env=os.environ)
        assert done.returncode == code, done.stderr
        return done.stdout

    one, other = (pod.create(pod.container(busybox, "sleep", n, name=f"s{n}")) for n in ("7", "8"))
    assert [each["kind"] for each in json.loads(forge("inspect", pod.id, other))] == ["pod", "container"]
    shown = forge("dna", "show", one)
    assert "256 bits" in shown and inspect(pod.daemon, one)["dna"]["hash"] in shown
    assert [line.split() for line in forge("dna", "diff", one, other, code=1).splitlines()] == [
        ["FIELD", "BEFORE", "AFTER"],
        ["argv", '["sleep",', '"7"]', '["sleep",', '"8"]'],
    ]


def test_each_container_that_asks_for_a_generation_has_another(pod: Pod, busybox: str) -> None:
    seen = set()
    for number in range(2):
        config = pod.container(busybox, "cat", "/run/generation", name=f"g{number}")
        config.envs.add(key="FORGEONE_GENERATION", value=b"/run/generation")
        id_ = pod.start(config)
        pod.wait(id_)
        seen.add(pod.log(id_))
    assert len(seen) == 2 and all(len(text) == 33 for text in seen)
    config = pod.container(busybox, name="bad")
    config.envs.add(key="FORGEONE_GENERATION", value=b"/proc/x")
    with pytest.raises(grpc.RpcError) as refused:
        pod.create(config)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
