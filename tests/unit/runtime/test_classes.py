"""What a pod's annotations say about its containers."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from engines.base import ContainerSpec, Profile, ProfileType, SandboxSpec, Security
from forgeone_shim.errors import InvalidInput
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


@pytest.mark.parametrize(
    ("text", "profile"),
    [
        ("runtime/default", Profile(ProfileType.RUNTIME_DEFAULT)),
        ("unconfined", Profile(ProfileType.UNCONFINED)),
        ("localhost/mine", Profile(ProfileType.LOCALHOST, "mine")),
    ],
)
def test_an_annotation_of_older_kubelets_names_the_profile(text: str, profile: Profile) -> None:
    spec = ContainerSpec(name="c")
    annotated = pod({"container.apparmor.security.beta.kubernetes.io/c": text})
    assert classes.applied(annotated, spec).security.apparmor == profile
    assert classes.applied(annotated, ContainerSpec(name="d")).security.apparmor is None
    own = ContainerSpec(name="c", security=Security(apparmor=Profile(ProfileType.LOCALHOST, "own")))
    assert classes.applied(annotated, own) is own


@pytest.mark.parametrize("text", ["mine", "localhost/", "Unconfined"])
def test_an_annotation_that_names_no_profile_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"annotations\[container\.apparmor"):
        classes.applied(pod({"container.apparmor.security.beta.kubernetes.io/c": text}), ContainerSpec(name="c"))


def test_a_plain_container_stays_as_it_is() -> None:
    spec = ContainerSpec(name="c")
    assert classes.applied(pod({}), spec) is spec
