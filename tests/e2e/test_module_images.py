"""WebAssembly images on a node: pulled in every form, shown, mounted, refused where they cannot run, and removed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from hack.lab import images, modules
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry
from tests.e2e.conftest import Push
from tests.e2e.pods import Pod

pytestmark = pytest.mark.root

MODULE = b"\0asm\1\0\0\0"
FORMS: Mapping[str, tuple[images.BuiltImage, str, str]] = {
    "compat": (modules.compat(MODULE), "wasi/wasm", ""),
    "annotated": (modules.compat(MODULE, "linux/amd64", "compat"), "linux/amd64", ""),
    "artifact": (modules.artifact(MODULE, os="wasip2"), "wasip2/wasm", "/module.wasm"),
    "titled": (modules.artifact(MODULE, "bin/hello.wasm"), "wasip1/wasm", "/bin/hello.wasm"),
    "layers": (modules.layers(MODULE, images.Entry("data", b"x")), "wasip1/wasm", "/module.wasm"),
    "old": (modules.old_artifact(MODULE, "old.wasm"), "wasi/wasm", "/old.wasm"),
    "old-spin": (modules.old_artifact(MODULE, kind=modules.SPIN), "wasi/wasm", "/module.wasm"),
    "spin": (modules.spin(MODULE), "wasip1/wasm", "/module.wasm"),
}


def pull(daemon: Daemon, name: str, handler: str = "") -> str:
    request = pb.PullImageRequest(image=pb.ImageSpec(image=name, runtime_handler=handler))
    return str(daemon.images.PullImage(request, timeout=60).image_ref)


def shown(daemon: Daemon, name: str) -> tuple[pb.Image, dict[str, object]]:
    request = pb.ImageStatusRequest(image=pb.ImageSpec(image=name), verbose=True)
    answer = daemon.images.ImageStatus(request, timeout=30)
    return answer.image, json.loads(answer.info.get("info", "{}"))


def remove(daemon: Daemon, name: str) -> None:
    daemon.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=name)), timeout=30)


def stored(daemon: Daemon) -> set[str]:
    return {path.name for path in Path(daemon.config.root, "layers").iterdir() if len(path.name) == 64}


def test_every_form_is_an_image_like_any_other(forgeoned: Daemon, push: Push) -> None:
    before, names = stored(forgeoned), []
    for form, (image, platform, module) in FORMS.items():
        name = push(f"wasm/{form}:1", image)
        names.append(name)
        id_ = pull(forgeoned, name)
        if module:
            assert id_ == image.digest, form
        found, told = shown(forgeoned, name)
        assert (found.id, list(found.repo_tags), found.size > len(MODULE)) == (id_, [name], True), form
        assert (told["platform"], told["module"]) == (platform, module), form
        by_digest = f"{name.rpartition(':')[0]}@{image.digest}"
        assert pull(forgeoned, by_digest) == id_, form
        assert by_digest in shown(forgeoned, id_)[0].repo_digests, form
    used = forgeoned.images.ImageFsInfo(pb.ImageFsInfoRequest(), timeout=30).image_filesystems[0].used_bytes.value
    assert used > 0
    for name in names:
        remove(forgeoned, name)
    assert stored(forgeoned) == before


def test_a_pod_of_programs_refuses_it_with_the_reason_and_mounts_it(
    forgeoned: Daemon, push: Push, busybox: str, nothing_left: None
) -> None:
    pull(forgeoned, busybox)
    pod = Pod.plan(forgeoned).run()
    try:
        for form, (image, _, module) in FORMS.items():
            name = push(f"wasm/{form}:1", image)
            pull(forgeoned, name)
            with pytest.raises(grpc.RpcError, match="is WebAssembly") as refused:
                pod.create(pod.container(name, "/app.wasm", name=form))
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT, form
            config = pod.container(busybox, "wc", "-c", f"/mnt{module or '/app.wasm'}", name=f"{form}-volume")
            config.mounts.add(container_path="/mnt", readonly=True).image.image = name
            id_ = pod.start(config)
            assert pod.wait(id_).exit_code == 0, form
            assert pod.log(id_).split()[0] == str(len(MODULE)), form
    finally:
        pod.remove()


def test_of_a_name_for_both_a_pod_of_programs_has_the_program(
    forgeoned: Daemon, registry: Registry, nothing_left: None
) -> None:
    linux = images.busybox(extra=[images.Entry("both", b"linux")])
    platform = json.loads(linux.config)
    name = images.push_index(
        registry.address,
        "wasm/both:1",
        {"wasi/wasm": modules.artifact(MODULE), f"linux/{platform['architecture']}": linux},
    )
    pod = Pod.plan(forgeoned).run()
    try:
        request = pb.PullImageRequest(image=pb.ImageSpec(image=name), sandbox_config=pod.config)
        assert forgeoned.images.PullImage(request, timeout=60).image_ref == linux.id
        assert shown(forgeoned, name)[0].id == linux.id
        assert pod.output(name, "cat", "/both") == "linux\n"
    finally:
        pod.remove()
    remove(forgeoned, name)
    assert shown(forgeoned, name)[0].id == ""
