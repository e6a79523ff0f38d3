from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.base import ContainerPlan, ContainerSpec, Mount, Namespaces, Process, User
from engines.wasm import modules
from engines.wasm.modules import Wanted
from forgeone_shim.errors import InvalidInput


def _plan(rootfs: Path, *args: str, mounts: tuple[Mount, ...] = (), cwd: str = "/") -> ContainerPlan:
    return ContainerPlan(
        container_id="c",
        sandbox_id="s",
        bundle="/b",
        rootfs=str(rootfs),
        exits="/e",
        log_path="",
        hostname="h",
        cgroup="/c",
        process=Process(args=args, env=("PATH=/bin:/usr/bin",), cwd=cwd, user=User()),
        namespaces=Namespaces(network=None, ipc=None, uts=None, pid=None),
        pod_mounts=(),
        spec=ContainerSpec(name="main", mounts=mounts),
    )


def _found(plan: ContainerPlan) -> tuple[str, bytes]:
    choice = modules.wanted(plan.process.args, plan.process.env, plan.process.cwd, plan.module)
    found = modules.find(plan, choice)
    try:
        return found.path, os.pread(found.fd, 100, 0)
    finally:
        os.close(found.fd)


@pytest.mark.parametrize(
    ("args", "cwd", "module", "expected"),
    [
        (["/app.wasm"], "/", "", Wanted(("/app.wasm",), "")),
        (["/app.wasm#run", "x"], "/", "", Wanted(("/app.wasm",), "run")),
        (["./app.wasm"], "/srv", "", Wanted(("/srv/./app.wasm",), "")),
        (["app.wasm"], "/srv", "", Wanted(("/a/app.wasm", "/srv/rel/app.wasm", "/srv/app.wasm"), "")),
        (["whatever#f"], "/srv", "/module.wasm", Wanted(("/module.wasm",), "f")),
        ([], "/", "module.wasm", Wanted(("/module.wasm",), "")),
    ],
)
def test_an_argument_vector_names_a_module(args: list[str], cwd: str, module: str, expected: Wanted) -> None:
    assert modules.wanted(args, ["PATH=/a:rel"], cwd, module) == expected


@pytest.mark.parametrize("args", [[], [""], ["#f"], ["a\0b"]])
def test_no_name_is_refused(args: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        modules.wanted(args, [], "/")
    assert caught.value.field == modules.FIELD


def test_symlinks_stay_in_the_root(tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs"
    (rootfs / "bin").mkdir(parents=True)
    (rootfs / "bin/real.wasm").write_bytes(b"real")
    (rootfs / "bin/app").symlink_to("/bin/real.wasm")
    (rootfs / "bin/out").symlink_to("../../../outside")
    (tmp_path / "outside").write_bytes(b"secret")
    assert _found(_plan(rootfs, "app")) == ("/bin/app", b"real")
    with pytest.raises(InvalidInput, match="not found"):
        _found(_plan(rootfs, "out"))
    with pytest.raises(InvalidInput, match="not found"):
        _found(_plan(rootfs, "/../outside"))


def test_what_is_mounted_hides_what_is_below_it(tmp_path: Path) -> None:
    rootfs, volume = tmp_path / "rootfs", tmp_path / "volume"
    (rootfs / "data/deep").mkdir(parents=True)
    volume.mkdir()
    (rootfs / "data/app.wasm").write_bytes(b"image")
    (volume / "app.wasm").write_bytes(b"volume")
    single = tmp_path / "single"
    single.write_bytes(b"single")
    mounts = (Mount("/data", str(volume)), Mount("/data/one.wasm", str(single)))
    assert _found(_plan(rootfs, "/data/app.wasm"))[1] == b"image"
    assert _found(_plan(rootfs, "/data/app.wasm", mounts=mounts))[1] == b"volume"
    assert _found(_plan(rootfs, "/data/one.wasm", mounts=mounts))[1] == b"single"
    assert _found(_plan(rootfs, "/database/../data/app.wasm", mounts=mounts))[1] == b"volume"


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "bin/app").mkdir(parents=True)
    os.mkfifo(tmp_path / "bin/fifo")
    for name in ("/bin/app", "/bin/fifo"):
        with pytest.raises(InvalidInput):
            _found(_plan(tmp_path, name))
