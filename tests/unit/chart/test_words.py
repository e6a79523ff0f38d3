"""What the chart tells programs, API servers and Prometheus is what they understand."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import jsonschema
import promql_parser
import pytest
import yaml
from cel_expr_python import cel
from prometheus_client.parser import text_string_to_metric_families as parsed

from cri.admission import metrics as admission_metrics
from cri.admission import options, policy
from cri.api import runtime_pb2 as pb
from cri.exposition.exposition import Exposition
from cri.exposition.node import of_status
from cri.upstream.link import Link
from cri.upstream.side import Links
from forgeone_shim.cli.main import parser
from forgeone_shim.cluster import crd, objects
from forgeone_shim.cluster.policies import ClusterPolicies
from forgeone_shim.config.loader import keys
from forgeone_shim.config.loader import parsed as read
from forgeone_shim.config.loader import values as flat_values
from forgeone_shim.config.model import ClusterConfig, MetricsConfig, UpstreamConfig
from forgeone_shim.lifecycle.machine import State
from forgeone_shim.node import layout, rollout
from forgeone_shim.runtime.chronicle import Chronicle
from forgeone_shim.runtime.views import Condition, NodeStatus
from hack.chart import generated, readme, schema
from hack.chart.__main__ import main
from tests.unit.chart.rendering import CASES, CHART, NAMESPACE, Object, helm, kinds, of, refusal, render
from tests.unit.cri.fakes import FakeRuntime

SAMPLES = sorted((CHART / "samples").glob("*.yaml"))


def container(found: Object) -> Object:
    [only] = found["spec"]["template"]["spec"]["containers"]
    return dict(only)


def values(case: str) -> Any:
    return yaml.safe_load((CHART / "ci" / case).read_text())


# -- programs


@pytest.mark.parametrize("case", [one for one in CASES if one != "classes-only.yaml"])
def test_the_agent_understands_its_arguments(case: str) -> None:
    found = container(of(render(case), "DaemonSet"))
    assert found["command"][0] == f"{layout.CURRENT}/bin/forge"
    args = parser().parse_args([*found["command"][1:], *found["args"]])
    given = values(case).get("installer", {})
    assert (args.action, args.host_root, args.mode) == ("agent", "/host", given.get("mode", "beside"))
    assert (args.cordon, args.taint) == (given.get("cordon", False), given.get("taint", False))
    assert (args.kubelet, args.service) == (given.get("kubelet", "auto"), given.get("service", "systemd"))
    assert args.upstream == given.get("upstream", "")
    mounts = {mount["mountPath"]: mount["name"] for mount in found["volumeMounts"]}
    assert args.host_root in mounts and args.config.rpartition("/")[0] in mounts
    assert {one["name"] for one in found["env"]} == {"NODE_NAME", "POD_NAMESPACE", "POD_UID"}
    probe = parser().parse_args(found["readinessProbe"]["exec"]["command"][1:])
    # A version that had to be put back is no node that is ready: the rollout stops there.
    assert (probe.action, probe.host_root, probe.bundle, probe.quiet) == ("status", "/host", "auto", True)


@pytest.mark.parametrize("uninstall", [{}, {"drain": True}, {"force": True}])
def test_the_hook_understands_its_arguments(uninstall: dict[str, bool]) -> None:
    found = container(of(render(installer={"uninstall": uninstall}), "Job"))
    args = parser().parse_args([*found["command"][1:], *found["args"]])
    assert (args.action, args.drain, args.force) == ("retire", "drain" in uninstall, "force" in uninstall)


@pytest.mark.parametrize("case", ["webhook.yaml", "everything.yaml", "without-rbac.yaml"])
def test_the_webhook_understands_its_arguments(case: str) -> None:
    rendered = render(case)
    found = container(of(rendered, "Deployment"))
    assert found["command"] == [f"{layout.CURRENT}/bin/forgeone-admission"]
    given = options.parse(found["args"], {})
    assert given.namespace == NAMESPACE and given.port == found["ports"][0]["containerPort"]
    assert given.service == of(rendered, "Service")["metadata"]["name"]
    [validating] = kinds(rendered, "ValidatingWebhookConfiguration")
    assert given.validating == (validating["metadata"]["name"],)
    assert given.mutating == tuple(one["metadata"]["name"] for one in kinds(rendered, "MutatingWebhookConfiguration"))
    assert given.fill is bool(given.mutating)
    for role in kinds(rendered, "Role", "ClusterRole"):
        for rule in role["rules"]:
            if "secrets" in rule["resources"] and "resourceNames" in rule:
                assert rule["resourceNames"] == [given.secret]


def test_the_webhook_knows_what_nodes_do_with_pods_without_a_class() -> None:
    def engine(**more: object) -> str:
        args = container(of(render(admission={"mode": "webhook"}, **more), "Deployment"))["args"]  # type: ignore[arg-type]
        return options.parse(args, {}).default_engine

    assert engine() == ""
    assert engine(installer={"mode": "replace", "uninstall": {"onDelete": False}}) == "native"
    assert engine(config={"upstream": {"default_runtime": "forgeone"}}) == "native"


def test_the_webhook_knows_handlers_of_other_names_and_default_policies() -> None:
    given = options.parse(container(of(render("everything.yaml"), "Deployment"))["args"], {})
    assert given.handlers == {"wasmtime": "wasm"}
    given = options.parse(container(of(render("webhook.yaml"), "Deployment"))["args"], {})
    assert (given.default_policy, given.node_policies, given.issuers) == ("house", ("house",), "contract-issuers")
    off = options.parse(
        container(of(render(admission={"mode": "webhook"}, policies={"sync": False}), "Deployment"))["args"], {}
    )
    assert not off.policies


# -- forgeoned's configuration


def configuration(case: str = "", **more: object) -> str:
    return str(of(render(case, **more), "ConfigMap", "-installer")["data"]["config.toml"])  # type: ignore[arg-type]


@pytest.mark.parametrize("case", [one for one in CASES if one != "classes-only.yaml"])
def test_forgeoned_can_read_the_configuration(case: str) -> None:
    config = read(configuration(case), CHART)
    given = values(case)
    flat = {
        f"{name}.{key}" if isinstance(value, dict) else name: one
        for name, value in given.get("config", {}).items()
        for key, one in (value.items() if isinstance(value, dict) else [("", value)])
    }
    found = flat_values(config)
    assert {path: found[path] for path in flat} == {
        path: tuple(value) if isinstance(value, list) else value for path, value in flat.items()
    }
    assert config.cluster.kubeconfig == given.get("policies", {}).get("kubeconfig", "/etc/kubernetes/kubelet.conf")
    assert config.cluster.required is given.get("policies", {}).get("required", False)
    assert config.metrics.address == ("[::]:9580" if case == "everything.yaml" else "")


def test_texts_come_through_as_they_are() -> None:
    odd = ['"', "\\", "a b", "#", "ü€😀", "<&>", "'", "${x}", "{{ x }}", "[section]", "a\tb"]
    config = read(configuration(config={"pinned_images": odd}), CHART)
    assert config.pinned_images == tuple(odd)


def test_numbers_come_through_as_they_are() -> None:
    given = {"audit": {"keep": 2**46}, "registry": {"progress_timeout": 0.25}, "cni": {"timeout": 60}}
    config = read(configuration(config=given), CHART)
    assert (config.audit.keep, config.registry.progress_timeout, config.cni.timeout) == (2**46, 0.25, 60.0)


def test_what_is_off_is_not_configured() -> None:
    config = read(configuration(policies={"sync": False}), CHART)
    assert (config.metrics.address, config.cluster.kubeconfig) == ("", "")
    config = read(configuration(metrics={"enabled": True}), CHART)
    assert config.metrics.address == "0.0.0.0:9580"


# -- admission


def of_contracts(rendered: list[Object], kind: str) -> list[Object]:
    own = ("app.kubernetes.io/component", "installer")
    return [one for one in kinds(rendered, kind) if own not in one["metadata"]["labels"].items()]


@pytest.mark.parametrize("case", ["default.yaml", "everything.yaml"])
def test_admission_policies_are_those_that_the_code_makes(case: str) -> None:
    rendered, given = render(case), values(case).get("admission", {})
    wanted = given.get("policy", {"failurePolicy": "Fail", "validationActions": ["Deny"]})
    made = {one["metadata"]["name"]: one["spec"] for one in of_contracts(rendered, "ValidatingAdmissionPolicy")}
    assert made == {
        one["metadata"]["name"]: {**one["spec"], "failurePolicy": wanted["failurePolicy"]} for one in policy.policies()
    }
    bindings = of_contracts(rendered, "ValidatingAdmissionPolicyBinding")
    assert len(bindings) == len(policy.bindings())
    for one in bindings:
        assert one["spec"]["policyName"] in made
        assert one["spec"]["validationActions"] == wanted["validationActions"]
        assert one["spec"]["matchResources"]["namespaceSelector"]


@pytest.mark.parametrize("mode", ["policy", "webhook", "both", "none"])
def test_each_mode_has_what_it_is_named_for(mode: str) -> None:
    rendered = render(admission={"mode": mode})
    assert bool(of_contracts(rendered, "ValidatingAdmissionPolicy")) is (mode in ("policy", "both"))
    webhook = bool(kinds(rendered, "ValidatingWebhookConfiguration"))
    assert webhook is bool(kinds(rendered, "Deployment")) is (mode in ("webhook", "both"))


def node(labels: dict[str, str] | None = None, *taints: dict[str, str]) -> Object:
    return {"metadata": {"labels": labels} if labels else {}, "spec": {"taints": [*taints]} if taints else {}}


NAMED = {"authentication.kubernetes.io/node-name": ["a"]}
OURS = {"key": "forgeone.dev/installing", "value": "true", "effect": "NoSchedule"}
POOL = {"key": "pool", "effect": "NoExecute"}


@pytest.mark.parametrize(
    ("extra", "before", "after", "refused"),
    [
        (NAMED, node(), node(), ""),
        ({**NAMED, "authentication.kubernetes.io/node-name": ["b"]}, node(), node(), "no other"),
        ({"authentication.kubernetes.io/pod-name": ["a"]}, node(), node(), "no other"),
        (None, node(), node(), "no other"),
        (NAMED, node({"x": "1"}), node({"x": "1", "forgeone.dev/ready": "true"}), ""),
        (NAMED, node({"x": "1", "forgeone.dev/ready": "true"}), node({"x": "1"}), ""),
        (NAMED, node(), node({"node-restriction.kubernetes.io/secret": "yes"}), "labels"),
        (NAMED, node({"x": "1"}), node({"x": "2"}), "labels"),
        (NAMED, node({"x": "1"}), node(), "labels"),
        (NAMED, node({}, {**POOL, "timeAdded": "1"}), node({}, {**POOL, "timeAdded": "2"}, OURS), ""),
        (NAMED, node({}, OURS, POOL), node({}, POOL), ""),
        (NAMED, node({}, POOL), node(), "taints"),
        (NAMED, node({}, POOL), node({}, {**POOL, "value": "x"}), "taints"),
    ],
)
def test_an_agent_changes_its_own_node_alone(extra: Object | None, before: Object, after: Object, refused: str) -> None:
    rendered = render()
    spec = of(rendered, "ValidatingAdmissionPolicy", "-installer")["spec"]
    account = of(rendered, "DaemonSet")["spec"]["template"]["spec"]["serviceAccountName"]
    user = {"username": f"system:serviceaccount:{NAMESPACE}:{account}"} | ({"extra": extra} if extra else {})
    known: dict[str, Any] = {"request": {"name": "a", "userInfo": user}, "oldObject": before, "object": after}
    known["variables"] = {}
    env = cel.NewEnv(variables=dict.fromkeys(known, cel.Type.DYN))

    def value(expression: str, **change: object) -> Any:
        found = env.compile(expression).eval(env.Activation(known | change))
        assert found.type() != cel.Type.ERROR, found.value()
        return found.plain_value()

    [asked] = spec["matchConditions"]
    assert value(asked["expression"]) is True
    assert value(asked["expression"], request={"userInfo": {"username": "system:node:a"}}) is False
    for one in spec["variables"]:
        known["variables"][one["name"]] = value(one["expression"])
    told = [one["message"] for one in spec["validations"] if value(one["expression"]) is not True]
    assert len(told) == bool(refused) and all(refused in one for one in told)


@pytest.mark.parametrize("case", ["default.yaml", "replace.yaml"])
def test_an_agent_may_take_the_leases_that_it_takes_and_no_others(case: str) -> None:
    rendered = render(case)
    args = parser().parse_args(["node", *container(of(rendered, "DaemonSet"))["command"][2:]])
    [role] = [one for one in kinds(rendered, "Role") if one["metadata"]["namespace"] == NAMESPACE]
    given = {verb: rule.get("resourceNames") for rule in role["rules"] for verb in rule["verbs"]}
    slots = values(case).get("installer", {}).get("maxUnavailable", 1)
    wanted = [*rollout.names(args.lease, slots)]
    assert given == {"get": wanted, "update": wanted, "list": None, "watch": None, "create": None}


def test_the_webhook_is_never_asked_about_itself_or_the_system() -> None:
    for one in kinds(render("webhook.yaml"), "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"):
        for webhook in one["webhooks"]:
            cluster = all(rule["scope"] == "Cluster" for rule in webhook["rules"])
            excluded = {
                name
                for part in webhook.get("namespaceSelector", {}).get("matchExpressions", [])
                if (part["key"], part["operator"]) == ("kubernetes.io/metadata.name", "NotIn")
                for name in part["values"]
            }
            assert cluster or excluded >= {"kube-system", NAMESPACE}
            assert webhook["sideEffects"] == "None" and "caBundle" not in webhook["clientConfig"]


def test_a_policy_can_be_changed_while_the_webhook_is_down() -> None:
    found = {one["name"]: one for one in of(render("webhook.yaml"), "ValidatingWebhookConfiguration")["webhooks"]}
    assert found["contracts.forgeone.dev"]["failurePolicy"] == "Fail"
    assert found["policies.forgeone.dev"]["failurePolicy"] == "Ignore"
    assert found["policies.forgeone.dev"]["rules"][0]["resources"] == ["ztapolicies"]


def test_its_own_namespace_is_left_out_whatever_is_selected() -> None:
    selector = of(render("everything.yaml"), "ValidatingWebhookConfiguration")["webhooks"][0]["namespaceSelector"]
    assert selector["matchLabels"] == {"contracts": "checked"}
    assert [one["values"] for one in selector["matchExpressions"]] == [[NAMESPACE]]


def test_the_webhook_is_asked_about_all_that_it_can_look_at() -> None:
    rules = [
        rule
        for one in of(render("webhook.yaml"), "ValidatingWebhookConfiguration")["webhooks"]
        for rule in one["rules"]
    ]
    asked = {(rule["apiGroups"][0], resource) for rule in rules for resource in rule["resources"]}
    of_policies = {
        (group, resource)
        for target in policy.TARGETS
        for group, resources in target.resources
        for resource in resources
    }
    assert asked == of_policies | {(objects.GROUP, objects.PLURAL)}


# -- policies


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_samples_are_policies_that_nodes_and_the_api_server_take(path: Any) -> None:
    given = yaml.safe_load(path.read_text())
    assert objects.policy_of(given).name == given["metadata"]["name"] == path.stem
    jsonschema.Draft7Validator(crd.schema()).validate(given)


# -- Prometheus


@functools.cache
def told() -> set[str]:
    """The names of all that forgeoned and the webhook tell."""
    runtime = FakeRuntime()
    chronicle = Chronicle(None, lambda _: None)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as name:
        policies = ClusterPolicies(Path(name), Path(name), ClusterConfig(kubeconfig="/x"))
        policies.close()
    links = Links(UpstreamConfig())
    links.now = cast(Link, SimpleNamespace(answers_now=True))
    rooms = [chronicle.figures, policies.figures, links.figures]
    made = Exposition(MetricsConfig(address="127.0.0.1:0"), runtime, rooms)
    made.calls("Version", "OK", 0.1)
    texts = [made.text().decode(), admission_metrics.Metrics().text().decode()]
    families = [family for text in texts for family in parsed(text)]
    suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}
    # What is told of streaming is its own server's, which is not started here.
    found = {"up", "forgeone_streaming_sessions"}
    for family in families:
        found |= {family.name + suffix for suffix in suffixes.get(family.type, ("",))}
    return found


def names(expression: str) -> set[str]:
    """The metrics that an expression asks for."""
    text = expression.replace("$__rate_interval", "5m").replace("$node", ".*")
    promql_parser.parse(text)
    bare = re.sub(r'"[^"]*"|\{[^}]*\}', "", text)
    return {
        name
        for name in re.findall(r"[a-z_:]+", bare)
        if name.startswith(("forgeone_", "process_", "container_")) or name == "up"
    }


def alerts() -> Iterator[Object]:
    for group in of(render("everything.yaml"), "PrometheusRule")["spec"]["groups"]:
        yield from group["rules"]


def test_alerts_ask_for_what_there_is() -> None:
    known = told()
    rules = list(alerts())
    assert len({rule["alert"] for rule in rules}) == len(rules) > 8
    for rule in rules:
        asked = names(rule["expr"])
        assert asked and asked <= known, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert {"summary", "description"} <= {*rule["annotations"]}


def test_labels_are_asked_for_by_values_that_they_have() -> None:
    text = json.dumps([rule["expr"] for rule in alerts()]) + (CHART / "files/dashboard.json").read_text()
    text = text.replace('\\"', '"')
    states = set(re.findall(r'[{,]state="([^"]+)"', text))
    methods = set(re.findall(r'method="([^"]+)"', text))
    assert states == {"running"} <= {str(one) for one in State}
    assert methods and methods <= {one.name for one in pb.DESCRIPTOR.services_by_name["RuntimeService"].methods}
    codes = {code for found in re.findall(r'code!?=~"([^"]+)"', text) for code in found.split("|")}
    assert codes <= {code.name for code in grpc.StatusCode}


def test_alerts_name_conditions_that_there_are() -> None:
    text = " ".join(rule["expr"] for rule in alerts())
    conditions = {one for found in re.findall(r'condition=~?"([^"]+)"', text) for one in found.split("|")}
    fine = Condition(ready=True)
    [told_of, _] = of_status(NodeStatus(fine, fine, (), cluster=fine))
    assert conditions == {labels[0] for labels, _ in told_of.values}


def test_the_jobs_that_alerts_name_are_those_of_the_monitors() -> None:
    rendered = render("everything.yaml")
    jobs = {
        one["replacement"]
        for found in kinds(rendered, "PodMonitor", "ServiceMonitor")
        for endpoint in found["spec"].get("podMetricsEndpoints", found["spec"].get("endpoints"))
        for one in endpoint["relabelings"]
        if one.get("targetLabel") == "job"
    }
    assert {job for rule in alerts() for job in re.findall(r'job="([^"]+)"', rule["expr"])} == jobs


def test_without_the_webhook_there_are_no_alerts_about_it() -> None:
    groups = of(render(metrics={"rules": {"enabled": True}}), "PrometheusRule")["spec"]["groups"]
    assert "admission" not in json.dumps(groups)


def test_a_node_that_waits_for_its_turn_is_no_alert() -> None:
    [down] = [rule for rule in alerts() if rule["alert"] == "ForgeOneDown"]
    assert re.search(
        r"== 0 and max by \(node\) \(max_over_time\(up\{job=\"forgeoned\"\}\[[^]]+\]\)\) == 1$", down["expr"]
    )


def test_there_is_no_alert_about_a_job_that_nobody_scrapes() -> None:
    given = {"metrics": {"rules": {"enabled": True}}, "admission": {"mode": "webhook"}}
    assert "absent(" not in json.dumps(of(render(**given), "PrometheusRule"))  # type: ignore[arg-type]
    assert any("absent(" in rule["expr"] for rule in alerts())


def test_a_monitor_of_nothing_is_refused() -> None:
    monitor = {"monitor": {"enabled": True}}
    assert "there is nothing to scrape" in refusal(metrics=monitor)
    assert kinds(render(metrics=monitor, admission={"mode": "webhook"}), "ServiceMonitor", "PodMonitor")
    assert refusal(metrics=monitor | {"enabled": True}) == ""
    assert "there is nothing to scrape" in refusal(metrics=monitor | {"enabled": True}, installer={"enabled": False})


@pytest.mark.parametrize(("address", "wanted"), [("10.1.2.3", "10.1.2.3:9580"), ("fd00::7", "[fd00::7]:9580")])
def test_a_monitor_looks_on_the_node(address: str, wanted: str) -> None:
    [endpoint, containers] = of(render("everything.yaml"), "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert (endpoint["path"], containers["path"], containers["honorLabels"]) == (
        "/metrics",
        "/metrics/containers",
        True,
    )
    found = [
        re.sub(f"^(?:{one['regex']})$", one["replacement"].replace("$1", r"\1"), address)
        for one in endpoint["relabelings"]
        if one.get("targetLabel") == "__address__" and re.fullmatch(one["regex"], address)
    ]
    assert found == [wanted]
    assert endpoint["scheme"] == "https"


def test_the_dashboard_asks_for_what_there_is_and_its_panels_have_room() -> None:
    rendered = of(render("everything.yaml"), "ConfigMap", "-dashboard")["data"]["forgeone.json"]
    board, known = json.loads(rendered), told()
    assert board == json.loads((CHART / "files/dashboard.json").read_text())
    assert re.fullmatch(r"[a-z0-9-]{1,40}", board["uid"]) and board["title"]
    panels = board["panels"]
    assert len({one["id"] for one in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells and max(x for x, _ in own) < 24
        cells |= own
        for target in panel.get("targets", []):
            asked = names(target["expr"])
            assert asked and asked <= known, panel["title"]
            assert target["datasource"]["uid"] == "${datasource}"
    assert {one["name"] for one in board["templating"]["list"]} == {"datasource", "node"}


# -- values


def test_what_is_generated_is_what_the_code_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err
    assert {*generated.files(CHART)} == {"files/crd.yaml", "files/admission.yaml", "values.schema.json", "README.md"}


def test_every_value_is_explained() -> None:
    assert [one.path for one in readme.described((CHART / "values.yaml").read_text()) if not one.text] == []


def test_the_schema_knows_every_value_and_forbids_all_others() -> None:
    def walk(given: Any, of_schema: Any, path: str) -> None:
        if "properties" not in of_schema:
            return
        assert of_schema["additionalProperties"] is False, path
        assert set(given) <= set(of_schema["properties"]), path
        for key, value in given.items():
            if isinstance(value, dict):
                walk(value, of_schema["properties"][key], f"{path}.{key}")

    walk(yaml.safe_load((CHART / "values.yaml").read_text()), schema.values(), "")


def test_every_key_of_the_configuration_can_be_set_here_or_there() -> None:
    found = schema.config()["properties"]
    here = {
        f"{name}.{key}" if "properties" in one else name
        for name, one in found.items()
        for key in one.get("properties", [""])
    }
    assert here | set(schema.SET_ELSEWHERE) == {key.path for key in keys()}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"instaler": {}}, "instaler"),
        ({"installer": {"mode": "beneath"}}, "installer.mode"),
        ({"installer": {"maxUnavailable": 0}}, "installer.maxUnavailable"),
        ({"installer": {"maxUnavailable": "10%"}}, "installer.maxUnavailable"),
        ({"installer": {"upstream": "containerd.sock"}}, "installer.upstream"),
        ({"installer": {"upstream": "/run/x.sock --force"}}, "installer.upstream"),
        ({"installer": {"kubelet": "k3s"}}, "installer.kubelet"),
        ({"installer": {"uninstall": {"drain": True, "force": True}}}, "installer.uninstall"),
        ({"installer": {"tolerations": [{"effect": "Never"}]}}, "installer.tolerations.0.effect"),
        ({"installer": {"resources": {"requests": {"cpu": "much"}}}}, "installer.resources.requests.cpu"),
        ({"admission": {"mode": "maybe"}}, "admission.mode"),
        ({"admission": {"policy": {"validationActions": ["Deny", "Warn"]}}}, "admission.policy.validationActions"),
        ({"admission": {"policy": {"validationActions": []}}}, "admission.policy.validationActions"),
        ({"admission": {"webhook": {"port": 443}}}, "admission.webhook.port"),
        ({"admission": {"webhook": {"timeoutSeconds": 31}}}, "admission.webhook.timeoutSeconds"),
        ({"admission": {"webhook": {"replicas": 0}}}, "admission.webhook.replicas"),
        ({"config": {"registy": {}}}, "config"),
        ({"config": {"registry": {"max_concurrent_downloads": "8"}}}, "config.registry.max_concurrent_downloads"),
        ({"config": {"socket": "/run/other.sock"}}, "config"),
        ({"config": {"metrics": {"address": "0.0.0.0:1"}}}, "config.metrics"),
        ({"config": {"upstream": {"socket": "/run/x.sock"}}}, "config.upstream"),
        ({"metrics": {"address": "node"}}, "metrics.address"),
        ({"metrics": {"port": 0}}, "metrics.port"),
        ({"image": {"digest": "sha256:abc"}}, "image.digest"),
        ({"image": {"repository": "registry/forgeone:latest"}}, "image.repository"),
        ({"commonLabels": {"a b": "x"}}, "commonLabels"),
        ({"runtimeClasses": {"native": {"overhead": {"memory": "lots"}}}}, "runtimeClasses.native.overhead.memory"),
        ({"policies": {"subjects": []}}, "policies.subjects"),
        ({"policies": {"kubeconfig": "kubelet.conf"}}, "policies.kubeconfig"),
        ({"tests": {"runtimeClasses": ["firecracker"]}}, "tests.runtimeClasses.0"),
    ],
)
def test_bad_values_are_refused_by_name(given: dict[str, object], named: str) -> None:
    why = refusal(**given)
    assert "values don't meet the specifications of the schema" in why
    assert named in why


def test_who_replaces_a_runtime_says_how_it_comes_back() -> None:
    assert "set installer.uninstall.drain (or force) to true" in refusal(installer={"mode": "replace"})
    for uninstall in ({"drain": True}, {"force": True}, {"onDelete": False}):
        assert refusal(installer={"mode": "replace", "uninstall": uninstall}) == ""


def test_names_can_be_chosen() -> None:
    found = {one["metadata"]["name"] for one in kinds(render("everything.yaml"), "DaemonSet", "Deployment", "Service")}
    assert found == {"fo-installer", "fo-admission"}
    assert of(render(nameOverride="x"), "DaemonSet")["metadata"]["name"] == "pool-x-installer"


def test_a_release_whose_name_has_dots_has_a_service() -> None:
    shown = ("--show-only", "templates/admission-webhook.yaml", "--set", "admission.mode=webhook,image.repository=a/b")
    made = helm("template", "a.b", str(CHART), *shown).stdout
    assert of(list(yaml.safe_load_all(made)), "Service")["metadata"]["name"] == "a-b-forgeone-admission"
