"""Contracts and facts drawn from small worlds, so that they often meet."""

from __future__ import annotations

from hypothesis import strategies as st

from forgeone_shim.contract.facts import (
    Bound,
    ContainerFacts,
    Facts,
    ImageFacts,
    MountFacts,
    PodFacts,
    RuntimeFacts,
)
from forgeone_shim.contract.model import (
    DRIFTS,
    Behaviour,
    BusRule,
    Ceilings,
    Contract,
    HostPath,
    ImageRule,
    NetworkRule,
    Peer,
    PortRange,
    Rbac,
    TrustProfile,
)

DIGESTS = tuple(f"sha256:{character * 64}" for character in "abc")
SIGNERS = ("key:sha256:1", "key:sha256:2", "x509:CN=a")
REPOSITORIES = ("docker.io/library/busybox", "docker.io/acme/web", "ghcr.io/acme/team/web")
GLOBS = (
    *REPOSITORIES,
    "docker.io/**",
    "docker.io/library/*",
    "docker.io/*/*",
    "**/web",
    "ghcr.io/*/web",
    "**",
)
CAPABILITIES = ("CHOWN", "KILL", "NET_ADMIN", "NET_RAW", "SETUID")
KINDS = ("empty-dir", "host-path", "image", "secret")
PATHS = ("/", "/srv", "/srv/data", "/srv/data/a", "/srvx", "/etc")
CIDRS = ("", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0", "fd00::/8", "fd00:1::/32")
PODS = ("", "shop/db", "shop/web", "shop/*", "pay/*")
PROTOCOLS = ("", "tcp", "udp", "icmp")
SUBJECTS = ("a", "a.b", "a.*", "a.>", "*.b", ">", "a.b.c", "a.*.c", "*")

booleans = st.booleans()


def some(values: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...] | None]:
    """``None``, or any of these."""
    return st.none() | st.lists(st.sampled_from(values), max_size=3).map(tuple)


def several(item: st.SearchStrategy, most: int = 3) -> st.SearchStrategy:
    return st.none() | st.lists(item, max_size=most).map(tuple)


port_ranges = st.tuples(st.integers(1, 6), st.integers(1, 6)).map(lambda pair: PortRange(min(pair), max(pair)))


@st.composite
def peers(draw: st.DrawFn) -> Peer:
    protocol = draw(st.sampled_from(PROTOCOLS))
    ports = () if protocol == "icmp" else draw(st.lists(port_ranges, max_size=2).map(tuple))
    return Peer(draw(st.sampled_from(CIDRS)), draw(st.sampled_from(PODS)), ports, protocol)


image_rules = st.builds(
    ImageRule,
    st.lists(st.sampled_from(GLOBS), min_size=1, max_size=2).map(tuple),
    st.lists(st.sampled_from(DIGESTS), max_size=2).map(tuple),
)
networks = st.none() | st.builds(
    NetworkRule, egress=several(peers()), ingress=several(peers()), node=booleans, dns=booleans
)
numbers = st.none() | st.integers(1, 4)
profiles = st.builds(
    TrustProfile,
    trust_label=st.sampled_from(("", "gold")),
    images=several(image_rules),
    capabilities=some(CAPABILITIES),
    privileged=booleans,
    host_network=booleans,
    host_pid=booleans,
    host_ipc=booleans,
    host_paths=several(st.builds(HostPath, st.sampled_from(PATHS), booleans)),
    volumes=some(KINDS),
    resources=st.builds(Ceilings, memory=numbers, cpu=numbers, pids=numbers),
    network=networks,
    bus=st.builds(BusRule, publish=some(SUBJECTS), subscribe=some(SUBJECTS)),
    snapshot=booleans,
    mixed_engines=booleans,
)
contracts = st.builds(
    Contract,
    runtime_policy_id=st.sampled_from(("", "house")),
    trusted_issuers=some(SIGNERS),
    minimum_entropy=st.sampled_from((0, 128, 256)),
    exec_mode=st.sampled_from(("", "wasm")),
    profile=profiles,
    rbac=st.builds(Rbac, exec=booleans, attach=booleans, port_forward=booleans, checkpoint=booleans, update=booleans),
    behaviour=st.builds(Behaviour, watch=booleans, on_drift=st.sampled_from(DRIFTS), baseline=st.just("")),
)
mounts = st.builds(
    MountFacts,
    destination=st.just("/data"),
    source=st.sampled_from(("/srv/data/a", "/srv/data", "/etc/x", "/srvx")),
    readonly=booleans,
    kind=st.sampled_from(("", "kubelet", *KINDS)),
)
containers = st.builds(
    ContainerFacts,
    name=st.just("web"),
    privileged=booleans,
    capabilities=st.lists(st.sampled_from(CAPABILITIES), max_size=3, unique=True).map(tuple),
    mounts=st.lists(mounts, max_size=2).map(tuple),
    memory=st.integers(0, 5),
    cpu=st.integers(0, 5),
    pids=st.integers(0, 5),
)
images = st.builds(
    ImageFacts,
    name=st.just("web"),
    repository=st.sampled_from(("", *REPOSITORIES)),
    digest=st.sampled_from(DIGESTS),
    verified_by=st.lists(st.sampled_from(SIGNERS), max_size=2).map(tuple),
)
pods = st.builds(
    PodFacts,
    namespace=st.just("shop"),
    name=st.just("web"),
    host_network=booleans,
    host_pid=booleans,
    host_ipc=booleans,
    privileged=booleans,
    engines=st.lists(st.sampled_from(("native", "wasm")), max_size=2).map(tuple),
)
runtimes = st.builds(RuntimeFacts, engine=st.sampled_from(("native", "wasm")), entropy=st.sampled_from((0, 128, 256)))


@st.composite
def facts(draw: st.DrawFn) -> Facts:
    with_container = draw(booleans)
    return Facts(
        pod=draw(pods),
        contract=Bound(),
        container=draw(containers) if with_container else None,
        image=draw(images) if with_container else None,
        runtime=draw(runtimes),
    )
