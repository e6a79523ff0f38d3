"""WebAssembly images in a pod that runs them: every form, beside programs, and what is made ready for them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import grpc
import pytest
import urllib3
from wasmtime import wat2wasm

from cri.api import runtime_pb2 as pb
from hack.lab import images, modules
from hack.lab.daemon import REPOSITORY, Daemon
from hack.lab.guests import arguments, cat, environment, guest, put, say, sleep
from hack.lab.http_guest import guest as http_guest
from hack.lab.registry import Registry
from hack.lab.settings import patient
from tests.e2e.conftest import Push
from tests.e2e.pods import Pod
from tests.e2e.wasm_pods import HANDLER, WasmPod, pull

pytestmark = pytest.mark.root

FIRST = 65536 * 9
ARGUMENTS = guest(arguments())
FORMS: Mapping[str, tuple[images.BuiltImage, str]] = {
    "compat": (modules.compat(ARGUMENTS, Cmd=["a"]), "/app.wasm\na\n"),
    "annotated": (modules.compat(ARGUMENTS, "linux/amd64", "compat"), "/app.wasm\n"),
    "plain": (modules.compat(ARGUMENTS, "linux/amd64"), "/app.wasm\n"),
    "artifact": (modules.artifact(ARGUMENTS), "module.wasm\n"),
    "titled": (modules.artifact(ARGUMENTS, "bin/hello.wasm"), "hello.wasm\n"),
    "layers": (modules.layers(ARGUMENTS, images.Entry("data", b"x"), Entrypoint=["me"], Cmd=["b"]), "me\nb\n"),
    "old": (modules.old_artifact(ARGUMENTS), "module.wasm\n"),
    "old-spin": (modules.old_artifact(ARGUMENTS, kind=modules.SPIN), "module.wasm\n"),
    "spin": (modules.spin(ARGUMENTS), "module.wasm\n"),
}


def ended(pod: Pod, config: pb.ContainerConfig) -> str:
    """What a container that succeeds says."""
    id_ = pod.start(config)
    status = pod.wait(id_)
    said = pod.log(id_)
    assert status.exit_code == 0, (status.reason, status.message, said)
    return said


def compiled(daemon: Daemon) -> list[Path]:
    """What the engine has made ready."""
    return sorted(Path(daemon.config.root, "wasm").glob("code/*/code"))


def remove(daemon: Daemon, name: str) -> None:
    daemon.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=name)), timeout=patient(30))


@pytest.fixture
def pod(forgeoned: Daemon, nothing_left: None) -> object:
    made = WasmPod.plan(forgeoned).run()
    yield made
    made.remove()


def test_every_form_runs_with_the_arguments_that_its_users_expect(forgeoned: Daemon, push: Push, pod: WasmPod) -> None:
    for form, (image, said) in FORMS.items():
        name = pull(forgeoned, push(f"forms/{form}:1", image))
        assert ended(pod, pod.container(name, name=form)) == said, form
        with_args = pod.container(name, name=f"{form}-args")
        with_args.args.extend(["x", "y z"])
        assert ended(pod, with_args) == said.splitlines()[0] + "\nx\ny z\n", form
        if form not in {"compat", "annotated", "plain"}:
            assert ended(pod, pod.container(name, "/", "q", name=f"{form}-command")) == "/\nq\n", form


def test_a_pod_has_a_program_beside_its_module(forgeoned: Daemon, push: Push, busybox: str, tmp_path: Path) -> None:
    """One pod, two engines, one volume, one network, one view of its processes."""
    module = guest(put("/data/from-wasm", "module\n"), say("up\n"), sleep(1000))
    name = pull(forgeoned, push("mixed/module:1", modules.artifact(module)))
    pull(forgeoned, busybox)
    pod = WasmPod.plan(forgeoned, pid=pb.POD).run()
    try:
        first = pod.container(name, name="module")
        second = pod.container(busybox, "sh", "-c", "echo program > /data/from-linux; exec sleep 1000", name="program")
        for config in (first, second):
            config.mounts.add(container_path="/data", host_path=str(tmp_path))
        module_id, program_id = pod.start(first), pod.start(second)
        assert pod.exec(program_id, "sh", "-c", "cat /data/from-*; ls /proc/1/root 2>&1; ps").exit_code == 0
        listed = pod.exec(program_id, "ps", "-o", "pid,args").stdout.decode()
        assert module_id in listed, "processes are the pod's"
        assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["module\n", "program\n"]
        forgeoned.kill()
        forgeoned.start()
        assert [pod.status(id_).state for id_ in (module_id, program_id)] == [pb.CONTAINER_RUNNING] * 2
        assert pod.exec(program_id, "echo", "still").stdout == b"still\n"
        reader = push("mixed/reader:1", modules.artifact(guest(cat("/data/from-linux"))))
        config = pod.container(pull(forgeoned, reader), name="reader")
        config.mounts.add(container_path="/data", host_path=str(tmp_path), readonly=True)
        assert ended(pod, config) == "program\n"
        pod.stop_container(module_id)
        assert pod.status(program_id).state == pb.CONTAINER_RUNNING
    finally:
        pod.remove()


def test_in_a_pod_with_a_user_namespace_module_and_program_have_its_ids(
    forgeoned: Daemon, push: Push, busybox: str, nothing_left: None
) -> None:
    name = pull(forgeoned, push("mixed/ids:1", modules.layers(ARGUMENTS, images.Entry("data", b"seen\n", 0o600))))
    pull(forgeoned, busybox)
    pod = WasmPod.plan(forgeoned)
    namespaces = pod.config.linux.security_context.namespace_options
    namespaces.userns_options.mode = pb.POD
    for ids in (namespaces.userns_options.uids, namespaces.userns_options.gids):
        ids.add(host_id=FIRST, container_id=0, length=65536)
    pod.run()
    try:
        module = pod.container(name, name="module")
        program = pod.container(busybox, "cat", "/proc/self/uid_map", "/image/data", name="program")
        mount = program.mounts.add(container_path="/image", readonly=True, image=pb.ImageSpec(image=name))
        for ids in (mount.uidMappings, mount.gidMappings):
            ids.add(host_id=FIRST, container_id=0, length=65536)
        for config in (module, program):
            config.linux.security_context.namespace_options.CopyFrom(namespaces)
        assert ended(pod, module) == "module.wasm\n"
        assert ended(pod, program).split() == ["0", str(FIRST), "65536", "seen"]
    finally:
        pod.remove()


def test_a_module_reads_an_image_that_is_its_volume(forgeoned: Daemon, push: Push, pod: WasmPod) -> None:
    volume = pull(forgeoned, push("forms/volume:1", modules.layers(ARGUMENTS, images.Entry("data", b"from a volume"))))
    name = pull(forgeoned, push("forms/reader:1", modules.artifact(guest(cat("/image/data")))))
    config = pod.container(name)
    config.mounts.add(container_path="/image", readonly=True).image.image = volume
    assert ended(pod, config).rstrip("\n") == "from a volume"


def test_of_a_name_for_both_each_pod_has_its_own(forgeoned: Daemon, registry: Registry, pod: WasmPod) -> None:
    linux = images.busybox(cmd=["echo", "program"])
    architecture = json.loads(linux.config)["architecture"]
    both = {f"linux/{architecture}": linux, "wasi/wasm": modules.compat(guest(say("module\n")))}
    name = images.push_index(registry.address, "forms/both:1", both)
    native = Pod.plan(forgeoned).run()
    try:
        spec = pb.ImageSpec(image=name)
        ids = [
            forgeoned.images.PullImage(pb.PullImageRequest(image=spec, sandbox_config=one.config), timeout=60).image_ref
            for one in (native, pod)
        ]
        assert len(set(ids)) == 2
        program = native.container(ids[0])
        del program.command[:]
        assert ended(native, program) == "program\n"
        assert ended(pod, pod.container(name, name="by-name")) == "module\n"
        # A kubelet asks for the name alone, and is told the program's id.
        config = pod.container(ids[0], name="by-id")
        config.image.user_specified_image = name
        id_ = pod.start(config)
        pod.wait(id_)
        assert (pod.log(id_), pod.status(id_).image_id) == ("module\n", ids[1])
        remove(forgeoned, ids[1])
        assert ended(pod, pod.container(ids[0], name="program")) == "program\n"
    finally:
        native.remove()


def test_what_is_made_ready_at_the_pull_goes_with_the_image(forgeoned: Daemon, push: Push, pod: WasmPod) -> None:
    before = compiled(forgeoned)
    name = pull(forgeoned, push("forms/ready:1", modules.artifact(guest(say("only here\n")))))
    [ready] = set(compiled(forgeoned)) - set(before)
    made = ready.stat()
    id_ = pod.create(pod.container(name))
    assert ready.stat().st_ino == made.st_ino, "nothing was compiled again"
    remove(forgeoned, name)
    assert compiled(forgeoned) == before
    forgeoned.runtime.StartContainer(pb.StartContainerRequest(container_id=id_), timeout=patient(30))
    pod.wait(id_)
    assert pod.log(id_) == "only here\n"


def test_what_is_missing_is_made_ready_at_the_start(fresh_forgeoned: Daemon, push: Push) -> None:
    """As after a version of the engine that cannot use what another made."""
    daemon = fresh_forgeoned
    pull(daemon, push("forms/again:1", modules.artifact(guest(say("again\n")))))
    [ready] = compiled(daemon)
    daemon.kill()
    shutil.rmtree(Path(daemon.config.root, "wasm"))
    daemon.start()
    until = time.monotonic() + patient(30)
    while compiled(daemon) != [ready]:
        assert time.monotonic() < until, daemon.log.read_text()
        time.sleep(0.05)


def test_what_cannot_be_run_is_pulled_and_told_by_the_container(forgeoned: Daemon, push: Push, pod: WasmPod) -> None:
    name = pull(forgeoned, push("forms/bad:1", modules.artifact(b"\0asm\1\0\0\0\xff\xff")))
    assert "nothing is ready for an image" in forgeoned.log.read_text()
    with pytest.raises(grpc.RpcError) as refused:
        pod.start(pod.container(name))
    assert refused.value.code() in {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT}


def test_other_names_of_the_handler_are_files(daemon_factory: Callable[..., Daemon], push: Push, busybox: str) -> None:
    daemon = daemon_factory()
    daemon.stop()
    shutil.copytree(REPOSITORY / "hack/handlers.d", daemon.config.handlers_dir)
    Path(daemon.config.handlers_dir, "strict.toml").write_text('engine = "wasm"\nwasm_only = true\n')
    daemon.start()
    told = [one.name for one in daemon.runtime.Status(pb.StatusRequest(), timeout=30).runtime_handlers]
    assert told == [
        "",
        "forgeone-auto",
        "forgeone-microvm",
        "forgeone-native",
        HANDLER,
        "spin",
        "strict",
        "wasm",
        "wasmtime",
    ]
    name = pull(daemon, push("forms/env:1", modules.artifact(guest(environment()))))
    pod = WasmPod.plan(daemon)
    request = pb.RunPodSandboxRequest(config=pod.config, runtime_handler="spin")
    pod.id = daemon.runtime.RunPodSandbox(request, timeout=patient(60)).pod_sandbox_id
    assert "WASMTIME_HTTP_PROXY_SOCKET_ADDR=0.0.0.0:80" in ended(pod, pod.container(name)).splitlines()
    application = bytes(wat2wasm(http_guest()))
    served = pod.start(pod.container(pull(daemon, push("forms/http:1", modules.spin(application))), "/", name="http"))
    assert pod.wait(served, pb.CONTAINER_RUNNING)
    network = pb.PodSandboxStatusRequest(pod_sandbox_id=pod.id)
    address = daemon.runtime.PodSandboxStatus(network, timeout=30).status.network.ip
    with urllib3.PoolManager(retries=urllib3.Retry(20, backoff_factor=0.1)) as http:
        assert http.request("GET", f"http://{address}:80/h").status == 200
    own = pod.container(name, name="own")
    own.envs.add(key="WASMTIME_HTTP_PROXY_SOCKET_ADDR", value=b"127.0.0.1:8080")
    assert "WASMTIME_HTTP_PROXY_SOCKET_ADDR=127.0.0.1:8080" in ended(pod, own).splitlines()
    strict = WasmPod.plan(daemon)
    request = pb.RunPodSandboxRequest(config=strict.config, runtime_handler="strict")
    strict.id = daemon.runtime.RunPodSandbox(request, timeout=patient(60)).pod_sandbox_id
    ended(strict, strict.container(name))
    with pytest.raises(grpc.RpcError, match="handler 'strict' runs WebAssembly and nothing else"):
        strict.create(strict.container(pull(daemon, busybox), "true", name="program"))
