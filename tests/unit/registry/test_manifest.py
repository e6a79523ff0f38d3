from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgeone_shim.errors import FailedPrecondition, ForgeError, NotFound, Unimplemented
from forgeone_shim.registry.manifest import (
    Descriptor,
    Index,
    Manifest,
    Platform,
    choose,
    host_platform,
    layer_format,
    parse_config,
    parse_manifest,
    sniff,
)

from .registry_double import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
)

DIGEST = "sha256:" + "1" * 64
CONFIG = {"mediaType": OCI_CONFIG, "digest": DIGEST, "size": 2}
LAYER = {"mediaType": OCI_LAYER + "+gzip", "digest": DIGEST, "size": 2}
IMAGE: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [LAYER]}


def read(document: object, content_type: str = "") -> Index | Manifest:
    return parse_manifest(json.dumps(document).encode(), content_type, "manifest x")


def image(document: object = IMAGE) -> Manifest:
    found = read(document)
    assert isinstance(found, Manifest)
    return found


def test_oci_and_docker_manifests_are_read() -> None:
    assert image().layers[0].digest == DIGEST
    docker = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": CONFIG | {"mediaType": DOCKER_CONFIG},
        "layers": [LAYER | {"mediaType": DOCKER_LAYER}],
    }
    assert image(docker).config.media_type == DOCKER_CONFIG


def test_a_document_that_does_not_say_what_it_is_is_taken_at_its_content() -> None:
    plain = {key: value for key, value in IMAGE.items() if key != "mediaType"}
    assert isinstance(read(plain, OCI_MANIFEST), Manifest)
    assert isinstance(read(plain, "text/plain; charset=utf-8"), Manifest)


@pytest.mark.parametrize(
    ("document", "content_type"),
    [
        (IMAGE | {"manifests": []}, OCI_MANIFEST),
        (IMAGE | {"mediaType": OCI_INDEX}, OCI_MANIFEST),
        (IMAGE, OCI_INDEX),
        ({"schemaVersion": 2, "manifests": [], "config": CONFIG}, OCI_INDEX),
        ({"schemaVersion": 2}, OCI_INDEX),
        ({"schemaVersion": 1, "manifests": []}, OCI_INDEX),
        (IMAGE | {"config": None}, ""),
        (IMAGE | {"layers": [LAYER | {"digest": "sha256:../../etc/passwd"}]}, ""),
        (IMAGE | {"layers": [LAYER | {"size": -1}]}, ""),
        (IMAGE | {"layers": [LAYER | {"size": 2**70}]}, ""),
        (IMAGE | {"layers": [LAYER] * 501}, ""),
        ([], ""),
        ("x", ""),
    ],
)
def test_ambiguous_and_malformed_documents_are_refused(document: object, content_type: str) -> None:
    with pytest.raises(FailedPrecondition, match="malformed"):
        read(document, content_type)


@pytest.mark.parametrize(
    "document",
    [
        IMAGE | {"layers": [LAYER | {"mediaType": "application/vnd.example.layer"}]},
        IMAGE | {"layers": [LAYER | {"mediaType": OCI_LAYER + "+gzip+encrypted"}]},
        IMAGE | {"mediaType": "application/vnd.example.thing"},
    ],
)
def test_kinds_of_manifests_and_layers_that_nobody_knows_are_refused(document: object) -> None:
    with pytest.raises(Unimplemented):
        read(document)


def test_deep_json_is_no_crash() -> None:
    for data in (b"[" * 100_000, b'{"a":' * 50_000, b'{"schemaVersion":2,"x":' + b"[" * 100_000):
        with pytest.raises(FailedPrecondition):
            parse_manifest(data, "", "manifest x")


FILE: dict[str, Any] = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [DIGEST]}}


def config(document: object) -> Any:
    return parse_config(json.dumps(document).encode(), image(), "config x")


def test_a_config_with_nulls_and_strange_keys_is_read() -> None:
    run: dict[str, Any] = {
        "User": "1000:0",
        "Cmd": None,
        "Entrypoint": ["/app"],
        "Labels": None,
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/data": {}},
        "ArgsEscaped": True,
        "Healthcheck": {"Test": ["CMD"]},
    }
    found = config(FILE | {"config": run, "history": [{"empty_layer": True}], "created": None})
    assert (found.config.user, found.config.cmd, found.config.entrypoint) == ("1000:0", (), ("/app",))
    assert (found.config.exposed_ports, found.config.volumes) == (("80/tcp",), ("/data",))


