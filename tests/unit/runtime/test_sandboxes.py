"""What is decided of a pod before anything of it is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from engines.base import Namespaces, SandboxSpec
from forgeone_shim.config.handlers import AUTO_ENGINE, Handler
from forgeone_shim.contract.facts import Bound
from forgeone_shim.contract.model import Contract, TrustProfile
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded
from forgeone_shim.lifecycle.machine import State
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.records import SandboxRecord
from forgeone_shim.runtime.sandboxes import Sandboxes
from forgeone_shim.scheduler.plan import Placement

FREE = Bound()
ISOLATED = Bound(contract=Contract(profile=TrustProfile(trust_label="untrusted")))
POD = SandboxRecord(
    id="a" * 64,
    spec=SandboxSpec(name="p", uid="u", namespace="n"),
    engine=AUTO_ENGINE,
    state=State.CREATED,
    hostname="p",
    cgroup_parent="/forgeone",
    created_at=1,
    namespaces=Namespaces(network="", ipc="", uts="", pid=""),
    handler=Handler(name="forgeone-auto", engine=AUTO_ENGINE),
)


class Changing:
    """Policies that are others each time that they are asked, as ``told``; the last stay."""

    def __init__(self, *told: Bound) -> None:
        self.told, self.labels = list(told), list[str]()

    def _now(self) -> Bound:
        return self.told.pop(0) if len(self.told) > 1 else self.told[0]

    def bound(self, record: SandboxRecord, _deadline: Deadline) -> SandboxRecord:
        return replace(record, bound=self._now())

    def sandbox(self, record: SandboxRecord, _deadline: Deadline) -> SandboxRecord:
        return replace(record, bound=self._now())

    def would_start(self, _record: SandboxRecord) -> bool:
        return True

    def placements(self, _spec: SandboxSpec, contract: Contract, _only: str) -> Iterator[Placement]:
        self.labels.append(contract.profile.trust_label)
        yield Placement("microvm" if contract.profile.trust_label else "native", "")


def sandboxes(policies: Changing) -> Sandboxes:
    made = Sandboxes.__new__(Sandboxes)
    made._p = cast(Parts, SimpleNamespace(guard=policies, scheduler=policies))
    return made


def test_policies_that_come_between_the_choice_and_the_check_have_the_engine_chosen_anew() -> None:
    policies = Changing(FREE, ISOLATED)
    assert sandboxes(policies)._allowed(POD, "", Deadline()).engine == "microvm"
    assert policies.labels == ["", "untrusted"]


def test_policies_that_stay_are_asked_once() -> None:
    policies = Changing(ISOLATED)
    sandboxes(policies)._allowed(POD, "", Deadline())
    assert policies.labels == ["untrusted"]


def test_policies_that_never_stay_are_not_waited_for_longer_than_the_caller_does() -> None:
    with pytest.raises(DeadlineExceeded, match="while policies changed"):
        sandboxes(Changing(*(FREE, ISOLATED) * 9))._allowed(POD, "", Deadline.after(0))


def test_a_pod_whose_handler_names_an_engine_keeps_it() -> None:
    policies = Changing(FREE, ISOLATED)
    native = replace(POD, engine="native", handler=Handler())
    assert sandboxes(policies)._allowed(native, "", Deadline()).engine == "native"
    assert policies.labels == []
