"""The chart's generated files, by their paths in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from cri.admission import policy
from forgeone_shim.cluster import crd
from hack.chart import readme, schema


def files(chart: Path) -> Mapping[str, str]:
    """Each file's text; what is written by hand in the README is kept."""
    values = (chart / "values.yaml").read_text()
    return {
        "files/crd.yaml": crd.manifest(),
        "files/admission.yaml": policy.text(),
        "values.schema.json": json.dumps(schema.values(), indent=2) + "\n",
        "README.md": readme.page((chart / "README.md").read_text(), values),
    }
