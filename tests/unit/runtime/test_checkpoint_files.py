"""Whose checkpoints are restored, and what of a container must be as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from engines.base import NamespaceMode, NamespaceOptions, Profile, ProfileType, Security
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.runtime import checkpoint_files as files
from forgeone_shim.runtime.checkpoint_files import SavedContainer, SavedPod

SECURITY = Security(add_capabilities=("NET_ADMIN",), seccomp=Profile(ProfileType.RUNTIME_DEFAULT))


def saved(directory: Path) -> SavedPod:
    home = directory / files.CONTAINERS / "0"
    (home / files.IMAGES).mkdir(parents=True)
    (home / files.DIFF).touch()
    (home / files.IMAGES / "core-1.img").touch()
    one = SavedContainer(
        name="c",
        directory="0",
        image_id="i",
        args=("sh",),
        cwd="/",
        uid=0,
        gid=0,
        groups=(),
        confined=files.confinement(SECURITY),
    )
    pod = SavedPod(format=files.FORMAT, engine="native", name="p", namespace="n", containers=(one,))
    files.write_pod(directory, pod)
    return pod


def test_a_checkpoint_of_roots_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = saved(tmp_path)
    assert files.read_pod(tmp_path) == written


@pytest.mark.parametrize(
    "path", ["", "pod.json", "containers", "containers/0", "containers/0/images", "containers/0/images/core-1.img"]
)
def test_a_checkpoint_that_others_can_write_is_refused(tmp_path: Path, path: str) -> None:
    saved(tmp_path)
    (tmp_path / path).chmod(0o777)
    with pytest.raises(FailedPrecondition, match="by everybody"):
        files.read_pod(tmp_path)


def test_a_checkpoint_that_others_can_replace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    saved(tmp_path / "below")
    tmp_path.chmod(0o777)
    with pytest.raises(FailedPrecondition, match="by everybody"):
        files.read_pod(tmp_path / "below")


def test_a_checkpoint_with_a_part_missing_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "containers/0" / files.DIFF).unlink()
    with pytest.raises(InvalidInput, match="is not whole"):
        files.read_pod(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"privileged": True},
        {"no_new_privs": True},
        {"add_capabilities": ()},
        {"drop_capabilities": ("ALL",)},
        {"add_ambient_capabilities": ("NET_ADMIN",)},
        {"seccomp": None},
        {"seccomp": Profile(ProfileType.LOCALHOST, "/p.json")},
        {"apparmor": Profile(ProfileType.UNCONFINED)},
        {"namespaces": NamespaceOptions(user=NamespaceMode.POD)},
    ],
)
def test_whatever_confines_a_container_is_compared(change: Mapping[str, object]) -> None:
    changed = replace(SECURITY, **change)  # type: ignore[arg-type]
    assert files.confinement(changed) != files.confinement(SECURITY)
    assert files.confinement(replace(SECURITY, run_as_user=5)) == files.confinement(SECURITY)
