"""``forge contract`` and ``forge policy``: what is read, explained, signed and tried without a node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forgeone_shim.attestation.keys import SigningKey
from forgeone_shim.cli.main import main
from forgeone_shim.cluster import names, objects
from forgeone_shim.cluster.store import Store

CONTRACT = """
scope: {namespaces: [shop]}
minimum_entropy: 128
profile: {trust_label: gold, network: {egress: [10.0.0.0/8 tcp/443]}}
rbac: {exec: false}
"""
FLOOR = """
apiVersion: forgeone.dev/v1
kind: ZTAPolicy
metadata: {name: floor}
spec:
  floor: true
  exceptNamespaces: [kube-system]
  contract: {profile: {privileged: false, capabilities: [CHOWN, KILL]}}
  rules:
    - {name: not-root, at: [create], expression: container.user != 0, message: containers must not run as root}
    - {name: masked, at: [create], expression: "container.privileged || !container.unmasked"}
"""
POD = """
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  labels: {app: web}
  annotations:
    zta.forgeone.dev/exec: "false"
spec:
  securityContext: {runAsUser: 1000}
  containers:
    - name: web
      image: ghcr.io/acme/web:1
      securityContext: {capabilities: {drop: [ALL], add: [CHOWN]}}
      resources: {limits: {memory: 64Mi, cpu: 500m}}
      volumeMounts: [{name: cache, mountPath: /cache}, {name: data, mountPath: /data, readOnly: true}]
  volumes:
    - {name: cache, emptyDir: {}}
    - {name: data, hostPath: {path: /srv/data/}}
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "floor.yaml").write_text(FLOOR)
    (tmp_path / "contract.yaml").write_text(CONTRACT)
    (tmp_path / "pod.yaml").write_text(POD)
    (tmp_path / "forgeone.toml").write_text(
        f'[contract]\npolicies_dir = "{policies}"\nissuers_dir = "{tmp_path / "issuers"}"\n'
    )
    return tmp_path


