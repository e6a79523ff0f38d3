"""What a node would probably make of a pod that may be applied: warnings, as a node may know more. Pure.

What only a node knows is left out: who signed an image, which digest a tag has, bits of seed, and of a pod of
WebAssembly which of its containers are modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from forgeone_shim.config.handlers import WASM_ENGINE
from forgeone_shim.contract import judge, manifest
from forgeone_shim.contract.facts import Bound, Point
from forgeone_shim.contract.manifest import Manifest
from forgeone_shim.contract.model import UNRESTRICTED, Contract, ImageRule
from forgeone_shim.contract.policies import Policies


def of(policies: Policies, pod: Manifest, bound: Bound, containers: Mapping[str, Bound], engine: str) -> Iterator[str]:
    """What would be said when it is started, and of each of its containers when that is created.

    :param bound: the contract of the pod, and of its containers that ``containers`` has none for.
    """
    if policies.concerned(Point.SANDBOX, bound):
        ruling = policies.judge(Point.SANDBOX, manifest.held_to(pod.pod, bound, pod))
        if not ruling.allowed:
            yield f"a node would deny the pod: {ruling.by}: {ruling.reason}"
    certain = {id(one): replace(one, contract=_certain(one.contract, engine)) for one in (bound, *containers.values())}
    for one in pod.containers:
        name = one.container.name if one.container is not None else ""
        held = containers.get(name, bound)
        if held.contract == UNRESTRICTED:
            continue
        field, why = judge.violated(Point.CREATE, manifest.held_to(one, certain[id(held)], pod))
        if field:
            yield f"a node would deny container {name!r}: {field}: {why}"


def _certain(contract: Contract, engine: str) -> Contract:
    profile = contract.profile
    images = None if profile.images is None else tuple(ImageRule(one.repositories) for one in profile.images)
    capabilities = None if engine in {"", WASM_ENGINE} else profile.capabilities
    return replace(
        contract,
        trusted_issuers=None,
        minimum_entropy=0,
        exec_mode="",
        profile=replace(profile, images=images, capabilities=capabilities),
    )
