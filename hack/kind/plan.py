"""Which commands bring a cluster up, fill it, test it and take it down, and what undoes each: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hack.kind.settings import REGISTRY_PORT, Settings

RELEASE: Final = "forgeone"
NAMESPACE: Final = "forgeone-system"
NETWORK: Final = "kind"
"""The network of Docker that kind's nodes are in."""
QEMU: Final = "qemu-system-x86"
CHART: Final = "charts/forgeone"
TESTS: Final = "tests/e2e/cluster"
_ARCHIVE: Final = "/var/lib/forgeone-kind.tar"
"""On a node, while its images are read. /tmp is in memory there, and `docker cp` does not see that."""


@dataclass(frozen=True, slots=True)
class Step:
    """A command; ``undo`` takes back what it did, where a later one fails."""

    argv: tuple[str, ...]
    undo: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the files of a cluster are on this host."""

    directory: Path

    @property
    def settings(self) -> Path:
        """What the cluster was made by."""
        return self.directory / "settings.json"

    @property
    def kubeconfig(self) -> Path:
        """For kubectl and the tests."""
        return self.directory / "kubeconfig"

    @property
    def cluster(self) -> Path:
        """kind's configuration."""
        return self.directory / "cluster.yaml"

    @property
    def values(self) -> Path:
        """The chart's."""
        return self.directory / "values.yaml"

    @property
    def context(self) -> Path:
        """What the node image is built from."""
        return self.directory / "image"


def image(settings: Settings, version: str) -> str:
    """The image of the nodes."""
    if settings.mode == "installer":
        return settings.base
    tag = settings.base.rpartition(":")[2].partition("@")[0]
    return f"forgeone/node:{version}-{tag}-{settings.mode}{'-microvm' if settings.microvm else ''}"


def up(settings: Settings, place: Place, version: str) -> list[Step]:
    """Image, registry, nodes."""
    nodes = image(settings, version)
    steps = []
    if settings.mode != "installer":
        arguments = {"BASE": settings.base, "VERSION": version, "MODE": settings.mode}
        arguments |= {"PACKAGES": QEMU} if settings.microvm else {}
        words = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        steps.append(Step(("docker", "build", "--tag", nodes, *words, str(place.context))))
    published = f"{settings.registry_outside}:{REGISTRY_PORT}"
    registry = ("docker", "run", "--detach", "--restart", "unless-stopped", "--name", settings.registry)
    kubeconfig = ("--kubeconfig", str(place.kubeconfig))
    kind = ("kind", "create", "cluster", "--config", str(place.cluster), "--image", nodes, *kubeconfig)
    return [
        *steps,
        Step(
            (*registry, "--publish", published, settings.registry_image),
            undo=_remove(settings.registry),
        ),
        Step((*kind, "--wait", "300s"), undo=("kind", "delete", "cluster", "--name", settings.name, *kubeconfig)),
        Step(("docker", "network", "connect", NETWORK, settings.registry)),
    ]


def boot_set(python: str, place: Place) -> Step:
    """What machines on the nodes boot, made of this host's kernel or the one that `make setup` has fetched."""
    words = ("-m", "forgeone_shim.cli.main", "microvm", "build", "--output-dir", str(place.context / "boot"))
    return Step((python, *words))


def load(settings: Settings, archive: Path, *, containerd: bool = True) -> list[Step]:
    """The images of an archive (an OCI image layout, as `docker save` writes it), to every node.

    Args:
        containerd: To containerd's images as well, for pods that it runs.
    """
    steps = []
    if containerd and settings.mode != "replace":
        steps.append(Step(("kind", "load", "image-archive", str(archive), "--name", settings.name)))
    for node in settings.nodes:
        remove = ("docker", "exec", node, "rm", "--force", _ARCHIVE)
        steps += [
            Step(("docker", "cp", str(archive), f"{node}:{_ARCHIVE}"), undo=remove),
            Step(("docker", "exec", node, "/opt/forgeone/current/bin/forge", "images", "import", _ARCHIVE)),
            Step(remove),
        ]
    return steps


def save(images: Sequence[str], archive: Path) -> Step:
    """Images of this host's Docker, to an archive."""
    return Step(("docker", "save", "--output", str(archive), *images), undo=("rm", "--force", str(archive)))


def install(settings: Settings, place: Place, archive: Path) -> list[Step]:
    """The chart, whose image ``archive`` holds."""
    if settings.mode == "installer":
        brought = [Step(("kind", "load", "image-archive", str(archive), "--name", settings.name))]
    else:
        brought = load(settings, archive)
    words = ("upgrade", "--install", RELEASE, CHART, "--namespace", NAMESPACE, "--create-namespace")
    options = ("--kubeconfig", str(place.kubeconfig), "--values", str(place.values), "--wait", "--timeout", "15m")
    return [*brought, Step(("helm", *words, *options))]


def test(settings: Settings, place: Place, python: str, arguments: Sequence[str]) -> Step:
    """The tests of a cluster, against this one."""
    environment = {
        "KUBECONFIG": str(place.kubeconfig),
        "LAB_REGISTRY": settings.registry_outside,
        "LAB_REGISTRY_INSIDE": settings.registry_inside,
        "LAB_REBOOT": "docker restart",
    }
    return Step((python, "-m", "pytest", "-p", "no:cacheprovider", TESTS, *arguments), env=environment)


def down(settings: Settings, place: Place) -> list[Step]:
    """Nothing of the cluster is left on this host but the image of its nodes."""
    kubeconfig = ("--kubeconfig", str(place.kubeconfig))
    return [
        Step(("kind", "delete", "cluster", "--name", settings.name, *kubeconfig)),
        Step(_remove(settings.registry)),
    ]


def _remove(container: str) -> tuple[str, ...]:
    return ("docker", "rm", "--force", "--volumes", container)
