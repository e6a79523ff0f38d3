"""The chart in this cluster: installed, changed, taken away; what it refuses, and the policies that nodes follow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from kubernetes import watch
from kubernetes.client.exceptions import ApiException

from hack.bundle.layout import REPOSITORY
from hack.lab.settings import patient
from tests.e2e.cluster.api import OURS, Cluster, absent_is_fine, condition, main, over, ready
from tests.e2e.cluster.conftest import ENGINES, Classes, Images, Web
from tests.e2e.cluster.objects import Object, deployment, pod, shell

CHART: Final = REPOSITORY / "charts/forgeone"
GROUP: Final = ("zta.forgeone.dev", "v1alpha1")
POLICIES: Final = "ztapolicies"
_SECONDS: Final = 300
_BAD: Final = {"zta.forgeone.dev/no_such_field": "true"}

Helm = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def helm(cluster: Cluster) -> Helm:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    program = shutil.which("helm", path=path)
    if program is None:
        pytest.skip("there is no helm: make setup")

    def call(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [program, "--kubeconfig", os.environ["KUBECONFIG"], *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patient(_SECONDS + 60))
        assert done.returncode == 0 or not check, f"{words}: {done.stderr}{done.stdout}"
        return done

    return call


def has_policies(cluster: Cluster) -> bool:
    """The cluster knows what a ZTAPolicy is."""
    try:
        cluster.custom.list_cluster_custom_object(*GROUP, POLICIES)
    except ApiException as error:
        if error.status != 404:
            raise
        return False
    return True


@pytest.fixture(scope="module")
def values(cluster: Cluster, run: str, namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Values of a release that has nothing in common with another one, and looks at the tests' namespace alone."""
    here = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    document = {
        "fullnameOverride": run,
        "image": {"repository": "registry.invalid/forgeone"},
        "runtimeClasses": {engine: {"name": f"{run}-chart-{engine}"} for engine in ENGINES},
        "installer": {"enabled": False},
        "crds": {"install": not has_policies(cluster)},
        "admission": {"mode": "policy", "namespaceSelector": here},
    }
    path = tmp_path_factory.mktemp("chart") / "values.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@dataclass(frozen=True, slots=True)
class Release:
    """A release of the chart: the tests' ``own``, or one that was there before them and stays."""

    name: str
    namespace: str
    own: bool

    def runtime_class(self, engine: str) -> str:
        """The RuntimeClass of an engine."""
        return f"{self.name}-chart-{engine}" if self.own else f"forgeone-{engine}"


@pytest.fixture(scope="module")
def home(cluster: Cluster, run: str) -> Iterator[str]:
    """The namespace of the tests' own release: admission leaves that alone."""
    with cluster.namespace(f"{run}-release") as name:
        yield name


@pytest.fixture(scope="module")
def release(cluster: Cluster, run: str, home: str, helm: Helm, values: Path) -> Iterator[Release]:
    listed = json.loads(helm("list", "--all", "--all-namespaces", "--output", "json").stdout)
    there = [one for one in listed if one["chart"].startswith("forgeone-")]
    if there:
        # There can be but one, of whatever name: an API server needs no more than one of its policies.
        if there[0]["status"] != "deployed":
            pytest.skip(f"a release of the chart in this cluster is {there[0]['status']}")
        yield Release(there[0]["name"], there[0]["namespace"], own=False)
        return
    brings_policies = not has_policies(cluster)
    try:
        change(helm, run, home, values)
        yield Release(run, home, own=True)
    finally:
        helm("uninstall", run, "--namespace", home, "--ignore-not-found", "--wait")
        if brings_policies:
            # A release leaves it behind on purpose: with it all policies would go.
            remove_definition(cluster)


@pytest.fixture
def own(release: Release) -> Release:
    if not release.own:
        pytest.skip(f"the release {release.name} was in this cluster before the tests, and is left as it is")
    return release


def remove_definition(cluster: Cluster) -> None:
    """Take away the kind ZTAPolicy, and all that are of it."""
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{POLICIES}.{GROUP[0]}"
    with absent_is_fine():
        cluster.connection.call_api(
            *cluster.connection.param_serialize("DELETE", path, auth_settings=["BearerToken"])
        ).read()


def change(helm: Helm, name: str, namespace: str, values: Path, *options: str) -> None:
    """Install the chart, or change its release."""
    given = os.environ.get("LAB_CHART_VALUES")
    more = ("--values", given) if given else ()
    helm(
        *("upgrade", "--install", name, str(CHART), "--namespace", namespace),
        *("--values", str(values), *more, *options, "--wait", "--timeout", f"{_SECONDS}s"),
    )


def ours(cluster: Cluster, release: str) -> list[str]:
    """What the cluster has of a release."""
    kinds = {
        "node.k8s.io/v1": ("runtimeclasses",),
        "rbac.authorization.k8s.io/v1": ("clusterroles", "clusterrolebindings", "roles", "rolebindings"),
        "admissionregistration.k8s.io/v1": (
            "validatingadmissionpolicies",
            "validatingadmissionpolicybindings",
            "validatingwebhookconfigurations",
            "mutatingwebhookconfigurations",
        ),
    }
    found = []
    for group, plurals in kinds.items():
        for plural in plurals:
            api, version = group.split("/")
            selector = f"app.kubernetes.io/instance={release}"
            listed = cluster.custom.list_cluster_custom_object(api, version, plural, label_selector=selector)
            found += [f"{plural}/{one['metadata']['name']}" for one in listed["items"]]
    return found


