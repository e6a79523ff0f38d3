"""What each field of a contract allows and denies, at every point."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from forgeone_shim.contract.facts import (
    Bound,
    ContainerFacts,
    Facts,
    ImageFacts,
    MountFacts,
    PodFacts,
    Point,
    RuntimeFacts,
)
from forgeone_shim.contract.judge import violated
from forgeone_shim.contract.model import (
    UNRESTRICTED,
    Behaviour,
    BusRule,
    Ceilings,
    Contract,
    HostPath,
    ImageRule,
    NetworkRule,
    Peer,
    Rbac,
    TrustProfile,
)

DIGEST, OTHER = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
FACTS = Facts(
    pod=PodFacts(namespace="shop", name="web", engines=("native",)),
    container=ContainerFacts(
        name="web",
        capabilities=("CHOWN", "KILL"),
        mounts=(
            MountFacts(destination="/cache", source="/var/lib/kubelet/pods/u/volumes/x/cache", kind="empty-dir"),
            MountFacts(destination="/etc/hosts", source="/var/lib/kubelet/pods/u/etc-hosts", kind="kubelet"),
            MountFacts(destination="/data", source="/srv/data/a", kind="host-path"),
        ),
        memory=64,
        cpu=500,
        pids=10,
    ),
    image=ImageFacts(name="web", repository="ghcr.io/acme/web", digest=DIGEST, verified_by=("key:a", "x509:CN=b")),
    runtime=RuntimeFacts(engine="native", entropy=128),
)
ALL = frozenset(Point)
OF_CONTAINERS = frozenset({Point.CREATE, Point.START, Point.RECOVER})
OF_PODS = OF_CONTAINERS | {Point.SANDBOX, Point.RESTORE}
PODLIKE = frozenset({Point.SANDBOX, Point.PORT_FORWARD})


def profile(**fields: Any) -> Contract:
    return Contract(profile=TrustProfile(**fields))


def with_pod(**fields: Any) -> Facts:
    return replace(FACTS, pod=replace(FACTS.pod, **fields))


def with_container(**fields: Any) -> Facts:
    assert FACTS.container is not None
    return replace(FACTS, container=replace(FACTS.container, **fields))


def with_image(**fields: Any) -> Facts:
    assert FACTS.image is not None
    return replace(FACTS, image=replace(FACTS.image, **fields))


def with_runtime(**fields: Any) -> Facts:
    return replace(FACTS, runtime=replace(FACTS.runtime, **fields))


def on(*mounts: MountFacts) -> Facts:
    return with_container(mounts=mounts)


def host(source: str, *, readonly: bool = False, kind: str = "host-path") -> MountFacts:
    return MountFacts(destination="/data", source=source, readonly=readonly, kind=kind)


# A contract, what it is about, what it allows, what it denies, and at which points it is looked at.
TABLE: list[tuple[Contract, str, list[Facts], list[Facts], frozenset[Point]]] = [
    (
        Contract(exec_mode="native"),
        "exec_mode",
        [FACTS],
        [with_runtime(engine="wasm"), with_runtime(engine="")],
        OF_CONTAINERS,
    ),
    (Contract(exec_mode="wasm"), "exec_mode", [with_runtime(engine="wasm")], [FACTS], OF_CONTAINERS | {Point.SANDBOX}),
    (
        Contract(exec_mode="microvm"),
        "exec_mode",
        [with_runtime(engine="microvm")],
        [FACTS, with_runtime(engine="wasm")],
        OF_CONTAINERS | {Point.SANDBOX},
    ),
    (
        Contract(trusted_issuers=("key:a",)),
        "trusted_issuers",
        [FACTS, with_image(verified_by=("key:a",))],
        [with_image(verified_by=()), with_image(verified_by=("key:b",)), with_image(verified_by=("key:aa",))],
        OF_CONTAINERS,
    ),
    (Contract(trusted_issuers=()), "trusted_issuers", [], [FACTS], OF_CONTAINERS),
    (
        Contract(minimum_entropy=256),
        "minimum_entropy",
        [with_runtime(entropy=256), with_runtime(entropy=512)],
        [FACTS, with_runtime(entropy=255), with_runtime(entropy=0)],
        frozenset({Point.START, Point.RESUME}),
    ),
    (
        profile(images=(ImageRule(("ghcr.io/acme/*",)), ImageRule(("docker.io/**",), (DIGEST,)))),
        "profile.images",
        [FACTS, with_image(digest=OTHER), with_image(repository="docker.io/x/y")],
        [
            with_image(repository="docker.io/x/y", digest=OTHER),
            with_image(repository="ghcr.io/acme/team/web"),
            with_image(repository="ghcr.io.evil.com/acme/web"),
            with_image(repository=""),
            replace(FACTS, image=None),
        ],
        OF_CONTAINERS,
    ),
    (profile(images=()), "profile.images", [], [FACTS, with_image(repository="")], OF_CONTAINERS),
    (
        profile(images=(ImageRule(("ghcr.io/**", "**/web"), (DIGEST,)),)),
        "profile.images",
        [FACTS],
        [with_image(repository="ghcr.io/acme/db"), with_image(repository="docker.io/acme/web")],
        OF_CONTAINERS,
    ),
    (
        profile(capabilities=("CHOWN", "KILL", "SETUID")),
        "profile.capabilities",
        [FACTS, with_container(capabilities=())],
        [with_container(capabilities=("CHOWN", "SYS_ADMIN"))],
        OF_CONTAINERS,
    ),
    (profile(capabilities=()), "profile.capabilities", [with_container(capabilities=())], [FACTS], OF_CONTAINERS),
    (
        profile(privileged=False),
        "profile.privileged",
        [FACTS],
        [with_pod(privileged=True)],
        OF_PODS,
    ),
    (
        profile(privileged=False),
        "profile.privileged",
        [FACTS],
        [with_container(privileged=True)],
        OF_CONTAINERS | {Point.RESTORE},
    ),
    (profile(host_network=False), "profile.host_network", [FACTS], [with_pod(host_network=True)], OF_PODS),
    (profile(host_pid=False), "profile.host_pid", [FACTS], [with_pod(host_pid=True)], OF_PODS),
    (profile(host_ipc=False), "profile.host_ipc", [FACTS], [with_pod(host_ipc=True)], OF_PODS),
    (
        profile(host_paths=(HostPath("/srv/data"), HostPath("/etc", readonly=True))),
        "profile.host_paths",
        [FACTS, on(), on(host("/srv/data")), on(host("/etc/ssl", readonly=True))],
        [
            on(host("/srv")),
            on(host("/srv/database")),
            on(host("/etc/ssl")),
            on(host("/")),
            on(host("/var", kind="")),
        ],
        OF_CONTAINERS,
    ),
    (profile(host_paths=()), "profile.host_paths", [on(host("/x", kind="empty-dir"))], [FACTS], OF_CONTAINERS),
    (
        profile(volumes=("empty-dir", "host-path")),
        "profile.volumes",
        [FACTS],
        [on(host("/x", kind="secret")), on(host("/x", kind="image")), on(host("/x", kind=""))],
        OF_CONTAINERS,
    ),
    (
        profile(resources=Ceilings(memory=64)),
        "profile.resources.memory",
        [FACTS, with_container(memory=1)],
        [with_container(memory=65), with_container(memory=0)],
        OF_CONTAINERS | {Point.UPDATE},
    ),
    (
        profile(resources=Ceilings(cpu=500)),
        "profile.resources.cpu",
        [FACTS],
        [with_container(cpu=501), with_container(cpu=0)],
        OF_CONTAINERS | {Point.UPDATE},
    ),
    (
        profile(resources=Ceilings(pids=10)),
        "profile.resources.pids",
        [FACTS],
        [with_container(pids=11), with_container(pids=0)],
        OF_CONTAINERS | {Point.UPDATE},
    ),
    (
        profile(network=NetworkRule(egress=(Peer("10.0.0.0/8"),))),
        "profile.network",
        [FACTS],
        [with_pod(host_network=True), with_pod(privileged=True)],
        OF_PODS,
    ),
    (
        profile(network=NetworkRule(ingress=())),
        "profile.network",
        [FACTS],
        [
            with_container(privileged=True),
            *(with_container(capabilities=(f"{one}",)) for one in ("NET_ADMIN", "NET_RAW", "SYS_ADMIN")),
        ],
        OF_CONTAINERS | {Point.RESTORE},
    ),
    (
        profile(mixed_engines=False),
        "profile.mixed_engines",
        [FACTS, with_pod(engines=())],
        [with_pod(engines=("native", "wasm")), with_pod(engines=("wasm",))],
        OF_CONTAINERS,
    ),
    (profile(snapshot=False), "profile.snapshot", [], [FACTS], frozenset({Point.CHECKPOINT, Point.RESTORE})),
    (Contract(rbac=Rbac(exec=False)), "rbac.exec", [], [FACTS], frozenset({Point.EXEC})),
    (Contract(rbac=Rbac(attach=False)), "rbac.attach", [], [FACTS], frozenset({Point.ATTACH})),
    (Contract(rbac=Rbac(port_forward=False)), "rbac.port_forward", [], [FACTS], frozenset({Point.PORT_FORWARD})),
    (Contract(rbac=Rbac(checkpoint=False)), "rbac.checkpoint", [], [FACTS], frozenset({Point.CHECKPOINT})),
    (Contract(rbac=Rbac(update=False)), "rbac.update", [], [FACTS], frozenset({Point.UPDATE})),
    # Kept for others, who hold what they do to it; nothing is denied here.
    (profile(bus=BusRule(publish=(), subscribe=())), "", [FACTS], [], frozenset()),
    (profile(trust_label="gold"), "", [FACTS], [], frozenset()),
    (Contract(behaviour=Behaviour(watch=True, on_drift="stop")), "", [FACTS], [], frozenset()),
    (Contract(runtime_policy_id="house"), "", [FACTS], [], frozenset()),
]
_IDS = [f"{number}-{field or 'kept'}" for number, (_, field, _, _, _) in enumerate(TABLE)]


def at(point: Point, facts: Facts) -> Facts:
    return replace(facts, container=None, image=None) if point in PODLIKE else facts


@pytest.mark.parametrize("point", Point)
@pytest.mark.parametrize(("contract", "field", "good", "bad", "points"), TABLE, ids=_IDS)
def test_what_a_field_allows_and_denies(
    point: Point, contract: Contract, field: str, good: list[Facts], bad: list[Facts], points: frozenset[Point]
) -> None:
    for facts in good:
        assert violated(point, at(point, facts), contract) == ("", ""), point
    for facts in bad:
        found, why = violated(point, at(point, facts), contract)
        assert found == (field if point in points else ""), (point, why)
        assert bool(why) is (point in points)


@pytest.mark.parametrize("point", Point)
def test_without_a_contract_nothing_is_denied(point: Point) -> None:
    worst = Facts(
        pod=PodFacts(namespace="a", name="b", host_network=True, host_pid=True, host_ipc=True, privileged=True),
        container=ContainerFacts(name="c", privileged=True, capabilities=("SYS_ADMIN",), mounts=(host("/"),)),
    )
    assert violated(point, at(point, worst)) == ("", "")
    assert violated(point, at(point, worst), UNRESTRICTED) == ("", "")


def test_the_contract_of_the_facts_is_the_one_that_counts() -> None:
    assert violated(Point.EXEC, replace(FACTS, contract=Bound(contract=Contract(rbac=Rbac(exec=False)))))[0]


def test_a_pod_of_webassembly_may_have_programs_where_they_are_demanded() -> None:
    held = Contract(exec_mode="native")
    assert violated(Point.SANDBOX, with_runtime(engine="wasm"), held) == ("", "")
    assert violated(Point.SANDBOX, with_runtime(engine="microvm"), held)[0] == "exec_mode"


def test_every_point_says_whether_it_starts_something() -> None:
    assert {point for point in Point if point.starts} == {Point.SANDBOX, Point.CREATE, Point.START, Point.RECOVER}


def test_a_reason_says_what_was_found_and_what_is_allowed() -> None:
    _, why = violated(Point.CREATE, with_container(capabilities=("SYS_ADMIN",)), profile(capabilities=("KILL",)))
    assert why == "it could have SYS_ADMIN, and the most is KILL"
    _, why = violated(Point.CREATE, FACTS, profile(images=(ImageRule(("docker.io/**",)),)))
    assert why == "'ghcr.io/acme/web' is not among those allowed: docker.io/**"
    _, why = violated(Point.CREATE, on(host("/etc")), profile(host_paths=(HostPath("/srv", readonly=True),)))
    assert why == "it mounts /etc to write, and allowed is /srv:ro"
