"""Which images engines get ready for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engines.base import Engine, Features, ImagePlan
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.fs.rootfs import RootfsStore
from forgeone_shim.registry.model import Image, ImageConfig
from forgeone_shim.runtime.readiness import Readiness

BARE = Image(id="bare", module="/hello.wasm", layers=("sha256:a",))
COMPAT = Image(
    id="compat", os="wasi", architecture="wasm", layers=("x", "y"), config=ImageConfig(entrypoint=("/app.wasm", "-v"))
)
LINUX = Image(id="linux", architecture="amd64", config=ImageConfig(cmd=("sh",)), layers=("x",))
EMPTY = Image(id="empty", architecture="amd64")


class Ready:
    """Keeps what it is asked."""

    def __init__(self, *, own_kernel: bool = False) -> None:
        self._features = Features(own_kernel=own_kernel)
        self.plans: list[ImagePlan] = []
        self.kept: list[set[str]] = []
        self.fail = False

    def features(self) -> Features:
        return self._features

    def prepare_image(self, image: ImagePlan, _deadline: Deadline) -> None:
        self.plans.append(image)
        if self.fail:
            raise FailedPrecondition("it is malformed")

    def retain_images(self, ids: Collection[str]) -> None:
        self.kept.append(set(ids))


@pytest.fixture
def wasm() -> Ready:
    return Ready()


class Mounts:
    """Layers mounted together."""

    @contextmanager
    def merged(self, layers: Sequence[str]) -> Iterator[Path]:
        yield Path("/merged", *layers)


def readiness(**engines: Ready) -> Readiness:
    layers: Any = SimpleNamespace(path=lambda diff_id: Path("/layers", diff_id, "fs"))
    return Readiness(cast("dict[str, Engine]", engines), layers, cast("RootfsStore", Mounts()))


def test_the_engine_of_modules_gets_ready_for_modules_alone(wasm: Ready) -> None:
    native = Ready()
    ready = readiness(native=native, wasm=wasm)
    for image in (BARE, COMPAT, LINUX, EMPTY):
        ready.arrived(image, NEVER)
    assert native.plans == []
    assert wasm.plans == [
        ImagePlan(image_id="bare", layers=("/layers/sha256:a/fs",), args=("hello.wasm",), module="/hello.wasm"),
        ImagePlan(image_id="compat", layers=("/layers/x/fs", "/layers/y/fs"), args=("/app.wasm", "-v")),
    ]


def test_without_that_engine_nothing_is_to_do() -> None:
    readiness(native=Ready()).arrived(BARE, NEVER)


def test_every_engine_is_told_what_remains(wasm: Ready) -> None:
    native = Ready()
    readiness(native=native, wasm=wasm).remaining(["a", "b"])
    assert native.kept == wasm.kept == [{"a", "b"}]


def test_one_image_that_cannot_be_run_keeps_no_other_from_getting_ready(wasm: Ready) -> None:
    wasm.fail = True
    readiness(wasm=wasm).all([BARE, COMPAT], NEVER)
    assert [plan.image_id for plan in wasm.plans] == ["bare", "compat"]


def test_getting_ready_ends_with_the_daemon(wasm: Ready) -> None:
    over = Deadline()
    over.abandon()
    readiness(wasm=wasm).all([BARE, COMPAT], over)
    assert wasm.plans == []


def test_an_engine_whose_pods_have_kernels_gets_the_images_that_are_for_them_mounted(wasm: Ready) -> None:
    machines, native = Ready(own_kernel=True), Ready()
    ready = readiness(native=native, wasm=wasm, microvm=machines)
    for engine in ("native", "microvm", "gone"):
        ready.wanted(LINUX, engine, NEVER)
    machines.fail = True
    ready.wanted(LINUX, "microvm", NEVER)
    assert native.plans == wasm.plans == []
    assert [plan.rootfs for plan in machines.plans] == ["/merged/x"] * 2
