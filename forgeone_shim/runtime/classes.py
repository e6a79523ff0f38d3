"""What a pod's annotations say about how its containers run: resource classes, and the older form of AppArmor. Pure.

The classes' names are goresctrl's, which containerd and CRI-O read too. They choose among what the node's administrator
has prepared, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from engines.base import ContainerSpec, Profile, ProfileType, SandboxSpec
from forgeone_shim.errors import InvalidInput

RDT, BLOCKIO = "rdt", "blockio"
APPARMOR = "container.apparmor.security.beta.kubernetes.io/"
_LOCALHOST = "localhost/"
_PROFILES = {
    "runtime/default": Profile(ProfileType.RUNTIME_DEFAULT),
    "docker/default": Profile(ProfileType.RUNTIME_DEFAULT),
    "unconfined": Profile(ProfileType.UNCONFINED),
}


def name(kind: str, sandbox: SandboxSpec, spec: ContainerSpec) -> str:
    """The class of :data:`RDT` or :data:`BLOCKIO` for a container; the nearest word to it counts, empty is none."""
    prefix = f"{kind}.resources.beta.kubernetes.io"
    return _first(
        (spec.annotations, f"io.kubernetes.cri.{kind}-class"),
        (sandbox.annotations, f"{prefix}/container.{spec.name}"),
        (sandbox.annotations, f"{prefix}/pod"),
    )


def _first(*places: tuple[Mapping[str, str], str]) -> str:
    return next((given[key] for given, key in places if key in given), "")


def apparmor(sandbox: SandboxSpec, spec: ContainerSpec) -> Profile | None:
    """The profile asked for: in its field, or else in the annotation that kubelets before 1.30 knew."""
    asked = spec.security.apparmor
    key = f"{APPARMOR}{spec.name}"
    text = sandbox.annotations.get(key, "")
    if asked is not None or not text:
        return asked
    if text.startswith(_LOCALHOST) and text != _LOCALHOST:
        return Profile(ProfileType.LOCALHOST, text.removeprefix(_LOCALHOST))
    if text not in _PROFILES:
        fix = "runtime/default, unconfined or localhost/<profile>"
        raise InvalidInput(f"annotations[{key}]", f"{text!r} is no profile", fix=fix)
    return _PROFILES[text]


def applied(sandbox: SandboxSpec, spec: ContainerSpec) -> ContainerSpec:
    """The spec with what the pod's annotations say about it."""
    profile = apparmor(sandbox, spec)
    return (
        spec if profile is spec.security.apparmor else replace(spec, security=replace(spec.security, apparmor=profile))
    )