def until_refused(cluster: Cluster, namespace: str, body: Object) -> str:
    """What the API server says of a pod as soon as it refuses it: a new policy counts after a moment."""
    deadline = time.monotonic() + patient(30)
    while time.monotonic() < deadline:
        try:
            cluster.core.create_namespaced_pod(namespace, body, dry_run="All")
        except ApiException as error:
            return str(json.loads(error.body)["message"])
        # No event tells when every replica of the API server has taken a policy in.
        time.sleep(0.5)
    raise AssertionError("the API server takes the pod")


def until_taken(cluster: Cluster, namespace: str, body: Object) -> Any:
    """The pod as the API server would have it, as soon as it takes it."""
    deadline = time.monotonic() + patient(30)
    while True:
        try:
            return cluster.core.create_namespaced_pod(namespace, body, dry_run="All")
        except ApiException as error:
            assert time.monotonic() < deadline, error.body
        # The webhook hears of a policy when it has got its event.
        time.sleep(0.5)


@pytest.mark.parametrize("engine", ["native", "microvm", "auto"])
def test_pods_run_by_the_chart_s_runtime_classes(
    cluster: Cluster, namespace: str, images: Images, classes: Classes, release: Release, engine: str
) -> None:
    assert classes[engine]
    body = pod(f"by-{engine}", shell(images.busybox, "echo here"), runtime_class=release.runtime_class(engine))
    body["spec"]["restartPolicy"] = "Never"
    done = cluster.run(namespace, body, over, seconds=90)
    assert done.status.phase == "Succeeded"
    # The scheduler counts what the engine itself needs, and asks for a node that has it.
    assert done.spec.overhead["memory"] and "forgeone.dev/ready" in done.spec.node_selector


def test_a_component_runs_by_the_chart_s_runtime_class(
    cluster: Cluster, namespace: str, web: Web, classes: Classes, release: Release
) -> None:
    assert classes["wasm"]
    body = pod("by-wasm", runtime_class="")
    body["spec"] = web("wasm") | {"runtimeClassName": release.runtime_class("wasm")}
    cluster.run(namespace, body)


def test_a_contract_that_is_none_is_refused_as_it_is_applied(
    cluster: Cluster, namespace: str, images: Images, release: Release
) -> None:
    body = pod("bad", shell(images.busybox, "true"), runtime_class=release.runtime_class("native"), annotations=_BAD)
    assert "no_such_field" in until_refused(cluster, namespace, body)
    whole = deployment("bad", body["spec"], annotations=_BAD)
    with pytest.raises(ApiException, match="no_such_field"):
        cluster.apps.create_namespaced_deployment(namespace, whole, dry_run="All")


def test_a_contract_is_taken(cluster: Cluster, namespace: str, images: Images, release: Release) -> None:
    good = {"zta.forgeone.dev/privileged": "false", "zta.forgeone.dev/egress": "none"}
    body = pod("good", shell(images.busybox, "true"), runtime_class=release.runtime_class("native"), annotations=good)
    cluster.core.create_namespaced_pod(namespace, body, dry_run="All")


@pytest.fixture
def followed(cluster: Cluster, release: Release) -> None:
    if os.environ.get("LAB_POLICIES") == "none":
        pytest.skip("nodes of this cluster follow no policies of it: LAB_POLICIES is none")


def demand(cluster: Cluster, name: str, **spec: Any) -> None:
    """Make a ZTAPolicy."""
    body = {
        "apiVersion": "/".join(GROUP),
        "kind": "ZTAPolicy",
        "metadata": {"name": name, "labels": OURS},
        "spec": spec,
    }
    cluster.custom.create_cluster_custom_object(*GROUP, POLICIES, body)


def withdraw(cluster: Cluster, name: str) -> None:
    """Remove a ZTAPolicy."""
    with absent_is_fine():
        cluster.custom.delete_cluster_custom_object(*GROUP, POLICIES, name)


def verdict(cluster: Cluster, name: str) -> dict[str, Any]:
    """What nodes say of a ZTAPolicy: its condition ``Accepted``, as soon as there is one."""
    looking = watch.Watch()
    selector = {"field_selector": f"metadata.name={name}", "timeout_seconds": round(patient(90))}
    for event in looking.stream(cluster.custom.list_cluster_custom_object, *GROUP, POLICIES, **selector):
        conditions = event["object"].get("status", {}).get("conditions", [])
        accepted = [one for one in conditions if one["type"] == "Accepted"]
        if accepted:
            looking.stop()
            return dict(accepted[0])
    raise AssertionError(f"no node says anything of the policy {name}: does [cluster] lead them to this API server?")


