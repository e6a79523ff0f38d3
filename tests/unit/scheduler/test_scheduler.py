"""What the choice of an engine is made by: the pod, its contract, and what its host can do at that moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import pytest

from engines.base import (
    Engine,
    Expected,
    Features,
    NamespaceMode,
    NamespaceOptions,
    Problem,
    Resources,
    SandboxSpec,
    Security,
    SELinux,
)
from engines.microvm import refusals
from forgeone_shim.config.model import SchedulerConfig
from forgeone_shim.contract.model import UNRESTRICTED, Behaviour, Contract, TrustProfile
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.scheduler.scheduler import Scheduler, wanted

POD = SandboxSpec(name="p", uid="u", namespace="n")
NODE = NamespaceMode.NODE


class Fake:
    """What the scheduler asks of an engine; it refuses what a machine does."""

    def __init__(self, *, machine: bool = False, users: bool = True) -> None:
        self.machine, self.users, self.lacks = machine, users, [Problem("no favordynmods", "slower", fatal=False)]

    def features(self) -> Features:
        return Features(user_namespaces=self.users, mount_options=True, own_kernel=self.machine)

    def unfit(self, spec: SandboxSpec, expected: Expected) -> str:
        return refusals.foreseen(spec, expected) if self.machine else ""

    def problems(self) -> list[Problem]:
        return self.lacks


class Host:
    def __init__(self, *order: str, labels: tuple[str, ...] = ()) -> None:
        self.engines = {"native": Fake(), "wasm": Fake(), "microvm": Fake(machine=True, users=False)}
        config = (
            SchedulerConfig(order=order, isolate_labels=labels) if order else SchedulerConfig(isolate_labels=labels)
        )
        self.scheduler = Scheduler(cast(Mapping[str, Engine], self.engines), config)

    def first(self, spec: SandboxSpec = POD, contract: Contract = UNRESTRICTED, only: str = "") -> tuple[str, str]:
        found = next(self.scheduler.placements(spec, contract, only))
        return found.engine, found.reason


def sharing(**modes: NamespaceMode) -> SandboxSpec:
    return replace(POD, security=Security(namespaces=NamespaceOptions(**modes)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (sharing(network=NODE), "it wants the host's network"),
        (sharing(pid=NODE), "it wants the host's processes"),
        (sharing(ipc=NODE), "it wants the host's IPC"),
        (replace(POD, security=Security(privileged=True)), "it wants to be privileged"),
        (replace(POD, annotations={"forgeone.dev/devices": "/dev/fuse"}), "it wants devices of the host"),
    ],
)
def test_what_is_the_hosts_is_had_natively_though_machines_are_preferred(spec: SandboxSpec, why: str) -> None:
    assert Host("microvm", "native").first(spec) == ("native", why)


@pytest.mark.parametrize(
    "spec",
    [
        sharing(user=NamespaceMode.POD),
        replace(POD, security=Security(selinux=SELinux(level="s0:c1"))),
        replace(POD, resources=Resources(hugepages=(("2MB", 1),))),
        replace(POD, annotations={"blockio.resources.beta.kubernetes.io/pod": "slow"}),
        replace(POD, annotations={"rdt.resources.beta.kubernetes.io/container.c": "gold"}),
    ],
)
def test_what_a_machine_would_refuse_gets_none(spec: SandboxSpec) -> None:
    engine, reason = Host("microvm", "native").first(spec)
    assert (engine, reason.partition("; ")[0]) == ("native", "next in order")
    assert "microvm cannot: " in reason


def test_a_pod_that_is_to_be_watched_gets_no_machine() -> None:
    watched = Contract(behaviour=Behaviour(watch=True))
    assert Host("microvm", "wasm").first(contract=watched)[0] == "wasm"


def test_a_demand_that_a_machine_cannot_meet_is_refused_and_not_met_with_less() -> None:
    isolated = Contract(profile=TrustProfile(trust_label="untrusted"))
    host = Host(labels=("untrusted",))
    assert host.first(contract=isolated)[0] == "microvm"
    with pytest.raises(FailedPrecondition, match=r"trust label 'untrusted' demands microvm .*share its host's"):
        host.first(sharing(network=NODE), isolated)


def test_a_label_that_is_isolated_from_now_on_is_told() -> None:
    isolated, host = Contract(profile=TrustProfile(trust_label="untrusted")), Host()
    assert host.scheduler.isolated(isolated) == ""
    assert host.scheduler.follow(SchedulerConfig(isolate_labels=("untrusted",)))
    assert "'untrusted' demands microvm" in host.scheduler.isolated(isolated)
    assert host.scheduler.isolated(UNRESTRICTED) == ""
    assert not host.scheduler.follow(SchedulerConfig(order=("microvm",), isolate_labels=("untrusted",)))


def test_a_privileged_pod_that_is_to_be_isolated_is_privileged_in_its_machine() -> None:
    isolated = Contract(profile=TrustProfile(trust_label="untrusted"))
    assert Host(labels=("untrusted",)).first(replace(POD, security=Security(privileged=True)), isolated)[0] == "microvm"


def test_an_engine_that_the_host_cannot_run_is_passed_over_until_it_can() -> None:
    host = Host("microvm", "native")
    host.engines["microvm"].lacks = [Problem("qemu is not installed", "", fatal=False, unusable=True)]
    assert host.first() == ("native", "next in order; microvm cannot: qemu is not installed")
    assert host.scheduler.possible() == ("native",)
    host.engines["microvm"].lacks = []
    assert host.first()[0] == "microvm"
    assert host.scheduler.usual() == "microvm"


def test_an_engine_that_is_not_installed_is_passed_over() -> None:
    assert Host("agent", "native").first() == ("native", "next in order; agent cannot: it is not installed")


def test_the_handler_has_the_features_that_all_of_its_engines_share() -> None:
    host = Host()
    assert host.scheduler.features() == Features(mount_options=True)
    host.scheduler.follow(SchedulerConfig(order=("native", "wasm")))
    assert host.scheduler.features() == Features(mount_options=True, user_namespaces=True)


def test_a_pod_from_a_checkpoint_has_the_engine_that_it_had() -> None:
    assert Host("microvm", "native").first(only="native")[0] == "native"
    with pytest.raises(FailedPrecondition, match=r"^no engine .* microvm cannot: its checkpoint is of the wasm engine"):
        Host("microvm", "native").first(only="wasm")
    with pytest.raises(FailedPrecondition, match=r"demands microvm .* its checkpoint is of the native engine"):
        Host("microvm", "native").first(contract=Contract(exec_mode="microvm"), only="native")


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({"run.oci.handler": "wasm"}, "run.oci.handler"),
        ({"run.oci.handler": "wasm-smart"}, "run.oci.handler"),
        ({"run.oci.handler": "krun"}, ""),
        ({"wasm.forgeone.dev/memory-max.app": "64Mi"}, "wasm.forgeone.dev/memory-max.app"),
        ({"other": "wasm"}, ""),
    ],
)
def test_annotations_say_that_a_pod_has_modules(annotations: dict[str, str], said: str) -> None:
    assert wanted(replace(POD, annotations=annotations), UNRESTRICTED).modules == said


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"order": ()}, "scheduler.order: is empty"),
        ({"order": ("native", "native")}, "scheduler.order: has an engine twice"),
        ({"order": ("native", "")}, "scheduler.order: has an empty member"),
        ({"isolate_labels": (" ",)}, "scheduler.isolate_labels: has an empty member"),
        ({"order": ("native",), "isolate_labels": ("x",)}, "scheduler.isolate_labels: is met by microvm"),
    ],
)
def test_an_order_that_cannot_be_kept_is_refused_with_its_key(given: dict[str, tuple[str, ...]], field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        SchedulerConfig(**given)
