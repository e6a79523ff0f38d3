"""Questions of a real API server (``reviews/``, recorded), and what is made of them."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cri.admission import known, review
from cri.admission.known import Known
from cri.admission.options import Options
from cri.admission.policy import MIRROR
from forgeone_shim.attestation import dsse
from forgeone_shim.attestation.keys import SigningKey
from forgeone_shim.cluster import objects
from forgeone_shim.contract import manifest
from forgeone_shim.contract.facts import Point
from forgeone_shim.contract.model import PAYLOAD_TYPE
from forgeone_shim.contract.objects import Node
from forgeone_shim.contract.parse import PREFIX
from forgeone_shim.contract.policies import Policies
from forgeone_shim.errors import InvalidInput

REVIEWS = Path(__file__).parent / "reviews"
CLASSES = {f"forgeone-{engine}": f"forgeone-{engine}" for engine in ("native", "wasm", "microvm", "auto")}
KEY = SigningKey.generate()


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((REVIEWS / f"{name}.json").read_text())
    return found


def policies(*given: Mapping[str, Any]) -> list[Any]:
    made = [
        {
            "apiVersion": objects.API_VERSION,
            "kind": objects.KIND,
            "metadata": {"name": one["name"]},
            "spec": {key: value for key, value in one.items() if key != "name"},
        }
        for one in given
    ]
    return [objects.policy_of(one) for one in made]


def here(*given: Mapping[str, Any], issuers: Any = None, **of: Any) -> Known:
    return known.of(Options(handlers=of.pop("handlers", {}), **of), policies(*given), issuers, CLASSES)


def question(
    annotations: Mapping[str, str] | None = None,
    *,
    kind: str = "Pod",
    before: Mapping[str, Any] | None = None,
    user: str = "jane",
    operation: str = "",
    metadata: Mapping[str, Any] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """About a pod in the namespace shop, or about a Deployment with its template."""
    template = {
        "metadata": {"name": "web", **(metadata or {}), "annotations": dict(annotations or {})},
        "spec": {"containers": [{"name": "web", "image": "ghcr.io/acme/web:1"}]} | spec,
    }
    object_ = template if kind == "Pod" else {"metadata": {"name": "web"}, "spec": {"template": template}}
    request = {
        "uid": "1",
        "kind": {"group": "" if kind == "Pod" else "apps", "version": "v1", "kind": kind},
        "operation": operation or ("UPDATE" if before else "CREATE"),
        "namespace": "shop",
        "userInfo": {"username": user},
        "object": object_,
        "oldObject": before,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def asked(about: Mapping[str, Any], of: Known | None = None, *, mutate: bool = False) -> dict[str, Any]:
    """The response, of the form that the API asks for."""
    data = json.dumps(about).encode()
    answer = (review.mutate if mutate else review.validate)(data, of or here())
    whole = json.loads(answer.body)
    assert {**whole, "response": 0} == {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": 0}
    response: dict[str, Any] = whole["response"]
    assert response["uid"] == about["request"]["uid"] == answer.uid
    assert response["allowed"] is answer.allowed
    assert bool(answer.cause) is not answer.allowed
    return response


def why(about: Mapping[str, Any], of: Known | None = None) -> str:
    """Why it is refused; empty: it is not."""
    response = asked(about, of)
    assert response["allowed"] is ("status" not in response)
    if response["allowed"]:
        return ""
    assert (response["status"]["code"], response["status"]["reason"]) == (403, "Forbidden")
    return str(response["status"]["message"])


def patched(about: Mapping[str, Any], of: Known) -> Any:
    response = asked(about, of, mutate=True)
    assert response["allowed"]
    if "patch" not in response:
        return None
    assert response["patchType"] == "JSONPatch"
    return json.loads(base64.b64decode(response["patch"]))


FILLING = {"op": "add", "path": "/spec/runtimeClassName", "value": "forgeone-microvm"}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pod-filled", ""),
        ("pod-of-replicaset", ""),
        ("deployment", ""),
        ("replicaset", ""),
        ("replicaset-scaled", ""),
        ("replicationcontroller-without-contract", ""),
        ("pod-annotated-otherwise", ""),
        ("policy", ""),
        ("statefulset-unknown-field", "annotation zta.forgeone.dev/contract: rbac.exce: is not a field known here"),
        ("daemonset-host-network", "profile.host_network: it uses the host's network"),
        ("job-unknown-policy", "runtime_policy_id: there is no policy 'gold' here for namespace 'admission-pods'"),
        (
            "cronjob-egress-of-container",
            "annotation zta.forgeone.dev/egress.web: is of pods, and cannot be of one container",
        ),
        ("pod-annotated-badly", "annotation zta.forgeone.dev/attach: 'nope' is neither true nor false"),
        ("policy-with-a-typo", "ztapolicies/admission-bad: spec.rules[0].expression: is no rule:"),
    ],
)
def test_recorded_questions_are_answered(name: str, told: str) -> None:
    found = why(recorded(name), here(fill=True))
    assert found.startswith(told)
    assert bool(found) is bool(told)


def test_recorded_pods_are_filled_once_and_by_their_contract() -> None:
    of = here(fill=True)
    assert patched(recorded("pod-to-be-filled"), of) == [FILLING]
    assert patched(recorded("pod-without-a-name"), of) == [FILLING]
    # Asked again after others had changed it.
    assert patched(recorded("pod-filled-again"), of) is None
    assert patched(recorded("pod-to-be-filled"), here()) is None


def test_a_recorded_policy_holds_for_a_recorded_pod() -> None:
    policy = objects.policy_of(recorded("policy")["request"]["object"])
    of = known.of(Options(handlers={}), [policy], None, CLASSES)
    assert why(recorded("pod-privileged"), of) == "admission-gold/profile.privileged: it is privileged"


@pytest.mark.parametrize(
    ("mode", "given", "default", "told"),
    [
        ("native", "forgeone-native", "native", ""),
        ("native", "forgeone-wasm", "native", ""),
        ("microvm", "forgeone-auto", "native", ""),
        ("wasm", "forgeone-native", "native", "the pod's engine is native, and wasm is demanded"),
        ("native", "forgeone-microvm", "native", "the pod's engine is microvm, and native is demanded"),
        ("native", None, "native", ""),
        ("microvm", None, "native", "the pod names no RuntimeClass, and 'forgeone-microvm' has that engine"),
        ("microvm", None, "", "spec.runtimeClassName: is missing: pods without are another runtime's"),
        ("wasm", "house", "native", ""),
    ],
)
def test_the_engine_has_to_fit_the_pods_handler(mode: str, given: str | None, default: str, told: str) -> None:
    spec = {} if given is None else {"runtimeClassName": given}
    of = here(default_engine=default, handlers={"house": "wasm"})
    for key in ("exec_mode", "exec_mode.web"):
        found = why(question({f"{PREFIX}{key}": mode}, **spec), of)
        assert told in found
        assert bool(found) is bool(told)


def test_a_runtime_class_is_known_by_its_handler() -> None:
    of = known.of(Options(handlers={}), classes={"strong": "forgeone-microvm", "plain": "runc"})
    assert why(question({f"{PREFIX}exec_mode": "wasm"}, runtimeClassName="strong"), of)
    assert not why(question({f"{PREFIX}exec_mode": "microvm"}, runtimeClassName="strong"), of)
    response = asked(question({f"{PREFIX}exec": "false"}, runtimeClassName="plain"), of)
    assert response["warnings"] == ["nothing is known here of RuntimeClass 'plain': another runtime keeps no contract"]
    assert of.runtime_class("microvm") == "strong"
    assert of.runtime_class("wasm") == ""


def test_pods_of_another_runtime_are_left_alone() -> None:
    floor = {"name": "floor", "floor": True, "contract": {"profile": {"privileged": False}}}
    privileged = {"containers": [{"name": "web", "image": "a", "securityContext": {"privileged": True}}]}
    assert why(question(**privileged), here(floor)) == "floor/profile.privileged: it is privileged"
    assert not why(question(**privileged), here(floor, default_engine=""))
    assert not why(question(runtimeClassName="kata", **privileged), here(floor))
    assert why(question({f"{PREFIX}exce": "true"}, runtimeClassName="kata"), here(floor))


def test_a_templates_pods_are_judged_as_they_will_be_filled() -> None:
    annotations = {f"{PREFIX}exec_mode": "microvm"}
    assert why(question(annotations, kind="Deployment"))
    assert not why(question(annotations, kind="Deployment"), here(fill=True))
    assert not why(question(annotations, kind="Deployment"), here(fill=True, default_engine=""))
    # A pod has been filled by now, or will not be.
    assert why(question(annotations), here(fill=True))


def test_what_a_policy_demands_is_filled_too_and_nothing_is_overridden() -> None:
    floor = {"name": "floor", "floor": True, "namespaces": ["shop"], "contract": {"exec_mode": "microvm"}}
    of = here(floor, fill=True)
    assert patched(question(), of) == [FILLING]
    assert patched(question(runtimeClassName="forgeone-native"), of) is None
    assert patched(question(kind="Deployment"), of) is None
    assert patched(question(operation="UPDATE"), of) is None
    assert patched(question({f"{PREFIX}exec_mode": "wasm"}), of) is None
    assert patched(question({MIRROR: "x"}), of) is None
    assert patched(question(), known.of(Options(handlers={}, fill=True), policies(floor))) is None


def test_policies_that_nodes_have_in_files_may_be_named() -> None:
    annotations = {f"{PREFIX}runtime_policy_id": "house"}
    assert why(question(annotations)).startswith("runtime_policy_id: there is no policy 'house' here")
    assert not why(question(annotations), here(node_policies=("house",)))
    assert not why(question(annotations), here({"name": "house"}))
    assert why(question(annotations), here({"name": "house", "namespaces": ["bank"]}))
    # A file goes before the cluster's policy of its name.
    of = here({"name": "house", "contract": {"profile": {"host_network": False}}}, node_policies=("house",))
    assert not why(question(annotations, hostNetwork=True), of)


def test_the_policy_that_is_not_there_is_told_to_whoever_may_ask_for_it() -> None:
    for key, known_ones, absent in (
        ("", (), "house"),
        (".web", (), "house"),
        ("", ({"name": "house", "namespaces": ["bank"]},), "house"),
        ("", ({"name": "house"},), ""),
    ):
        data = json.dumps(question({f"{PREFIX}runtime_policy_id{key}": "house"})).encode()
        assert review.validate(data, here(*known_ones)).absent == absent
    for said in (
        {f"{PREFIX}exce": "house"},
        {f"{PREFIX}runtime_policy_id.web": "a", f"{PREFIX}runtime_policy_id": "b"},
    ):
        answer = review.validate(json.dumps(question(said)).encode(), here({"name": "b"}))
        assert not answer.allowed
        assert answer.absent == ""


def test_without_the_clusters_policies_contracts_may_name_any() -> None:
    of = here(policies=False, fill=True)
    named = {f"{PREFIX}runtime_policy_id": "house"}
    assert not why(question(named), of)
    assert not why(question(named, kind="Deployment"), of)
    assert not why(question({f"{PREFIX}runtime_policy_id.web": "house"}), of)
    assert not why(question({f"{PREFIX}contract": '{"runtime_policy_id": "house"}'}), of)
    assert "demanded" in why(question(named | {f"{PREFIX}exec_mode": "wasm"}), of)
    assert patched(question(named | {f"{PREFIX}exec_mode": "microvm"}), of) == [FILLING]
    assert why(question({f"{PREFIX}runtime_policy_id": "No"}), of)


def test_the_default_policy_holds_pods_that_name_none() -> None:
    strict = {"name": "strict", "contract": {"profile": {"host_network": False}}}
    assert why(question(hostNetwork=True), here(strict, default_policy="strict")).startswith("strict/")
    assert not why(question(hostNetwork=True), here(strict))
    # One that is not there yet holds nothing up.
    assert not why(question(hostNetwork=True), here(default_policy="strict"))


def signed(document: Mapping[str, Any], key: SigningKey = KEY) -> str:
    envelope = dsse.Envelope(PAYLOAD_TYPE, json.dumps(document).encode())
    return dsse.encode(dsse.sign(envelope, key)).decode()


def test_signatures_count_where_issuers_are_known() -> None:
    floor = {"name": "floor", "floor": True, "requireSignedContract": True}
    good = {f"{PREFIX}contract": signed({"rbac": {"exec": False}})}
    plain = {f"{PREFIX}contract": '{"rbac": {"exec": false}}'}
    of = here(floor, issuers=(KEY.public,))
    assert not why(question(good), of)
    assert asked(question(good), of)["auditAnnotations"]["signers"] == KEY.public.id
    assert why(question(plain), of).startswith("floor/requireSignedContract")
    assert why(question({f"{PREFIX}contract": signed({}, SigningKey.generate())}), of)
    # What its issuer has not signed is told whoever else is not asked for.
    envelope = json.loads(good[f"{PREFIX}contract"])
    envelope["payload"] = base64.b64encode(b"{}").decode()
    assert "is not over what it holds" in why(question({f"{PREFIX}contract": json.dumps(envelope)}), of)
    # Without issuers it is the nodes' to say.
    assert not why(question(plain), here(floor))


def test_scopes_of_names_wait_for_the_name() -> None:
    document = {f"{PREFIX}contract": '{"scope": {"namespaces": ["shop"], "pods": ["db-*"]}}'}
    assert "scope.pods: 'web' is not among db-*" in why(question(document))
    assert not why(question(document, metadata={"name": "", "generateName": "db-"}))
    assert not why(question(document, kind="Deployment"))
    other = {f"{PREFIX}contract": '{"scope": {"namespaces": ["bank"]}}'}
    assert "scope.namespaces" in why(question(other, kind="Deployment"))


def test_what_is_likely_is_a_warning() -> None:
    rules = [
        {"name": "labelled", "at": ["sandbox"], "expression": "'app' in pod.labels"},
        {"name": "of-nodes", "at": ["sandbox"], "expression": "node.name == 'one'"},
        {"name": "of-engines", "at": ["sandbox"], "expression": "runtime.engine == 'wasm'"},
    ]
    floor = {"name": "floor", "floor": True, "requireVerifiedImage": True, "rules": rules}
    annotations = {
        f"{PREFIX}memory": "1Gi",
        f"{PREFIX}exec.wbe": "false",
        f"{PREFIX}trusted_issuers": "key:a",
        f"{PREFIX}images": f"ghcr.io/acme/*@sha256:{'a' * 64}",
    }
    response = asked(question(annotations), here(floor))
    assert response["allowed"]
    assert response["warnings"] == [
        "zta.forgeone.dev/*.wbe: the pod has no container 'wbe' yet",
        "a node would deny the pod: floor/labelled: 'app' in pod.labels is false",
        "a node would deny container 'web': profile.resources.memory: it has no limit, and the most is "
        f"{1 << 30} bytes",
    ]
    assert response["auditAnnotations"] == {"engine": "native", "policies": "floor"}


def test_warnings_are_few_and_short() -> None:
    annotations = {f"{PREFIX}exec.{'c' * 50}{number}": "false" for number in range(20)}
    warnings = asked(question(annotations))["warnings"]
    assert len(warnings) == review.MAX_WARNINGS
    assert all(len(one) <= review.MAX_WARNING for one in warnings)


def test_what_many_containers_and_words_about_them_take_is_bounded() -> None:
    """Whoever may make pods must not be able to keep everybody else's waiting."""
    many = {f"{PREFIX}{key}.c{number}": "false" for number in range(400) for key in ("exec", "attach", "update")}
    containers = [{"name": f"c{number}", "image": "a"} for number in range(review.MAX_CONTAINERS)]
    began = time.process_time()
    assert asked(question(many))["allowed"]
    assert asked(question({f"{PREFIX}exec_mode.c7": "wasm", **many}, containers=containers))["allowed"] is False
    more: Any = [*containers, {"name": "more", "image": "a"}] * 20
    response = asked(question({f"{PREFIX}exec_mode.c7": "wasm", **many}, containers=more))
    assert response["warnings"] == ["it has more than 100 containers: what becomes of them is left to nodes"]
    assert why(question({f"{PREFIX}exec_mode": "wasm"}, containers=more))
    # Reading what was read for each that is named took minutes.
    assert time.process_time() - began < 5


