"""SELinux labels of pods and containers, on a policy that is a double: few hosts have one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engines.base import (
    ContainerSpec,
    NamespaceMode,
    NamespaceOptions,
    SandboxSpec,
    Security,
    SELinux,
    SELinuxLabels,
)
from forgeone_shim.errors import InvalidInput, ResourceExhausted
from forgeone_shim.kernel.selinux import Context, Policy
from forgeone_shim.runtime.labels import Labeller

PROCESS = Context("system_u", "system_r", "container_t", "s0")
FILE = Context("system_u", "object_r", "container_file_t", "s0")


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    (tmp_path / "context").touch()
    return Policy(PROCESS, FILE, tmp_path)


def pod(selinux: SELinux | None = None, **options: NamespaceMode) -> SandboxSpec:
    security = Security(selinux=selinux, namespaces=NamespaceOptions(**options))
    return SandboxSpec(name="p", uid="u", namespace="n", security=security)


def container(selinux: SELinux | None = None, *, privileged: bool = False, **options: NamespaceMode) -> ContainerSpec:
    security = Security(selinux=selinux, privileged=privileged, namespaces=NamespaceOptions(**options))
    return ContainerSpec(name="c", security=security)


def labeller(policy: Policy | None, held: list[SELinuxLabels] | None = None, categories: int = 1024) -> Labeller:
    return Labeller(policy, categories, lambda: held or [])


def test_without_a_policy_nothing_is_labelled() -> None:
    label = labeller(None)
    assert label.pod(pod(SELinux(level="s0:c1,c2"))) == SELinuxLabels()
    assert label.container(SELinuxLabels(), pod(), container(SELinux(type="x"))) == SELinuxLabels()


def test_a_pod_has_two_categories_and_its_containers_have_them_too(policy: Policy) -> None:
    label = labeller(policy)
    labels = label.pod(pod())
    assert labels.process == f"system_u:system_r:container_t:{labels.level}"
    assert labels.mount == f"system_u:object_r:container_file_t:{labels.level}"
    first, second = labels.level.removeprefix("s0:").split(",")
    assert int(first[1:]) < int(second[1:]) < 1024
    assert label.container(labels, pod(), container()) == labels
    assert label.container(labels, pod(), container(SELinux())) == labels


def test_no_two_pods_have_the_same_categories(policy: Policy) -> None:
    held: list[SELinuxLabels] = []
    label = labeller(policy, held, categories=6)
    with ThreadPoolExecutor(8) as threads:
        levels = [found.level for found in threads.map(lambda _: label.pod(pod()), range(15))]
    assert len(set(levels)) == 15
    with pytest.raises(ResourceExhausted, match="all pairs of 6"):
        label.pod(pod())
    label.settle(SELinuxLabels(level=levels[0]))
    assert label.pod(pod()).level == levels[0]


def test_what_a_stored_pod_has_is_not_given_again(policy: Policy) -> None:
    held = [SELinuxLabels(level="s0:c0,c1"), SELinuxLabels(level="s0:c0,c2")]
    label = Labeller(policy, 3, lambda: held)
    assert label.pod(pod()).level == "s0:c1,c2"
    held.pop(0)
    assert label.pod(pod()).level == "s0:c0,c1"


def test_a_level_that_is_asked_for_may_be_shared(policy: Policy) -> None:
    label = labeller(policy, [SELinuxLabels(level="s0:c1,c2")])
    found = label.pod(pod(SELinux(level="s0:c1,c2")))
    assert found.process == "system_u:system_r:container_t:s0:c1,c2"


def test_a_container_keeps_its_pod_s_level_unless_it_names_one(policy: Policy) -> None:
    label = labeller(policy)
    labels = label.pod(pod(SELinux(type="pod_t", level="s0:c1,c2")))
    assert labels.process == "system_u:system_r:pod_t:s0:c1,c2"
    own = label.container(labels, pod(), container(SELinux(type="spc_t", user="me_u", role="me_r")))
    assert own.process == "me_u:me_r:spc_t:s0:c1,c2"
    assert own.mount == "me_u:object_r:container_file_t:s0:c1,c2"
    other = label.container(labels, pod(), container(SELinux(level="s0:c5,c6")))
    assert (other.process, other.mount) == (f"{_text(PROCESS)}:s0:c5,c6", f"{_text(FILE)}:s0:c5,c6")


def _text(context: Context) -> str:
    return f"{context.user}:{context.role}:{context.type}"


NODE = NamespaceMode.NODE


@pytest.mark.parametrize(
    ("sandbox", "spec", "confined"),
    [
        (pod(), container(), True),
        (pod(), container(privileged=True), False),
        (pod(), container(SELinux(type="x_t"), privileged=True), False),
        (pod(pid=NODE), container(pid=NODE), False),
        (pod(ipc=NODE), container(ipc=NODE), False),
        (pod(pid=NODE), container(SELinux(type="x_t"), pid=NODE), True),
        (pod(network=NODE), container(network=NODE), True),
    ],
)
def test_who_runs_unconfined(policy: Policy, sandbox: SandboxSpec, spec: ContainerSpec, confined: bool) -> None:
    label = labeller(policy)
    labels = label.container(label.pod(sandbox), sandbox, spec)
    assert bool(labels.process) is confined
    assert labels.mount


@pytest.mark.parametrize(
    "bad",
    [
        SELinux(type="a:b"),
        SELinux(user="a b"),
        SELinux(role="r\n"),
        SELinux(level="s0:c1,c2:x"),
        SELinux(level="c1"),
        SELinux(level="s0:c1 c2"),
        SELinux(level="s0:c12345"),
    ],
)
def test_what_is_no_label_is_refused(policy: Policy, bad: SELinux) -> None:
    with pytest.raises(InvalidInput, match="selinux_options"):
        labeller(policy).pod(pod(bad))


def test_a_label_the_policy_does_not_know_is_refused_and_gives_its_level_back(tmp_path: Path) -> None:
    # The file takes no writes, as the kernel's takes none of an unknown label.
    (tmp_path / "context").symlink_to("/dev/full")
    label = Labeller(Policy(PROCESS, FILE, tmp_path), 2, list)
    with pytest.raises(InvalidInput, match="is no label of the loaded policy"):
        label.pod(pod(SELinux(type="unheard_of_t")))
    assert label.pod(pod()).level == "s0:c0,c1"


def test_a_policy_without_levels_has_none(tmp_path: Path) -> None:
    (tmp_path / "context").touch()
    plain = Policy(Context("u", "r", "p_t"), Context("u", "object_r", "f_t"), tmp_path)
    assert labeller(plain).pod(pod()) == SELinuxLabels(process="u:r:p_t", mount="u:object_r:f_t")
