"""Annotations become a contract, or are refused with the field named."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Mapping

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from forgeone_shim.attestation import dsse
from forgeone_shim.attestation.keys import SigningKey
from forgeone_shim.contract import parse, reader, render
from forgeone_shim.contract.merge import normal
from forgeone_shim.contract.model import (
    PAYLOAD_TYPE,
    UNRESTRICTED,
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
from forgeone_shim.contract.parse import NO_OFFER, OF_PODS, PREFIX, Offer, Pod
from forgeone_shim.errors import InvalidInput
from tests.unit.contract.strategies import contracts

POD = Pod("shop", "web-1")
DIGEST = f"sha256:{'a' * 64}"


def offered(given: Mapping[str, str], container: str = "", pod: Pod = POD, issuers: tuple = ()) -> Offer:
    return parse.offered({f"{PREFIX}{key}": value for key, value in given.items()}, container, pod=pod, issuers=issuers)


def refused(given: Mapping[str, str], container: str = "", pod: Pod = POD, issuers: tuple = ()) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        offered(given, container, pod, issuers)
    return caught.value


def profile(**fields: object) -> Contract:
    return Contract(profile=TrustProfile(**fields))  # type: ignore[arg-type]


# Of each annotation: a value that can be used and what it makes, and values that cannot.
SINGLES = {
    "runtime_policy_id": ("house.v1", Contract(runtime_policy_id="house.v1"), ("", "House", "a/b", "x" * 64)),
    "trusted_issuers": (
        "key:sha256:ab, x509:CN=a O=b",
        Contract(trusted_issuers=("key:sha256:ab", "x509:CN=a O=b")),
        ("", "nobody", "key:", "key:a,,key:b"),
    ),
    "minimum_entropy": ("256", Contract(minimum_entropy=256), ("", "-1", "1.5", "0x10", "65537", "9" * 30, "٣")),
    "exec_mode": ("wasm", Contract(exec_mode="wasm"), ("", "docker", "Wasm")),
    "trust_label": ("gold", profile(trust_label="gold"), ("", "a b", "x" * 64, "a\nb")),
    "images": (
        f"ghcr.io/acme/**,docker.io/library/busybox@{DIGEST}",
        profile(images=(ImageRule(("docker.io/library/busybox",), (DIGEST,)), ImageRule(("ghcr.io/acme/**",)))),
        ("", "busybox", "ghcr.io/a@sha256:12", "ghcr.io/a b", "https://ghcr.io/a?", "ghcr.io/a:1"),
    ),
    "capabilities": (
        "CAP_NET_RAW,chown",
        profile(capabilities=("CHOWN", "NET_RAW")),
        ("", "ALL", "CAP_CAP_CHOWN", "CHOWN,,KILL"),
    ),
    "privileged": ("false", profile(privileged=False), ("", "False", "no", "0")),
    "host_network": ("false", profile(host_network=False), ("", "yes")),
    "host_pid": ("false", profile(host_pid=False), ("", "off")),
    "host_ipc": ("false", profile(host_ipc=False), ("", "FALSE")),
    "host_paths": (
        "/srv/data:ro, /etc/ssl",
        profile(host_paths=(HostPath("/etc/ssl"), HostPath("/srv/data", readonly=True))),
        ("", "srv", "/srv/", "/a/../b", "//a", "/a/./b"),
    ),
    "volumes": ("secret,empty-dir", profile(volumes=("empty-dir", "secret")), ("", "emptyDir", "secret,kubelet")),
    "memory": ("64Mi", profile(resources=Ceilings(memory=64 << 20)), ("", "0", "-1", "1.5Gi", "64Mb", "9" * 17)),
    "cpu": ("0.5", profile(resources=Ceilings(cpu=500)), ("", "0", "0m", "1e3", "0.0001", "-1")),
    "pids": ("100", profile(resources=Ceilings(pids=100)), ("", "0", "-5", "99999999")),
    "egress": (
        "10.0.0.0/8 tcp/443+80+81, pod:shop/db any/5432-5433, any udp/53, fd00::1",
        profile(
            network=NetworkRule(
                egress=(
                    Peer("", "", (PortRange(53, 53),), "udp"),
                    Peer("", "shop/db", (PortRange(5432, 5433),)),
                    Peer("10.0.0.0/8", "", (PortRange(80, 81), PortRange(443, 443)), "tcp"),
                    Peer("fd00::1/128"),
                )
            )
        ),
        (
            "",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "example.com",
            "fe80::1%eth0",
            "any tcp/0",
            "any tcp/65536",
            "any tcp/9-8",
            "any tcp/1-",
            "any tcp/",
            "any tcp/80+",
            "any tcp/80 81",
            "any icmp/1",
            "any /80",
            "any gre",
            "pod:db",
            "pod:*/*",
            "pod:Shop/db",
        ),
    ),
    "ingress": ("none", profile(network=NetworkRule(ingress=())), ("", "nobody")),
    "node": ("false", profile(network=NetworkRule(node=False)), ("", "kubelet")),
    "dns": ("false", profile(network=NetworkRule(dns=False)), ("", "8.8.8.8")),
    "bus_publish": (
        "shop.orders.*",
        profile(bus=BusRule(publish=("shop.orders.*",))),
        ("", "a..b", "a.>.b", "a b", "a" * 256, ".".join("*" * 33)),
    ),
    "bus_subscribe": ("none", profile(bus=BusRule(subscribe=())), ("", ".", "a.b*")),
    "snapshot": ("false", profile(snapshot=False), ("", "never")),
    "mixed_engines": ("false", profile(mixed_engines=False), ("", "native")),
    "exec": ("false", Contract(rbac=Rbac(exec=False)), ("", "deny")),
    "attach": ("false", Contract(rbac=Rbac(attach=False)), ("", "deny")),
    "port_forward": ("false", Contract(rbac=Rbac(port_forward=False)), ("", "deny")),
    "checkpoint": ("false", Contract(rbac=Rbac(checkpoint=False)), ("", "deny")),
    "update": ("false", Contract(rbac=Rbac(update=False)), ("", "deny")),
    "behaviour": ("true", Contract(behaviour=Behaviour(watch=True)), ("", "watch")),
    "on_drift": ("stop", Contract(behaviour=Behaviour(on_drift="stop")), ("", "kill")),
    "baseline": (DIGEST, Contract(behaviour=Behaviour(baseline=DIGEST)), ("", "sha256:a", "sha512:" + "a" * 128)),
}


def test_every_field_is_in_the_table() -> None:
    assert set(SINGLES) == set(parse.FIELDS)


@pytest.mark.parametrize("name", SINGLES)
def test_an_annotation_of_its_own_for_every_field(name: str) -> None:
    value, expected, _ = SINGLES[name]
    found = offered({name: value})
    assert found == Offer(expected, given=True)
    assert found.contract == normal(expected)


@pytest.mark.parametrize(("name", "value"), [(name, bad) for name, (_, _, values) in SINGLES.items() for bad in values])
def test_a_value_that_is_none_is_refused_with_its_annotation(name: str, value: str) -> None:
    assert refused({name: value}).field == f"annotation {PREFIX}{name}"


@pytest.mark.parametrize("name", SINGLES)
def test_an_annotation_for_one_container_is_of_no_other(name: str) -> None:
    value, expected, values = SINGLES[name]
    if name in OF_PODS:
        assert refused({f"{name}.web": value}).field == f"annotation {PREFIX}{name}.web"
        return
    assert offered({f"{name}.web": value}, "web").contract == expected
    assert offered({f"{name}.web": value}, "proxy").contract == UNRESTRICTED
    assert offered({f"{name}.web": value}).contract == UNRESTRICTED
    assert refused({f"{name}.web": values[0]}, "proxy").field == f"annotation {PREFIX}{name}.web"


def test_a_container_is_held_to_its_pod_and_to_its_own() -> None:
    found = offered({"capabilities": "CHOWN,KILL", "capabilities.web": "KILL,SETUID", "minimum_entropy": "1"}, "web")
    assert found.contract == Contract(minimum_entropy=1, profile=TrustProfile(capabilities=("KILL",)))


def test_what_contradicts_the_pods_own_is_refused() -> None:
    assert "trust_label" in refused({"trust_label": "gold", "trust_label.web": "lead"}, "web").field


def test_a_list_in_brackets_has_members_with_commas() -> None:
    subject = "x509:CN=release,O=acme"
    assert offered({"trusted_issuers": json.dumps([subject])}).contract == Contract(trusted_issuers=(subject,))
    for text in ('["a', '["x509:a", 5]', '["key:a"] more'):
        assert refused({"trusted_issuers": text}).field.startswith(f"annotation {PREFIX}trusted_issuers")


@pytest.mark.parametrize(
    ("key", "near"),
    [("exce", "exec"), ("exec.", "exec"), ("Exec", "exec"), ("contracts", "contract"), ("", ""), ("rbac.exec", "")],
)
def test_a_key_that_is_none_is_refused_with_the_one_that_was_meant(key: str, near: str) -> None:
    error = refused({key: "false"})
    assert error.field == f"annotation {PREFIX}{key}"
    assert f"{PREFIX}{near}?" in error.fix if near else error.fix


@pytest.mark.parametrize("name", ["Web", "web.", "a.b", "-", "a" * 64, "a b"])
def test_a_key_for_what_no_container_can_be_called_is_refused(name: str) -> None:
    error = refused({f"exec.{name}": "false"})
    assert "no container's name" in error.reason
    assert error.field == f"annotation {PREFIX}exec.{name}"


def test_annotations_of_others_are_none_of_ours() -> None:
    other = {"zta.forgeone.devel/exec": "no", "forgeone.dev/devices": "/dev/fuse", "x.zta.forgeone.dev/y": ""}
    assert parse.offered(other, pod=POD) is NO_OFFER


DOCUMENT = {
    "runtime_policy_id": "house",
    "trusted_issuers": ["key:sha256:ab"],
    "minimum_entropy": 256,
    "exec_mode": "native",
    "profile": {
        "trust_label": "gold",
        "images": ["ghcr.io/acme/**", {"repository": "docker.io/library/*", "digests": [DIGEST]}],
        "capabilities": ["CHOWN"],
        "privileged": False,
        "host_paths": ["/srv:ro", {"path": "/etc", "readonly": True}],
        "volumes": ["secret"],
        "resources": {"memory": "64Mi", "cpu": 2, "pids": 10},
        "network": {
            "egress": [{"cidr": "10.0.0.0/8", "ports": [80, "90-99"], "protocol": "tcp"}, {"pod": "shop/*"}],
            "ingress": [],
            "dns": False,
        },
        "bus": {"publish": ["a.>"]},
        "snapshot": False,
    },
    "rbac": {"exec": False},
    "behaviour": {"watch": True, "on_drift": "pause"},
    "containers": {"web": {"profile": {"capabilities": []}}},
}
CONTRACT = Contract(
    runtime_policy_id="house",
    trusted_issuers=("key:sha256:ab",),
    minimum_entropy=256,
    exec_mode="native",
    profile=TrustProfile(
        trust_label="gold",
        images=(ImageRule(("docker.io/library/*",), (DIGEST,)), ImageRule(("ghcr.io/acme/**",))),
        capabilities=("CHOWN",),
        privileged=False,
        host_paths=(HostPath("/etc", readonly=True), HostPath("/srv", readonly=True)),
        volumes=("secret",),
        resources=Ceilings(memory=64 << 20, cpu=2000, pids=10),
        network=NetworkRule(
            egress=(
                Peer("", "shop/*"),
                Peer("10.0.0.0/8", "", (PortRange(80, 80), PortRange(90, 99)), "tcp"),
            ),
            ingress=(),
            dns=False,
        ),
        bus=BusRule(publish=("a.>",)),
        snapshot=False,
    ),
    rbac=Rbac(exec=False),
    behaviour=Behaviour(watch=True, on_drift="pause"),
)


def test_a_document_says_it_all_in_json_and_in_yaml() -> None:
    for text in (json.dumps(DOCUMENT), yaml.safe_dump(DOCUMENT)):
        assert offered({"contract": text}) == Offer(CONTRACT, given=True)
        web = offered({"contract": text}, "web").contract
        assert web.profile.capabilities == ()


def test_the_digest_of_a_contract_does_not_depend_on_who_wrote_it() -> None:
    backwards = json.dumps(dict(reversed(list(DOCUMENT.items()))), indent=4)
    assert offered({"contract": backwards}).contract.digest == CONTRACT.digest
    # What is left unsaid is not in it: a field that comes later changes no digest.
    assert UNRESTRICTED.canonical() == b"{}"
    assert Contract(rbac=Rbac(exec=False), profile=TrustProfile(capabilities=())).canonical() == (
        b'{"profile":{"capabilities":[]},"rbac":{"exec":false}}'
    )


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ('{"rbac":{"exec":false,"exec":true}}', ""),
        ('{"rbac":{"exec":null}}', ": rbac.exec"),
        ("rbac: {exec: 'false'}", ": rbac.exec"),
        ("rbac: {exec: false}\nrbac: {}", ""),
        ("rbac: &a {exec: false}\nother: *a", ""),
        ("rbac: {exec: !!bool maybe}", ""),
        ("--- {}\n--- {}", ""),
        ("[]", ""),
        ("just text", ""),
        ("", ""),
        ("\x00", ""),
        ("{", ""),
        ("profile: {colour: red}", ": profile.colour"),
        ("profile: []", ": profile"),
        ("profile: {images: ghcr.io/a}", ": profile.images"),
        ("profile: {images: [5]}", ": profile.images[0]"),
        ("profile: {resources: {cpu: 0.5}}", ": profile.resources.cpu"),
        ("minimum_entropy: '256'", ": minimum_entropy"),
        ("minimum_entropy: true", ": minimum_entropy"),
        ("profile: {network: {egress: [{cidr: 10.0.0.0/8, cidrs: 1}]}}", ": profile.network.egress[0].cidrs"),
        ("profile: {network: {egress: [{cidr: any}]}}", ": profile.network.egress[0].cidr"),
        ("profile: {network: {egress: [{ports: []}]}}", ": profile.network.egress[0].ports"),
        ("containers: {Web: {}}", ": containers.Web"),
        ("containers: {web: {containers: {}}}", ": containers.web.containers"),
        ("containers: {web: {scope: {}}}", ": containers.web.scope"),
        ("containers: {web: {profile: {network: {egress: []}}}}", ": profile.network"),
        ("scope: {namespaces: ['UPPER']}", ": scope.namespaces[0]"),
        # An empty list is nothing at all everywhere else; here it would be everything.
        ("scope: {namespaces: []}", ": scope.namespaces"),
        ("scope: {pods: []}", ": scope.pods"),
        ("profile: {images: [{repository: ghcr.io/a, digests: []}]}", ": profile.images[0].digests"),
        (json.dumps({"profile": {"capabilities": ["CHOWN"] * 65}}), ": profile.capabilities"),
        (json.dumps({"trusted_issuers": ["key:" + "x" * 2000]}), ": trusted_issuers[0]"),
        (json.dumps({"trusted_issuers": ["key:\ud800"]}), ": trusted_issuers[0]"),
        ('{"minimum_entropy": 1e3}', ": minimum_entropy"),
        ('{"minimum_entropy": NaN}', ""),
        ('{"minimum_entropy": ' + "9" * 5000 + "}", ""),
        ("{" + '"a":{' * 5000, ""),
        ("[" * 5000, ""),
        ("x: " + "a" * 70000, ""),
    ],
)
def test_a_document_that_is_none_is_refused_with_the_field(document: str, field: str) -> None:
    assert refused({"contract": document}).field == f"annotation {PREFIX}contract{field}"


def test_a_document_and_annotations_beside_it_are_joined() -> None:
    found = offered({"contract": "minimum_entropy: 128", "minimum_entropy": "256", "exec": "false"}).contract
    assert found == Contract(minimum_entropy=256, rbac=Rbac(exec=False))


def test_a_document_for_one_container() -> None:
    text = {"contract.web": "minimum_entropy: 128"}
    assert offered(text, "web").contract == Contract(minimum_entropy=128)
    assert offered(text, "other").contract == UNRESTRICTED
    assert "for the document of a pod" in str(refused({"contract.web": "containers: {a: {}}"}))


@pytest.mark.parametrize(
    ("scope", "good"),
    [
        ("{namespaces: [shop]}", True),
        ("{namespaces: [pay, 'sh*']}", True),
        ("{namespaces: [pay]}", False),
        ("{pods: ['web-*']}", True),
        ("{pods: [web]}", False),
        ("{namespaces: [shop], pods: [db]}", False),
        ("{}", True),
    ],
)
def test_a_document_holds_for_the_pods_it_was_written_for(scope: str, good: bool) -> None:
    text = {"contract": f"scope: {scope}\nminimum_entropy: 1"}
    if good:
        assert offered(text).contract.minimum_entropy == 1
    else:
        assert "scope." in refused(text).field


# -- signed documents

KEY, STRANGER = SigningKey.generate(), SigningKey.generate()
TRUSTED = (KEY.public,)


def signed(document: object, *keys: SigningKey, kind: str = PAYLOAD_TYPE) -> str:
    envelope = dsse.Envelope(kind, json.dumps(document).encode())
    for key in keys or (KEY,):
        envelope = dsse.sign(envelope, key)
    return dsse.encode(envelope).decode()


def test_a_signed_contract_tells_its_signers() -> None:
    found = offered({"contract": signed(DOCUMENT)}, issuers=TRUSTED)
    assert found == Offer(CONTRACT, given=True, signers=(KEY.public.id,))


def test_what_strangers_sign_holds_and_counts_as_unsigned() -> None:
    assert offered({"contract": signed(DOCUMENT, STRANGER)}, issuers=TRUSTED) == Offer(CONTRACT, given=True)
    assert offered({"contract": signed(DOCUMENT, STRANGER, KEY)}, issuers=TRUSTED).signers == (KEY.public.id,)


def test_a_signature_is_over_every_byte_and_the_type() -> None:
    envelope = json.loads(signed({"minimum_entropy": 256}))
    tampered = envelope | {"payload": base64.b64encode(b'{"minimum_entropy": 0}').decode()}
    assert "not over what it holds" in str(refused({"contract": json.dumps(tampered)}, issuers=TRUSTED))
    nameless = tampered | {"signatures": [{"sig": envelope["signatures"][0]["sig"]}]}
    assert offered({"contract": json.dumps(nameless)}, issuers=TRUSTED).signers == ()
    other = signed({"minimum_entropy": 256}, kind="application/vnd.in-toto+json")
    assert "application/vnd.in-toto+json" in str(refused({"contract": other}, issuers=TRUSTED))


def test_a_signed_contract_of_another_namespace_is_refused() -> None:
    text = {"contract": signed({"scope": {"namespaces": ["shop"]}, "profile": {"trust_label": "gold"}})}
    assert offered(text, issuers=TRUSTED).signers
    assert "scope.namespaces" in refused(text, pod=Pod("pay", "web-1"), issuers=TRUSTED).field


@pytest.mark.parametrize(("key", "value"), [("trust_label", "gold"), ("runtime_policy_id", "lax")])
def test_nobody_adds_a_claim_to_what_others_signed(key: str, value: str) -> None:
    text = {"contract": signed({"minimum_entropy": 1}), key: value}
    assert refused(text, issuers=TRUSTED).field == f"annotation {PREFIX}{key}"
    in_another = {"contract.web": f"profile: {{trust_label: {value}}}", "contract": signed({"minimum_entropy": 1})}
    for order in (in_another, dict(reversed(in_another.items()))):
        assert refused(order, "web", issuers=TRUSTED).field == f"annotation {PREFIX}trust_label"
        assert offered(order, "other", issuers=TRUSTED).signers
    # Without a signature that counts it is a claim like any other.
    assert offered({"contract": signed({"minimum_entropy": 1}, STRANGER), key: value}, issuers=TRUSTED).given


def test_others_may_tighten_what_is_signed() -> None:
    found = offered({"contract": signed({"minimum_entropy": 1}), "exec": "false"}, issuers=TRUSTED)
    assert found.signers
    assert found.contract == Contract(minimum_entropy=1, rbac=Rbac(exec=False))


@pytest.mark.parametrize(
    "change",
    [
        {"payload": "%%%"},
        {"payload": ""},
        {"signatures": []},
        {"signatures": "x"},
        {"payloadType": ""},
        {"payloadType": 5},
        {"payload": "W10="},
    ],
)
def test_an_envelope_that_is_none_is_refused(change: dict[str, object]) -> None:
    text = json.dumps(json.loads(signed({"minimum_entropy": 1})) | change)
    assert refused({"contract": text}, issuers=TRUSTED).field.startswith(f"annotation {PREFIX}contract")


def test_an_envelope_holds_json_and_nothing_else() -> None:
    envelope = dsse.sign(dsse.Envelope(PAYLOAD_TYPE, b"minimum_entropy: 1"), KEY)
    assert "not JSON" in str(refused({"contract": dsse.encode(envelope).decode()}, issuers=TRUSTED))


# -- and back


@settings(max_examples=100, deadline=None)
@given(contracts)
def test_what_is_rendered_are_annotations(contract: Contract) -> None:
    """But for what no annotation says by itself: a peer that is a pod and a range, an image by two globs."""
    names = {".".join(path): name for name, (_, path) in parse.FIELDS.items()}
    texts = {names[path]: text for path, text in render.restrictions(normal(contract)).items()}
    if any(" in " in text or " and " in text or " or " in text for text in texts.values()):
        return
    assert offered(texts).contract == normal(contract)


# -- whatever comes

_leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
_words = st.sampled_from(
    sorted({part for _, path in parse.FIELDS.values() for part in path} | {"containers", "scope", "cidr", "web"})
)
_values = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_words, inner, max_size=5), max_leaves=25
)


@settings(max_examples=150, deadline=None)
@given(_values)
def test_any_value_is_a_contract_or_refused(value: object) -> None:
    try:
        found = reader.document("it", value)
    except InvalidInput:
        return
    assert normal(normal(found.contract)) == normal(found.contract)
    assert found.contract.digest


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from((*parse.FIELDS, "contract", "exec.web", "x")), st.text(max_size=40), max_size=4))
def test_any_annotations_are_a_contract_or_refused(texts: dict[str, str]) -> None:
    try:
        offered(texts, "web")
    except InvalidInput as error:
        assert PREFIX in error.field


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_document_or_refused(data: bytes) -> None:
    for text in (data, b"{" + data, b"profile: " + data):
        try:
            parse.read("it", text, TRUSTED)
        except InvalidInput as error:
            assert error.field.startswith("it")


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2000), st.integers(0, 255))
def test_any_flipped_byte_of_an_envelope_is_refused_or_unsigned_or_harmless(at: int, value: int) -> None:
    good = signed({"minimum_entropy": 256}).encode()
    bad = bytearray(good)
    bad[at % len(bad)] = value
    try:
        document, signers = parse.read("it", bytes(bad), TRUSTED)
    except InvalidInput:
        return
    assert not signers or document.contract.minimum_entropy == 256


@pytest.mark.parametrize(
    ("said", "field", "values"),
    [
        (
            {"images": [("r.example/" + "a" * 240 + str(n))[-255:] for n in range(64)]},
            "images",
            ["r.example/" + "**a" * 75 + f"x{n}" for n in range(64)],
        ),
        (
            {"network": {"egress": [f"10.{n}.0.0/16" for n in range(4)]}},
            "egress",
            ["0.0.0.0/0 tcp/" + "+".join(str(1000 * n + 3 * step) for step in range(60)) for n in range(1, 64)],
        ),
        (
            {"bus": {"publish": [".".join(["*"] * n + ["a"] + ["*"] * (31 - n)) for n in range(32)]}},
            "bus_publish",
            [".".join(["*"] * n + ["b"] + ["*"] * (31 - n)) for n in range(32)],
        ),
    ],
)
def test_no_pod_keeps_a_node_busy_with_its_contract(said: dict[str, object], field: str, values: list[str]) -> None:
    started = time.process_time()
    with contextlib.suppress(InvalidInput):
        offered({"contract": json.dumps({"profile": said}), field: json.dumps(values)})
    assert time.process_time() - started < 5