def test_a_contract_for_a_container_that_is_not_there_is_no_engines_business() -> None:
    response = asked(question({f"{PREFIX}exec_mode.injected": "wasm"}))
    assert response["warnings"] == ["zta.forgeone.dev/*.injected: the pod has no container 'injected' yet"]
    assert "demanded" in why(question({f"{PREFIX}exec_mode.web": "wasm"}))


def test_what_others_write_to_a_pod_that_runs_is_theirs() -> None:
    before = question({f"{PREFIX}runtime_policy_id": "gone", "a": "b"})["request"]["object"]
    assert not why(question({f"{PREFIX}runtime_policy_id": "gone", "cni.example/address": "10.0.0.1"}, before=before))
    assert why(question({f"{PREFIX}runtime_policy_id": "gone", f"{PREFIX}exec": "false"}, before=before))
    assert why(question({f"{PREFIX}runtime_policy_id": "gone"}))


def test_what_was_there_before_can_be_changed_and_go() -> None:
    bad = question({f"{PREFIX}exce": "true"})["request"]["object"]
    assert why(question({f"{PREFIX}exce": "true"}))
    assert not why(question({f"{PREFIX}exce": "true"}, before=bad))
    assert why(question({f"{PREFIX}exce": "false"}, before=bad))
    workload = question({f"{PREFIX}exce": "true"}, kind="Deployment")["request"]["object"]
    assert not why(question({f"{PREFIX}exce": "true"}, kind="Deployment", before={**workload, "status": {}}))
    assert why(question({f"{PREFIX}exce": "true"}, kind="Deployment", before=workload, hostPID=True))
    going = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    assert not why(question({f"{PREFIX}exce": "false"}, before=bad, metadata=going))


