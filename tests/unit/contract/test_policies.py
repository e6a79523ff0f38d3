"""Policies: their files, which of them apply, what their rules allow."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from forgeone_shim.attestation.keys import SigningKey
from forgeone_shim.config.model import ContractConfig
from forgeone_shim.contract import policy
from forgeone_shim.contract.facts import (
    AttestationFacts,
    Bound,
    ContainerFacts,
    Facts,
    ImageFacts,
    Own,
    PodFacts,
    Point,
    RequestFacts,
    RuntimeFacts,
)
from forgeone_shim.contract.judge import Ruling
from forgeone_shim.contract.model import UNRESTRICTED, Ceilings, Contract, ImageRule, Rbac, TrustProfile
from forgeone_shim.contract.parse import PREFIX
from forgeone_shim.contract.policies import Policies, directory_of, joined, read
from forgeone_shim.errors import InvalidInput
from tests.unit.contract import test_parse

KEY, OTHER = SigningKey.generate(), SigningKey.generate()
FACTS = Facts(
    pod=PodFacts(namespace="shop", name="web", labels={"app": "web"}),
    container=ContainerFacts(name="web", user=1000),
    image=ImageFacts(
        name="web",
        repository="ghcr.io/acme/web",
        digest="sha256:a",
        verified_by=("key:a",),
        attestations=(AttestationFacts(predicate_type="https://slsa.dev/provenance/v1", signer="key:a"),),
    ),
    runtime=RuntimeFacts(engine="native", entropy=256, trust_score=80),
    request=RequestFacts(command=("sh",)),
)
POD_FACTS = replace(FACTS, container=None, image=None)


def text(name: str = "house", **spec: Any) -> str:
    return yaml.safe_dump(
        {"apiVersion": "forgeone.dev/v1", "kind": "ZTAPolicy", "metadata": {"name": name}, "spec": spec}
    )


def made(name: str = "house", **spec: Any) -> policy.Policy:
    return policy.parse(f"{name}.yaml", text(name, **spec).encode())


def rule(expression: str, *at: str, name: str = "r", message: str = "") -> dict[str, Any]:
    return {"name": name, "at": [str(one) for one in at or ("create",)], "expression": expression} | (
        {"message": message} if message else {}
    )


def bound(policies: Policies, annotations: dict[str, str] | None = None, **where: str) -> Bound:
    return policies.bind(
        {f"{PREFIX}{key}": value for key, value in (annotations or {}).items()},
        where.get("container", ""),
        namespace=where.get("namespace", "shop"),
        name="web",
    )


def judged(policies: Policies, point: Point, facts: Facts = FACTS, annotations: dict[str, str] | None = None) -> Ruling:
    return policies.judge(point, replace(facts, contract=bound(policies, annotations)))


# -- files

FULL = """
apiVersion: forgeone.dev/v1
kind: ZTAPolicy
metadata: {name: restricted}
spec:
  floor: true
  exceptNamespaces: [kube-system]
  requireSignedContract: true
  contractIssuers: ["sha256:%s"]
  requireVerifiedImage: true
  contract:
    minimum_entropy: 256
    profile: {privileged: false, resources: {memory: 1Gi}}
    rbac: {exec: false}
  rules:
    - name: not-root
      at: [create, start]
      message: containers must not run as root
      expression: >-
        container.user != 0
        || pod.namespace == 'infra'
