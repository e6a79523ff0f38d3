"""What the bundle is made of, for scanners: SPDX 2.3 as JSON (https://spdx.github.io/spdx-spec/v2.3/)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from hack.bundle import layout
from hack.bundle.manifest import Component

PLACE: Final = "share/sbom.spdx.json"
_ID: Final = re.compile(r"[^A-Za-z0-9.-]")
_ROOT: Final = "SPDXRef-bundle"


def encode(components: Iterable[Component], version: str, release: str, epoch: int) -> str:
    """Each component with its package URL.

    :param release: of Debian or a derivative, as in a package URL (``debian/bookworm``).
    :param epoch: seconds; what is said to be the time of making.
    """
    listed = sorted(components)
    named = hashlib.sha256(repr(listed).encode()).hexdigest()
    packages: list[dict[str, Any]] = [_package(_ROOT, layout.NAME, version, "")]
    related = [_relation("SPDXRef-DOCUMENT", "DESCRIBES", _ROOT)]
    for one in listed:
        identity = f"SPDXRef-{one.origin}-{_ID.sub('-', one.name)}"
        packages.append(_package(identity, one.name, one.version, _url(one, release)))
        related.append(_relation(_ROOT, "CONTAINS", identity))
    said = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"{layout.NAME}-{version}",
        "documentNamespace": f"https://forgeone.dev/spdx/{layout.NAME}-{version}-{named}",
        "creationInfo": {
            "created": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": ["Tool: hack.bundle"],
        },
        "packages": packages,
        "relationships": related,
    }
    return json.dumps(said, indent=1) + "\n"


def _url(one: Component, release: str) -> str:
    """https://github.com/package-url/purl-spec"""
    if one.origin == "pypi":
        return f"pkg:pypi/{one.name}@{one.version}"
    distribution, _, codename = release.partition("/")
    version = one.version.replace("+", "%2B").replace(":", "%3A")
    return f"pkg:deb/{distribution}/{one.name}@{version}?distro={codename}"


def _package(identity: str, name: str, version: str, url: str) -> dict[str, Any]:
    said: dict[str, Any] = {
        "SPDXID": identity,
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
    }
    if url:
        said["externalRefs"] = [
            {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": url}
        ]
    return said


def _relation(element: str, kind: str, other: str) -> dict[str, str]:
    return {"spdxElementId": element, "relationshipType": kind, "relatedSpdxElement": other}
