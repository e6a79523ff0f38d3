"""What the chart renders, in every combination of values that is documented."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from kubernetes_validate import SchemaNotFoundError, utils, validate

from forgeone_shim.version import VERSION
from tests.unit.chart.rendering import (
    CASES,
    CHART,
    NAMESPACE,
    NEWEST,
    OLDEST,
    RELEASE,
    Object,
    helm,
    kinds,
    of,
    pods,
    render,
)

OPERATOR = {"PodMonitor", "ServiceMonitor", "PrometheusRule"}
CLUSTER = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "MutatingWebhookConfiguration",
    "RuntimeClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
}


@pytest.fixture(scope="module", autouse=True)
def schemas_are_read_once() -> Iterator[None]:
    # All of a Kubernetes' definitions, a megabyte, for each object otherwise.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))
        yield


@functools.cache
def known(text: str, kube: str) -> bool:
    """Whether Kubernetes has a schema for it, which it then fits. Most objects are the same in many cases."""
    try:
        validate(json.loads(text), kube, strict=True)
    except SchemaNotFoundError:
        return False
    return True


def test_no_image_is_taken_from_a_name_that_nobody_has_given() -> None:
    made = helm("template", RELEASE, str(CHART))
    assert made.returncode != 0 and "image.repository: say where" in made.stderr


@pytest.mark.parametrize("case", CASES)
def test_it_lints(case: str) -> None:
    made = helm("lint", "--strict", str(CHART), "--values", str(CHART / "ci" / case))
    assert made.returncode == 0, made.stdout


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kube", [OLDEST, NEWEST])
def test_every_object_is_as_the_oldest_and_the_newest_kubernetes_have_it(case: str, kube: str) -> None:
    for one in render(case, kube):
        assert known(json.dumps(one, sort_keys=True), kube) or one["kind"] in OPERATOR


def test_older_kubernetes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kubeVersion: >=1\.30\.0-0"):
        render(kube="1.29")


@pytest.mark.parametrize("case", CASES)
def test_objects_have_names_of_their_own_and_are_where_they_belong(case: str) -> None:
    objects = render(case)
    names = Counter((one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in objects)
    assert [name for name, times in names.items() if times > 1] == []
    for one in objects:
        place = one["metadata"].get("namespace")
        if one["kind"] in CLUSTER:
            assert place is None
        else:
            # Events about what has no namespace are in default.
            assert place == ("default" if one["metadata"]["name"].endswith(("-events", "-policy-sync")) else NAMESPACE)


@pytest.mark.parametrize("case", CASES)
def test_every_object_says_whose_it_is(case: str) -> None:
    given = yaml.safe_load((CHART / "ci" / case).read_text()).get("commonLabels", {})
    for one in render(case):
        labels = one["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == RELEASE
        assert labels["app.kubernetes.io/version"] == VERSION
        assert given.items() <= labels.items()


def selected(selector: Object, labels: Object) -> bool:
    for one in selector.get("matchExpressions", []):
        assert one["operator"] == "In"
        if labels.get(one["key"]) not in one["values"]:
            return False
    return bool({**selector.get("matchLabels", {})}.items() <= labels.items())


@pytest.mark.parametrize("case", CASES)
def test_selectors_select_what_they_are_for_and_nothing_else(case: str) -> None:
    objects = render(case)
    labels = {name: metadata["labels"] for name, metadata, _ in pods(objects)}
    for one in objects:
        spec, name = one.get("spec", {}), one["metadata"]["name"]
        selector = {
            "DaemonSet": lambda spec=spec: spec["selector"],
            "Deployment": lambda spec=spec: spec["selector"],
            "Service": lambda spec=spec: {"matchLabels": spec["selector"]},
            "PodDisruptionBudget": lambda spec=spec: spec["selector"],
            "NetworkPolicy": lambda spec=spec: spec["podSelector"],
            "PodMonitor": lambda spec=spec: spec["selector"],
        }.get(one["kind"])
        if selector is None:
            continue
        found = {owner for owner, of_pod in labels.items() if selected(selector(), of_pod)}
        wanted = {name.removesuffix("-nodes") + "-installer"} if one["kind"] == "PodMonitor" else {name}
        if one["kind"] == "NetworkPolicy" and name.endswith("-installer"):
            wanted |= {owner for owner in labels if owner.endswith("-retire")}
        assert found == wanted, (one["kind"], name)
    for monitor in kinds(objects, "ServiceMonitor"):
        [service] = kinds(objects, "Service")
        assert selected(monitor["spec"]["selector"], service["metadata"]["labels"])
        assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}


@pytest.mark.parametrize("case", CASES)
def test_nobody_has_more_rights_than_are_named(case: str) -> None:
    objects = render(case)
    roles = {(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]): one for one in objects}
    accounts = {one["metadata"]["name"] for one in kinds(objects, "ServiceAccount")}
    for binding in kinds(objects, "ClusterRoleBinding", "RoleBinding"):
        ref, place = binding["roleRef"], binding["metadata"].get("namespace")
        # Roles of the chart's own alone: never cluster-admin, nor another that is there already.
        assert (ref["kind"], place, ref["name"]) in roles
        for subject in binding["subjects"]:
            if subject["kind"] == "ServiceAccount" and subject["namespace"] == NAMESPACE:
                assert subject["name"] in accounts
    for role in kinds(objects, "ClusterRole", "Role"):
        assert "aggregationRule" not in role
        for rule in role["rules"]:
            assert "*" not in {*rule["verbs"], *rule["resources"], *rule["apiGroups"]}
            assert {*rule["verbs"]} <= {"get", "list", "watch", "create", "update", "patch"}
            assert not {*rule["resources"]} & {"pods/exec", "clusterroles", "roles", "rolebindings", "nodes/proxy"}
            if "secrets" in rule["resources"] or "webhookconfigurations" in str(rule["resources"]):
                assert rule["resourceNames"]
    for name, _, spec in pods(objects):
        if spec.get("automountServiceAccountToken") is not False:
            assert spec["serviceAccountName"] in accounts, name


def test_without_rbac_there_is_none_and_the_readme_lists_what_there_would_be() -> None:
    assert kinds(render("without-rbac.yaml"), "ClusterRole", "Role", "ClusterRoleBinding", "RoleBinding") == []
    page = (CHART / "README.md").read_text().split("## Rights")[1].split("## Values")[0]
    for role in kinds(render("everything.yaml"), "ClusterRole", "Role"):
        for rule in role["rules"]:
            for resource in rule["resources"]:
                told = {"secrets": "Secret", "configmaps": "ConfigMap"}
                told |= {
                    f"{kind}webhookconfigurations": "webhook configurations" for kind in ("validating", "mutating")
                }
                assert told.get(resource, f"`{resource}`") in page


def restricted(pod: Object, container: Object) -> bool:
    """Whether the Pod Security Standard of that name takes it."""
    merged = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
    return (
        merged.get("runAsNonRoot") is True
        and merged.get("allowPrivilegeEscalation") is False
        and merged.get("capabilities") == {"drop": ["ALL"]}
        and merged.get("seccompProfile") == {"type": "RuntimeDefault"}
        and merged.get("readOnlyRootFilesystem") is True
        and not {"hostNetwork", "hostPID", "hostIPC"} & {*pod}
        and all({"emptyDir", "configMap", "secret"} & {*volume} for volume in pod.get("volumes", []))
    )


@pytest.mark.parametrize("case", CASES)
def test_only_the_installer_is_privileged(case: str) -> None:
    for name, metadata, spec in pods(render(case)):
        is_installer = metadata["labels"]["app.kubernetes.io/component"] == "installer"
        assert not {"hostNetwork", "hostPID", "hostIPC"} & {*spec}
        for container in spec["containers"]:
            assert restricted(spec, container) is not is_installer, name
            assert {"requests", "limits"} <= {*container["resources"]}


@pytest.mark.parametrize("case", CASES)
def test_every_container_is_of_the_one_image(case: str) -> None:
    given = yaml.safe_load((CHART / "ci" / case).read_text())["image"]
    wanted = given["repository"] + (f"@{given['digest']}" if "digest" in given else f":{VERSION}")
    assert {container["image"] for _, _, spec in pods(render(case)) for container in spec["containers"]} <= {wanted}


def test_the_charts_version_is_the_projects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
    assert chart["kubeVersion"] == f">={OLDEST}.0-0"


def test_classes_are_scheduled_where_their_engine_is() -> None:
    for engine in ("native", "wasm", "microvm", "auto"):
        made = of(render("replace.yaml"), "RuntimeClass", f"-{engine}")
        assert made["handler"] == f"forgeone-{engine}"
        wanted = {"forgeone.dev/ready": "true"}
        wanted |= {f"forgeone.dev/engine-{engine}": "true"} if engine != "auto" else {}
        assert made["scheduling"]["nodeSelector"] == wanted
        assert made["scheduling"]["tolerations"][0]["key"] == "pool"
    native = of(render("replace.yaml"), "RuntimeClass", "native")
    assert native["overhead"]["podFixed"] == {"memory": "4Mi", "cpu": "5m"}


def test_a_pool_has_its_own_labels_and_only_the_classes_it_wants() -> None:
    objects = render("classes-only.yaml")
    assert {one["kind"] for one in objects} == {"RuntimeClass", "Pod"}
    assert [one["metadata"]["name"] for one in kinds(objects, "RuntimeClass")] == ["forgeone-native", "forgeone-wasm"]
    assert of(objects, "RuntimeClass", "native")["scheduling"]["nodeSelector"]["pool"] == "forgeone"


def test_helm_tests_the_classes_that_are_named() -> None:
    tested = [one["spec"]["runtimeClassName"] for one in kinds(render("replace.yaml"), "Pod")]
    assert tested == ["forgeone-native", "forgeone-wasm", "forgeone-microvm", "forgeone-auto"]
    assert kinds(render("everything.yaml"), "Pod") == []
    assert all(one["metadata"]["annotations"]["helm.sh/hook"] == "test" for one in kinds(render(), "Pod"))


def test_the_definition_of_policies_outlives_the_release() -> None:
    made = of(render(), "CustomResourceDefinition")
    assert made["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert kinds(render(crds={"install": False}), "CustomResourceDefinition") == []


def test_nodes_are_given_back_before_their_agents_are_gone() -> None:
    job = of(render("replace.yaml"), "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"
    [rule] = job["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and 1 in rule["onExitCodes"]["values"]
    [container] = job["spec"]["template"]["spec"]["containers"]
    [timeout] = [int(one.split("=")[1]) for one in container["args"] if one.startswith("--timeout=")]
    assert job["spec"]["activeDeadlineSeconds"] > timeout
    assert "--drain" in container["args"]
    assert job["spec"]["template"]["spec"]["tolerations"][0]["key"] == "pool"
    assert kinds(render("without-rbac.yaml"), "Job") == []


def test_a_node_at_a_time_and_the_rollout_waits_for_it() -> None:
    for case, nodes in (("default.yaml", 1), ("replace.yaml", 3)):
        made = of(render(case), "DaemonSet")
        assert made["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == nodes
        [container] = made["spec"]["template"]["spec"]["containers"]
        assert f"--max-unavailable={nodes}" in container["args"]
        assert "readinessProbe" in container


def test_another_configuration_is_another_pod_of_the_installer() -> None:
    def digest(**values: object) -> str:
        template = of(render(**values), "DaemonSet")["spec"]["template"]  # type: ignore[arg-type]
        return str(template["metadata"]["annotations"]["forgeone.dev/config-digest"])

    assert digest() == digest(admission={"mode": "none"})
    assert digest() != digest(config={"log": {"level": "debug"}})


def test_replicas_of_the_webhook_are_apart_and_some_stay() -> None:
    objects = render("webhook.yaml")
    spec = of(objects, "Deployment")["spec"]
    assert spec["replicas"] == 2 and spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    [term] = spec["template"]["spec"]["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    labels = spec["template"]["metadata"]["labels"]
    assert term["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    assert selected(term["podAffinityTerm"]["labelSelector"], labels)
    assert of(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] < spec["replicas"]
    assert kinds(render("without-rbac.yaml"), "PodDisruptionBudget") == []


def test_a_network_policy_lets_nobody_in_who_is_not_named() -> None:
    objects = render("webhook.yaml")
    assert of(objects, "NetworkPolicy", "-installer")["spec"]["ingress"] == []
    [rule] = of(objects, "NetworkPolicy", "-admission")["spec"]["ingress"]
    assert rule == {
        "from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
        "ports": [{"port": 8443, "protocol": "TCP"}],
    }


def test_labels_of_objects_are_labels() -> None:
    def all_labels(found: Any) -> list[str]:
        if isinstance(found, dict):
            own = [*found.get("labels", {}).values()] if isinstance(found.get("labels"), dict) else []
            return own + [one for value in found.values() for one in all_labels(value)]
        return [one for value in found for one in all_labels(value)] if isinstance(found, list) else []

    rendered = [one for one in render("everything.yaml") if one["kind"] != "CustomResourceDefinition"]
    values = all_labels(json.loads(json.dumps(rendered)))
    assert values and all(isinstance(one, str) and len(one) < 64 for one in values)
