"""The chart as the real helm renders it."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts/forgeone"
HELM = Path(sys.executable).parent / "helm"
CASES = sorted(path.name for path in (CHART / "ci").glob("*.yaml"))
RELEASE, NAMESPACE = "pool", "forgeone-system"
OLDEST, NEWEST = "1.30", "1.37"

Object = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, timeout=60, check=False)


@functools.cache
def _rendered(case: str, values: str, kube: str) -> list[Object]:
    arguments = ["template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--kube-version", kube]
    arguments += ["--values", str(CHART / "ci" / (case or "default.yaml"))]
    made = helm(*arguments, "--set-json", values) if values else helm(*arguments)
    if made.returncode:
        raise ValueError(made.stderr)
    return [found for found in yaml.load_all(made.stdout, Loader=yaml.CSafeLoader) if found]


def render(case: str = "", kube: str = NEWEST, **values: object) -> list[Object]:
    """The objects of one of the ci files, else of the default one, with top-level values besides; not to be changed."""
    text = ",".join(f"{key}={json.dumps(value)}" for key, value in values.items())
    return _rendered(case, text, kube)


def refusal(**values: object) -> str:
    """Why helm does not take these values."""
    try:
        render(**values)  # type: ignore[arg-type]
    except ValueError as error:
        return str(error)
    return ""


def of(objects: list[Object], kind: str, end: str = "") -> Object:
    """The one object of a kind whose name ends so."""
    [found] = [one for one in objects if one["kind"] == kind and one["metadata"]["name"].endswith(end)]
    return found


def kinds(objects: list[Object], *wanted: str) -> list[Object]:
    return [one for one in objects if one["kind"] in wanted]


def pods(objects: list[Object]) -> list[tuple[str, Object, Object]]:
    """Every pod, or template of one: the name of its owner, its metadata, its spec."""
    found = []
    for one in objects:
        if one["kind"] == "Pod":
            found.append((one["metadata"]["name"], one["metadata"], one["spec"]))
        elif "template" in one.get("spec", {}):
            template = one["spec"]["template"]
            found.append((one["metadata"]["name"], template["metadata"], template["spec"]))
    return found
