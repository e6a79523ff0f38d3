"""What ``forge run`` asks a node for."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from cri.api import runtime_pb2 as cri
from forgeone_shim.cli import run
from forgeone_shim.cli.client import Client
from forgeone_shim.package import media
from forgeone_shim.rpc import node_pb2
from tests.unit.cli.conftest import Forge
from tests.unit.cli.node_double import NodeDouble

IMAGE = "sha256:" + "ee" * 32


@pytest.fixture
def here(node: NodeDouble) -> Any:
    """An image of the node's, whose annotations a test may write."""
    image = cri.Image(id=IMAGE)
    node.images.here["app"] = image
    return image


def asked(node: NodeDouble) -> Any:
    ((_, config),) = node.pods._of.values()
    return config


@pytest.mark.parametrize(
    ("image", "file"),
    [("./x", True), ("/x", True), ("../x", True), ("x.forgepkg", False), ("reg/x:1", False), ("x", False)],
)
def test_a_path_is_told_from_a_name(image: str, file: bool) -> None:
    assert run.is_file(image) is file


def test_a_contract_is_the_pods_and_one_with_a_mistake_makes_no_pod(
    node: NodeDouble, forge: Forge, tmp_path: Path, here: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "contract.yaml"
    path.write_text("rbac: {exec: false}\n")
    assert forge("run", "-d", "--contract", str(path), "app") == 0
    (pod,) = node.pods.pods.values()
    assert pod.annotations["zta.forgeone.dev/contract"] == "rbac: {exec: false}\n"
    path.write_text("rbac: {exek: false}\n")
    for wrong, said in ((path, "exek"), (tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        assert forge("run", "-d", "--contract", str(wrong), "app") == 125
        assert said in capsys.readouterr().err
    assert len(node.pods.pods) == 1


def test_a_package_s_file_needs_no_path_in_front(
    node: NodeDouble, forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "it-1.0.forgepkg").write_bytes(b"package")
    node.images.imported = [node_pb2.PulledImage(id=IMAGE)]
    node.images.info["artifact"] = media.ARTIFACT
    assert forge("run", "-d", "it-1.0.forgepkg") == 0
    assert node.images.received == ("", b"package")
    assert asked(node).image.image == IMAGE
    assert next(iter(node.pods.pods.values())).metadata.name.startswith("it-1-0-")


def test_a_package_s_file_that_holds_an_image_instead_does_not_run(
    node: NodeDouble, forge: Forge, tmp_path: Path, here: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "it.forgepkg").write_bytes(b"an image, of which nobody asks who signed it")
    node.images.imported = [node_pb2.PulledImage(id=IMAGE)]
    for words in ([], ["--engine", "wasm"]):
        assert forge("run", "-d", *words, str(tmp_path / "it.forgepkg")) == 125
        assert "no package" in capsys.readouterr().err
    assert node.pods.calls == []


def test_a_pod_whose_id_was_never_heard_of_is_removed_by_an_interrupt(
    node: NodeDouble, forge: Forge, here: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    call = Client.call

    def interrupted(client: Client, method: Any, request: Any, timeout: float | None = None) -> Any:
        answer = call(client, method, request)
        if isinstance(request, cri.RunPodSandboxRequest):
            raise KeyboardInterrupt
        if isinstance(request, cri.StopPodSandboxRequest):
            # What would end this process does not end the removal.
            signal.raise_signal(signal.SIGTERM)
        return answer

    monkeypatch.setattr(Client, "call", interrupted)
    assert forge("run", "app") == 130
    assert (node.pods.pods, node.pods.calls[-1]) == ({}, "remove pod")
    assert list((tmp_path / "logs").iterdir()) == []


def test_a_file_of_several_images_is_refused_before_anything_runs(
    node: NodeDouble, forge: Forge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "it.tar").write_bytes(b"x")
    node.images.imported = [node_pb2.PulledImage(id=IMAGE), node_pb2.PulledImage(id=IMAGE)]
    assert forge("run", str(tmp_path / "it.tar")) == 125
    assert "holds 2 images" in capsys.readouterr().err
    assert node.pods.calls == []


def test_an_image_for_webassembly_gets_its_handler_unless_another_is_named(
    node: NodeDouble, forge: Forge, here: Any
) -> None:
    for words, handler in (
        ([], "forgeone-wasm"),
        (["--engine", "native"], "forgeone-native"),
        (["--handler", "mine"], "mine"),
    ):
        assert forge("run", "-d", *words, "app") == 0
        assert [pod.runtime_handler for pod in node.pods.pods.values()][-1] == handler


def test_limits_are_those_that_are_given(node: NodeDouble, forge: Forge, here: Any) -> None:
    assert forge("run", "-d", "-m", "1Gi", "--cpus", "2", "app") == 0
    resources = asked(node).linux.resources
    assert (resources.memory_limit_in_bytes, resources.cpu_quota, resources.cpu_period) == (1 << 30, 200_000, 100_000)
    assert node.pods.configs[-1].linux.resources == resources


def test_without_limits_none_are_asked_for(node: NodeDouble, forge: Forge, here: Any) -> None:
    assert forge("run", "-d", "app") == 0
    assert not asked(node).linux.HasField("resources")


def test_volumes_are_absolute_and_as_they_are_said(
    node: NodeDouble, forge: Forge, here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert forge("run", "-d", "-v", "data:/a", "-v", f"{tmp_path}/data:/b:ro", "app") == 0
    mounts = [(each.host_path, each.container_path, each.readonly) for each in asked(node).mounts]
    assert mounts == [(f"{tmp_path}/data", "/a", False), (f"{tmp_path}/data", "/b", True)]


@pytest.mark.parametrize("text", ["/tmp", ":/x", "/tmp:x", "/tmp:/x:rx", "/tmp:"])
def test_what_is_no_volume_is_refused(node: NodeDouble, forge: Forge, here: Any, text: str) -> None:
    assert forge("run", "-d", "-v", text, "app") == 125
    assert node.pods.calls == []
