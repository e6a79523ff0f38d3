"""OCI artifacts as volumes, and images that only pods of one namespace can pull."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from hack.lab import images
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry
from tests.e2e.pods import Pod
from tests.e2e.registries import PASSWORD, USER, docker_registry, htpasswd

pytestmark = pytest.mark.root

MODEL = "application/vnd.example.model"


def _pull(daemon: Daemon, name: str, namespace: str = "") -> str:
    request = pb.PullImageRequest(image=pb.ImageSpec(image=name))
    if namespace:
        request.sandbox_config.metadata.namespace = namespace
    return str(daemon.images.PullImage(request, timeout=60).image_ref)


def test_an_artifact_is_a_volume_of_its_files_and_no_container(
    forgeoned: Daemon, registry: Registry, busybox: str, nothing_left: None
) -> None:
    weights = bytes(range(256)) * 40_000
    files = {"model.bin": weights, "docs/readme.txt": b"read me\n"}
    name = images.push_artifact(registry.address, "model:v1", MODEL, files)
    artifact, image = _pull(forgeoned, name), _pull(forgeoned, busybox)
    listed = {one.id: one for one in forgeoned.images.ListImages(pb.ListImagesRequest()).images}
    assert (list(listed[artifact].repo_tags), listed[artifact].size > len(weights)) == ([name], True)
    pod = Pod.plan(forgeoned).run()
    try:
        config = pod.container(image)
        config.mounts.add(container_path="/model", readonly=True).image.image = name
        config.mounts.add(container_path="/docs", readonly=True, image_sub_path="docs").image.image = name
        id_ = pod.start(config)
        script = "wc -c < /model/model.bin; cat /model/docs/readme.txt /docs/readme.txt; ls -l /model; touch /model/x"
        said = pod.exec(id_, "sh", "-c", script)
        lines = said.stdout.decode().splitlines()
        assert lines[:3] == [str(len(weights)), "read me", "read me"]
        assert any(line.startswith("-rw-r--r--") and line.endswith("model.bin") for line in lines)
        assert b"Read-only" in said.stderr
        with pytest.raises(grpc.RpcError, match="OCI artifact") as refused:
            pod.create(pod.container(name, name="second"))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    finally:
        pod.remove()
    forgeoned.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=name)))
    assert artifact not in {one.id for one in forgeoned.images.ListImages(pb.ListImagesRequest()).images}


def test_a_namespace_s_credentials_are_for_its_pods_alone(
    daemon_factory: Callable[..., Daemon], tmp_path: Path
) -> None:
    auth, data = tmp_path / "auth", tmp_path / "data"
    auth.mkdir()
    daemon = daemon_factory({"registry.namespaced_auth_dir": str(auth)})
    with docker_registry(tmp_path / "open", data) as address:
        images.push(address, "team/app:v1", images.busybox())
    with docker_registry(tmp_path / "closed", data, auth=htpasswd(tmp_path)) as address:
        folder = Path(daemon.config.registry.config_path) / address
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text(f'server = "http://{address}"\n')
        name = f"{address}/team/app:v1"
        file = auth / "blue.json"
        file.write_text(json.dumps({"auths": {f"{address}/team": {"username": USER, "password": PASSWORD}}}))
        file.chmod(0o600)
        for namespace in ("", "green"):
            with pytest.raises(grpc.RpcError) as refused:
                _pull(daemon, name, namespace)
            assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
        assert _pull(daemon, name, "blue").startswith("sha256:")
        file.chmod(0o644)
        with pytest.raises(grpc.RpcError, match="others than its owner"):
            _pull(daemon, name, "blue")
