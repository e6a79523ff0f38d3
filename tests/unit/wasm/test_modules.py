from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.base import ContainerPlan, ImagePlan, Mount
from engines.wasm import modules
from engines.wasm.modules import Wanted
from forgeone_shim.errors import InvalidInput
from tests.unit.wasm.planning import plan

WASM = b"\0asm\1\0\0\0"


def _plan(rootfs: Path, *args: str, mounts: tuple[Mount, ...] = (), cwd: str = "/") -> ContainerPlan:
    return plan(*args, env=("PATH=/bin:/usr/bin",), cwd=cwd, rootfs=str(rootfs), mounts=mounts)


def _found(of: ContainerPlan) -> tuple[str, bytes]:
    choice = modules.wanted(of.process.args, of.process.env, of.process.cwd, of.module)
    found = modules.find(of, choice)
    try:
        return found.path, os.pread(found.fd, 100, 0).removeprefix(WASM)
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
    (rootfs / "bin/real.wasm").write_bytes(WASM + b"real")
    (rootfs / "bin/app").symlink_to("/bin/real.wasm")
    (rootfs / "bin/out").symlink_to("../../../outside")
    (tmp_path / "outside").write_bytes(WASM + b"secret")
    assert _found(_plan(rootfs, "app")) == ("/bin/app", b"real")
    with pytest.raises(InvalidInput, match="not found"):
        _found(_plan(rootfs, "out"))
    with pytest.raises(InvalidInput, match="not found"):
        _found(_plan(rootfs, "/../outside"))


def test_what_is_mounted_hides_what_is_below_it(tmp_path: Path) -> None:
    rootfs, volume = tmp_path / "rootfs", tmp_path / "volume"
    (rootfs / "data/deep").mkdir(parents=True)
    volume.mkdir()
    (rootfs / "data/app.wasm").write_bytes(WASM + b"image")
    (volume / "app.wasm").write_bytes(WASM + b"volume")
    single = tmp_path / "single"
    single.write_bytes(WASM + b"single")
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


def test_what_is_no_module_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "sh").write_bytes(b"\x7fELF")
    with pytest.raises(InvalidInput, match="'/sh' is no WebAssembly module"):
        _found(_plan(tmp_path, "/sh"))


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (WASM, True),
        (b"\0asm\x0d\0\1\0", True),
        (b"  (module)", True),
        (b"#!/bin/sh", False),
        (b"\x7fELF", False),
        (b"", False),
    ],
)
def test_a_module_is_told_by_how_it_begins(tmp_path: Path, head: bytes, expected: bool) -> None:
    (tmp_path / "f").write_bytes(head)
    with (tmp_path / "f").open("rb") as file:
        assert modules.is_wasm(file.fileno()) is expected


def test_the_module_of_an_image_is_that_of_its_highest_layer(tmp_path: Path) -> None:
    low, high = tmp_path / "low", tmp_path / "high"
    for layer, text in ((low, b"low"), (high, b"high")):
        layer.mkdir()
        (layer / "app.wasm").write_bytes(WASM + text)
    (low / "only.wasm").write_bytes(WASM + b"only")
    for args, module, expected in (
        (("/app.wasm",), "", b"high"),
        (("only.wasm",), "", b"only"),
        ((), "/app.wasm", b"high"),
    ):
        fd = modules.in_layers(ImagePlan(image_id="i", layers=(str(low), str(high)), args=args, module=module))
        assert os.pread(fd, 100, len(WASM)) == expected
        os.close(fd)
    assert modules.in_layers(ImagePlan(image_id="i", layers=(str(low),), args=("/none",))) == -1
    assert modules.in_layers(ImagePlan(image_id="i", layers=(str(low),), args=())) == -1