def test_a_policy_that_is_applied_denies_pods_until_it_is_deleted(
    cluster: Cluster, namespace: str, run: str, images: Images, release: Release, followed: None
) -> None:
    policy, name = f"{run}-no-host-ipc", "denied"
    body = pod(
        name, shell(images.busybox, "exec sleep 100000"), runtime_class=release.runtime_class("native"), hostIPC=True
    )
    demand(cluster, policy, floor=True, namespaces=[namespace], contract={"profile": {"host_ipc": False}})
    try:
        assert verdict(cluster, policy)["status"] == "True"
        cluster.core.create_namespaced_pod(namespace, body)
        said = cluster.event(namespace, name, "FailedCreatePodSandBox")
        assert policy in said and "host_ipc" in said and "[audit:" in said
    finally:
        withdraw(cluster, policy)
    # The kubelet tries again, and is not refused any more.
    cluster.pod(namespace, name, ready, seconds=120)


def test_a_policy_that_no_node_can_use_says_so(
    cluster: Cluster, run: str, namespace: str, release: Release, followed: None
) -> None:
    policy = f"{run}-broken"
    rule = {"name": "r", "at": ["create"], "expression": "container.no_such_field == 1"}
    try:
        demand(cluster, policy, floor=True, namespaces=[namespace], rules=[rule])
    except ApiException as error:
        # Where the webhook is, it is not even taken.
        assert error.status in (400, 403, 422) and "no_such_field" in error.body
        return
    try:
        said = verdict(cluster, policy)
        assert said["status"] == "False" and "no_such_field" in said["message"]
    finally:
        withdraw(cluster, policy)


def test_a_release_is_changed_while_its_pods_run(
    cluster: Cluster, namespace: str, images: Images, own: Release, helm: Helm, values: Path
) -> None:
    stays = pod("stays", shell(images.busybox, "exec sleep 100000"), runtime_class=own.runtime_class("native"))
    before = main(cluster.run(namespace, stays)).container_id
    change(helm, own.name, own.namespace, values, "--set", "admission.mode=none", "--set", "commonLabels.changed=yes")
    left = ours(cluster, own.name)
    assert not any("admission" in one for one in left)
    found = cluster.node.read_runtime_class(own.runtime_class("native"))
    assert found.metadata.labels["changed"] == "yes"
    helm("rollback", own.name, "--namespace", own.namespace, "--wait")
    body = pod("bad-again", shell(images.busybox, "true"), runtime_class=own.runtime_class("native"), annotations=_BAD)
    assert "no_such_field" in until_refused(cluster, namespace, body)
    after = cluster.core.read_namespaced_pod("stays", namespace)
    assert (main(after).container_id, main(after).restart_count, condition(after, "Ready")) == (before, 0, "True")


def test_the_webhook_knows_the_cluster_s_policies(
    cluster: Cluster, namespace: str, run: str, images: Images, own: Release, helm: Helm, values: Path
) -> None:
    if not os.environ.get("LAB_CHART_VALUES"):
        pytest.skip("its pods need the chart's image: LAB_CHART_VALUES names no values with one")
    change(helm, own.name, own.namespace, values, "--set", "admission.mode=both,admission.webhook.mutate=true")
    try:
        policy = f"{run}-chosen"
        chosen = {"zta.forgeone.dev/runtime_policy_id": policy}
        body = pod("chooses", shell(images.busybox, "true"), runtime_class=own.runtime_class("native"))
        body["metadata"]["annotations"] = chosen
        assert policy in until_refused(cluster, namespace, body)
        demand(cluster, policy, namespaces=[namespace])
        try:
            until_taken(cluster, namespace, body)
        finally:
            withdraw(cluster, policy)
        # Nobody named a RuntimeClass, and the contract demands an engine.
        wanted = pod("machine", shell(images.busybox, "true"), runtime_class="")
        wanted["metadata"]["annotations"] = {"zta.forgeone.dev/exec_mode": "microvm"}
        del wanted["spec"]["runtimeClassName"]
        assert until_taken(cluster, namespace, wanted).spec.runtime_class_name
    finally:
        helm("rollback", own.name, "--namespace", own.namespace, "--wait")


def test_the_chart_s_own_test_passes(release: Release, helm: Helm) -> None:
    if release.own and not os.environ.get("LAB_CHART_VALUES"):
        pytest.skip("its pods need the chart's image: LAB_CHART_VALUES names no values with one")
    helm("test", release.name, "--namespace", release.namespace, "--timeout", f"{_SECONDS}s")


def test_a_release_that_is_removed_leaves_its_pods_and_policies(
    cluster: Cluster, namespace: str, images: Images, own: Release, helm: Helm
) -> None:
    stays = pod("outlives", shell(images.busybox, "exec sleep 100000"), runtime_class=own.runtime_class("native"))
    before = main(cluster.run(namespace, stays)).container_id
    assert ours(cluster, own.name)
    helm("uninstall", own.name, "--namespace", own.namespace, "--wait")
    assert ours(cluster, own.name) == []
    assert has_policies(cluster)
    after = cluster.core.read_namespaced_pod("outlives", namespace)
    assert (main(after).container_id, condition(after, "Ready")) == (before, "True")
