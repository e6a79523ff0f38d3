"""What of the host's a machine is given, as its file server will find it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from engines.base import Mount, Propagation
from engines.microvm import volumes
from engines.microvm.volumes import Shared
from forgeone_shim.kernel import mounts

pytestmark = pytest.mark.root


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A mount that hands on what happens below it, with another one below it."""
    top = tmp_path / "top"
    top.mkdir()
    mounts.bind(top, top)
    subprocess.run(["mount", "--make-shared", str(top)], check=True)
    for name in ("inner", "later"):
        (top / name).mkdir()
    mounts.mount_tmpfs(top / "inner", 1 << 20, 0o755)
    yield top
    for point in mounts.mounts_below(top):
        mounts.unmount(point)


def opened(stack: ExitStack, shared: Shared) -> str:
    place = volumes.Place(volumes.messages.Mount(kind=volumes.MountKind.SHARE, destination="/x"), shared)
    return f"/proc/self/fd/{volumes.opened([place], stack)[shared]}"


def test_what_is_mounted_later_is_seen_only_where_that_was_asked_for(tree: Path) -> None:
    with ExitStack() as stack:
        private, live = (opened(stack, Shared(str(tree), readonly=False, live=live)) for live in (False, True))
        mounts.mount_tmpfs(tree / "later", 1 << 20, 0o755)
        (tree / "later" / "flag").touch()
        assert os.listdir(f"{private}/later") == []
        assert os.listdir(f"{live}/later") == ["flag"]


def test_a_volume_that_a_machine_has_can_be_unmounted(tree: Path) -> None:
    with ExitStack() as stack:
        held = opened(stack, Shared(str(tree), readonly=False))
        (tree / "inner" / "file").write_text("x")
        mounts.unmount(tree / "inner", detach=False)
        assert Path(held, "inner", "file").read_text() == "x"


def test_what_is_mounted_below_a_read_only_volume_is_not_unless_that_was_asked_for(tree: Path) -> None:
    asked = Mount("/x", str(tree), readonly=True)
    assert volumes.look([Mount("/y", str(tree)), asked])[str(tree)].nested
    assert not volumes.look([Mount("/x", str(tree / "later"), readonly=True)])[str(tree / "later")].nested
    with ExitStack() as stack:
        held = opened(stack, Shared(str(tree), readonly=False, top_readonly=True))
        Path(held, "inner", "file").touch()
        with pytest.raises(OSError, match="Read-only"):
            Path(held, "file").touch()
    assert asked.propagation is Propagation.PRIVATE