""" % ("a" * 64)


def test_a_policy_says_all_of_this() -> None:
    found = policy.parse("restricted.yaml", FULL.encode())
    assert found.name == "restricted"
    assert found.floor and found.signed and found.verified
    assert found.excepted == ("kube-system",)
    assert found.issuers == (f"sha256:{'a' * 64}",)
    assert found.contract == Contract(
        minimum_entropy=256,
        profile=TrustProfile(privileged=False, resources=Ceilings(memory=1 << 30)),
        rbac=Rbac(exec=False),
    )
    (one,) = found.rules
    assert (one.name, one.at) == ("not-root", {Point.CREATE, Point.START})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("apiVersion: forgeone.dev/v2", "apiVersion"),
        ("kind: Policy", "kind"),
        ("metadata: {name: UPPER}", "metadata.name"),
        ("metadata: {}", "metadata.name"),
        ("metadata: {name: a, labels: {}}", "metadata.labels"),
        ("spec: null", "spec"),
        ("spec: []", "spec"),
        ("spec: {flor: true}", "spec.flor"),
        ("spec: {floor: 'yes'}", "spec.floor"),
        ("spec: {requireSignedContract: null}", "spec.requireSignedContract"),
        ("spec: {contractIssuers: [a]}", "spec.contractIssuers[0]"),
        (f"spec: {{contractIssuers: ['sha256:{'a' * 64}']}}", "spec.contractIssuers"),
        ("spec: {requireSignedContract: true, contractIssuers: []}", "spec.contractIssuers"),
        ("spec: {namespaces: []}", "spec.namespaces"),
        ("spec: {namespaces: ['A']}", "spec.namespaces[0]"),
        ("spec: {contract: {rbac: {exce: false}}}", "spec.contract.rbac.exce"),
        ("spec: {contract: {runtime_policy_id: a}}", "spec.contract.runtime_policy_id"),
        ("spec: {contract: {scope: {}}}", "spec.contract.scope"),
        ("spec: {rules: [{name: a, at: [create]}]}", "spec.rules[0].expression"),
        ("spec: {rules: [{name: a, expression: 'true'}]}", "spec.rules[0].at"),
        ("spec: {rules: [{at: [create], expression: 'true'}]}", "spec.rules[0].name"),
        ("spec: {rules: [{name: a, at: [creation], expression: 'true'}]}", "spec.rules[0].at[0]"),
        (
            "spec: {rules: [{name: a, at: [exec], expression: 'true'}, {name: a, at: [exec], expression: 'true'}]}",
            "spec.rules",
        ),
        ("extra: 1", "extra"),
    ],
)
def test_a_file_that_cannot_be_used_names_the_field(change: str, field: str) -> None:
    whole = yaml.safe_load(text()) | yaml.safe_load(change)
    with pytest.raises(InvalidInput) as caught:
        policy.parse("house.yaml", yaml.safe_dump(whole).encode())
    assert caught.value.field == f"house.yaml: {field}"


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"{", b"- a", b"a: b: c", b"spec: {floor: false, floor: true}", b"x: " + b"a" * 300_000]
)
def test_what_is_no_policy_at_all_names_the_file(data: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        policy.parse("house.yaml", data)
    assert caught.value.field.startswith("house.yaml")


@pytest.mark.parametrize(
    ("expression", "at", "reason"),
    [
        ("container.nmae == 'a'", "create", "undefined field 'nmae'"),
        ("container.user == 'root'", "create", "no matching overload"),
        ("container.user", "create", "neither true nor false"),
        ("dyn(true)", "create", "neither true nor false"),
        ("user == 0", "create", "undeclared reference to 'user'"),
        ("container.user ==", "create", "Syntax error"),
        ("container.user == 0", "sandbox", "undeclared reference to 'container"),
        ("image.digest == ''", "port-forward", "undeclared reference to 'image"),
        ("(" * 40 + "true" + ")" * 40, "create", "recursion limit"),
        ("true || " * 1030 + "true", "create", "characters"),
    ],
)
def test_a_rule_is_type_checked_when_it_is_read(expression: str, at: str, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        made(rules=[rule(expression, at)])
    assert caught.value.field == "house.yaml: spec.rules[0].expression"
    assert reason in caught.value.reason


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60) | st.text("containerimgpd.()[]'\"=!&|<>+0123 ", max_size=40))
def test_any_text_is_a_rule_or_refused(expression: str) -> None:
    try:
        made(rules=[rule(expression)])
    except InvalidInput as error:
        assert "house.yaml" in error.field


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_policy_or_refused(data: bytes) -> None:
    for whole in (data, text().encode() + data):
        try:
            policy.parse("it.yaml", whole)
        except InvalidInput as error:
            assert error.field.startswith("it.yaml")


# -- rules


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("true", True),
        ("false", False),
        ("container.user != 0", True),
        ("container.user == 0", False),
        ("point == 'create'", True),
        ("pod.labels['app'] == 'web'", True),
        ("'app' in pod.labels && pod.namespace.startsWith('sh')", True),
        ("image.repository.matches('^ghcr[.]io/acme/')", True),
        ("image.verified_by.exists(one, one == 'key:a')", True),
        ("image.attestations.exists(one, one.predicate_type.startsWith('https://slsa.dev/provenance/'))", True),
        ("runtime.trust_score >= 70 && runtime.entropy >= 256", True),
        ("contract.given", False),
        ("size(contract.signers) > 0", False),
        ("container.mounts.all(one, one.kind != 'host-path')", True),
        ("request.command == ['sh']", True),
        ("node.name == ''", True),
    ],
)
def test_rules_are_written_over_the_facts(expression: str, allowed: bool) -> None:
    policies = Policies([made(rules=[rule(expression)], floor=True)])
    assert judged(policies, Point.CREATE).allowed is allowed


NESTED = "[0,1,2,3,4,5,6,7,8,9]"


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("pod.labels['none'] == ''", "Key not found"),
        ("1 / (container.user - 1000) == 0", "divide by zero"),
        ("image.verified_by[5] == ''", "Index error"),
        ("pod.name.matches('(') ", "regular expression"),
        (
            f"{NESTED}.all(a, {NESTED}.all(b, {NESTED}.all(c, {NESTED}.all(d, {NESTED}.all(e, true)))))",
            "budget exceeded",
        ),
    ],
)
def test_what_cannot_be_decided_is_denied(expression: str, why: str) -> None:
    policies = Policies([made(rules=[rule(expression)], floor=True)])
    started = time.monotonic()
    ruling = judged(policies, Point.CREATE)
    assert time.monotonic() - started < 2
    assert not ruling.allowed
    assert (ruling.policy, ruling.rule, ruling.by) == ("house", "r", "house/r")
    assert "cannot be decided" in ruling.reason and why in ruling.reason


def test_a_rule_about_what_is_not_known_denies() -> None:
    policies = Policies([made(rules=[rule("container.user != 0")], floor=True)])
    assert "cannot be decided" in judged(policies, Point.CREATE, POD_FACTS).reason


def test_a_pod_that_is_restored_is_not_asked_what_its_containers_are() -> None:
    policies = Policies(
        [made(rules=[rule("container.user != 0", "restore"), rule("pod.name != ''", "restore", name="s")], floor=True)]
    )
    assert judged(policies, Point.RESTORE, POD_FACTS).allowed
    assert judged(policies, Point.RESTORE).allowed
    root = replace(FACTS, container=replace(FACTS.container, user=0))  # type: ignore[type-var]
    assert judged(policies, Point.RESTORE, root).by == "house/r"


def test_a_text_that_is_none_denies() -> None:
    policies = Policies([made(rules=[rule("true")], floor=True)])
    half = replace(FACTS, pod=replace(FACTS.pod, labels={"a": "\ud800"}))
    assert not judged(policies, Point.CREATE, half).allowed


def test_a_denial_says_what_the_policy_has_to_say() -> None:
    policies = Policies([made(rules=[rule("container.user == 0", message="run as root, please")], floor=True)])
    assert judged(policies, Point.CREATE).reason == "run as root, please"
    policies = Policies([made(rules=[rule("container.user ==\n  0")], floor=True)])
    assert judged(policies, Point.CREATE).reason == "container.user == 0 is false"


@pytest.mark.parametrize("point", Point)
def test_a_rule_is_asked_where_it_says_and_nowhere_else(point: Point) -> None:
    facts = POD_FACTS if point in {Point.SANDBOX, Point.PORT_FORWARD} else FACTS
    for at in Point:
        policies = Policies([made(rules=[rule("false", at)], floor=True)])
        assert judged(policies, point, facts).allowed is (point is not at)
        assert policies.concerned(point, bound(policies)) is (point is at)


# -- which apply


def test_a_node_without_policies_allows_what_kubernetes_does() -> None:
    policies = Policies()
    assert bound(policies) == Bound(namespace="shop")
    for point in Point:
        assert not policies.concerned(point, bound(policies))
        assert judged(policies, point).allowed
    assert not judged(policies, Point.EXEC, annotations={"exec": "false"}).allowed


def test_floors_apply_to_everybody_and_others_to_those_who_name_them() -> None:
    policies = Policies(
        [
            made("b-floor", floor=True, contract={"rbac": {"exec": False}}),
            made("a-floor", floor=True, contract={"minimum_entropy": 1}),
            made("tight", contract={"minimum_entropy": 256}),
            made("default", contract={"minimum_entropy": 128}),
        ],
        default="default",
    )
    assert bound(policies).policies == ("a-floor", "b-floor", "default")
    assert bound(policies).contract == Contract(minimum_entropy=128, rbac=Rbac(exec=False))
    named = bound(policies, {"runtime_policy_id": "tight"})
    assert named.policies == ("a-floor", "b-floor", "tight")
    assert named.contract.minimum_entropy == 256
    assert bound(policies, {"runtime_policy_id": "b-floor"}).policies == ("a-floor", "b-floor")
    with pytest.raises(InvalidInput) as caught:
        bound(policies, {"runtime_policy_id": "none"})
    assert caught.value.field == "runtime_policy_id"


def test_what_applies_to_pods_that_ask_for_nothing() -> None:
    floor = made("floor", floor=True, exceptNamespaces=["kube-*"])
    policies = Policies([floor, made("own", namespaces=["shop"])])
    assert [policies.without_contract(one) for one in ("shop", "", "kube-system")] == ["floor", "floor", ""]
    with_default = Policies([floor, made("own", namespaces=["kube-a"])], default="own")
    assert [with_default.without_contract(one) for one in ("shop", "kube-a", "kube-b")] == ["floor", "own", ""]
    assert Policies(default="to-come", default_may_come=True).without_contract("kube-b") == "to-come"


def test_a_policy_is_for_the_namespaces_it_says() -> None:
    policies = Policies(
        [
            made("floor", floor=True, exceptNamespaces=["kube-*"], contract={"rbac": {"exec": False}}),
            made("pay", namespaces=["pay*"], contract={"minimum_entropy": 1}),
        ],
        default="pay",
    )
    assert bound(policies, namespace="shop").policies == ("floor",)
    assert bound(policies, namespace="kube-system").policies == ()
    assert bound(policies, namespace="payments").policies == ("floor", "pay")
    # Not known: everything applies.
    assert bound(policies, namespace="").policies == ("floor", "pay")
    with pytest.raises(InvalidInput, match="for namespace 'shop'"):
        bound(policies, {"runtime_policy_id": "pay"}, namespace="shop")
    system = replace(FACTS, pod=replace(FACTS.pod, namespace="kube-system"))
    assert policies.judge(Point.EXEC, system).allowed


def test_what_a_floor_forbids_no_contract_gives_back() -> None:
    policies = Policies([made(floor=True, contract={"rbac": {"exec": False}, "profile": {"capabilities": ["KILL"]}})])
    found = bound(policies, {"exec": "true", "capabilities": "SYS_ADMIN,KILL"})
    assert found.contract == Contract(rbac=Rbac(exec=False), profile=TrustProfile(capabilities=("KILL",)))
    ruling = judged(policies, Point.EXEC, annotations={"exec": "true"})
    assert (ruling.allowed, ruling.by) == (False, "house/rbac.exec")


def test_a_network_rule_that_no_pod_could_be_kept_to_is_refused_and_not_all_pods() -> None:
    peers = [{"cidr": f"10.{number}.0.0/16", "ports": [1, 3, 5, 7]} for number in range(60)]
    with pytest.raises(InvalidInput) as caught:
        made(contract={"profile": {"network": {"ingress": peers}}})
    assert str(caught.value).startswith("house.yaml: spec.contract.profile.network.ingress: 720 combinations")
    assert made(contract={"profile": {"network": {"ingress": peers[:40]}}}).contract.profile.network


def test_a_contract_that_contradicts_a_floor_is_refused() -> None:
    policies = Policies([made(floor=True, contract={"exec_mode": "wasm"})])
    with pytest.raises(InvalidInput) as caught:
        bound(policies, {"exec_mode": "native"})
    assert caught.value.field == "exec_mode"
    assert "house" in caught.value.reason


def test_a_denial_names_the_policy_whose_contract_it_was_or_none() -> None:
    policies = Policies([made(floor=True, contract={"rbac": {"exec": False}})])
    assert judged(policies, Point.EXEC).by == "house/rbac.exec"
    assert judged(policies, Point.ATTACH, annotations={"attach": "false"}).by == "rbac.attach"


def test_floors_count_for_what_was_bound_before_they_came() -> None:
    early = bound(Policies(), {"minimum_entropy": "1"})
    later = Policies([made(floor=True, contract={"rbac": {"exec": False}}, rules=[rule("false", "attach")])])
    assert later.rebind(early).contract == Contract(minimum_entropy=1, rbac=Rbac(exec=False))
    assert later.rebind(early).policies == ("house",)
    assert not later.judge(Point.ATTACH, replace(FACTS, contract=early)).allowed
    assert later.concerned(Point.EXEC, later.rebind(early))
    # And what was taken stays taken when they are gone.
    assert Policies().rebind(later.rebind(early)).contract.rbac.exec is False


@pytest.mark.parametrize(
    ("field", "before", "after"),
    [
        ("exec_mode", "wasm", "native"),
        ("trust_label", "gold", "silver"),
        ("baseline", f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"),
    ],
)
def test_what_there_can_be_one_of_is_as_policies_say_now_unless_the_pod_says_it(
    field: str, before: str, after: str
) -> None:
    """Otherwise a new baseline, or another label, would end whatever runs."""

    def demanding(value: str) -> Policies:
        where = {"exec_mode": {field: value}, "trust_label": {"profile": {field: value}}}
        contract = where.get(field, {"behaviour": {field: value}})
        return Policies([made(floor=True, contract={**contract, "rbac": {"exec": False}})])

    silent = demanding(before).bind({}, namespace="shop", name="web")
    assert getattr(Own.of(demanding(after).rebind(silent).contract), field) == after
    assert demanding(after).rebind(demanding(after).rebind(silent)) == demanding(after).rebind(silent)
    # What is not demanded any more stays.
    assert Policies().rebind(silent).contract == silent.contract
    said = demanding(before).bind({f"{PREFIX}{field}": before}, namespace="shop", name="web")
    assert demanding(before).rebind(said) == said
    with pytest.raises(InvalidInput, match=f"is '{before}', and '{after}' is demanded"):
        demanding(after).rebind(said)


def test_what_was_bound_can_be_bound_again_however_long_its_lists_became() -> None:
    images = [f"**/x{n}" for n in range(4)] + [f"z{n}.example/a" for n in range(60)]
    policies = Policies([made(floor=True, contract={"profile": {"images": images}})])
    held = policies.bind(
        {f"{PREFIX}images": ", ".join(f"y{n}.example/**" for n in range(60))}, namespace="shop", name="web"
    )
    assert len(held.contract.profile.images or ()) == 240
    assert policies.rebind(held) == held


def test_a_policy_that_is_gone_refuses_those_who_named_it() -> None:
    held = bound(Policies([made()]), {"runtime_policy_id": "house"})
    with pytest.raises(InvalidInput, match="no policy 'house'"):
        Policies().rebind(held)
    assert Policies().judge(Point.START, replace(FACTS, contract=held)).rule == "runtime_policy_id"


def test_a_signature_is_demanded_and_revoked() -> None:
    signed = {"contract": test_parse.signed({"minimum_entropy": 1}, KEY)}
    anybody = Policies([made(floor=True, requireSignedContract=True)], [KEY.public, OTHER.public])
    assert judged(anybody, Point.EXEC, annotations=signed).allowed
    assert judged(anybody, Point.EXEC, annotations={"minimum_entropy": "1"}).by == "house/requireSignedContract"
    assert judged(anybody, Point.SANDBOX, POD_FACTS).by == "house/requireSignedContract"
    other = Policies(
        [made(floor=True, requireSignedContract=True, contractIssuers=[OTHER.public.id])], [KEY.public, OTHER.public]
    )
    ruling = judged(other, Point.EXEC, annotations=signed)
    assert not ruling.allowed and OTHER.public.id in ruling.reason
    revoked = Policies([made(floor=True, requireSignedContract=True)], [OTHER.public])
    held = revoked.rebind(bound(anybody, signed))
    assert held.signers == ()
    assert not revoked.judge(Point.RECOVER, replace(FACTS, contract=held)).allowed


@pytest.mark.parametrize("point", Point)
def test_a_verified_image_is_demanded_where_one_is_used(point: Point) -> None:
    policies = Policies([made(floor=True, requireVerifiedImage=True)])
    of_image = point in {Point.CREATE, Point.START, Point.RECOVER, Point.RESTORE}
    assert judged(policies, point).allowed
    unsigned = replace(FACTS, image=replace(FACTS.image, verified_by=()))  # type: ignore[type-var]
    assert judged(policies, point, unsigned).allowed is not of_image
    assert judged(policies, point, POD_FACTS).allowed is (not of_image or point is Point.RESTORE)


def test_a_default_that_is_not_there_and_two_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        Policies([made()], default="other")
    assert caught.value.field == "contract.default_policy"
    with pytest.raises(InvalidInput, match="another policy's"):
        Policies([made(), made()])


def test_the_digest_is_of_everything_that_decides() -> None:
    sets: Sequence[Policies] = (
        Policies(),
        Policies([made()]),
        Policies([made(floor=True)]),
        Policies([made()], default="house"),
        Policies([made()], [KEY.public]),
    )
    assert len({one.digest for one in sets}) == len(sets)
    assert Policies([made("a"), made("b")]).digest == Policies([made("b"), made("a")]).digest


# -- directories


def test_a_directory_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    assert read(tmp_path / "none") == ()
    (tmp_path / "a.yaml").write_text(text("a"))
    (tmp_path / "b.json").write_text(
        '{"apiVersion":"forgeone.dev/v1","kind":"ZTAPolicy","metadata":{"name":"b"},"spec":{}}'
    )
    (tmp_path / ".c.yaml.swp").write_text("half")
    (tmp_path / "README").write_text("what is here")
    assert [one.name for one in read(tmp_path)] == ["a", "b"]
    (tmp_path / "z.yml").write_text("half")
    with pytest.raises(InvalidInput) as caught:
        Policies.load(tmp_path, tmp_path / "keys")
    assert str(tmp_path / "z.yml") in caught.value.field


def test_a_directory_that_somebody_named_has_to_be_there(tmp_path: Path) -> None:
    assert str(directory_of(ContractConfig())) == ContractConfig().policies_dir
    assert directory_of(ContractConfig(policies_dir=str(tmp_path))) == tmp_path
    (tmp_path / "file").write_text("")
    for name in ("typo.d", "file"):
        with pytest.raises(InvalidInput, match=f"{name} is no directory") as caught:
            directory_of(ContractConfig(policies_dir=str(tmp_path / name)))
        assert caught.value.field == "contract.policies_dir"


def test_policies_that_others_can_write_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text("a"))
    file.chmod(0o666)
    with pytest.raises(InvalidInput, match="everybody"):
        read(tmp_path)
    file.chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(InvalidInput, match="everybody"):
        read(tmp_path)
    tmp_path.chmod(0o700)
    assert read(tmp_path)


def test_an_issuer_that_cannot_be_used_refuses_all(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "a.pem").write_bytes(KEY.public.pem())
    assert [one.id for one in Policies.load(tmp_path, keys).issuers] == [KEY.public.id]
    (keys / "b.pem").write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    with pytest.raises(InvalidInput) as caught:
        Policies.load(tmp_path, keys)
    assert caught.value.field == "contract.issuers_dir"


def test_cel_is_not_imported_before_a_rule_needs_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text("a", floor=True, contract={"rbac": {"exec": False}}))
    code = (
        "import sys\nfrom pathlib import Path\nfrom forgeone_shim.contract.policies import Policies\n"
        "from forgeone_shim.contract.facts import Facts, PodFacts, Point\n"
        "Policies().bind({}, namespace='a', name='b')\n"
        "heavy = {'cel_expr_python', 'rfc8785', 'yaml', 'cryptography'}\n"
        "loaded = {name.partition('.')[0] for name in sys.modules} & heavy\n"
        "assert not loaded, loaded\n"
        f"found = Policies.load(Path({str(tmp_path)!r}), Path('/nonexistent'))\n"
        "assert not found.judge(Point.EXEC, Facts(pod=PodFacts(namespace='a', name='b'),"
        " contract=found.bind({}, namespace='a', name='b'))).allowed\n"
        "assert 'cel_expr_python' not in sys.modules\n"
    )
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_the_contract_of_a_policy_is_in_normal_form() -> None:
    images = ["docker.io/**", "docker.io/acme/web"]
    assert made(contract={"profile": {"images": images}}).contract.profile.images == (ImageRule(("docker.io/**",)),)
    assert made().contract is UNRESTRICTED


def test_what_a_package_asks_is_joined_with_what_the_pod_brings(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text("a", contract={"rbac": {"exec": False}}))
    found = Policies.load(tmp_path, Path("/nonexistent"))
    asked = '{"minimum_entropy":128,"runtime_policy_id":"a"}'
    alone = found.bind({}, "c", namespace="n", name="p", package=asked)
    assert (alone.given, alone.contract.minimum_entropy, alone.policies) == (False, 128, ("a",))
    assert not alone.contract.rbac.exec
    joined = found.bind({f"{PREFIX}minimum_entropy": "256"}, "c", namespace="n", name="p", package=asked)
    assert (joined.given, joined.contract.minimum_entropy, joined.policies) == (True, 256, ("a",))
    assert found.rebind(joined) == joined


@pytest.mark.parametrize(
    ("asked", "given", "field"),
    [
        ('{"runtime_policy_id":"missing"}', {}, "runtime_policy_id"),
        ('{"exec_mode":"wasm"}', {"exec_mode": "native"}, "exec_mode"),
        ('{"surprise":1}', {}, "the package's contract"),
    ],
)
def test_what_a_package_asks_and_cannot_have_refuses_its_container(
    tmp_path: Path, asked: str, given: dict[str, str], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        Policies.load(tmp_path, Path("/nonexistent")).bind(
            {f"{PREFIX}{key}": value for key, value in given.items()}, "c", namespace="n", name="p", package=asked
        )
    assert field in caught.value.field


# -- of a cluster


def test_a_default_that_may_come_denies_what_would_be_made_under_it_until_it_is_there() -> None:
    waiting = Policies([made(), made("floor", floor=True)], default="later", default_may_come=True)
    with pytest.raises(InvalidInput, match="there is no policy 'later' on this node yet") as caught:
        bound(waiting)
    assert caught.value.field == "contract.default_policy"
    assert bound(waiting, {"runtime_policy_id": "house"}).policies == ("floor", "house")
    # What ran before it was asked for goes on under what there is.
    before = Bound(namespace="shop")
    assert waiting.rebind(before).policies == ("floor",)
    assert waiting.judge(Point.RECOVER, replace(FACTS, contract=before)).allowed
    there = Policies([made("later", contract={"minimum_entropy": 8})], default="later", default_may_come=True)
    assert bound(there).policies == ("later",)
    with pytest.raises(InvalidInput):
        bound(Policies(default="later", default_may_come=True))


def test_a_file_goes_before_an_object_of_its_name() -> None:
    mine, theirs, other = made("a", floor=True), made("a"), made("b")
    assert joined([mine], [theirs, other]) == ((mine, other), frozenset({"a"}))
    assert joined([], [theirs, other]) == ((theirs, other), frozenset())
    assert joined([mine], []) == ((mine,), frozenset())
