"""The guard over doubles of those it asks: who is asked, what becomes of each answer, and what is recorded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from engines.base import ContainerSpec, Mount, Namespaces, Resources, SandboxSpec
from forgeone_shim.attestation.evidence import Endorsement, Statement
from forgeone_shim.config.handlers import AUTO_ENGINE, Handler
from forgeone_shim.contract.facts import Bound, Facts, Point, RequestFacts, RuntimeFacts
from forgeone_shim.contract.judge import Ruling
from forgeone_shim.contract.model import Behaviour, Contract, NetworkRule, Rbac, TrustProfile
from forgeone_shim.contract.policies import Policies
from forgeone_shim.contract.policy import Policy
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import Denied, FailedPrecondition, InvalidInput, Kind, Unavailable, UntrustedImage
from forgeone_shim.lifecycle.machine import State
from forgeone_shim.package import image as packaged
from forgeone_shim.package import media
from forgeone_shim.registry.model import Image
from forgeone_shim.runtime.facts import Host
from forgeone_shim.runtime.guard import Guard
from forgeone_shim.runtime.records import ContainerRecord, SandboxRecord

SIGNER = "key:sha256:" + "a" * 64
IMAGE = Image(
    id="sha256:1", repo_tags=("docker.io/library/app:1",), repo_digests=(f"docker.io/library/app@sha256:{'b' * 64}",)
)
DATA = Image(id="sha256:2", repo_tags=("docker.io/library/data:1",), manifest_digest=f"sha256:{'c' * 64}")
POD = SandboxRecord(
    id="5" * 64,
    spec=SandboxSpec(name="p", uid="u", namespace="n"),
    engine="native",
    state=State.BOOTED,
    created_at=1,
    namespaces=Namespaces(network=None, ipc=None, uts=None, pid=None),
    hostname="",
    cgroup_parent="/p",
)
CONTAINER = ContainerRecord(
    id="c" * 64,
    sandbox_id=POD.id,
    spec=ContainerSpec(name="main", image="app:1", mounts=(Mount("/data", "", image="data:1"),)),
    engine="native",
    state=State.CREATED,
    image_id=IMAGE.id,
    image_ref="",
    layers=(),
    log_path="",
    cgroup="/p/c",
    stop_signal="SIGTERM",
    created_at=1,
)
CONTRACT = Bound(contract=Contract(rbac=Rbac(exec=False)), given=True)


@dataclass
class Around:
    """Everybody the guard asks: ``deny`` are the points that are denied, ``refuse`` is raised for every contract."""

    deny: frozenset[Point] = frozenset()
    deny_image: str = ""
    refuse: Exception | None = None
    untrusted: Exception | None = None
    bound: Bound = CONTRACT
    asked: list[tuple[Point, Facts]] = field(default_factory=list)
    bindings: list[tuple[str, str, str]] = field(default_factory=list)
    noted: list[dict[str, Any]] = field(default_factory=list)
    gathered: int = 0
    altered: str = ""
    digest: str = "one"
    package: str = ""

    def bind(
        self, annotations: Mapping[str, str], container: str = "", *, namespace: str, name: str, package: str = ""
    ) -> Bound:
        self.bindings.append((namespace, name, container))
        self.package = package
        if self.refuse is not None:
            raise self.refuse
        return self.bound

    def rebind(self, bound: Bound) -> Bound:
        if self.refuse is not None:
            raise self.refuse
        return bound

    def concerned(self, point: Point, bound: Bound) -> bool:
        return bound.given

    def judge(self, point: Point, of: Facts) -> Ruling:
        self.asked.append((point, of))
        wrong = self.deny_image and of.image is not None and of.image.repository == self.deny_image
        if point in self.deny or wrong:
            return Ruling(False, policy="house", rule="rule", reason="because")
        return Ruling(True)

    def denied(self, point: str, subject: str, deadline: Deadline, *, rule: str, reason: str, **data: Any) -> str:
        self.noted.append({"point": point, "subject": subject, "rule": rule, "reason": reason, **data})
        return f"audit:{len(self.noted)}"

    def about(self, record: object) -> dict[str, Any]:
        return {"about": type(record).__name__}

    def endorsement(self, image: Image, name: str, namespace: str, deadline: Deadline) -> Endorsement:
        assert namespace == "n"
        if self.untrusted is not None:
            raise self.untrusted
        return Endorsement((SIGNER,), (Statement("https://slsa.dev/provenance/v1", {}, SIGNER),))

    def pod_of(self, record: ContainerRecord) -> SandboxRecord:
        self.gathered += 1
        return POD

    def engines_of(self, sandbox_id: str) -> tuple[str, ...]:
        self.gathered += 1
        return ("wasm",)

    def runtime(self, record: ContainerRecord) -> RuntimeFacts:
        return RuntimeFacts(engine=record.engine, entropy=record.entropy)

    def changed(self, record: ContainerRecord) -> str:
        return self.altered

    def mark(self, bound: Bound) -> str:
        return ""

    @property
    def host(self) -> Host:
        return Host(capabilities=frozenset({"CHOWN", "NET_RAW"}))


def guard(around: Around) -> Guard:
    return Guard(around, around, around, around)


def create(around: Around, record: ContainerRecord = CONTAINER) -> ContainerRecord:
    return guard(around).create(POD, record, IMAGE, (("data:1", DATA),), Deadline())


def test_a_container_is_told_with_all_that_is_known_of_it() -> None:
    around = Around()
    made = create(around)
    (point, told), (_, of_volume) = around.asked
    assert point is Point.CREATE
    assert around.bindings == [("n", "p", "main")]
    assert (told.pod.namespace, told.pod.engines) == ("n", ("wasm", "native"))
    assert told.container is not None
    assert told.container.capabilities == ("CHOWN", "NET_RAW")
    assert told.image is not None
    assert (told.image.repository, told.image.digest) == ("docker.io/library/app", f"sha256:{'b' * 64}")
    assert told.image.verified_by == (SIGNER,)
    assert [one.predicate_type for one in told.image.attestations] == ["https://slsa.dev/provenance/v1"]
    assert of_volume.image is not None
    assert (of_volume.image.repository, of_volume.image.volume) == ("docker.io/library/data", True)
    assert (made.bound, made.verified_by) == (CONTRACT, (SIGNER,))
    assert [one.repository for one in made.trusted_volumes] == ["docker.io/library/data"]


def test_who_is_not_concerned_costs_no_facts() -> None:
    around = Around(bound=Bound())
    assert guard(around).sandbox(POD, Deadline()).bound == Bound()
    guard(around).container(Point.EXEC, create(around), Deadline())
    assert (around.asked, around.gathered) == ([], 0)


@pytest.mark.parametrize("point", Point)
def test_a_denial_has_the_code_of_its_point_and_is_recorded_first(point: Point) -> None:
    around = Around(deny=frozenset({point}))
    asking = guard(around)
    record = replace(CONTAINER, bound=CONTRACT, restored=point is Point.RESTORE)
    with pytest.raises(Denied, match=r"denied by house/rule: because \[audit:1\]") as raised:
        if point is Point.SANDBOX:
            asking.sandbox(POD, Deadline())
        elif point in (Point.CREATE, Point.RESTORE):
            create(around, record)
        elif point is Point.PORT_FORWARD:
            asking.forward(replace(POD, bound=CONTRACT), (80,), Deadline())
        elif point is Point.UPDATE:
            asking.update(record, Resources(memory_limit=7), Deadline())
        else:
            asking.container(point, record, Deadline())
    starts = point in {Point.SANDBOX, Point.CREATE, Point.START, Point.RECOVER}
    assert raised.value.kind is (Kind.PRECONDITION if starts else Kind.DENIED)
    (entry,) = around.noted
    of_pod = point in {Point.SANDBOX, Point.PORT_FORWARD}
    assert entry["subject"] == (f"sandbox/{POD.id}" if of_pod else f"container/{CONTAINER.id}")
    assert (entry["point"], entry["contract"]) == (point, CONTRACT.contract.digest)


def test_an_image_that_is_only_mounted_is_judged_too() -> None:
    around = Around(deny_image="docker.io/library/data")
    with pytest.raises(Denied):
        create(around)
    with pytest.raises(Denied):
        guard(around).container(Point.START, replace(create(Around()), bound=CONTRACT), Deadline())


def test_a_pod_is_asked_about_before_anything_of_it_is_made_from_a_checkpoint() -> None:
    around = Around(deny=frozenset({Point.RESTORE}))
    with pytest.raises(Denied) as raised:
        guard(around).restore(POD, Deadline())
    assert raised.value.kind is Kind.DENIED
    ((_, told),) = around.asked
    assert told.container is None


def test_a_pod_without_an_engine_is_bound_and_asked_about_in_silence() -> None:
    around = Around(deny=frozenset({Point.SANDBOX}))
    bound = guard(around).bound(replace(POD, bound=Bound()), Deadline())
    assert bound.bound == CONTRACT
    assert not guard(around).would_start(replace(bound, engine="wasm"))
    assert guard(Around()).would_start(replace(bound, engine="wasm"))
    assert around.asked[0][1].runtime.engine == "wasm"
    assert around.noted == []


def test_a_pod_that_no_engine_can_run_is_denied_by_the_scheduler_and_recorded() -> None:
    around = Around()
    error = guard(around).unplaced(POD, FailedPrecondition("nobody can", fix="do so"), Deadline())
    assert str(error) == "denied by scheduler: nobody can (do so) [audit:1]"
    assert (around.noted[0]["point"], around.noted[0]["rule"]) == ("sandbox", "scheduler")
    around.refuse = InvalidInput("annotation x", "is no contract")
    with pytest.raises(Denied, match="denied by annotation x: is no contract"):
        guard(around).bound(POD, Deadline())


def test_what_is_asked_for_is_told() -> None:
    around = Around()
    record = replace(CONTAINER, bound=CONTRACT)
    guard(around).container(Point.EXEC, record, Deadline(), RequestFacts(command=("sh",), tty=True))
    guard(around).update(record, Resources(memory_limit=7, cpu_quota=50_000, cpu_period=100_000), Deadline())
    guard(around).forward(replace(POD, bound=CONTRACT), (80,), Deadline())
    executed, updated, forwarded = (told.request for _, told in around.asked)
    assert executed == RequestFacts(command=("sh",), tty=True)
    assert updated == RequestFacts(memory=7, cpu=500)
    assert forwarded == RequestFacts(ports=(80,))


@pytest.mark.parametrize(
    ("error", "rule"),
    [
        (InvalidInput("zta.forgeone.dev/exec", "is no truth value"), "zta.forgeone.dev/exec"),
        (UntrustedImage("nobody signed it"), "signatures"),
    ],
)
def test_what_cannot_be_judged_is_denied(error: Exception, rule: str) -> None:
    around = Around(refuse=error)
    for ask in (
        lambda: guard(around).sandbox(POD, Deadline()),
        lambda: create(around),
        lambda: guard(around).container(Point.START, CONTAINER, Deadline()),
    ):
        with pytest.raises(Denied) as raised:
            ask()
        assert raised.value.rule == rule
    assert [entry["rule"] for entry in around.noted] == [rule] * 3


def test_an_image_that_nobody_vouches_for_is_denied_and_a_registry_that_is_away_is_no_denial() -> None:
    around = Around(untrusted=UntrustedImage("nobody signed it"))
    with pytest.raises(Denied, match="SignatureValidationFailed: nobody signed it"):
        create(around)
    around = Around(untrusted=Unavailable("the registry does not answer"))
    with pytest.raises(Unavailable):
        create(around)
    assert around.noted == []


def test_a_container_has_no_contract_beside_its_pods() -> None:
    record = replace(CONTAINER, spec=replace(CONTAINER.spec, annotations={"zta.forgeone.dev/exec": "true"}))
    with pytest.raises(Denied, match="is for pods"):
        create(Around(), record)


def test_a_container_that_is_not_what_it_was_neither_starts_nor_is_reached_into() -> None:
    around = Around(altered="config.json is another")
    for point in Point:
        if point in {Point.START, Point.RECOVER, Point.EXEC}:
            with pytest.raises(Denied, match=r"denied by dna: config\.json is another"):
                guard(around).container(point, CONTAINER, Deadline())
        else:
            guard(around).container(point, CONTAINER, Deadline())


def test_a_reason_leaves_room_for_the_entry_in_what_a_kubelet_shows() -> None:
    around = Around(refuse=InvalidInput(f"annotation {'y' * 5000}", "x" * 5000))
    with pytest.raises(Denied) as raised:
        guard(around).sandbox(POD, Deadline())
    assert len(str(raised.value)) < 900
    assert str(raised.value).endswith("… [audit:1]")
    assert len(around.noted[0]["reason"]) == 5000


def test_a_node_without_policies_loads_nothing_that_policies_need() -> None:
    heavy = "cel_expr_python", "sigstore", "yaml", "cryptography"
    code = f"import sys, cri.daemon; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_network_and_drift_are_what_policies_say_now() -> None:
    around = Around()
    made, record = Guard(Policies(), around, around, around), replace(CONTAINER, bound=Bound(given=True))
    assert (made.on_drift(record), made.network(replace(POD, bound=record.bound))) == ("report", None)
    rule = NetworkRule(egress=())
    contract = Contract(behaviour=Behaviour(on_drift="stop"), profile=TrustProfile(network=rule))
    made.follow(Policies([Policy(name="late", floor=True, contract=contract)]))
    assert (made.on_drift(record), made.network(replace(POD, bound=record.bound))) == ("stop", rule)
    # Where a policy is gone it stays as it was.
    orphan = replace(CONTAINER, bound=Bound(contract=Contract(runtime_policy_id="gone"), given=True))
    assert made.on_drift(orphan) == "report"


def test_policies_that_follow_others_judge_from_then_on() -> None:
    around = Around()
    asking = guard(around)
    assert not asking.follow(Around())
    assert asking.follow(Around(digest="two", deny=frozenset({Point.EXEC})))
    with pytest.raises(Denied):
        asking.container(Point.EXEC, replace(CONTAINER, bound=CONTRACT), Deadline())


def test_a_container_of_a_package_is_bound_with_what_the_package_asks() -> None:
    around, asked = Around(), '{"minimum_entropy":64}'
    said = {packaged.CONTRACT: asked}
    for artifact, expected in ((media.ARTIFACT, asked), ("", "")):
        image = replace(IMAGE, artifact=artifact, annotations=said)
        guard(around).create(POD, CONTAINER, image, (), Deadline())
        assert around.package == expected


def chosen(engine: str, handler: str = AUTO_ENGINE) -> SandboxRecord:
    return replace(POD, engine=engine, handler=Handler(name=f"forgeone-{handler}", engine=handler))


def test_a_chosen_engine_that_is_not_what_a_label_demands_by_now_runs_no_container() -> None:
    @dataclass
    class Chosen(Around):
        def pod_of(self, record: ContainerRecord) -> SandboxRecord:
            return chosen("native")

    around = Chosen(bound=Bound(contract=Contract(profile=TrustProfile(trust_label="untrusted"))))
    made = Guard(around, around, around, around, isolated=lambda contract: contract.profile.trust_label and "it has to")
    record = replace(CONTAINER, bound=around.bound)
    with pytest.raises(Denied, match="it has to, and the engine chosen for the pod is native"):
        made.create(chosen("native"), CONTAINER, IMAGE, (), Deadline())
    for point in (Point.START, Point.RECOVER):
        with pytest.raises(Denied, match="denied by scheduler: it has to"):
            made.container(point, record, Deadline())
    made.container(Point.START, replace(record, bound=Bound()), Deadline())
    for pod in (chosen("microvm"), chosen("native", "native")):
        made.create(pod, replace(CONTAINER, spec=ContainerSpec(name="main", image="app:1")), IMAGE, (), Deadline())


@pytest.mark.parametrize("verb", ["sandbox", "restore"])
def test_a_pod_that_has_to_wait_is_denied_before_anything_is_asked(verb: str) -> None:
    around = Around()
    made = Guard(around, around, around, around, lambda given: "" if "static" in given else "not yet")
    with pytest.raises(Denied, match=r"denied by cluster\.required: not yet"):
        getattr(made, verb)(POD, Deadline())
    assert around.bindings == [] and around.noted[0]["rule"] == "cluster.required"
    static = replace(POD, spec=replace(POD.spec, annotations={"static": ""}))
    getattr(made, verb)(static, Deadline())
    assert around.bindings
