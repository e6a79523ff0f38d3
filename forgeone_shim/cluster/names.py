"""What ZTAPolicy objects are called at an API server. Imports nothing: the watch's process is to stay small."""

from __future__ import annotations

from typing import Final

GROUP: Final = "zta.forgeone.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "ZTAPolicy"
PLURAL: Final = "ztapolicies"
CRD_NAME: Final = f"{PLURAL}.{GROUP}"

ACCEPTED: Final = "Accepted"
"""The condition that says whether nodes can use a policy."""