def test_a_kubelets_picture_of_a_static_pod_is_not_hidden() -> None:
    annotations = {MIRROR: "x", f"{PREFIX}exce": "true"}
    assert not why(question(annotations, user="system:node:one"))
    assert why(question(annotations, user="jane"))


def test_what_cannot_be_told_of_a_pod_is_left_to_nodes() -> None:
    odd = {"containers": [{"name": "web", "image": "a", "resources": {"limits": {"memory": "100u"}}}]}
    assert not why(question({f"{PREFIX}exec": "false"}, **odd))


def test_other_kinds_pass() -> None:
    about = question()
    about["request"]["kind"] = {"group": "", "version": "v1", "kind": "ConfigMap"}
    assert not why(about)
    about = question(operation="DELETE")
    about["request"]["object"] = None
    assert not why(about)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}',
        json.dumps(question() | {"apiVersion": "admission.k8s.io/v1beta1"}).encode(),
        json.dumps(question() | {"kind": "Pod"}).encode(),
        json.dumps(question()).encode().replace(b'"uid": "1"', b'"uid": ""'),
        json.dumps(question()).encode().replace(b'"uid": "1"', b'"uid": "%s"' % (b"1" * 200)),
        json.dumps(question()).encode().replace(b'"operation": "CREATE"', b'"operation": 1'),
        b"[" * 100_000,
        b'{"apiVersion": "\xff"}',
    ],
)
def test_what_is_no_question_gets_no_answer(data: bytes) -> None:
    for ask in (review.validate, review.mutate):
        with pytest.raises(InvalidInput, match="AdmissionReview"):
            ask(data, here())


