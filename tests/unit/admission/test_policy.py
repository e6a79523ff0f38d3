"""The admission policies for API servers: what they refuse no node would take, and what nodes take they let through."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from cel_expr_python import cel
from hypothesis import given, settings
from hypothesis import strategies as st

from cri.admission import policy
from forgeone_shim.contract import parse
from forgeone_shim.contract.parse import OF_PODS, PREFIX, Pod
from forgeone_shim.errors import InvalidInput
from tests.unit.contract.test_parse import SINGLES

FILE = Path(__file__).resolve().parents[3] / "hack/kubernetes/contracts.yaml"
POLICIES = {one["metadata"]["name"]: one for one in policy.policies()}
PODS, WORKLOADS, CRONJOBS = POLICIES.values()
ATTACH = f"{PREFIX}attach"
NAMES = ("object", "oldObject", "request", "variables")


@cache
def compiled(expression: str) -> tuple[Any, Any]:
    env = cel.NewEnv(
        config=cel.NewEnvConfigFromYaml("extensions:\n  - name: strings\n"),
        variables=dict.fromkeys(NAMES, cel.Type.DYN),
    )
    return env, env.compile(expression)


def evaluated(expression: str, **known: Any) -> Any:
    env, program = compiled(expression)
    found = program.eval(env.Activation({key: {} for key in NAMES} | known))
    assert found.type() != cel.Type.ERROR, f"{expression}: {found.value()}"
    return found.plain_value()


def answers(of: Mapping[str, Any], object_: Mapping[str, Any]) -> list[str]:
    """What is told of what does not hold."""
    known: dict[str, Any] = {}
    for one in of["spec"]["variables"]:
        known[one["name"]] = evaluated(one["expression"], object=object_, variables=known)
    told = []
    for one in of["spec"]["validations"]:
        held = evaluated(one["expression"], object=object_, variables=known)
        assert isinstance(held, bool)
        if not held:
            message = evaluated(one["messageExpression"], object=object_, variables=known)
            assert message.startswith(one["message"])
            told.append(message)
    return told


def pod(annotations: Mapping[str, str] | None, **spec: Any) -> dict[str, Any]:
    return {"metadata": {} if annotations is None else {"annotations": dict(annotations)}, "spec": spec}


def of_pod(annotations: Mapping[str, str] | None, **spec: Any) -> list[str]:
    return answers(PODS, pod(annotations, **spec))


def refused_by_nodes(annotations: Mapping[str, str]) -> bool:
    try:
        parse.offered(annotations, pod=Pod("shop", "web"))
    except InvalidInput:
        return True
    return False


def test_the_file_is_what_the_model_makes() -> None:
    assert FILE.read_text() == policy.text()
    documents = list(yaml.safe_load_all(FILE.read_text()))
    assert documents == [*policy.policies(), *policy.bindings()]
    assert [one["spec"]["policyName"] for one in policy.bindings()] == list(POLICIES)


def test_every_field_has_a_form() -> None:
    assert {*policy.forms(), *policy.members()} == {*parse.FIELDS}
    assert not {*policy.forms()} & {*policy.members()}


@pytest.mark.parametrize("name", SINGLES)
def test_what_a_node_takes_it_lets_through(name: str) -> None:
    fits = {"runtimeClassName": f"forgeone-{SINGLES[name][0]}"} if name == "exec_mode" else {}
    assert of_pod({f"{PREFIX}{name}": SINGLES[name][0], "other/key": ""}, **fits) == []
    assert (of_pod({f"{PREFIX}{name}.web": SINGLES[name][0]}, **fits) == []) is (name not in OF_PODS)


@pytest.mark.parametrize(("name", "value"), [(name, bad) for name, (_, _, values) in SINGLES.items() for bad in values])
def test_what_it_refuses_no_node_takes(name: str, value: str) -> None:
    given = {f"{PREFIX}{name}": value}
    assert refused_by_nodes(given)
    # What only arithmetic can tell (a host bit in a range, the largest number) is left to nodes.
    if name not in {"egress", "ingress", "bus_publish", "bus_subscribe", "images", "host_paths", "minimum_entropy"}:
        assert of_pod(given) or value in {"0", "0m", "0.0001", "99999999", "key:", "CAP_CAP_CHOWN", "9" * 17}
    if told := of_pod(given):
        assert f"{PREFIX}{name}" in told[0]


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from([name for name in parse.FIELDS if name != "exec_mode"]),
    value=st.one_of(
        st.text(alphabet='abNoeE019:,/*@.-_ []"\ntrufals%MiKG', max_size=24),
        st.lists(
            st.sampled_from(["chown", "CAP_KILL", "secret", "/a", "ghcr.io/**", "any tcp/1", "a.>"]), max_size=3
        ).map(",".join),
    ),
)
def test_nothing_that_a_node_takes_is_refused(name: str, value: str) -> None:
    annotations = {f"{PREFIX}{name}": value}
    if not refused_by_nodes(annotations):
        assert of_pod(annotations) == []


@pytest.mark.parametrize(
    "key",
    [
        "exce",
        "exec-mode",
        "Exec",
        "",
        "contracts",
        "exec_",
        "contract_",
        "x.exec",
        "egress.web",
        "node.web",
        "exec.",
        "a.b.c",
        "exec.-",
    ],
)
def test_a_key_that_is_none_is_refused_by_its_name(key: str) -> None:
    given = {f"{PREFIX}{key}": "true", f"{PREFIX}attach": "true"}
    (told, *_) = of_pod(given)
    assert told.endswith(f": {PREFIX}{key}")
    assert refused_by_nodes(given)


def test_pods_without_a_contract_pass() -> None:
    assert of_pod(None) == of_pod({}) == of_pod({"zta.forgeone.devel/x": ""}) == []
    assert of_pod({f"{PREFIX}contract": "rbac: {exec: false}", f"{PREFIX}contract.web": "{}"}) == []


def test_what_is_too_long_is_refused() -> None:
    (told,) = of_pod({f"{PREFIX}contract": "x" * 65537})
    assert "65536" in told
    assert any("64 members" in one for one in of_pod({f"{PREFIX}host_paths": ",".join(["/a"] * 65)}))
    assert of_pod({f"{PREFIX}host_paths": ",".join(["/a"] * 64)}) == []


@pytest.mark.parametrize(
    ("mode", "given", "refused"),
    [
        ("native", "forgeone-native", False),
        ("native", "forgeone-wasm", False),
        ("native", "forgeone-microvm", True),
        ("wasm", "forgeone-native", True),
        ("microvm", "forgeone-microvm", False),
        ("microvm", "forgeone-auto", False),
        ("microvm", "house", False),
        ("native", "", False),
        ("wasm", "", True),
        ("microvm", None, True),
    ],
)
def test_the_engine_has_to_fit_the_runtime_class(mode: str, given: str | None, refused: bool) -> None:
    spec = {} if given is None else {"runtimeClassName": given}
    for key in ("exec_mode", "exec_mode.web"):
        assert bool(of_pod({f"{PREFIX}{key}": mode}, **spec)) is refused
        # A template's pods may be given one when they are made.
        of = {"spec": {"template": pod({f"{PREFIX}{key}": mode}, **spec)}}
        assert bool(answers(WORKLOADS, of)) is (refused and bool(given))


def test_templates_are_looked_at_where_they_are() -> None:
    bad = pod({f"{PREFIX}exce": "true"})
    assert answers(WORKLOADS, {"spec": {"template": bad}})
    assert answers(CRONJOBS, {"spec": {"jobTemplate": {"spec": {"template": bad}}}})
    assert (
        answers(WORKLOADS, {"spec": {"template": {"spec": {}}}}) == answers(WORKLOADS, {"spec": {"template": {}}}) == []
    )
    kinds = {resource for target in policy.TARGETS for _, resources in target.resources for resource in resources}
    workloads = {"replicationcontrollers", "daemonsets", "deployments", "replicasets", "statefulsets", "jobs"}
    assert kinds == workloads | {"pods", "cronjobs"}


def asked(of: Mapping[str, Any], operation: str, user: str, after: Any, before: Any) -> bool:
    return all(
        evaluated(
            one["expression"],
            request={"operation": operation, "userInfo": {"username": user}},
            object=after,
            oldObject=before,
        )
        for one in of["spec"]["matchConditions"]
    )


@pytest.mark.parametrize(
    ("operation", "before", "after", "wanted"),
    [
        ("CREATE", {}, pod({"a": "b"}), True),
        ("UPDATE", pod({ATTACH: "b"}), pod({ATTACH: "b"}), False),
        ("UPDATE", pod({ATTACH: "b"}), pod({ATTACH: "b", "cni.example/address": "10.0.0.1"}), False),
        ("UPDATE", pod({ATTACH: "b"}), pod({ATTACH: "c"}), True),
        ("UPDATE", pod({ATTACH: "b"}), pod({ATTACH: "b", f"{PREFIX}exec": "b"}), True),
        ("UPDATE", pod({"a": "b"}), pod({ATTACH: "b"}), True),
        ("UPDATE", pod(None), pod({ATTACH: "b"}), True),
        ("UPDATE", pod({ATTACH: "b"}), pod(None), False),
        ("UPDATE", pod(None), pod(None), False),
    ],
)
def test_pods_from_before_can_be_changed_and_go(operation: str, before: Any, after: Any, wanted: bool) -> None:
    assert asked(PODS, operation, "jane", after, before) is wanted


def test_workloads_from_before_can_be_scaled() -> None:
    before = {"spec": {"replicas": 3, "template": pod({"a": "b"})}}
    assert not asked(WORKLOADS, "UPDATE", "jane", before | {"spec": before["spec"] | {"replicas": 0}}, before)
    assert asked(WORKLOADS, "UPDATE", "jane", {"spec": {"replicas": 3, "template": pod({"a": "c"})}}, before)


def test_a_kubelets_picture_of_a_static_pod_is_not_hidden() -> None:
    mirror = pod({policy.MIRROR: "x", f"{PREFIX}exce": "true"})
    assert not asked(PODS, "CREATE", "system:node:one", mirror, {})
    assert asked(PODS, "CREATE", "jane", mirror, {})
