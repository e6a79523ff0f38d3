"""The files that say to kind, kubeadm, ForgeOne and the chart what a cluster is to be like."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from forgeone_shim.config.loader import load
from forgeone_shim.errors import InvalidInput
from hack.bundle.layout import REPOSITORY
from hack.kind import settings
from hack.kind.settings import MODES, Mode, Settings

# https://kubernetes.io/docs/reference/config-api/kubeadm-config.v1beta4/, and kind's own
# https://kind.sigs.k8s.io/docs/user/configuration/
_REGISTRATION = {"name", "criSocket", "taints", "kubeletExtraArgs", "ignorePreflightErrors", "imagePullPolicy"}
_REGISTRATION |= {"imagePullSerial"}
_INIT = {"bootstrapTokens", "dryRun", "nodeRegistration", "localAPIEndpoint", "certificateKey", "skipPhases"}
_INIT |= {"patches", "timeouts"}
_JOIN = {"dryRun", "nodeRegistration", "caCertPath", "discovery", "controlPlane", "skipPhases", "patches", "timeouts"}
_KUBEADM = {"InitConfiguration": _INIT, "JoinConfiguration": _JOIN}
_CLUSTER = {"kind", "apiVersion", "name", "networking", "nodes", "featureGates", "runtimeConfig"}
_CLUSTER |= {"kubeadmConfigPatches", "kubeadmConfigPatchesJSON6902", "containerdConfigPatches"}
_NODE = {"role", "image", "labels", "extraMounts", "extraPortMappings", "kubeadmConfigPatches"}
_MOUNT = {"hostPath", "containerPath", "readOnly", "selinuxRelabel", "propagation"}


def cluster(**given: Any) -> dict[str, Any]:
    text = settings.cluster(Settings(**given), "1.2.3", Path("/files"))
    document = yaml.safe_load(text)
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize("mode", MODES)
def test_a_cluster_has_fields_that_kind_knows(mode: Mode) -> None:
    document = cluster(mode=mode, workers=3)
    assert set(document) <= _CLUSTER
    assert [node["role"] for node in document["nodes"]] == ["control-plane", "worker", "worker", "worker"]
    for node in document["nodes"]:
        assert set(node) <= _NODE
        assert all(set(mount) <= _MOUNT for mount in node["extraMounts"])


@pytest.mark.parametrize("mode", ["beside", "replace"])
def test_kubeadm_points_every_kubelet_at_forgeone(mode: Mode) -> None:
    patches = [yaml.safe_load(patch) for patch in cluster(mode=mode)["kubeadmConfigPatches"]]
    assert {patch["kind"] for patch in patches} == set(_KUBEADM)
    for patch in patches:
        assert set(patch) - {"kind"} <= _KUBEADM[patch["kind"]]
        assert set(patch["nodeRegistration"]) <= _REGISTRATION
        assert patch["nodeRegistration"]["criSocket"] == "unix:///run/forgeone/forgeone.sock"


def test_nodes_for_the_installer_are_kind_s_own() -> None:
    document = cluster(mode="installer")
    assert "kubeadmConfigPatches" not in document
    assert all("labels" not in node for node in document["nodes"])


def test_nodes_have_the_labels_that_runtime_classes_select_by() -> None:
    without, machines = cluster()["nodes"][0], cluster(microvm=True)["nodes"][0]
    assert without["labels"] == {
        "forgeone.dev/ready": "true",
        "forgeone.dev/version": "1.2.3",
        "forgeone.dev/engine-native": "true",
        "forgeone.dev/engine-wasm": "true",
    }
    assert machines["labels"]["forgeone.dev/engine-microvm"] == "true"
    assert {mount["containerPath"] for mount in machines["extraMounts"]} == {settings.REGISTRIES, "/dev/kvm"}


@pytest.mark.parametrize("mode", ["beside", "replace"])
@pytest.mark.parametrize("microvm", [False, True])
def test_forgeoned_takes_its_configuration(tmp_path: Path, mode: Mode, microvm: bool) -> None:
    file = tmp_path / "config.toml"
    file.write_text(settings.forgeone(Settings(mode=mode, microvm=microvm)))
    config = load(["--config", str(file)], {})
    assert config.upstream.socket == (settings.CONTAINERD if mode == "beside" else "")
    assert config.registry.config_path == settings.REGISTRIES
    assert config.microvm.boot_set == (settings.BOOT_SET if microvm else "")


def test_the_registry_is_reached_without_tls() -> None:
    wanted = Settings(name="mine")
    assert tomllib.loads(settings.hosts(wanted)) == {"server": "http://mine-registry:5000"}
    assert wanted.registry_inside == "mine-registry:5000"


@pytest.mark.parametrize("mode", MODES)
def test_the_chart_takes_its_values(tmp_path: Path, mode: Mode) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(settings.values(Settings(mode=mode)))
    helm = Path(REPOSITORY, ".venv/bin/helm")
    if not helm.exists():
        pytest.skip("there is no helm in .venv: make setup")
    command = [helm, "template", "forgeone", REPOSITORY / "charts/forgeone", "--values", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kinds = [document["kind"] for document in yaml.safe_load_all(done.stdout) if document]
    assert ("DaemonSet" in kinds) == (mode == "installer")


def test_settings_are_read_back() -> None:
    wanted = Settings(name="other", mode="replace", workers=0, registry_port=5002)
    assert settings.parse(wanted.text()) == wanted


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": 1}', '{"name": "x", "new": 1}'])
def test_other_texts_are_no_settings(text: str) -> None:
    with pytest.raises(InvalidInput, match="settings"):
        settings.parse(text)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"name": "../x"}, "name"),
        ({"name": ""}, "name"),
        ({"workers": -1}, "workers"),
        ({"mode": "other"}, "mode"),
        ({"registry_port": 0}, "registry-port"),
        ({"mode": "installer", "microvm": True}, "microvm"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        Settings(**given)


def test_nodes_are_named_as_kind_names_them() -> None:
    expected = ("forgeone-control-plane", "forgeone-worker", "forgeone-worker2", "forgeone-worker3")
    assert Settings(workers=3).nodes == expected
