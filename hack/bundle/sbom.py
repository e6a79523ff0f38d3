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
_SYSTEM: Final = "SPDXRef-system"


@dataclass(frozen=True, slots=True)
class System:
    """Whose packages they are: ``debian``, ``12``, ``amd64``. Scanners look for advisories by all three."""

    distribution: str
    release: str
    arch: str


def encode(components: Iterable[Component], version: str, system: System, epoch: int) -> str:
    """Each component with its package URL, and the system: without it scanners leave out what is Debian's.

    :param epoch: seconds; what is said to be the time of making.
    """
    listed = sorted(components)
    named = hashlib.sha256(repr(listed).encode()).hexdigest()
    base = _package(_SYSTEM, system.distribution, system.release) | {"primaryPackagePurpose": "OPERATING-SYSTEM"}
    packages = [_package(_ROOT, layout.NAME, version), base]
    related = [_relation("SPDXRef-DOCUMENT", "DESCRIBES", _ROOT), _relation(_ROOT, "CONTAINS", _SYSTEM)]
    for one in listed:
        identity = f"SPDXRef-{one.origin}-{_ID.sub('-', one.name)}"
        url = {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": _url(one, system)}
        packages.append(_package(identity, one.name, one.version) | _built(one) | {"externalRefs": [url]})
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


def _built(one: Component) -> dict[str, str]:
    """As Trivy writes and reads it."""
    name, _, version = one.source.partition("@")
    return {"sourceInfo": f"built package from: {name} {version or one.version}"} if name else {}


def _package(identity: str, name: str, version: str) -> dict[str, Any]:
    return {
        "SPDXID": identity,
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
    }


def _relation(element: str, kind: str, other: str) -> dict[str, str]:
    return {"spdxElementId": element, "relationshipType": kind, "relatedSpdxElement": other}
