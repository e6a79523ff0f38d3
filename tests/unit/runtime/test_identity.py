"""Fingerprints, entropy and scores of containers whose engine is a double."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engines.base import (
    ContainerPlan,
    ContainerSpec,
    Imprint,
    Live,
    LiveState,
    NamespaceMode,
    NamespaceOptions,
    Namespaces,
    Process,
    Resources,
    SandboxSpec,
    Security,
    User,
)
from forgeone_shim.contract.facts import AttestationFacts, Bound, ImageFacts
from forgeone_shim.contract.model import Contract, TrustProfile
from forgeone_shim.deadline import Deadline
from forgeone_shim.dna.entropy import Cause
from forgeone_shim.dna.fingerprint import FORMAT
from forgeone_shim.dna.score import Watched
from forgeone_shim.dna.source import Source
from forgeone_shim.errors import FailedPrecondition, NotFound
from forgeone_shim.lifecycle.machine import State
from forgeone_shim.runtime.containers import Containers
from forgeone_shim.runtime.identity import Identity
from forgeone_shim.runtime.inspection import Inspection
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.paths import Paths
from forgeone_shim.runtime.records import ContainerRecord, SandboxRecord
from forgeone_shim.runtime.table import Entry

ID, POD = "c" * 64, "5" * 64
BOUND = Bound(contract=Contract(profile=TrustProfile(trust_label="gold")), given=True)
IMAGE = ImageFacts(
    name="i",
    repository="r",
    digest="d",
    verified_by=("key:a",),
    attestations=(AttestationFacts(predicate_type="p", signer="key:a"),),
)


class Engine:
    """Says what its containers' files would; counts how often it was asked for a seal."""

    def __init__(self) -> None:
        self.kept = Imprint(version="crun 1.0", seal="sha256:s", seccomp="sha256:f", capabilities=("CAP_CHOWN",))
        self.gone, self.seals = False, 0

    def imprint(self, _handle: object) -> Imprint:
        return self.kept

    def seal(self, _handle: object) -> str:
        self.seals += 1
        if self.gone:
            raise NotFound("container", ID)
        return self.kept.seal


POD_RECORD = SandboxRecord(
    id=POD,
    spec=SandboxSpec(name="pod", uid="u", namespace="tests"),
    engine="native",
    state=State.BOOTED,
    created_at=1,
    namespaces=Namespaces(network="/n", ipc="/i", uts="/u", pid=""),
    hostname="h",
    cgroup_parent="/",
)
SPEC = ContainerSpec(
    name="main",
    resources=Resources(memory_limit=1 << 20),
    security=Security(
        namespaces=NamespaceOptions(pid=NamespaceMode.CONTAINER), no_new_privs=True, readonly_rootfs=True
    ),
)
PLAN = ContainerPlan(
    container_id=ID,
    sandbox_id=POD,
    bundle="/b",
    rootfs="/r",
    exits="/e",
    log_path="",
    hostname="h",
    cgroup="/c",
    process=Process(args=("sh",), env=("A=secret",), cwd="/", user=User()),
    namespaces=POD_RECORD.namespaces,
    pod_mounts=(),
    spec=SPEC,
    image_id="sha256:i",
)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def identity(engine: Engine, tmp_path: Path) -> Identity:
    return Identity(cast(Any, {"native": engine, "wasm": engine}), Paths(tmp_path, tmp_path), Source(tmp_path))


@pytest.fixture
def born(identity: Identity) -> Callable[..., ContainerRecord]:
    def make(*, restored: bool = False, **fields: Any) -> ContainerRecord:
        planned = ContainerRecord(
            id=ID,
            sandbox_id=POD,
            state=State.BOOTED,
            image_id="sha256:i",
            image_ref="r@d",
            layers=("sha256:l",),
            log_path="",
            cgroup="/c",
            stop_signal="SIGTERM",
            created_at=1,
            restored=restored,
            **{"spec": SPEC, "engine": "native", **identity.seeded(restored=restored), **fields},
        )
        return replace(planned, **identity.born(planned, POD_RECORD, PLAN, "sha256:p" if planned.bound.given else ""))

    return make


def test_a_new_container_has_the_whole_seed_and_a_restored_one_none(born: Callable[..., ContainerRecord]) -> None:
    new, restored = born(), born(restored=True)
    assert (new.entropy, [one.cause for one in new.seedings]) == (256, [Cause.CREATE])
    assert (restored.entropy, [one.cause for one in restored.seedings]) == (0, [Cause.RESTORE])