def test_no_error_repeats_what_was_in_a_question() -> None:
    about = json.dumps(question({"a": "hunter2"})).replace('"CREATE"', '["hunter2"]')
    with pytest.raises(InvalidInput) as caught:
        review.validate(about.encode(), here())
    assert "hunter2" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(["metadata", "spec", "annotations", "containers"]),
)
def test_an_object_of_any_shape_is_answered_or_refused_as_a_question(value: object, place: str) -> None:
    about = question({f"{PREFIX}exec": "false"})
    pod = about["request"]["object"]
    (pod["metadata"] if place == "annotations" else pod["spec"] if place == "containers" else pod)[place] = value
    with suppress(InvalidInput):
        asked(about)
    with suppress(InvalidInput):
        asked(about, here(fill=True), mutate=True)


NAMES = ("web", "db", "ghost")
TRUTHS = ("exec", "privileged", "host_network", "host_pid")
SAID = {
    "exec_mode": st.sampled_from(["native", "wasm", "microvm"]),
    "runtime_policy_id": st.sampled_from(["p0", "p1", "gone"]),
    "trust_label": st.sampled_from(["a", "b"]),
    "images": st.just("ghcr.io/**"),
    "egress": st.sampled_from(["none", "10.0.0.0/8 tcp/1"]),
    "capabilities": st.just("none"),
} | dict.fromkeys(TRUTHS, st.sampled_from(["true", "false"]))
CONTRACTS = st.dictionaries(
    st.tuples(st.sampled_from(sorted(SAID)), st.sampled_from(["", *NAMES])), st.integers(0, 2), max_size=5
).flatmap(
    lambda keys: st.fixed_dictionaries(
        {f"{PREFIX}{key}{of and f'.{of}'}": SAID[key] for key, of in keys if not (of and key == "egress")}
    )
)
FLOORS = st.lists(
    st.fixed_dictionaries(
        {"floor": st.booleans()},
        optional={
            "namespaces": st.sampled_from([["shop"], ["bank"]]),
            "contract": st.fixed_dictionaries(
                {"profile": st.dictionaries(st.sampled_from(TRUTHS[1:]), st.just(value=False), max_size=2)},
                optional={"exec_mode": SAID["exec_mode"]},
            ),
        },
    ),
    max_size=2,
)


