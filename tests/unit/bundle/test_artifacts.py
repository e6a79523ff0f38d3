"""The artifacts of a small tree."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forgeone_shim.errors import InternalError
from hack.bundle import artifacts, layout, manifest, sbom
from hack.bundle.artifacts import Stamp
from hack.bundle.manifest import Component, Contents

STAMP = Stamp("1.2.3", layout.arch("amd64"), 1_700_000_000)
COMPONENTS = (
    Component("forgeone", "forgeone", "1.2.3"),
    Component("debian", "libc6", "2.36-9+deb12u1", "glibc"),
    Component("pypi", "grpcio", "1.80.0"),
)
CONTENTS = Contents("1.2.3", "x86_64", "standard", "3.11.2-6", ("forge",), ("bin/forge",), COMPONENTS)


def tree(root: Path) -> Path:
    (root / "bin").mkdir(parents=True)
    (root / "bin/forge").write_bytes(b"program")
    (root / "bin/forge").chmod(0o700)
    (root / "lib").mkdir()
    (root / "lib/data").write_bytes(b"x" * 10_000)
    (root / "lib/link").symlink_to("data")
    return root


@pytest.mark.parametrize("write", [artifacts.write_archive, artifacts.write_image])
def test_the_same_tree_gives_the_same_bytes(write: Callable[[Path, Path, Stamp], None], tmp_path: Path) -> None:
    write(tree(tmp_path / "one"), tmp_path / "first", STAMP)
    again = tree(tmp_path / "two")
    os.utime(again / "lib/data", (1, 1))
    (again / "bin/forge").chmod(0o755)
    write(again, tmp_path / "second", STAMP)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_the_archive_has_one_directory_and_files_of_roots(tmp_path: Path) -> None:
    artifacts.write_archive(tree(tmp_path / "tree"), tmp_path / "archive", STAMP)
    with tarfile.open(tmp_path / "archive") as tar:
        members = {member.name: member for member in tar}
    assert list(members) == [
        f"forgeone-1.2.3{rest}" for rest in ("", "/bin", "/bin/forge", "/lib", "/lib/data", "/lib/link")
    ]
    assert {(one.uid, one.gid, one.mtime) for one in members.values()} == {(0, 0, 1_700_000_000)}
    assert members["forgeone-1.2.3/bin/forge"].mode == 0o755
    assert members["forgeone-1.2.3/lib/data"].mode == 0o644
    assert members["forgeone-1.2.3/lib/link"].linkname == "data"


def test_the_image_is_a_layout_whose_digests_hold(tmp_path: Path) -> None:
    artifacts.write_image(tree(tmp_path / "tree"), tmp_path / "image", STAMP)
    with tarfile.open(tmp_path / "image") as tar:
        files = {member.name: reader.read() for member in tar if (reader := tar.extractfile(member))}

    def blob(descriptor: dict[str, Any]) -> bytes:
        content = files[f"blobs/{descriptor['digest'].replace(':', '/')}"]
        assert len(content) == descriptor["size"]
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == descriptor["digest"]
        return content

    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    [listed] = json.loads(files["index.json"])["manifests"]
    assert listed["annotations"]["org.opencontainers.image.ref.name"] == "1.2.3"
    assert listed["platform"] == {"architecture": "amd64", "os": "linux"}
    document = json.loads(blob(listed))
    config = json.loads(blob(document["config"]))
    [layer] = document["layers"]
    plain = gzip.decompress(blob(layer))
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(plain).hexdigest()}"]
    assert config["config"]["Env"][0].startswith("PATH=/opt/forgeone/current/bin:")
    assert "Entrypoint" not in config["config"]
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        members = {member.name: member for member in tar}
    assert members["opt/forgeone/current"].linkname == "versions/1.2.3"
    assert "opt/forgeone/versions/1.2.3/bin/forge" in members
    assert members["tmp"].mode == 0o1777
    names = list(members)
    assert all(str(Path(name).parent) in [*names[:place], "."] for place, name in enumerate(names))


def test_a_manifest_tells_files_links_and_what_they_are_from(tmp_path: Path) -> None:
    said = json.loads(manifest.encode(tree(tmp_path / "tree"), CONTENTS))
    assert said["prefix"] == "/opt/forgeone/versions/1.2.3"
    digest = hashlib.sha256(b"program").hexdigest()
    assert said["files"]["bin/forge"] == {"mode": "0755", "size": 7, "sha256": digest}
    assert said["links"] == {"lib/link": "data"}
    assert {"name": "libc6", "version": "2.36-9+deb12u1", "origin": "debian"} in said["packages"]


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside", "nothing"])
def test_a_link_that_leads_out_is_refused(target: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "tree")
    (tmp_path / "outside").touch()
    (root / "lib/out").symlink_to(target)
    with pytest.raises(InternalError, match="lib/out"):
        manifest.encode(root, CONTENTS)


def test_the_bill_of_materials_names_each_package_once_and_by_url() -> None:
    built = Component("debian", "libstdc++6", "1:12.2.0-14+b1", "gcc-12@12.2.0-14")
    components = (*COMPONENTS[1:], built)
    said = json.loads(sbom.encode(components, "1.2.3", sbom.System("debian", "12", "amd64"), 1_700_000_000))
    assert said["spdxVersion"] == "SPDX-2.3"
    assert said["creationInfo"]["created"] == "2023-11-14T22:13:20Z"
    identities = [package["SPDXID"] for package in said["packages"]]
    assert len(identities) == len(set(identities)) == 5
    bundle, base, *packages = said["packages"]
    assert bundle["name"] == "forgeone"
    assert (base["name"], base["versionInfo"], base["primaryPackagePurpose"]) == ("debian", "12", "OPERATING-SYSTEM")
    assert {package.get("sourceInfo") for package in packages} == {
        *("built package from: glibc 2.36-9+deb12u1", "built package from: gcc-12 12.2.0-14", None)
    }
    urls = {package["externalRefs"][0]["referenceLocator"] for package in packages}
    assert urls == {
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u1?arch=amd64&distro=debian-12&upstream=glibc",
        "pkg:deb/debian/libstdc%2B%2B6@1%3A12.2.0-14%2Bb1?arch=amd64&distro=debian-12&upstream=gcc-12%4012.2.0-14",
        "pkg:pypi/grpcio@1.80.0",
    }
    related = {(one["relationshipType"], one["relatedSpdxElement"]) for one in said["relationships"]}
    assert related == {("DESCRIBES", identities[0]), *(("CONTAINS", identity) for identity in identities[1:])}