class Told:
    """What a command printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def forge(lab: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*argv: str) -> Told:
        code = main(argv)
        return Told(code, *capsys.readouterr())

    return run


def test_lint_tells_what_a_file_is(forge: Any, lab: Path) -> None:
    told = forge("contract", "lint", "contract.yaml", "pod.yaml")
    assert told.code == 0
    assert "contract.yaml: a contract, sha256:" in told.out
    assert "pod.yaml: 1 pods, 1 with a contract" in told.out


@pytest.mark.parametrize(
    ("name", "text", "field"),
    [
        ("a.yaml", "rbac: {exce: false}", "rbac.exce"),
        ("a.yaml", "kind: Pod\nspec: {containers: []}", "spec.containers"),
        ("a.yaml", "kind: Service", "has no pod"),
        (
            "a.yaml",
            POD.replace("zta.forgeone.dev/exec:", "zta.forgeone.dev/exce:"),
            "annotation zta.forgeone.dev/exce",
        ),
        ("a.yaml", POD.replace("zta.forgeone.dev/exec:", "zta.forgeone.dev/exec.wbe:"), "no container 'wbe'"),
        ("a.yaml", POD.replace("/exec: ", "/exec.web: ").replace('"false"', '"no"'), "neither true nor false"),
        (
            "a.yaml",
            POD.replace("hostPath:", "hostPath: &a").replace("mountPath: /cache", "mountPath: *a"),
            "references",
        ),
    ],
)
def test_lint_names_the_field_that_is_wrong(forge: Any, lab: Path, name: str, text: str, field: str) -> None:
    (lab / name).write_text(text)
    told = forge("contract", "lint", "contract.yaml", name)
    assert told.code == 1
    assert name in told.err and field in told.err
    assert "contract.yaml: a contract" in told.out


def test_a_contract_is_signed_explained_and_tried(forge: Any, lab: Path) -> None:
    key = SigningKey.generate()
    key.save(lab / "key")
    (lab / "issuers").mkdir()
    (lab / "issuers" / "release.pem").write_bytes(key.public.pem())
    assert forge("contract", "sign", "--key", "key", "-o", "signed.json", "contract.yaml").code == 0
    assert forge("contract", "sign", "--key", "key", "-o", "signed.json", "contract.yaml").code == 1
    assert "in an envelope" in forge("contract", "lint", "signed.json").out

    told = forge("contract", "explain", "--config", "forgeone.toml", "-n", "shop", "signed.json")
    assert told.code == 0, told.err
    assert f"{key.public.id} (release.pem)" in told.out
    rows = {line.split("  ")[0]: line for line in told.out.splitlines()}
    assert "128" in rows["minimum_entropy"] and rows["minimum_entropy"].endswith("the pod")
    assert "10.0.0.0/8 tcp/443" in rows["profile.network.egress"]
    assert "CHOWN, KILL" in rows["profile.capabilities"] and rows["profile.capabilities"].endswith("floor")
    told = forge("contract", "explain", "--config", "forgeone.toml", "-n", "pay", "signed.json")
    assert told.code == 2 and "scope.namespaces" in told.err

    found = forge("contract", "explain", "--config", "forgeone.toml", "-n", "shop", "-o", "json", "signed.json").json
    assert found["signers"] == [key.public.id]
    assert found["policies"] == ["floor"]
    assert found["contract"]["rbac"]["exec"] is False

    (lab / "policies" / "signed.yaml").write_text(
        "apiVersion: forgeone.dev/v1\nkind: ZTAPolicy\nmetadata: {name: signed}\n"
        "spec: {floor: true, requireSignedContract: true}\n"
    )
    told = forge("contract", "test", "--config", "forgeone.toml", "pod.yaml")
    assert told.code == 1 and "signed/requireSignedContract" in told.out
    envelope = json.dumps((lab / "signed.json").read_text().strip())
    (lab / "pod.yaml").write_text(POD.replace('exec: "false"', f"contract: {envelope}"))
    assert forge("contract", "test", "--config", "forgeone.toml", "pod.yaml").code == 0


def test_an_envelope_gets_a_second_signature(forge: Any, lab: Path) -> None:
    for name in ("a", "b"):
        SigningKey.generate().save(lab / name)
    one = forge("contract", "sign", "--key", "a", "contract.yaml").out
    (lab / "one.json").write_text(one)
    two = json.loads(forge("contract", "sign", "--key", "b", "one.json").out)
    assert len(two["signatures"]) == 2
    assert two["payload"] == json.loads(one)["payload"]


def test_who_signs_a_contract_for_any_namespace_is_told(forge: Any, lab: Path) -> None:
    SigningKey.generate().save(lab / "a")
    (lab / "wide.yaml").write_text("minimum_entropy: 1")
    assert "scope.namespaces" in forge("contract", "sign", "--key", "a", "wide.yaml").err


def test_a_policy_is_tried_on_a_manifest(forge: Any, lab: Path) -> None:
    told = forge("contract", "test", "--policies", "policies", "pod.yaml")
    assert told.code == 0, told.out
    assert [line.split()[1:4] for line in told.out.splitlines()[1:]] == [
        ["-", "sandbox", "allowed"],
        ["web", "create", "allowed"],
        ["web", "start", "allowed"],
    ]
    told = forge("contract", "test", "--policies", "policies", "--at", "exec", "-o", "json", "pod.yaml")
    assert told.code == 1
    assert told.json == [
        {
            "pod": "web",
            "container": "web",
            "point": "exec",
            "allowed": False,
            "policy": "",
            "rule": "rbac.exec",
            "reason": "exec is not allowed",
        }
    ]
    assert forge("contract", "test", "--at", "lunch", "pod.yaml").code == 2


@pytest.mark.parametrize(
    ("before", "after", "at", "by"),
    [
        ("runAsUser: 1000", "runAsUser: 0", "create", "floor/not-root"),
        ("add: [CHOWN]", "add: [CHOWN, NET_ADMIN]", "create", "floor/profile.capabilities"),
        ("{capabilities:", "{procMount: Unmasked, capabilities:", "create", "floor/masked"),
        ("drop: [ALL], ", "", "create", "floor/profile.capabilities"),
        ("{capabilities:", "{privileged: true, capabilities:", "sandbox", "floor/profile.privileged"),
        ("{capabilities:", "{privileged: true, capabilities:", "create", "floor/profile.privileged"),
        ('exec: "false"', 'memory: "32Mi"', "create", "profile.resources.memory"),
        ('exec: "false"', 'cpu: "400m"', "create", "profile.resources.cpu"),
        ('exec: "false"', 'volumes: "empty-dir"', "create", "profile.volumes"),
        ('exec: "false"', 'host_paths: "/srv/data/x"', "create", "profile.host_paths"),
        ('exec: "false"', 'images: "docker.io/**"', "create", "profile.images"),
        ('exec: "false"', 'trusted_issuers: "key:a"', "create", "trusted_issuers"),
        ('exec: "false"', 'minimum_entropy: "512"', "start", "minimum_entropy"),
        ('exec: "false"', 'exec_mode: "wasm"', "create", "exec_mode"),
        ('exec: "false"', 'host_network: "false"', "", ""),
        ('exec: "false"', 'pids: "10"', "", ""),
        ('exec: "false"', 'egress: "none"', "", ""),
        ("drop: [ALL], add: [CHOWN]", "drop: [ALL], add: [CHOWN, NET_RAW]", "create", "floor/profile.capabilities"),
        ('exec: "false"', 'memory: "64Mi"', "", ""),
        ('exec: "false"', 'host_paths: "/srv:ro"', "", ""),
        ('exec: "false"', 'exec: "no"', "sandbox", "annotation zta.forgeone.dev/exec"),
        ("  securityContext: {runAsUser", "  hostNetwork: true\n  securityContext: {runAsUser", "", ""),
        ("namespace: shop", "namespace: kube-system", "", ""),
    ],
)
def test_a_manifest_is_held_to_contract_and_policy(
    forge: Any, lab: Path, before: str, after: str, at: str, by: str
) -> None:
    assert before in POD
    (lab / "pod.yaml").write_text(POD.replace(before, after))
    found = forge("contract", "test", "--policies", "policies", "-o", "json", "pod.yaml").json
    denied = {
        one["point"]: f"{one['policy']}/{one['rule']}" if one["policy"] else one["rule"]
        for one in found
        if not one["allowed"]
    }
    assert (denied.get(at, "") if at else denied) == (by if at else {})


def test_packet_sockets_are_taken_from_those_who_do_not_ask_for_them(forge: Any, lab: Path) -> None:
    """As a node does it, where the network is restricted."""
    plain = POD.replace('exec: "false"', 'egress: "none"').replace("{drop: [ALL], add: [CHOWN]}", "{}")
    (lab / "pod.yaml").write_text(plain)
    (lab / "empty").mkdir()
    assert forge("contract", "test", "--policies", "empty", "pod.yaml").code == 0
    (lab / "pod.yaml").write_text(plain.replace("capabilities: {}", "capabilities: {add: [NET_RAW]}"))
    assert "NET_RAW" in forge("contract", "test", "--policies", "empty", "pod.yaml").out


def test_whatever_makes_pods_is_tried(forge: Any, lab: Path) -> None:
    spec = {"containers": [{"name": "a", "image": "busybox"}]}
    template = {"spec": spec}
    things = [
        {"kind": "Deployment", "metadata": {"name": "d"}, "spec": {"template": template}},
        {"kind": "CronJob", "metadata": {"name": "c"}, "spec": {"jobTemplate": {"spec": {"template": template}}}},
        {"kind": "ConfigMap", "metadata": {"name": "m"}, "data": {}},
        {"kind": "List", "items": [{"kind": "Pod", "metadata": {"name": "p"}, "spec": spec}]},
    ]
    (lab / "all.yaml").write_text("\n---\n".join(json.dumps(one) for one in things) + "\n---\n# nothing\n")
    (lab / "all.yaml").write_text("# all of it\n---\n" + (lab / "all.yaml").read_text())
    found = forge("contract", "test", "--policies", "policies", "-o", "json", "all.yaml").json
    assert {one["pod"] for one in found} == {"Deployment/d", "CronJob/c", "p"}


def test_policies_are_listed(forge: Any, lab: Path) -> None:
    told = forge("policy", "list", "--config", "forgeone.toml")
    assert told.out.splitlines()[1].split()[:6] == ["floor", "floor", "all", "but", "kube-system", "2"]
    (one,) = forge("policy", "list", "--config", "forgeone.toml", "-o", "json").json
    assert (one["name"], one["floor"], one["rules"][0]["at"]) == ("floor", True, ["create"])


def test_policies_are_checked(forge: Any, lab: Path) -> None:
    told = forge("policy", "check", "--config", "forgeone.toml")
    assert told.code == 0 and "1 policies, sha256:" in told.out
    (lab / "bad.yaml").write_text(FLOOR.replace("container.user", "container.usr"))
    told = forge("policy", "check", "policies/floor.yaml", "bad.yaml")
    assert told.code == 1
    assert "bad.yaml: spec.rules[0].expression" in told.err and "undefined field 'usr'" in told.err
    assert "policies/floor.yaml: policy floor" in told.out


def test_what_is_mostly_not_meant_is_told(forge: Any, lab: Path) -> None:
    (lab / "policies" / "b.yaml").write_text(
        "apiVersion: forgeone.dev/v1\nkind: ZTAPolicy\nmetadata: {name: b}\n"
        f"spec: {{requireSignedContract: true, contractIssuers: ['sha256:{'a' * 64}'],"
        " contract: {exec_mode: wasm}}\n"
    )
    (lab / "policies" / "c.yaml").write_text(
        "apiVersion: forgeone.dev/v1\nkind: ZTAPolicy\nmetadata: {name: c}\n"
        "spec: {floor: true, contract: {exec_mode: native}}\n"
    )
    told = forge("policy", "check", "--config", "forgeone.toml")
    assert told.code == 0
    assert "no key of contract.issuers_dir" in told.err
    assert "no issuer is trusted" in told.err
    assert "policy b cannot be named where all floors apply: exec_mode" in told.err


def test_a_directory_that_is_not_there_is_told(forge: Any, lab: Path) -> None:
    assert forge("contract", "test", "--policies", "none", "pod.yaml").code == 1
    assert forge("contract", "lint", "none.yaml").code == 1


def test_policies_of_the_cluster_are_listed_with_those_of_files(forge: Any, lab: Path) -> None:
    """The last known ones, of a node that has a cluster."""
    store = Store(lab / "root" / "cluster")
    (lab / "root").mkdir()
    store.prepare()
    for name in ("theirs", "floor"):
        spec = {"floor": True, "contract": {"rbac": {"exec": False}}}
        given = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name}, "spec": spec}
        store.write(name, objects.file_of(given))
    config = lab / "forgeone.toml"
    told = forge("policy", "list", "--config", str(config))
    assert "theirs" not in told.out
    config.write_text(f'root = "{lab / "root"}"\n{config.read_text()}[cluster]\nkubeconfig = "/k"\n')
    told = forge("policy", "list", "--config", str(config))
    listed = {line.split()[0]: line.split()[-2:] for line in told.out.splitlines()[1:]}
    assert listed == {"floor": ["node", str(lab / "policies/floor.yaml")], "theirs": ["cluster", "ztapolicies/theirs"]}
    assert "policy floor of the cluster is not in force: a file has that name" in told.err
    assert [one["source"] for one in forge("policy", "list", "-o", "json", "--config", str(config)).json] == [
        "node",
        "cluster",
    ]
    (lab / "root/cluster/policies/theirs.json").write_text("{")
    told = forge("policy", "list", "--config", str(config))
    assert "policy theirs of the cluster: ztapolicies/theirs: is not JSON" in told.err