def taken(pod: Mapping[str, Any], of: Policies, engine: str) -> bool:
    """Whether a node that goes by these policies starts it."""
    annotations = pod["metadata"]["annotations"]
    try:
        found = manifest.described("", "web", "shop", Node("Pod", pod), manifest.Assumed(engine=engine))
        for facts, point in ((found.pod, Point.SANDBOX), *((one, Point.CREATE) for one in found.containers)):
            container = facts.container.name if facts.container else ""
            bound = of.bind(annotations, container, namespace="shop", name="web")
            if not of.judge(point, manifest.held_to(facts, bound, found)).allowed:
                return False
    except InvalidInput:
        return False
    return True


@settings(max_examples=100, deadline=None)
@given(CONTRACTS, FLOORS, st.sampled_from(["native", "wasm", "microvm"]), st.booleans(), st.booleans())
def test_what_a_node_takes_is_never_refused(
    annotations: dict[str, str], floors: list[dict[str, Any]], engine: str, privileged: bool, shared: bool
) -> None:
    containers = [
        {"name": one, "image": "ghcr.io/acme/web:1", "securityContext": {"privileged": privileged}}
        for one in ("web", "db")
    ]
    spec = {"containers": containers, "hostNetwork": shared, "runtimeClassName": f"forgeone-{engine}"}
    given_policies = policies(*({"name": f"p{number}"} | one for number, one in enumerate(floors)))
    about = question(annotations, **spec)
    of = known.of(Options(handlers={}), given_policies, None, CLASSES)
    if taken(about["request"]["object"], Policies(given_policies), engine):
        assert not why(about, of)
