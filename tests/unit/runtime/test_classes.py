"""What a pod's annotations say about its containers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from engines.base import ContainerSpec, SandboxSpec
from forgeone_shim.runtime import classes


def pod(annotations: Mapping[str, str]) -> SandboxSpec:
    return SandboxSpec(name="p", uid="u", namespace="n", annotations=annotations)


@pytest.mark.parametrize("kind", [classes.RDT, classes.BLOCKIO])
def test_the_word_nearest_to_the_container_counts(kind: str) -> None:
    whole = {f"{kind}.resources.beta.kubernetes.io/pod": "all"}
    one = whole | {f"{kind}.resources.beta.kubernetes.io/container.c": "one"}
    own = {f"io.kubernetes.cri.{kind}-class": "own"}
    spec = ContainerSpec(name="c")
    assert classes.name(kind, pod({}), spec) == ""
    assert classes.name(kind, pod(whole), spec) == "all"
    assert classes.name(kind, pod(one), spec) == "one"
    assert classes.name(kind, pod(one), ContainerSpec(name="d")) == "all"
    assert classes.name(kind, pod(one), ContainerSpec(name="c", annotations=own)) == "own"


def test_no_annotation_says_how_a_container_is_confined() -> None:
    """A policy that looks at CRI's fields alone must see all of it."""
    root = Path(__file__).parents[3]
    sources = [path for room in ("cri", "forgeone_shim", "engines") for path in (root / room).rglob("*.py")]
    assert len(sources) > 100
    assert not [path for path in sources if b"apparmor.security.beta" in path.read_bytes()]
