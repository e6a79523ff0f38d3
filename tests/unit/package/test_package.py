"""``.forgepkg`` files: built alike from the same input, and refused when a byte of them is not what was signed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from forgeone_shim.attestation import dsse
from forgeone_shim.errors import FailedPrecondition, ForgeError, InvalidInput, NotFound, PermissionDenied
from forgeone_shim.package import assets, file, manifest, media, project, wasm
from forgeone_shim.package.file import PackageFile
from forgeone_shim.package.manifest import Contract, Run
from forgeone_shim.package.verification import Trust
from forgeone_shim.registry.digest import digest_of, matches

from .conftest import KEY, OTHER, Make

TRUST = Trust((KEY.public,))


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def rewritten(path: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """The same archive with other members."""
    found = members(path)
    change(found)
    with tarfile.open(path, "w") as tar:
        for name, data in found.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def with_manifest(path: Path, change: Callable[[Any, dict[str, bytes]], None]) -> Path:
    """Another OCI manifest in the same archive, all digests made right again."""

    def both(found: dict[str, bytes]) -> None:
        index = json.loads(found["index.json"])
        entry = index["manifests"][0]
        document = json.loads(found[blob(entry["digest"])])
        change(document, found)
        data = json.dumps(document).encode()
        entry["digest"], entry["size"] = digest_of(data), len(data)
        found[blob(entry["digest"])] = data
        found["index.json"] = json.dumps(index).encode()

    return rewritten(path, both)


def blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def refused(path: Path, text: str, trust: Trust = TRUST, kind: type[ForgeError] = ForgeError) -> None:
    with pytest.raises(kind, match=text), PackageFile(path) as package:
        package.verify(trust)


def test_the_same_input_gives_the_same_bytes(make: Make, tmp_path: Path) -> None:
    one = make("one.forgepkg").read_bytes()
    for name in ("sub/hello.txt", "run.sh"):
        os.utime(tmp_path / "source/assets" / name, (1, 1))
    assert make("two.forgepkg").read_bytes() == one


def test_a_signed_package_verifies_and_says_what_it_is(make: Make) -> None:
    with PackageFile(make(run=Run(args=("-v",), env={"A": "b"}))) as package:
        found = package.verify(TRUST)
    assert found.signers == (KEY.public,)
    assert (found.package.name, found.package.version) == ("acme/logger", "1.2.0")
    assert (found.package.module.kind, found.package.module.imports) == ("module", ("wasi_snapshot_preview1",))
    assert found.package.run == Run(args=("-v",), env={"A": "b"})


def test_a_second_signature_stands_beside_the_first(make: Make) -> None:
    path = make()
    with PackageFile(path) as package:
        file.sign(package, path, OTHER)
    for key in (KEY, OTHER):
        with PackageFile(path) as package:
            assert package.verify(Trust((key.public,))).signers == (key.public,)


def test_an_unsigned_package_needs_a_node_that_takes_such(make: Make) -> None:
    path = make(key=None)
    refused(path, "SignatureValidationFailed: it.forgepkg is not signed", kind=PermissionDenied)
    with PackageFile(path) as package:
        assert package.verify(Trust(unsigned=True)).signers == ()


def test_a_signer_nobody_trusts_is_named(make: Make) -> None:
    refused(make(), f"signed by {KEY.public.id}", Trust((OTHER.public,)), PermissionDenied)
    refused(make(), "none of the 0 trusted keys", Trust(), PermissionDenied)


def test_a_signature_of_another_package_is_refused_even_where_none_is_needed(make: Make) -> None:
    with PackageFile(make("other.forgepkg", version="9.9.9")) as other:
        foreign = other.envelope() or b""

    def swap(document: Any, found: dict[str, bytes]) -> None:
        found[blob(digest_of(foreign))] = foreign
        document["layers"][-1].update(digest=digest_of(foreign), size=len(foreign))

    path = with_manifest(make(), swap)
    refused(path, "over another package", kind=PermissionDenied)
    refused(path, "over another package", Trust(unsigned=True), PermissionDenied)


def test_a_forged_signature_of_a_trusted_key_is_refused_even_where_none_is_needed(make: Make) -> None:
    def forge(document: Any, found: dict[str, bytes]) -> None:
        envelope = json.loads(found[blob(document["layers"][-1]["digest"])])
        envelope["signatures"][0]["sig"] = "AAAA"
        data = json.dumps(envelope).encode()
        found[blob(digest_of(data))] = data
        document["layers"][-1].update(digest=digest_of(data), size=len(data))

    path = with_manifest(make(), forge)
    refused(path, "not over what it holds", kind=PermissionDenied)
    refused(path, "not over what it holds", Trust((KEY.public,), unsigned=True), PermissionDenied)


@pytest.mark.parametrize("layer", range(4))
def test_a_layer_that_was_exchanged_is_refused(make: Make, layer: int) -> None:
    def exchange(document: Any, found: dict[str, bytes]) -> None:
        found[blob(digest_of(b"evil"))] = b"evil"
        document["layers"][layer].update(digest=digest_of(b"evil"), size=4)

    refused(with_manifest(make(), exchange), "SignatureValidationFailed|no DSSE envelope")


@pytest.mark.parametrize("layer", range(3))
def test_a_layer_taken_away_or_added_is_refused(make: Make, layer: int) -> None:
    refused(with_manifest(make("a.forgepkg"), lambda d, _: d["layers"].pop(layer)), "another package")
    path = with_manifest(make("b.forgepkg"), lambda d, _: d["layers"].append(d["layers"][layer]))
    refused(path, "it has 4 layers and 1 signatures")


def test_an_unsigned_package_s_layers_are_those_its_manifest_names(make: Make) -> None:
    path = with_manifest(make(key=None), lambda d, _: d["layers"].reverse())
    refused(path, "its layers are not those", Trust(unsigned=True), FailedPrecondition)


def test_two_signature_layers_are_refused(make: Make) -> None:
    path = with_manifest(make(assets=None, sbom=None), lambda d, _: d["layers"].append(d["layers"][-1]))
    refused(path, "2 signatures")


def test_bytes_that_are_not_their_digest_s_are_refused(make: Make) -> None:
    for number, name in enumerate(n for n in members(make()) if n.startswith("blobs/")):

        def flip(found: dict[str, bytes], name: str = name) -> None:
            found[name] = bytes([found[name][0] ^ 1]) + found[name][1:]

        refused(rewritten(make(f"{number}.forgepkg"), flip), "not what its digest says")


@pytest.mark.parametrize(
    ("needs", "offered", "taken"),
    [
        ("", (1, 0), True),
        ("1.0", (1, 0), True),
        ("1.0", (1, 7), True),
        ("1.1", (1, 0), False),
        ("2.0", (1, 9), False),
        ("1.0", (2, 0), False),
    ],
)
def test_a_package_that_needs_another_host_interface_is_refused(
    make: Make, needs: str, offered: tuple[int, int], taken: bool
) -> None:
    path, trust = make(host_abi=needs), Trust((KEY.public,), abi=offered)
    if taken:
        with PackageFile(path) as package:
            package.verify(trust)
    else:
        refused(path, "host interface", trust, FailedPrecondition)


@pytest.mark.parametrize(
    ("over", "why"),
    [
        ({"name": "Upper"}, "name"),
        ({"name": "a:b"}, "name"),
        ({"name": "../a"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a@sha256:" + 64 * "0"}, "name"),
        ({"version": "1"}, "version"),
        ({"version": "1.0.0+x"}, "version"),
        ({"host_abi": "one"}, "host_abi"),
        ({"run": Run(args=("a\0b",))}, "NUL"),
        ({"run": Run(env={"A=B": "x"})}, "run.env"),
        ({"contract": Contract(exec_mode="native")}, "contract.exec_mode"),
        ({"contract": Contract(runtime_policy_id="two words")}, "contract: runtime_policy_id"),
        ({"contract": Contract(trusted_issuers=("",))}, "contract: trusted_issuers"),
        ({"description": "x" * 5000}, "description"),
    ],
)
def test_what_no_package_may_say_is_named(make: Make, over: dict[str, object], why: str) -> None:
    with pytest.raises(ForgeError, match=why):
        make(**over)


@pytest.mark.parametrize("where", ["", "run", "contract", "module"])
def test_a_key_that_is_not_known_is_refused(make: Make, where: str) -> None:
    with PackageFile(make(run=Run(args=("x",)), contract=Contract(exec_mode="wasm"))) as package:
        document = json.loads(package.config())
    (document[where] if where else document)["surprise"] = 1
    with pytest.raises(FailedPrecondition, match="surprise"):
        manifest.parse(json.dumps(document).encode(), "it")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_a_clear_error(data: bytes) -> None:
    with pytest.raises(FailedPrecondition):
        manifest.parse(data, "it")


def test_a_manifest_of_another_schema_is_refused(make: Make) -> None:
    with PackageFile(make()) as package:
        text = package.config().replace(b'"schema":1', b'"schema":2')
    with pytest.raises(FailedPrecondition, match="schema"):
        manifest.parse(text, "it")


def test_assets_hold_no_links_devices_or_names_out_of_the_tree(make: Make, tmp_path: Path) -> None:
    make()
    folder = tmp_path / "source/assets"
    for name, prepare in (
        ("link", lambda path: path.symlink_to("/etc/passwd")),
        ("pipe", os.mkfifo),
        (".wh.gone", lambda path: path.write_text("")),
        ("module.wasm", lambda path: path.write_text("")),
        ("new\nline", lambda path: path.write_text("")),
    ):
        prepare(folder / name)
        with pytest.raises(InvalidInput, match="assets"):
            make()
        (folder / name).unlink()
    make()


@pytest.mark.parametrize("name", ["../up", "/abs", "a/../../b", ".wh.x", "module.wasm", "a//b"])
def test_an_archive_with_such_names_is_refused(name: str) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(InvalidInput):
        assets.check(io.BytesIO(out.getvalue()))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_an_archive_with_other_than_files_is_refused(kind: bytes) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("x")
        info.type, info.linkname = kind, "y"
        tar.addfile(info)
    with pytest.raises(InvalidInput, match="neither a plain file"):
        assets.check(io.BytesIO(out.getvalue()))


def test_a_module_not_as_its_manifest_has_it_is_refused(make: Make, tmp_path: Path) -> None:
    """Signed by a trusted key, yet told wrongly: whoever reads the manifest must be able to rely on it."""
    path = make(key=None)
    with PackageFile(path) as package:
        document = json.loads(package.config())
    document["module"]["imports"] = []

    def lie(oci: Any, found: dict[str, bytes]) -> None:
        data = json.dumps(document).encode()
        found[blob(digest_of(data))] = data
        oci["config"].update(digest=digest_of(data), size=len(data))

    refused(with_manifest(path, lie), "not as its manifest describes it", Trust(unsigned=True))


def test_a_project_file_is_read_strictly(tmp_path: Path) -> None:
    good = project.TEMPLATE.format(name="x", base="x")
    (tmp_path / project.FILE).write_text(good)
    found = project.read(tmp_path)
    assert (found.name, found.module) == ("x", tmp_path / "x.wasm")
    for text in (
        good + "\nsurprise = 1\n",
        "surprise = 1\n" + good,
        "name = 1",
        "[",
        good.replace("args = []", "args = 3"),
    ):
        (tmp_path / project.FILE).write_text(text)
        with pytest.raises(InvalidInput, match=project.FILE):
            project.read(tmp_path)
    with pytest.raises(InvalidInput, match="forge pkg new"):
        project.read(tmp_path / "absent")


@pytest.mark.parametrize(
    ("text", "bytes_"), [("64Mi", 64 << 20), ("1G", 10**9), (5, 5), ("0", 0), ("1.5G", None), ("-1", None), ("", None)]
)
def test_memory_is_written_as_kubernetes_writes_it(text: str | int, bytes_: int | None) -> None:
    if bytes_ is None:
        with pytest.raises(InvalidInput, match=r"limits\.memory"):
            project.amount(text)
    else:
        assert project.amount(text) == bytes_


@pytest.mark.parametrize(
    ("text", "milli"),
    [("500m", 500), (2, 2000), (0.5, 500), ("1.25", 1250), ("x", None), ("-1", None), ("9m", None), (0, 0)],
)
def test_cpus_are_written_as_kubernetes_writes_them(text: str | float, milli: int | None) -> None:
    if milli is None:
        with pytest.raises(InvalidInput, match=r"limits\.cpu"):
            project.millicores(text)
    else:
        assert project.millicores(text) == milli


def test_imports_of_every_kind_are_read() -> None:
    text = """(module (import "f" "x" (func (param i32))) (import "t" "x" (table 1 2 funcref))
      (import "m" "x" (memory 1 3)) (import "g" "x" (global (mut i64))) (import "e" "x" (tag (param i32)))
      (import "m64" "x" (memory i64 1)) (import "r" "x" (table 0 (ref null extern))) (import "f" "y" (func)))"""
    found = wasm.read(bytes(wasmtime.wat2wasm(text)))
    assert found == wasm.Binary("module", ("e", "f", "g", "m", "m64", "r", "t"))


def test_a_module_that_imports_the_host_s_own_interface_says_of_which_version(make: Make, tmp_path: Path) -> None:
    text = '(module (import "forgeone:log@1" "log" (func)))'
    (tmp_path / "own.wasm").write_bytes(wasmtime.wat2wasm(text))
    with pytest.raises(InvalidInput, match="forgeone:log@1"):
        make(module=tmp_path / "own.wasm")
    make(module=tmp_path / "own.wasm", host_abi="1.0")


def test_a_component_s_interfaces_are_read() -> None:
    text = """(component
      (import "wasi:cli/environment@0.2.0" (instance))
      (import "f" (func (param "a" string)))
      (import "t" (type (sub resource)))
      (import "m" (core module))
      (import "wasi:io/poll@0.2.0" (instance (export "pollable" (type (sub resource))))))"""
    found = wasm.read(bytes(wasmtime.wat2wasm(text)))
    names = ("f", "m", "t", "wasi:cli/environment@0.2.0", "wasi:io/poll@0.2.0")
    assert found == wasm.Binary("component", names)


@given(st.binary(max_size=100), st.sampled_from([b"\x01\0\0\0", b"\x0d\0\x01\0", b""]))
def test_any_bytes_are_a_module_or_a_clear_error(data: bytes, version: bytes) -> None:
    try:
        wasm.read(b"\0asm" + version + data)
    except InvalidInput as error:
        assert error.field == "module"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@example(at=514, bit=7)  # no text any more
@given(at=st.integers(0, 14_000), bit=st.integers(0, 7))
def test_no_bit_of_a_package_can_be_flipped_unseen(make: Make, at: int, bit: int) -> None:
    path = make("flipped.forgepkg")
    with PackageFile(path) as package:
        before = package.verify(TRUST)
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)
    try:
        with PackageFile(path) as package:
            after = package.verify(TRUST)
    except ForgeError:
        return
    # The name in the index, the padding between members: nothing that is run.
    assert after == before


def test_no_such_file_and_no_such_format_are_told_apart(tmp_path: Path, make: Make) -> None:
    with pytest.raises(NotFound):
        PackageFile(tmp_path / "absent")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InvalidInput, match="no tar archive"):
        PackageFile(tmp_path / "text")
    rewritten(make(), lambda found: found.pop("oci-layout"))
    with pytest.raises(InvalidInput, match="no OCI image layout"):
        PackageFile(tmp_path / "it.forgepkg")


def test_skopeo_moves_a_package_and_its_signature(make: Make, tmp_path: Path) -> None:
    path = make()
    if subprocess.run(["which", "skopeo"], capture_output=True, check=False).returncode:
        pytest.skip("no skopeo here")
    moved = tmp_path / "moved.forgepkg"
    command = ["skopeo", "copy", "-q", "--insecure-policy", f"oci-archive:{path}", f"oci-archive:{moved}"]
    subprocess.run(command, check=True, capture_output=True)
    with PackageFile(path) as before, PackageFile(moved) as after:
        assert after.manifest_digest == before.manifest_digest
        assert after.verify(TRUST) == before.verify(TRUST)


def test_the_layers_have_the_types_others_know(make: Make) -> None:
    with PackageFile(make()) as package:
        document = json.loads(package.manifest_data)
        assert matches(package.manifest_digest, package.manifest_data)
    assert document["artifactType"] == media.ARTIFACT
    assert [layer["mediaType"] for layer in document["layers"]] == [
        "application/wasm",
        "application/vnd.oci.image.layer.v1.tar",
        "application/spdx+json",
        dsse.MEDIA_TYPE,
    ]
