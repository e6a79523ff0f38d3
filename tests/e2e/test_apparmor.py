"""AppArmor as the kernel enforces it. Needs a host whose kernel has it on, and apparmor_parser; skips elsewhere."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cri.api import runtime_pb2 as pb
from hack.lab.daemon import Daemon
from tests.e2e.pods import Pod

PROFILES = Path("/sys/kernel/security/apparmor/profiles")
LACKING = (
    "this kernel has no AppArmor"
    if not PROFILES.exists()
    else "apparmor_parser is not installed"
    if shutil.which("apparmor_parser") is None
    else ""
)
pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(LACKING), reason=LACKING)]

CURRENT = ("cat", "/proc/self/attr/current")
DEFAULT = "forgeone-default (enforce)"


@pytest.fixture(scope="module")
def image(forgeoned: Daemon, busybox: str) -> str:
    forgeoned.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=busybox)), timeout=60)
    return busybox


@pytest.fixture
def pod(forgeoned: Daemon) -> Iterator[Pod]:
    pod = Pod.plan(forgeoned)
    pod.config.linux.security_context.privileged = True
    pod.run()
    yield pod
    pod.remove()


@pytest.fixture
def named() -> Iterator[str]:
    """A profile that denies writes below /tmp, loaded for one test."""
    name = f"forgeone-test-{secrets.token_hex(4)}"
    text = f"profile {name} flags=(attach_disconnected,mediate_deleted) {{\n  file,\n  deny /tmp/** w,\n}}\n"
    subprocess.run(["apparmor_parser", "-aK"], input=text, text=True, check=True, timeout=60)
    yield name
    subprocess.run(["apparmor_parser", "-RK"], input=text, text=True, check=True, timeout=60)


def run(pod: Pod, image: str, *command: str, type_: int | None = None, ref: str = "", privileged: bool = False) -> str:
    config = pod.container(image, *command, name=f"c{secrets.token_hex(3)}")
    config.linux.security_context.privileged = privileged
    if type_ is not None:
        config.linux.security_context.apparmor.profile_type = type_
        config.linux.security_context.apparmor.localhost_ref = ref
    id_ = pod.start(config)
    pod.wait(id_)
    return pod.log(id_).strip()


@pytest.mark.parametrize("type_", [None, pb.SecurityProfile.RuntimeDefault])
def test_a_container_is_in_the_default_profile(pod: Pod, image: str, type_: int | None) -> None:
    assert run(pod, image, *CURRENT, type_=type_) == DEFAULT


def test_an_exec_is_in_its_container_s_profile(pod: Pod, image: str) -> None:
    id_ = pod.start(pod.container(image))
    assert pod.exec(id_, *CURRENT).stdout.decode().strip() == DEFAULT


def test_unconfined_and_privileged_containers_are_in_none(pod: Pod, image: str) -> None:
    own = Path("/proc/self/attr/current").read_text().strip()
    assert run(pod, image, *CURRENT, type_=pb.SecurityProfile.Unconfined) == own
    assert run(pod, image, *CURRENT, privileged=True) == own


def test_the_default_denies_mounts_and_the_kernel_s_knobs(pod: Pod, image: str) -> None:
    config = pod.container(
        image, "sh", "-c", "mount -t tmpfs x /mnt || echo no mount; echo 1 > /proc/sys/vm/drop_caches"
    )
    config.linux.security_context.capabilities.add_capabilities.append("SYS_ADMIN")
    id_ = pod.start(config)
    assert pod.wait(id_).exit_code != 0
    assert "no mount" in pod.log(id_)


def test_a_named_profile_is_enforced(pod: Pod, image: str, named: str) -> None:
    localhost = pb.SecurityProfile.Localhost
    assert run(pod, image, *CURRENT, type_=localhost, ref=named) == f"{named} (enforce)"
    found = run(
        pod, image, "sh", "-c", "touch /root/x && echo one; touch /tmp/x || echo denied", type_=localhost, ref=named
    )
    assert "one" in found
    assert "denied" in found


def test_a_profile_that_is_not_loaded_is_refused_and_leaves_nothing(forgeoned: Daemon, pod: Pod, image: str) -> None:
    before = forgeoned.left()
    with pytest.raises(grpc.RpcError, match="is not loaded on this host") as raised:
        run(pod, image, "true", type_=pb.SecurityProfile.Localhost, ref="forgeone-no-such-profile")
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert forgeoned.left(expected=before) == before


def test_the_default_comes_back_when_it_was_removed(pod: Pod, image: str) -> None:
    subprocess.run(
        ["apparmor_parser", "-RK"], input="profile forgeone-default {\n}\n", text=True, check=True, timeout=60
    )
    assert run(pod, image, *CURRENT) == DEFAULT