def test_a_config_without_layers_has_nothing_to_run() -> None:
    for rootfs in (None, {}, {"type": "layers", "diff_ids": []}):
        with pytest.raises(Unimplemented, match="nothing to run"):
            config(FILE | {"rootfs": rootfs})


@pytest.mark.parametrize(
    "document",
    [
        FILE | {"rootfs": {"diff_ids": [DIGEST, DIGEST]}},
        FILE | {"rootfs": {"diff_ids": ["sha256:../x"]}},
        FILE | {"config": {"Cmd": "sh"}},
        FILE | {"config": {"Env": ["A=\0"]}},
        [],
    ],
)
def test_a_config_that_does_not_fit_is_refused(document: object) -> None:
    with pytest.raises(FailedPrecondition, match="malformed"):
        config(document)


def entry(number: int, platform: Platform | None) -> Descriptor:
    return Descriptor(OCI_MANIFEST, f"sha256:{number:064d}", 1, platform)


def pick(wanted: Platform, *platforms: Platform | None) -> int:
    index = Index(tuple(entry(number, platform) for number, platform in enumerate(platforms)))
    return int(choose(index, wanted, "x").digest[7:])


AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64", "v8")


def test_the_entry_for_the_platform_is_chosen() -> None:
    unknown = Platform("unknown", "unknown")
    assert pick(AMD64, unknown, Platform("windows", "amd64"), ARM64, AMD64, AMD64) == 3
    assert pick(AMD64, Platform("linux", "amd64", "v3"), AMD64) == 1
    assert pick(ARM64, Platform("linux", "arm64"), ARM64) == 0
    v6, v7 = Platform("linux", "arm", "v6"), Platform("linux", "arm", "v7")
    assert pick(v7, v6, v7) == 1
    assert pick(v7, v6) == 0
    assert pick(AMD64, ARM64, None) == 1


def test_an_index_without_the_platform_names_it() -> None:
    with pytest.raises(NotFound, match="linux/amd64"):
        pick(AMD64, ARM64, Platform("linux", "amd64", "v3"))


def test_the_configured_platform_wins() -> None:
    assert host_platform("linux/arm/v7") == Platform("linux", "arm", "v7")
    assert host_platform().os == "linux"


def test_docker_layers_are_known_by_their_first_bytes() -> None:
    assert layer_format(Descriptor(DOCKER_LAYER, DIGEST, 1), "x") is None
    assert layer_format(Descriptor(OCI_LAYER, DIGEST, 1), "x") == "none"
    assert [sniff(head) for head in (b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18", b"etc/", b"")] == [
        "gzip",
        "zstd",
        "zstd",
        "none",
        "none",
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10) | st.just(DIGEST),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
parts = st.fixed_dictionaries(
    {},
    optional={
        "schemaVersion": st.just(2) | json_values,
        "mediaType": st.sampled_from([OCI_MANIFEST, OCI_INDEX, ""]) | json_values,
        "config": st.just(CONFIG) | json_values,
        "layers": st.lists(st.just(LAYER) | json_values, max_size=3) | json_values,
        "manifests": st.lists(st.just(LAYER) | json_values, max_size=3) | json_values,
        "annotations": json_values,
    },
)
files = st.fixed_dictionaries(
    {},
    optional={
        "os": st.just("linux") | json_values,
        "architecture": json_values,
        "created": json_values,
        "config": st.dictionaries(st.sampled_from(["User", "Cmd", "Env", "Labels", "Volumes"]), json_values)
        | json_values,
        "rootfs": st.just({"diff_ids": [DIGEST]}) | st.fixed_dictionaries({"diff_ids": json_values}) | json_values,
    },
)


@settings(max_examples=200)
@given(parts, st.sampled_from([OCI_MANIFEST, OCI_INDEX, "", "x/y; z"]))
def test_any_document_is_read_or_refused(document: dict[str, object], content_type: str) -> None:
    with suppress(ForgeError):
        found = read(document, content_type)
        if isinstance(found, Index):
            choose(found, AMD64, "x")


@settings(max_examples=200)
@given(files)
def test_any_config_is_read_or_refused(document: dict[str, object]) -> None:
    with suppress(ForgeError):
        assert config(document).diff_ids


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(ForgeError):
        parse_manifest(data, OCI_MANIFEST, "x")
    with suppress(ForgeError):
        parse_config(data, image(), "x")