def test_what_goes_on_from_a_checkpoint_is_never_taken_for_what_its_image_starts(
    born: Callable[..., ContainerRecord],
) -> None:
    new, restored = born(), born(restored=True)
    assert new.genome is not None and restored.genome is not None
    assert new.dna != restored.dna and restored.genome.engine_facts["restored"] == "true"
    assert replace(restored.genome, engine_facts=new.genome.engine_facts) == new.genome


def test_a_restored_one_that_gets_no_fingerprint_does_not_go_on(
    born: Callable[..., ContainerRecord], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its processes run from the moment they are restored, and nobody would know."""
    made: list[str] = []

    def restore(*_: object) -> int:
        made.append("processes")
        return 7

    def no_fingerprint(*_: object) -> None:
        assert made == ["processes"]
        raise NotFound("container", ID)

    parts: Any = SimpleNamespace(
        config=SimpleNamespace(cdi=SimpleNamespace(spec_dirs=())),
        identity=SimpleNamespace(born=no_fingerprint),
        guard=SimpleNamespace(mark=lambda _: ""),
        paths=Paths(tmp_path, tmp_path),
        sandboxes=Known(Entry(POD_RECORD, lambda _: None)),
    )
    monkeypatch.setattr(Containers, "_engine_plan", lambda *_: PLAN)
    restorer: Any = SimpleNamespace(
        look=lambda _: Live(LiveState.MISSING), delete=lambda _: made.clear(), restore=restore
    )
    containers = Containers(parts, cast(Any, SimpleNamespace(resolve=lambda _: None)))
    with pytest.raises(NotFound):
        containers._restore(Entry(born(restored=True), lambda _: None), restorer, cast(Any, None), Deadline.after(9))
    assert made == []


def test_dna_is_what_the_record_says(identity: Identity, born: Callable[..., ContainerRecord]) -> None:
    dna = identity.dna(born(bound=BOUND, trusted=IMAGE, suggested=Resources(cpu_quota=7, cpu_period=100)))
    assert dna.hash.startswith("sha256:") and dna.signer == ("key:a",) and dna.trust_label == "gold"
    assert (dna.resource_limits.memory_limit, dna.resource_limits.cpu_quota, dna.runtime_entropy) == (1 << 20, 7, 256)


def test_contract_and_policies_are_part_of_a_fingerprint_where_there_are_any(
    born: Callable[..., ContainerRecord],
) -> None:
    plain, bound = born().genome, born(bound=BOUND).genome
    assert plain is not None and bound is not None
    assert (plain.contract, plain.policy) == ("", "")
    assert (bound.contract, bound.policy) == (BOUND.contract.digest, "sha256:p")


def test_nothing_is_read_for_a_container_without_contract_and_policy(
    identity: Identity, engine: Engine, born: Callable[..., ContainerRecord]
) -> None:
    engine.gone = True
    assert identity.changed(born()) == "" and engine.seals == 0


@pytest.mark.parametrize("bound", [BOUND, Bound(policies=("floor",))])
def test_what_changed_is_told(
    identity: Identity, engine: Engine, born: Callable[..., ContainerRecord], bound: Bound
) -> None:
    record = born(bound=bound)
    assert identity.changed(record) == "" and engine.seals == 1
    assert record.genome is not None
    other = replace(record, genome=replace(record.genome, argv=("sh", "-c", "evil")))
    assert "its fingerprint is sha256:" in identity.changed(other)
    engine.kept = replace(engine.kept, seal="sha256:t")
    assert identity.changed(record) == "what its engine keeps of it is sha256:t, and was sha256:s"
    engine.gone = True
    assert identity.changed(record) == "what its engine keeps of it is gone"


def test_a_fingerprint_of_another_format_is_no_change_and_what_lies_on_disk_still_counts(
    identity: Identity, engine: Engine, born: Callable[..., ContainerRecord]
) -> None:
    record = born(bound=BOUND)
    assert record.genome is not None
    older = replace(record, genome=replace(record.genome, format=FORMAT - 1))
    assert identity.changed(older) == ""
    engine.kept = replace(engine.kept, seal="sha256:t")
    assert "what its engine keeps of it" in identity.changed(older)


def test_one_that_its_engine_has_not_made_has_nothing_that_could_change(
    identity: Identity, born: Callable[..., ContainerRecord]
) -> None:
    restored = replace(born(bound=BOUND, restored=True), genome=None, dna="")
    assert identity.changed(restored) == ""
    assert identity.changed(replace(restored, state=State.RUNNING)) == "it has no fingerprint"
    assert identity.changed(replace(born(), genome=None, dna="", state=State.RUNNING)) == ""


@pytest.mark.parametrize(
    ("fields", "watched", "total"),
    [
        # 8 native, 4 seccomp, 3 no new privileges, 2 own namespaces, 2 read-only root, 2 no capabilities; 10 entropy.
        ({}, Watched(), 31),
        ({"restored": True}, Watched(), 21),
        ({"bound": BOUND}, Watched(), 41),
        ({"bound": replace(BOUND, signers=("key:i",))}, Watched(), 51),
        ({"trusted": IMAGE}, Watched(), 61),
        ({"engine": "wasm"}, Watched(), 36),
        ({"spec": replace(SPEC, security=Security(privileged=True))}, Watched(), 10),
        ({}, Watched(watched=True, baseline=True), 41),
        ({}, Watched(watched=True, baseline=True, drift=0.5), 20),
    ],
)
def test_scores_are_of_what_is_known(
    identity: Identity, born: Callable[..., ContainerRecord], fields: dict[str, Any], watched: Watched, total: int
) -> None:
    identity.watched_by(lambda _: watched)
    record = born(**fields)
    facts = identity.facts(record)
    assert (identity.score(record).total, facts.trust_score, facts.drifted) == (total, total, watched.drift > 0)
    assert (facts.version, facts.entropy) == ("crun 1.0", record.entropy)


def test_capabilities_that_not_every_container_has_cost_points(
    identity: Identity, engine: Engine, born: Callable[..., ContainerRecord]
) -> None:
    engine.kept = replace(engine.kept, capabilities=("CAP_SYS_ADMIN",), seccomp="")
    assert identity.score(born()).isolation == 15


def test_before_it_is_made_a_container_is_scored_by_what_is_asked_for(
    identity: Identity, born: Callable[..., ContainerRecord]
) -> None:
    asked = replace(SPEC, security=replace(SPEC.security, add_capabilities=("sys_admin",)))
    planned = replace(born(spec=asked), genome=None, dna="")
    assert identity.score(planned).isolation == 15


class Known:
    """A table of one."""

    def __init__(self, entry: Entry[Any]) -> None:
        self._entry = entry

    def find(self, id_: str) -> Entry[Any]:
        if not self._entry.record.id.startswith(id_):
            raise NotFound("container", id_)
        return self._entry

    def all(self) -> list[Entry[Any]]:
        return [self._entry]


@pytest.fixture
def inspection(identity: Identity, born: Callable[..., ContainerRecord]) -> Inspection:
    record = born(bound=BOUND, trusted=IMAGE, argv=("sh",))
    parts = SimpleNamespace(
        containers=Known(Entry(record, lambda _: None)), sandboxes=Known(Entry(POD_RECORD, lambda _: None))
    )
    return Inspection(cast(Parts, parts), identity)


def test_an_inspection_is_plain_json_without_secrets(inspection: Inspection) -> None:
    text = json.dumps(inspection.of(POD))
    pod = json.loads(text)
    assert "secret" not in text and pod["kind"] == "pod"
    assert inspection.of(POD)["containers"] == [inspection.of(ID)] == [inspection.of("cc")]
    found = pod["containers"][0]
    assert found["contract"]["digest"] == BOUND.contract.digest and found["image"]["verified_by"] == ["key:a"]
    assert found["entropy"]["events"][0]["cause"] == "create" and found["entropy"]["source"]["healthy"] is True
    assert found["score"]["parts"]["entropy"] == {"points": 10, "of": 10}
    assert found["lifecycle"]["created_at"].endswith("Z") and found["lifecycle"]["exit_code"] is None


def test_what_nobody_knows_is_not_found(inspection: Inspection) -> None:
    with pytest.raises(NotFound, match="container or pod"):
        inspection.of("0")


def test_rooms_add_sections_and_one_that_fails_hides_no_other(inspection: Inspection) -> None:
    def broken(_: object) -> object:
        raise FailedPrecondition("out of order")

    inspection.section("behaviour", lambda record: {"of": record.id})
    inspection.section("nothing", lambda _: None)
    inspection.section("broken", broken)
    inspection.pod_section("network", lambda record: {"drops": 3})
    found = inspection.of(ID)
    assert found["behaviour"] == {"of": ID} and "nothing" not in found
    assert found["broken"] == {"error": "out of order"}
    assert inspection.of(POD)["network"] == {"drops": 3}
