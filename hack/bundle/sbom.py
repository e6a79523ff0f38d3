"""What the bundle is made of, for scanners: SPDX 2.3 as JSON (https://spdx.github.io/spdx-spec/v2.3/)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from hack.bundle import layout
from hack.bundle.manifest import Component

PLACE: Final = "share/sbom.spdx.json"
_ID: Final = re.compile(r"[^A-Za-z0-9.-]")
_ROOT: Final = "SPDXRef-bundle"


@dataclass(frozen=True, slots=True)
class System:
    """Whose packages they are: ``debian``, ``12``, ``amd64``. Scanners look for advisories by all three."""

    distribution: str
    release: str
    arch: str


def encode(components: Iterable[Component], version: str, system: System, epoch: int) -> str:
    """Each component with its package URL.

    :param epoch: seconds; what is said to be the time of making.
    """
    listed = sorted(components)
    named = hashlib.sha256(repr(listed).encode()).hexdigest()
    packages: list[dict[str, Any]] = [_package(_ROOT, layout.NAME, version, "")]
    related = [_relation("SPDXRef-DOCUMENT", "DESCRIBES", _ROOT)]
    for one in listed:
        identity = f"SPDXRef-{one.origin}-{_ID.sub('-', one.name)}"
        packages.append(_package(identity, one.name, one.version, _url(one, system)))
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


def _url(one: Component, system: System) -> str:
    """https://github.com/package-url/purl-spec"""
    if one.origin == "pypi":
        return f"pkg:pypi/{one.name}@{one.version}"
    said = {"arch": system.arch, "distro": f"{system.distribution}-{system.release}", "upstream": one.source}
    qualifiers = "&".join(f"{key}={quote(value, safe='')}" for key, value in said.items() if value)
    return f"pkg:deb/{system.distribution}/{quote(one.name, safe='')}@{quote(one.version, safe='')}?{qualifiers}"


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
