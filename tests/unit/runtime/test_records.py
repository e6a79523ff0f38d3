"""Records as they are stored."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from forgeone_shim.contract.facts import Bound, ImageFacts
from forgeone_shim.contract.model import Contract, HostPath, ImageRule, NetworkRule, Peer, PortRange, TrustProfile
from forgeone_shim.runtime.records import ContainerRecord, SandboxRecord
from tests.unit.runtime.test_guard import CONTAINER, POD

TIGHT = Bound(
    contract=Contract(
        trusted_issuers=(),
        profile=TrustProfile(
            images=(ImageRule(("a/**",)),),
            host_paths=(HostPath("/x", readonly=True),),
            network=NetworkRule(egress=(Peer("10.0.0.0/8", ports=(PortRange(1, 2),)),), ingress=()),
        ),
    ),
    given=True,
)


def stored(record: object) -> Any:
    return msgspec.json.decode(msgspec.json.encode(record))


def test_a_contract_is_the_same_after_a_restart() -> None:
    """What is unrestricted stays apart from what is nothing at all."""
    pod = replace(POD, bound=TIGHT)
    assert msgspec.convert(stored(pod), SandboxRecord) == pod
    image = ImageFacts(name="app", repository="docker.io/library/app", digest="sha256:1", verified_by=("key",))
    container = replace(CONTAINER, bound=TIGHT, trusted=image, trusted_volumes=(image,))
    found = msgspec.convert(stored(container), ContainerRecord)
    assert found == container
    assert found.contract.digest == TIGHT.contract.digest


def test_records_of_before_there_were_contracts_can_still_be_read() -> None:
    pod, container = stored(POD), stored(CONTAINER)
    for added in (
        "bound",
        "trusted",
        "trusted_volumes",
        "argv",
        "dna",
        "genome",
        "seal",
        "seedings",
        "entropy",
        "denied",
    ):
        pod.pop(added, None)
        container.pop(added, None)
    assert msgspec.convert(pod, SandboxRecord) == POD
    assert msgspec.convert(container, ContainerRecord) == CONTAINER
