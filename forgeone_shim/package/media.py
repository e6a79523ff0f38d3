"""What the parts of a package are called on the wire."""

from __future__ import annotations

from typing import Final

ARTIFACT: Final = "application/vnd.forgeone.package.v1"
"""``artifactType`` of a package's OCI manifest."""

CONFIG: Final = "application/vnd.forgeone.package.config.v1+json"
"""The package's own manifest, as the OCI manifest's config."""

MODULE: Final = "application/wasm"
"""The module or component, as it is: no archive, not compressed (as CNCF's wasm artifacts have it)."""

ASSETS: Final = "application/vnd.oci.image.layer.v1.tar"
"""Files that lie beside the module; not compressed, since no two compressors give the same bytes."""

SBOMS: Final = ("application/spdx+json", "application/vnd.cyclonedx+json")
"""A software bill of materials; it is carried, and not looked into."""

SIGNATURE: Final = "application/vnd.dsse.envelope.v1+json"
"""The DSSE envelope over config and layers."""
